import csv
import dataclasses
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.corpus.layouts import read_corpus
from utils.errors import UserError
from utils.features.store import FeatureStore, Row
from utils.lists import Trial, read_identification, read_speakers, read_trials, trial_lines
from utils.speaker.protocol import check_disjoint, make_protocol, make_trials, read_protocol, write_protocol
from utils.tts.text_lists import write_text_lists

PARTS = ("train", "valid", "utterance_test", "chapter_test")


def rows_of(chapters: dict[str, list[int]], split: str = "a") -> list[Row]:
    """Rows of speakers with chapters of the given numbers of utterances of 1 to 2 s."""
    return [
        Row(f"{s}-{c}-{u:03d}", f"{split}/{s}/{c}/{s}-{c}-{u:03d}.flac", split, s, str(c), "", None, 1 + u % 7 / 7, 100)
        for s, sizes in chapters.items()
        for c, size in enumerate(sizes)
        for u in range(size)
    ]


CORPUS = {f"s{number:02d}": [10, 4] if number % 3 else [8] for number in range(20)}


def test_the_parts_of_a_training_speaker():
    rows = rows_of(CORPUS)
    protocol = make_protocol(rows, seed=1)
    speaker_of = {row.utterance: row.speaker for row in rows}
    assert len(protocol.heldout_speakers) == 4 and protocol.valid_speakers == []
    counts = defaultdict(dict)
    for part in PARTS:
        utterances = getattr(protocol, part)
        assert utterances == sorted(utterances)
        for utterance in utterances:
            counts[speaker_of[utterance]][part] = counts[speaker_of[utterance]].get(part, 0) + 1
    assert set(counts) == set(CORPUS) - set(protocol.heldout_speakers)
    for speaker, parts in counts.items():
        if len(CORPUS[speaker]) == 2:
            assert parts == {"train": 6, "valid": 2, "utterance_test": 2, "chapter_test": 4}
        else:
            assert parts == {"train": 4, "valid": 2, "utterance_test": 2}
    assert all(utterance.split("-")[1] == "1" for utterance in protocol.chapter_test)


def test_chapter_b_is_the_one_with_least_audio_over_all_folders():
    rows = rows_of({"x": [6, 9], "y": [8], "z": [8], "w": [5]}) + [
        Row("x-9-000", "b/x/9/x-9-000.flac", "b", "x", "9", "", None, 3.0, 300),
        Row("y-9-000", "b/y/9/y-9-000.flac", "b", "y", "9", "", None, 3.0, 300),
    ]
    protocol = make_protocol(rows, heldout=["z", "w"])
    assert protocol.chapter_test == ["x-9-000", "y-9-000"]
    assert len([u for part in PARTS for u in getattr(protocol, part)]) == len(rows) - 13


def test_speakers_with_little_in_chapter_a_only_train():
    protocol = make_protocol(rows_of({"x": [4], "y": [5], "z": [1], "v": [9], "w": [9]}), heldout=["v", "w"])
    assert [u for u in protocol.train if u.startswith(("x", "z"))] == [
        "x-0-000",
        "x-0-001",
        "x-0-002",
        "x-0-003",
        "z-0-000",
    ]
    assert len(protocol.utterance_test) == 1 and len(protocol.valid) == 2
    assert [trial.target for trial in protocol.valid_trials] == [True]


def test_the_test_by_utterance_has_no_new_chapter():
    chapters = {name: [8, 2, 1, 1] for name in "abcdefgh"}
    protocol = make_protocol(rows_of({**chapters, "w": [9], "x": [9]}), heldout=["w", "x"])
    trained = {utterance.rsplit("-", 1)[0] for utterance in protocol.train}
    assert protocol.utterance_test and {u.rsplit("-", 1)[0] for u in protocol.utterance_test} <= trained


def test_validation_speakers_where_there_are_enough():
    rows = rows_of({f"s{number:02d}": [10] for number in range(40)})
    protocol = make_protocol(rows)
    assert (len(protocol.heldout_speakers), len(protocol.valid_speakers)) == (8, 3)
    assert len(protocol.valid) == 30 and {u.split("-")[0] for u in protocol.valid} == set(protocol.valid_speakers)
    assert sum(trial.target for trial in protocol.valid_trials) == 3 * 45
    assert len(protocol.train) == 29 * 8 and len(protocol.utterance_test) == 29 * 2
    assert make_protocol(rows, valid=0).valid_speakers == []
    assert len(make_protocol(rows, valid=5).valid_speakers) == 5


