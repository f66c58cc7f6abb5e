import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile

import preprocess
import test as test_script
from utils.corpus.layouts import find_splits, ignored_files, parse_path, read_corpus, sexes
from utils.errors import UserError
from utils.features.audio import read_audio
from utils.features.store import FeatureStore
from utils.speaker.protocol import read_protocol


@pytest.mark.parametrize("below", ["", "LibriSpeech", "LibriSpeech/train-tiny"])
def test_a_corpus_reads_the_same_from_each_of_its_folders(librispeech_root, below):
    utterances = read_corpus(librispeech_root / below, "librispeech")
    assert len(utterances) == 94 and [u.utterance for u in utterances] == sorted(u.utterance for u in utterances)
    assert {u.split for u in utterances} == {"train-tiny"}
    assert all((librispeech_root / below / u.path).is_file() for u in utterances)
    assert Counter(u.sex for u in utterances) == {"M": 47, "F": 47}
    first = utterances[0]
    prefix = "LibriSpeech/train-tiny/"[len(below) + 1 if below else 0 :]
    assert (first.utterance, first.path) == ("101-1011-0000", prefix + "101/1011/101-1011-0000.flac")
    transcript = (librispeech_root / "LibriSpeech/train-tiny/101/1011/101-1011.trans.txt").read_text()
    assert transcript.startswith(f"101-1011-0000 {first.text}\n")


@pytest.fixture
def splits(librispeech_root, tmp_path):
    """Two splits, one of them without transcripts and without SPEAKERS.TXT, and a hidden, unfinished one."""
    source = librispeech_root / "LibriSpeech" / "train-tiny"
    shutil.copytree(source / "101", tmp_path / "dev-a" / "101")
    shutil.copytree(source / "105", tmp_path / "dev-b" / "105")
    shutil.copytree(source / "106", tmp_path / ".dev-c.tmp" / "106")
    for path in (tmp_path / "dev-b").rglob("*.txt"):
        path.unlink()
    return tmp_path


def test_splits_are_found_and_chosen(splits):
    assert find_splits(splits, "librispeech") == {"dev-a": splits / "dev-a", "dev-b": splits / "dev-b"}
    assert Counter(u.split for u in read_corpus(splits, "librispeech")) == {"dev-a": 13, "dev-b": 13}
    assert {u.speaker for u in read_corpus(splits, "librispeech", ["dev-b"])} == {"105"}


def test_unknown_text_and_sex_are_empty(splits):
    utterance = read_corpus(splits, "librispeech", ["dev-b"])[0]
    assert utterance.text is None and utterance.sex == ""


def test_an_unknown_split_is_refused_with_those_that_exist(splits):
    with pytest.raises(UserError, match="no split test-clean; it has dev-a, dev-b"):
        read_corpus(splits, "librispeech", ["dev-a", "test-clean"])


def test_an_utterance_in_two_splits_is_refused(splits):
    shutil.copytree(splits / "dev-a" / "101", splits / "dev-b" / "101")
    with pytest.raises(UserError, match="101-1011-0000 occurs twice: .*dev-a/.* and .*dev-b/"):
        read_corpus(splits, "librispeech")


def test_ids_include_the_chapter_where_files_are_numbered_from_one(splits):
    audio = splits / "dev-b" / "105" / "1051" / "105-1051-0000.flac"
    audio.rename(audio.with_name("1.flac"))
    assert "105-1051-1" in {u.utterance for u in read_corpus(splits, "librispeech", ["dev-b"])}


def test_missing_empty_and_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="the folder .*nowhere is missing"):
        read_corpus(tmp_path / "nowhere", "librispeech")
    with pytest.raises(UserError, match="the folder .* is empty"):
        read_corpus(tmp_path, "librispeech")
    (tmp_path / "speaker" / "chapter").mkdir(parents=True)
    (tmp_path / "speaker" / "chapter" / "notes.txt").write_text("no audio")
    with pytest.raises(UserError, match="holds no speech in librispeech layout"):
        read_corpus(tmp_path, "librispeech")
    with pytest.raises(UserError, match="holds no speech in ljspeech layout"):
        read_corpus(tmp_path, "ljspeech")
    with pytest.raises(UserError, match="is not a folder"):
        read_corpus(tmp_path / "speaker" / "chapter" / "notes.txt", "librispeech")