def test_a_protocol_depends_on_the_seed_and_not_on_the_order_of_rows():
    rows = rows_of(CORPUS)
    assert make_protocol(rows, seed=3) == make_protocol(rows[::-1], seed=3)
    assert make_protocol(rows, seed=3).heldout_speakers != make_protocol(rows, seed=4).heldout_speakers
    assert (
        make_protocol(rows, seed=3, heldout=["s01", "s04"]).train
        != make_protocol(rows, seed=4, heldout=["s01", "s04"]).train
    )


def test_the_split_of_a_speaker_does_not_depend_on_the_others():
    few, many = rows_of(CORPUS), rows_of({**CORPUS, "t99": [7, 7]})
    one, other = (make_protocol(rows, heldout=["s01", "s04"]) for rows in (few, many))
    assert [u for u in other.train if not u.startswith("t99")] == one.train


def test_all_trials_where_they_fit_and_a_cap_where_not():
    rows = rows_of({"x": [3, 2], "y": [4], "z": [1]})
    trials = make_trials(rows, "0", 1000)
    assert sum(trial.target for trial in trials) == 10 + 6 and sum(not trial.target for trial in trials) == 5 * 5 + 4
    assert len({frozenset(trial[1:]) for trial in trials}) == len(trials) == 45
    assert trials == sorted(trials, key=lambda trial: trial[1:])
    some = make_trials(rows, "0", 5)
    assert [sum(trial.target is kind for trial in some) for kind in (True, False)] == [5, 5] and set(some) < set(trials)
    assert some == make_trials(rows[::-1], "0", 5) != make_trials(rows, "1", 5)


def test_trials_of_many_recordings_are_drawn_without_listing_all_pairs():
    trials = make_trials(rows_of({f"s{number}": [30] for number in range(110)}), "0", 2000)
    others = [trial for trial in trials if not trial.target]
    assert len(others) == len({frozenset(trial[1:]) for trial in others}) == 2000
    assert all(a.split("/")[1] != b.split("/")[1] for _, a, b in others)
    assert len({a.split("/")[1] for _, a, _ in others}) > 100


corpora = st.dictionaries(
    st.sampled_from([f"s{number}" for number in range(12)]),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    min_size=5,
)


@given(corpora, st.integers(0, 2**32), st.data())
def test_any_corpus_is_split_without_a_leak(chapters, seed, data):
    rows = rows_of(chapters)
    speakers = sorted(chapters)
    heldout = data.draw(st.lists(st.sampled_from(speakers), min_size=2, max_size=len(speakers) - 3, unique=True))
    protocol = make_protocol(rows, seed, heldout=heldout)
    by_id = {row.utterance: row for row in rows}
    used = [utterance for part in PARTS for utterance in getattr(protocol, part)]
    assert len(used) == len(set(used))
    assert {by_id[utterance].speaker for utterance in used} == set(speakers) - set(heldout)
    assert sorted(used) == sorted(row.utterance for row in rows if row.speaker not in heldout)
    assert {by_id[utterance].speaker for utterance in protocol.train} == set(speakers) - set(heldout)
    sizes = [sum(chapters[speaker]) for speaker in heldout]
    targets = sum(size * (size - 1) // 2 for size in sizes)
    assert sum(trial.target for trial in protocol.trials) == targets
    assert len(protocol.trials) == sum(sizes) * (sum(sizes) - 1) // 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"heldout": ["s01", "nobody"]}, "no speaker nobody"),
        ({"heldout": []}, "no speaker is held out"),
        ({"heldout": 1}, "one held-out speaker gives no trials between speakers"),
        ({"heldout": ["s01", "s01"]}, "one held-out speaker gives no trials between speakers"),
        ({"heldout": 21}, "21 speakers cannot be held out .* of 20 in the data, 20 have two"),
        ({"heldout": 2, "valid": 1}, "use two or more"),
        ({"heldout": 19}, "fewer than two speakers remain"),
        ({"valid": 17}, "17 validation speakers were requested, but only 16 speakers"),
    ],
)
def test_impossible_requests_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        make_protocol(rows_of(CORPUS), **arguments)


def test_a_corpus_of_single_recordings_has_no_verification():
    with pytest.raises(UserError, match="of 3 in the data, 0 have two recordings"):
        make_protocol(rows_of({"x": [1], "y": [1], "z": [1]}))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda p: p.train.append("s01-0-000"), "held-out speakers in train: s01"),
        (lambda p: p.valid.append("s01-0-000"), "held-out speakers in valid: s01"),
        (lambda p: p.chapter_test.append("s01-1-000"), "held-out speakers in chapter_test: s01"),
        (lambda p: p.utterance_test.append("s02-0-000"), "held-out speakers in utterance_test: s02"),
        (lambda p: p.utterance_test.append(p.train[0]), "an utterance of utterance_test occurs twice"),
        (lambda p: p.train.append("s99-0-000"), "utterance s99-0-000 of train is not in the data"),
        (lambda p: p.trials.append(Trial(False, "a/s01/0/s01-0-000.flac", "a/s03/0/s03-0-000.flac")), "not a trial"),
        (lambda p: p.trials.append(Trial(False, "a/s01/0/s01-0-000.flac", "a/s01/0/s01-0-001.flac")), "not a trial"),
        (lambda p: p.trials.append(Trial(True, "a/s01/0/s01-0-000.flac", "a/s01/0/s01-0-000.flac")), "not a trial"),
    ],
)
def test_every_leak_is_found(harm, sentence):
    rows = rows_of(CORPUS)
    protocol = make_protocol(rows, heldout=["s01", "s04"])
    check_disjoint(protocol, rows)
    if "s02" in sentence:
        protocol.valid_speakers.append("s02")
        protocol.valid.extend(u for u in protocol.train if u.startswith("s02"))
        for part in ("train", "utterance_test", "chapter_test"):
            setattr(protocol, part, [u for u in getattr(protocol, part) if not u.startswith("s02")])
    harm(protocol)
    with pytest.raises(UserError, match=sentence):
        check_disjoint(protocol, rows)


@pytest.fixture
def written(tmp_path):
    rows = rows_of(CORPUS)
    protocol = make_protocol(rows, seed=5, name="five", valid=2)
    write_protocol(tmp_path / "five", protocol, rows, {"seed": 5})
    return tmp_path / "five", protocol, rows


def test_a_protocol_survives_its_files(written):
    folder, protocol, rows = written
    assert read_protocol(folder) == protocol
    by_id = {row.utterance: row for row in rows}
    for part in ("train", "utterance_test", "chapter_test"):
        expected = [(by_id[u].speaker, by_id[u].path) for u in getattr(protocol, part)]
        assert read_identification(folder / f"identification_{part}.txt") == expected
    assert read_speakers(folder / "heldout_speakers.txt") == protocol.heldout_speakers
    (trials,) = folder.glob("trials-????????.txt")
    assert read_trials(trials) == protocol.trials
    first = protocol.trials[0]
    assert trials.read_text().startswith(f"{int(first.target)} {first.a} {first.b}\n")


def test_the_same_protocol_gives_the_same_bytes(written, tmp_path):
    folder, protocol, rows = written
    write_protocol(tmp_path / "again", make_protocol(rows[::-1], seed=5, name="five", valid=2), rows, {"seed": 5})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files


def test_a_changed_trial_list_is_refused(written):
    folder, protocol, _ = written
    (trials,) = folder.glob("trials-????????.txt")
    trials.write_text(trial_lines(protocol.trials[1:]))
    with pytest.raises(UserError, match="was changed"):
        read_protocol(folder)


def test_a_missing_protocol_names_those_that_exist(written):
    with pytest.raises(UserError, match="no protocol .*six; there is five"):
        read_protocol(written[0].parent / "six")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("1 a b\n\n2 a b\n", "line 3 of .* is not `1|0 path path`"),
        ("1 a b c\n", "line 1 of .* is not"),
        ("1 a a\n", "line 1 of .* pairs a recording with itself"),
        ("1 a b\n0 b a\n", "line 2 of .* contradicts an earlier one: the pair has both labels"),
        ("", "holds no trials"),
        ("1 caf\xe9 b\n", "cannot be read as text"),
    ],
)
def test_broken_trial_lists_are_refused(tmp_path, content, sentence):
    (tmp_path / "trials.txt").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=sentence):
        read_trials(tmp_path / "trials.txt")


def test_broken_lists_of_recordings_and_speakers_are_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("speaker path\nspeaker\n")
    with pytest.raises(UserError, match="line 2 of .* is not `speaker path`"):
        read_identification(path)
    path.write_text("ada a.wav\nben b.wav\nada b.wav\n")
    with pytest.raises(UserError, match="line 3 of .* contradicts an earlier one: the recording has two speakers"):
        read_identification(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="lists no speakers"):
        read_speakers(path)
    with pytest.raises(UserError, match="lists no recordings"):
        read_identification(path)
    with pytest.raises(UserError, match="nowhere.txt cannot be read"):
        read_trials(tmp_path / "nowhere.txt")