def test_a_transcript_that_is_not_utf8_is_refused(splits):
    next((splits / "dev-a").rglob("*.trans.txt")).write_bytes(b"101-1011-0000 CAF\xc9\n")
    with pytest.raises(UserError, match="101-101.\\.trans\\.txt cannot be read as text"):
        read_corpus(splits, "librispeech")


def test_two_transcripts_of_one_recording_are_refused(splits):
    table = next((splits / "dev-a").rglob("*.trans.txt"))
    name = table.read_text().split()[0]
    table.write_text(table.read_text() + f"{name} ANOTHER\n")
    with pytest.raises(UserError, match=f"trans.txt holds two transcripts of {name}"):
        read_corpus(splits, "librispeech")


def test_speakers_table_is_found_above_and_below(librispeech_root, tmp_path):
    expected = {str(number): "M" if number < 105 else "F" for number in range(101, 109)}
    deep = librispeech_root / "LibriSpeech" / "train-tiny" / "101"
    for folder in (librispeech_root, librispeech_root / "LibriSpeech", deep):
        assert sexes(folder) == expected
    assert sexes(tmp_path) == {}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LibriSpeech/dev-clean/84/121123/84-121123-0000.flac", ("84", "121123")),
        ("84/121123/84-121123-0000.flac", ("84", "121123")),
        ("uploads/84-121123-0000.flac", ("84", "121123")),
        ("en-us+f3/b/en-us+f3-b-0001.flac", ("en-us+f3", "b")),
        ("mary/monday/take one.wav", ("mary", "monday")),
        ("LJSpeech-1.1/wavs/LJ001-0001.wav", ("LJSpeech-1.1", "wavs")),
        ("id10270/x6uYqmx31kE/00001.wav", ("id10270", "x6uYqmx31kE")),
        ("dev/aac/id00012/-zF_8-2-3ab/00002.m4a", ("id00012", "-zF_8-2-3ab")),
    ],
)
def test_speaker_and_chapter_from_a_path(path, expected):
    assert parse_path(path) == expected


def test_ljspeech_layout(ljspeech_root):
    utterances = read_corpus(ljspeech_root, "ljspeech")
    assert len(utterances) == 24 and {u.split for u in utterances} == {u.speaker for u in utterances} == {"Voice-1.0"}
    assert utterances[0].path == "wavs/VX001-0000.wav" and utterances[0].chapter == "VX001"
    assert utterances[0].text.endswith(", number three.")  # the normalized column
    above = read_corpus(ljspeech_root.parent, "ljspeech", ["Voice-1.0"])
    assert above[0].path == "Voice-1.0/wavs/VX001-0000.wav" and len(above) == 24


def test_ljspeech_metadata_is_never_quoted(ljspeech_root, tmp_path):
    lines = [
        'A-1|"Well|"Well\n',
        'B-2|he said."|he said\u2028."\n',
        "\n",
        "C-3|two columns\n",
        "D-4|not normalized|\r\n",
    ]
    (tmp_path / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    texts = {u.utterance: u.text for u in read_corpus(tmp_path, "ljspeech")}
    assert texts == {"A-1": '"Well', "B-2": 'he said\u2028."', "C-3": "two columns", "D-4": "not normalized"}


@pytest.mark.parametrize("line", ["../../etc/passwd|two|two", "alone", "a|b|c|d", "|text"])
def test_a_broken_line_of_metadata_is_named(line, tmp_path):
    (tmp_path / "metadata.csv").write_text(f"A-1|{'one ' * 50_000}\n{line}\n")
    with pytest.raises(UserError, match="line 2 of .*metadata.csv is not"):
        read_corpus(tmp_path, "ljspeech")


VOX1_META = (
    "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    "{}\tA.J._Buckley\tm\tIreland\tdev\n"
    "{}\tA.R._Rahman\tf\tIndia\ttest\n"
)
VOX2_META = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n{} ,n000012 ,m ,dev \n{} ,n000015 ,f ,test \n"


@pytest.fixture(scope="module")
def voxceleb(librispeech_root, tmp_path_factory) -> Path:
    """Four voices of the tiny corpus as VoxCeleb stores them: dev/wav/ and test/wav/, two videos per speaker."""
    root = tmp_path_factory.mktemp("raw") / "VoxCeleb1"
    source = librispeech_root / "LibriSpeech" / "train-tiny"
    for number, voice in enumerate(("101", "102", "105", "106")):
        for chapter in sorted((source / voice).iterdir()):
            video = root / ("dev" if number % 2 else "test") / "wav" / f"id10{voice}" / f"-x6uY_{chapter.name}"
            video.mkdir(parents=True)
            for file, audio in enumerate(sorted(chapter.glob("*.flac")), start=1):
                samples, rate = soundfile.read(audio)
                soundfile.write(video / f"{file:05d}.wav", samples, rate)
    (root / "vox1_meta.csv").write_text(VOX1_META.format("id10101", "id10105"))
    return root


def test_voxceleb_layout(voxceleb):
    utterances = {u.utterance: u for u in read_corpus(voxceleb, "voxceleb")}
    assert Counter(u.split for u in utterances.values()) == {"dev": 26, "test": 26}
    one = utterances["id10101--x6uY_1011-00001"]
    assert (one.path, one.speaker, one.chapter) == ("test/wav/id10101/-x6uY_1011/00001.wav", "id10101", "-x6uY_1011")
    assert (one.sex, one.text) == ("M", None)
    sex = {u.speaker: u.sex for u in utterances.values()}
    assert sex == {"id10101": "M", "id10102": "", "id10105": "F", "id10106": ""}
    assert all(parse_path(u.path) == (u.speaker, u.chapter) for u in utterances.values())


@pytest.mark.parametrize(
    ("below", "splits"),
    [("", ["dev", "test"]), ("test", ["wav"]), ("test/wav", ["wav"])],
)
def test_voxceleb_is_read_from_each_of_its_folders(voxceleb, below, splits):
    assert list(find_splits(voxceleb / below, "voxceleb")) == splits
    assert {u.sex for u in read_corpus(voxceleb / below, "voxceleb") if u.speaker == "id10101"} == {"M"}


def test_the_folder_wav_of_voxceleb1_beside_a_split_is_a_split_too(voxceleb, tmp_path):
    shutil.copytree(voxceleb / "test" / "wav", tmp_path / "wav")
    shutil.copytree(voxceleb / "dev", tmp_path / "dev")
    assert find_splits(tmp_path, "voxceleb") == {"dev": tmp_path / "dev" / "wav", "wav": tmp_path / "wav"}


def test_tables_of_corpora_side_by_side_are_all_read(tmp_path):
    for corpus, line in (("one", "19 | F | train | 1.0 | A"), ("two", "20 | M | train | 1.0 | B")):
        (tmp_path / corpus).mkdir()
        (tmp_path / corpus / "SPEAKERS.TXT").write_text(line + "\n")
    assert sexes(tmp_path) == {"19": "F", "20": "M"}


def test_both_tables_of_voxceleb_give_the_sexes(tmp_path):
    (tmp_path / "vox1_meta.csv").write_text(VOX1_META.format("id10001", "id10002"))
    (tmp_path / "vox2_meta.csv").write_text(VOX2_META.format("id00012", "id00015"))
    (tmp_path / "dev" / "aac").mkdir(parents=True)
    assert sexes(tmp_path / "dev" / "aac") == {"id10001": "M", "id10002": "F", "id00012": "M", "id00015": "F"}
    (tmp_path / "vox2_meta.csv").write_text("")
    with pytest.raises(UserError, match="vox2_meta.csv has no column Gender"):
        sexes(tmp_path)


def test_m4a_is_refused_with_a_sentence(voxceleb, tmp_path):
    source = next(voxceleb.rglob("*.wav"))
    video = tmp_path / "dev" / "aac" / "id00012" / "21Uxsk56VDQ"
    video.mkdir(parents=True)
    (video / "00001.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1000))
    assert [u.path for u in read_corpus(tmp_path, "voxceleb")] == ["dev/aac/id00012/21Uxsk56VDQ/00001.m4a"]
    with pytest.raises(UserError, match="00001.m4a (is not audio that can be read|can be decoded by ffmpeg only)"):
        read_audio(video / "00001.m4a")
    shutil.copy(source, video / "00002.wav")
    assert [u.utterance[-5:] for u in read_corpus(tmp_path, "voxceleb")] == ["00001", "00002"]


def test_voxceleb_from_folders_to_a_report(voxceleb, trained_run, tmp_path):
    words = ["--layout", "voxceleb", "--raw", voxceleb, "--out", tmp_path / "data", "--heldout-speakers", 2]
    assert preprocess.main([*map(str, words), "--num-proc", "1"]) == 0
    store = FeatureStore.open(tmp_path / "data")
    protocol = read_protocol(tmp_path / "data" / "protocols" / "default")
    assert len(store) == 52 and len(protocol.heldout_speakers) == 2 and protocol.chapter_test and protocol.trials

    trials = [
        "1 id10101/-x6uY_1011/00001.wav id10101/-x6uY_1012/00001.wav",
        "1 id10105/-x6uY_1051/00001.wav id10105/-x6uY_1052/00001.wav",
        "0 id10101/-x6uY_1011/00001.wav id10105/-x6uY_1052/00001.wav",
    ]
    official = tmp_path / "veri_test.txt"
    official.write_text("".join(f"{line}\n" for line in trials))
    evaluate = ["--trials", official, "--audio-root", voxceleb / "test" / "wav", "--out", tmp_path / "report"]
    assert test_script.main(["evaluate", "--checkpoint", str(trained_run), *map(str, evaluate)]) == 0
    verification = json.loads((tmp_path / "report" / "report.json").read_text())["verification"]
    assert (verification["all"]["targets"], verification["all"]["nontargets"]) == (2, 1)
    assert verification["cross_chapter"]["targets"] == 2  # a video is a session
    assert verification["same_sex"]["nontargets"] == 0  # by vox1_meta.csv, two levels above


@pytest.mark.real
def test_real_librispeech_folders(real_data):
    root = real_data / "speakers_dev"
    with open(root / "manifest.csv", newline="") as file:
        manifest = {row["utt"]: row for row in csv.DictReader(file)}
    utterances = {u.utterance: u for u in read_corpus(root, "librispeech")}
    assert Counter(u.split for u in utterances.values()) == {"train-clean-100": 437, "train-clean-100-notext": 90}
    assert set(utterances) == set(manifest)
    for name, u in utterances.items():
        row = manifest[name]
        expected = (row["path"], row["speaker"], row["chapter"], row["gender"], row["text"] or None)
        assert (u.path, u.speaker, u.chapter, u.sex, u.text) == expected


@pytest.mark.real
def test_real_ljspeech_folders(real_data):
    utterances = read_corpus(real_data / "tts_dev", "ljspeech")
    assert Counter(u.speaker for u in utterances) == {"LJSpeech-1.1": 186, "Kathleen": 300}
    assert all((real_data / "tts_dev" / u.path).is_file() and u.text for u in utterances)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_recordings_in_a_speakers_own_folder_are_one_chapter(tmp_path):
    touch(tmp_path, "ada/1.wav", "ada/2.wav", "ben/x/1.wav")
    found = [(u.speaker, u.chapter, u.utterance) for u in read_corpus(tmp_path, "librispeech")]
    assert found == [("ada", "ada", "ada-ada-1"), ("ada", "ada", "ada-ada-2"), ("ben", "x", "ben-x-1")]
    assert parse_path("ada/1.wav") == ("ada", "ada")


def test_folders_with_names_of_splits_are_splits(tmp_path):
    touch(tmp_path, "train/ada/1.wav", "train/ben/1.wav", "test/eve/1.wav")
    assert {(u.split, u.speaker) for u in read_corpus(tmp_path, "librispeech")} == {
        ("train", "ada"),
        ("train", "ben"),
        ("test", "eve"),
    }


def test_the_chapters_of_one_speaker_are_no_speakers(tmp_path):
    touch(tmp_path, "101/1011/101-1011-0001.wav", "101/1012/101-1012-0001.wav")
    assert {u.speaker for u in read_corpus(tmp_path, "librispeech")} == {"101"}
    with pytest.raises(UserError, match="no speech in librispeech layout"):
        read_corpus(tmp_path / "101", "librispeech")


def test_ignored_files_are_listed(tmp_path):
    """Too deep, of unknown suffixes, and with names that no list can contain; hidden files and transcripts are not."""
    used = ["ada/x/1.wav", "ada/x/2.flac", "ada/x/ada-x.trans.txt", "ada/x/.hidden.wav"]
    ignored = ["ada/x/deep/1.wav", "ada/x/3.pcm", "ada/x/notes", "ben/x/a\tb.wav", "ben/x/c\nd.wav"]
    touch(tmp_path, *used, *ignored, os.fsdecode(b"ben/x/caf\xe9.wav"))
    utterances = read_corpus(tmp_path, "librispeech")
    assert [u.path for u in utterances] == used[:2]
    found = ignored_files(tmp_path, "librispeech", utterances)
    assert sorted(found) == sorted([*ignored, os.fsdecode(b"ben/x/caf\xe9.wav")])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_other_editors_are_read_alike(tmp_path, end):
    """With a byte-order mark and any line ends, and with blanks of Unicode inside lines."""
    voice, books = tmp_path / "voice", tmp_path / "books"
    touch(voice, "wavs/\u3000a.wav", "wavs/b\u2028.wav")
    rows = ["\u3000a|One.\u2028Two.|", "b\u2028|Three|3\x85", ""]
    (voice / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + end.join(rows).encode())
    found = {u.utterance: (u.path, u.text) for u in read_corpus(voice, "ljspeech")}
    expected = {"\u3000a": ("wavs/\u3000a.wav", "One.\u2028Two."), "b\u2028": ("wavs/b\u2028.wav", "3")}
    assert found == expected
    touch(books, "1/2/\u00a01.wav", "1/2/2 3.wav", "4/5/6.wav")
    lines = ["\u00a01 ONE\u2028TWO", "2 3\tTHREE", ""]
    (books / "1" / "2" / "1-2.trans.txt").write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    (books / "SPEAKERS.TXT").write_bytes(b"\xef\xbb\xbf" + end.join(["; a comment", "1 | F | x", ""]).encode())
    found = {u.utterance: (u.sex, u.text) for u in read_corpus(books, "librispeech")}
    assert found == {"1-2-\u00a01": ("F", "ONE\u2028TWO"), "1-2-2 3": ("F", "THREE"), "4-5-6": ("", None)}


def test_named_splits_are_found_below_folders_that_look_like_one(librispeech_root, tmp_path):
    """Corpora side by side, one of them beside noises, which make its folder look like a split of speakers."""
    for path in ("one/LibriSpeech/train/19/198/19-198-0000.flac", "two/words/7/1/7-1-0000.flac", "two/noise/tap.flac"):
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(next(librispeech_root.rglob("*.flac")), tmp_path / path)
    found = read_corpus(tmp_path, "librispeech", ["train", "words"])
    assert [utterance.path for utterance in found] == [
        "one/LibriSpeech/train/19/198/19-198-0000.flac",
        "two/words/7/1/7-1-0000.flac",
    ]
    assert ignored_files(tmp_path, "librispeech", found) == ["two/noise/tap.flac"]