def test_paths_with_blanks_survive(tmp_path):
    trials = [Trial(True, "my voice/one.wav", "b.wav"), Trial(False, "a.wav", "b.wav")]
    (tmp_path / "trials.txt").write_text(trial_lines(trials))
    assert read_trials(tmp_path / "trials.txt") == trials


def test_text_lists_take_each_utterance_once(tmp_path):
    rows = rows_of({"x": [60, 40]})
    write_text_lists(tmp_path / "t", rows, 0, {})
    lists = {name: (tmp_path / "t" / f"{name}.txt").read_text().split() for name in ("train", "valid", "test")}
    assert {name: len(lines) for name, lines in lists.items()} == {"train": 85, "valid": 5, "test": 10}
    assert sorted(sum(lists.values(), [])) == [row.utterance for row in rows]
    with pytest.raises(UserError, match="2 utterances cannot be split"):
        write_text_lists(tmp_path / "u", rows[:2], 0, {})


def test_the_tiny_corpus_has_all_that_training_needs(processed):
    protocol = read_protocol(processed / "protocols" / "default")
    check_disjoint(protocol, FeatureStore.open(processed).rows)
    assert len(protocol.heldout_speakers) == 2 and protocol.utterance_test and protocol.chapter_test
    for trials in (protocol.trials, protocol.valid_trials):
        assert {trial.target for trial in trials} == {True, False}


@pytest.mark.real
def test_folds_of_real_speech_hold_speakers_out_of_both_folders(real_data):
    root = real_data / "speakers_dev"
    with open(root / "manifest.csv", newline="") as file:
        seconds = {row["utt"]: float(row["seconds"]) for row in csv.DictReader(file)}
    utterances = read_corpus(root, "librispeech")
    rows = [Row(**dataclasses.asdict(u), seconds=seconds[u.utterance], frames=1) for u in utterances]
    folders = defaultdict(set)
    for row in rows:
        folders[row.speaker].add(row.split)
    twice = []
    for fold in range(4):
        heldout = read_speakers(root / "splits" / f"fold{fold}_speakers.txt")
        protocol = make_protocol(rows, heldout=heldout, name=f"fold{fold}")
        used = {utterance.split("-")[0] for part in PARTS for utterance in getattr(protocol, part)}
        assert used == set(folders) - set(heldout)
        twice.append(sum(len(folders[speaker]) == 2 for speaker in heldout))
        both = [t for t in protocol.trials if t.target and ("-notext/" in t.a) != ("-notext/" in t.b)]
        assert len({t.a.split("/")[2] for t in both}) == twice[-1]
        given = read_trials(root / "splits" / f"fold{fold}_trials.txt")
        pairs = {frozenset(trial[1:]): trial.target for trial in protocol.trials}
        assert all(pairs[frozenset(trial[1:])] == trial.target for trial in given)
        assert all(
            row.utterance in protocol.train for row in rows if folders[row.speaker] == {"train-clean-100-notext"}
        )
    assert sum(twice) == 14 and 3 in twice


def test_everything_can_be_for_training():
    rows = rows_of({name: [4, 6] for name in "vwxyz"})
    protocol = make_protocol(rows, heldout=0, valid=["v", "w"], identification=False)
    assert protocol.train == sorted(row.utterance for row in rows if row.speaker in "xyz")
    assert sorted(protocol.valid) == sorted(row.utterance for row in rows if row.speaker in "vw")
    assert not (protocol.heldout_speakers or protocol.trials or protocol.utterance_test or protocol.chapter_test)
    assert protocol.valid_speakers == ["v", "w"] and protocol.valid_trials
    everything = make_protocol(rows, heldout=0, valid=0, identification=False)
    assert everything.train == sorted(row.utterance for row in rows)
    assert not (everything.valid or everything.valid_trials)


@pytest.mark.parametrize("listed, sentence", [(["a", "q"], "no speaker q"), (["a"], "fewer than two speakers")])
def test_impossible_validation_speakers_are_refused(listed, sentence):
    with pytest.raises(UserError, match=sentence):
        make_protocol(rows_of({name: [4] for name in "abcde"}), heldout=["b", "c"], valid=listed)
