"""The benchmarks of text to mel: arithmetic, sentences, tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from shown_commands import load_script

from benchmarks.studies.synthesis import hard, runs, streaming, tables, voices
from benchmarks.studies.synthesis.systems import NAMES, SEES_THE_PAST, SYSTEMS
from utils.corpus.layouts import read_corpus
from utils.errors import UserError
from utils.features.store import FORMAT, Row
from utils.files import read_json, write_json, write_text
from utils.lists import SPLITS_FORMAT
from utils.text.frontend import FrontEnd, split_sentences
from utils.tts.asr import judge

ROOT = Path(__file__).resolve().parents[3]
SENTENCES = ROOT / "benchmarks" / "studies" / "hard_sentences.txt"
SCRIPT, STREAMING = "benchmarks/studies/text_to_mel.py", "benchmarks/studies/streaming.py"


def test_there_are_a_hundred_hard_sentences_that_can_be_said():
    """Spelled in characters, which need no espeak-ng: every one has something to say, and no unknown symbol."""
    sentences = hard.read_sentences(SENTENCES)
    assert len(sentences) == 100 and len({sentence.text for sentence in sentences}) == 100
    assert set(Counter(sentence.category for sentence in sentences)) == set(hard.CATEGORIES)
    assert all(len(one.text.split()) > 100 for one in sentences if one.category == "long")
    front_end = FrontEnd.for_units("char")
    for sentence in sentences:
        read = front_end.encode(split_sentences(sentence.text))
        assert not all(part.says_nothing for part in read) and not any(part.unknown for part in read), sentence.text


@pytest.mark.parametrize("content", ["", "numbers 12 and 13\n", "poems|Roses are red.\n", "words|Yes.\nwords| \n"])
def test_a_broken_list_of_sentences_is_refused(tmp_path: Path, content: str):
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="list.txt is (empty|not `category)"):
        hard.read_sentences(tmp_path / "list.txt")


def test_a_repeat_is_what_the_text_has_less_often():
    text = "row after row after row of empty chairs".split()
    assert hard.repeated_words(text, text) == 0
    assert hard.repeated_words(text, [*text, *text[-3:]]) == 0  # three words again are no run of four
    assert hard.repeated_words(text, [*text, *text[-5:]]) == 2
    assert hard.repeated_words("one two".split(), "one two three four five".split()) == 0


def test_errors_count_beyond_those_of_copy_synthesis():
    """Copies lose 1 word in 10 and add 1 in 20; one of two sentences has a word too many, the other lacks three.

    Another voice of the same sentences lacks two words of the other.
    """
    copies = {"wer_insertions": 0.05, "wer_deletions": 0.1, "wer_length": 300, "wer": 0.2}
    lines = [line(1, "lists", "a b c d e f g h i j", "a b c d e f g h i j k"), line(2, "odd", "a b c d e", "a b")]
    same = [line(1, "lists", lines[0]["text"], lines[0]["text"]), line(2, "odd", "a b c d e", "a b c")]
    found = hard.summary(lines, copies, same)
    assert list(found["categories"]) == ["lists", "odd", "all"]
    lists, odd, both = found["categories"].values()
    assert (lists["insertions"], lists["insertions_beyond"], lists["deletions_beyond"]) == (1, 0.5, -1)
    assert (odd["deletions"], odd["deletions_beyond"], odd["insertions_beyond"]) == (3, 2.5, -0.25)
    assert (lists["with_insertions"], odd["with_insertions"], both["with_deletions"]) == (0, 0, 1)
    assert both["beyond_deletions"] == 0
    assert hard.summary(lines, copies, 2 * same[:1])["categories"]["odd"]["beyond_deletions"] == 1
    assert (both["sentences"], both["length"], both["deletions_beyond"]) == (2, 15, 1.5)
    assert both["wer"] == pytest.approx(4 / 15) and both["truncated"] == 1 and both["with_repeats"] == 0
    assert [one["insertions_beyond"] for one in found["sentences"]] == [0.5, -0.25]


def line(number: int, category: str, text: str, heard: str) -> dict:
    words = judge(text, heard).words._asdict()
    about = {"number": number, "category": category, "text": text, "heard": heard, "words": words, "repeated": 0}
    return {**about, "seconds": 2.0, "truncated": number == 2, "unknown_symbols": {}}


def test_a_line_that_a_crash_cut_short_is_lost_alone(tmp_path: Path):
    path = tmp_path / "one" / "lines.jsonl"
    hard._append(path, {"text": "first"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": "sec')
    hard._append(path, {"text": "third"})
    assert hard._read_lines(path) == [{"text": "first"}, {"text": "third"}]


def test_the_budget_becomes_steps():
    log = [{"step": n, "cpu_s_per_step": s} for n, s in enumerate((9.0, 3.0, 0.5, 0.7, 0.6), start=1)]
    assert runs.cpu_per_step([{"resumed_from": 0}, *log]) == 0.6
    assert runs.steps_for(15, 0.6) == 1500 and runs.steps_for(0.001, 0.6) == 1
    with pytest.raises(UserError, match="more than 2 steps"):
        runs.cpu_per_step(log[:2])


def a_store(folder: Path, train: str = "ab", valid: str = "c", recipe: str = "0123", source: str = "old") -> Path:
    """The fields of a feature store and its lists that runs are compared by, with an utterance a letter."""
    splits = {"speech": {"source": source}}
    write_json(folder / "meta.json", {"format": FORMAT, "recipe": recipe, "text": {"units": "char"}, "splits": splits})
    lists = folder / "protocols" / "default"
    write_json(lists / "protocol.json", {"format": SPLITS_FORMAT})
    for name, utterances in {"train": train, "valid": valid, "test": "d"}.items():
        write_text(lists / f"{name}.txt", "".join(f"{utterance}\n" for utterance in utterances))
    return folder


def a_run(data: Path, preset: Path, flags: tuple[str, ...] = ("--decoder", "ar"), **other: Any) -> runs.Training:
    return runs.Training("table-a", "ar", other.pop("seed", 0), preset, flags, 1.0, data, **other)


def test_a_run_is_the_same_if_all_that_it_follows_from_is(tmp_path: Path):
    """Other features, lists, presets and encoders at the same path make another run; the same elsewhere do not."""
    preset, encoder = tmp_path / "preset.yaml", tmp_path / "encoder.pt"
    preset.write_text("lr: 0.1")
    encoder.write_text("weights")
    data = tmp_path / "data"
    one = a_run(a_store(data), preset, inputs=(encoder,))
    wanted = runs.request_of(one, "cpu", 10)
    write_json(tmp_path / "kept.json", wanted)
    kept = read_json(tmp_path / "kept.json")
    (tmp_path / "copy.yaml").write_text("lr: 0.1")
    moved = a_run(a_store(tmp_path / "moved", train="ba"), tmp_path / "copy.yaml", inputs=(encoder,))
    assert runs.differences(kept, wanted) == [] == runs.differences(kept, runs.request_of(moved, "cpu", 10))
    assert runs.differences(None, wanted) == list(wanted)

    for changed, name in [
        ({"train": "ad"}, "training_list"),
        ({"valid": "e"}, "validation_list"),
        ({"recipe": "4567"}, "recipe_hash"),
        ({"source": "new"}, "sources"),
    ]:
        a_store(data, **changed)
        assert runs.differences(kept, runs.request_of(one, "cpu", 10)) == [name]
    a_store(data)
    assert runs.differences(kept, runs.request_of(one, "cuda", 11)) == ["device", "steps"]
    other = a_run(data, preset, ("--decoder", "ar", "--lr", "1"), seed=1, inputs=(encoder,))
    assert runs.differences(kept, runs.request_of(other, "cpu", 10)) == ["flags", "seed"]
    preset.write_text("lr: 0.2")
    encoder.write_text("other weights")
    assert runs.differences(kept, runs.request_of(one, "cpu", 10)) == ["preset_sha256", "inputs_sha256"]
    with pytest.raises(UserError, match="nowhere is not a finished feature store"):
        runs.basis(a_run(tmp_path / "nowhere", preset), "cpu")


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_another_request_is_removed_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture, finished: bool):
    run, wanted = tmp_path / "run", {"seed": 0, "steps": 5}
    write_json(run / runs.REQUEST, wanted)
    if finished:
        write_json(run / runs.DONE, {"steps": 5, "request": wanted})
    runs._remove_another(run, wanted)
    assert run.is_dir() and capsys.readouterr().out == ""
    runs._remove_another(run, {**wanted, "seed": 1, "device": "cpu"})
    assert not run.exists() and "had another seed, device" in capsys.readouterr().out
    write_json(run / runs.DONE, {"steps": 5})  # of a version that kept no request
    runs._remove_another(run, wanted)
    assert not run.exists() and "it kept no request" in capsys.readouterr().out


def test_a_report_is_taken_for_the_same_model_lists_and_judges():
    words = {"vocoder": "griffin-lim", "asr": None, "limit": 3}
    by = {"model": "abcd", "splits": {"test": "1234"}, "another_list": False}
    found = {"config": {**words, "seed": 0}, "model": {"hash": "abcd"}, "warnings": ["2 utterances were left out"]}
    found["source"] = {"splits": {"test": "1234"}}
    assert runs.is_of(found, words, by)
    for changed in ({"vocoder": "hifigan"}, {"asr": "whisper"}, {"limit": None}):
        assert not runs.is_of(found, {**words, **changed}, by)
    for changed in ({"model": "ef01"}, {"splits": {"test": "5678"}}, {"another_list": True}):
        assert not runs.is_of(found, words, {**by, **changed})


def test_systems_are_of_one_size():
    """By the flags and the preset that table A uses, each as train_tacomamba.py would build it."""
    from models.tts import MODELS, TextToMelConfig

    assert list(NAMES) == list(SYSTEMS) and set(SEES_THE_PAST) < set(SYSTEMS)
    preset = ["--data", "data", "--out", "out", "--config", str(ROOT / "configs" / "tts-small.yaml")]
    sizes = {}
    for system, flags in SYSTEMS.items():
        parser = load_script("train_tacomamba.py").build_parser(preset)
        (config,) = parser.read_options(parser.parse_args([*preset, *flags]), TextToMelConfig)
        with torch.device("meta"):
            model = MODELS[config.model](config, 180)
        sizes[system] = sum(parameter.numel() for parameter in model.parameters())
    assert max(sizes.values()) < 1.1 * min(sizes.values()), sizes


def result(
    system: str, seed: int, cer: float | None = 0.9, copy_cer: float = 0.05, parameters: int = 3_500_000
) -> dict:
    """A result file of tables A and B."""

    def figures(rate: float | None) -> dict:
        rates = {"cer": rate, "cer_ci": None if rate is None else [rate - 0.05, rate + 0.05], "wer": rate}
        kinds = {"wer_insertions": 0.01, "wer_deletions": 0.02, "voicing_error": 0.125}
        return {**rates, **kinds, "mcd": 5 + seed, "mcd_ci": [4.5, 6.5]}

    report = {
        "utterances": 18,
        "seconds": 118.0,
        "synthesis": figures(cer),
        "copy_synthesis": {**figures(copy_cer), "mcd": 0.95, "mcd_ci": [0.9, 1.0]},
        "duration": {"bias": -0.02, "bias_ci": [-0.05, 0.01]},
        "mel_l1": 0.5 + seed / 10,
        "truncated": seed,
        "real_time_factor": {"acoustic_model": {"cpu": 0.02, "wall": 0.03}},
        "source": {"vocoder": "somewhere/hifigan"},
    }
    budget = {"steps": 900, "minutes_allowed": 15.0, "cpu_minutes": 14.9, "frames_per_cpu_s": 7000.0, "amp": "bf16"}
    measured = {"processor": "a processor", "cores": 2, "date": "2026-11-22T10:00:00+00:00"}
    about = {"system": system, "seed": seed, "parameters": parameters, "measured": measured}
    return {**about, **budget, "report": report}


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]


def test_tables_are_made_of_the_result_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    """By the script without any part; systems come in their order, with their seeds side by side."""
    for one in (result("tacotron2", 0), result("causal", 1), result("causal", 0)):
        write_json(tmp_path / "results" / "table-a" / f"{one['system']}-seed{one['seed']}.json", one)
    script = load_script(SCRIPT)
    assert script.main(["--data", "nowhere", "--out", str(tmp_path), "--parts"]) == 0
    written = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert written in capsys.readouterr().out
    header, _, causal, tacotron = rows_of(written)
    assert causal[0] == NAMES["causal"] and tacotron[0] == NAMES["tacotron2"]
    assert dict(zip(header, causal, strict=True))["mel L1"] == "0.500 / 0.600"
    assert dict(zip(header, causal, strict=True))["stopped at the limit"] == "0 / 1"
    assert not any("CER" in name or "WER" in name for name in header)
    assert "15 CPU minutes" in written and "18 clips (118 s)" in written and "Table B" not in written


@pytest.mark.parametrize(
    ("rates", "copy", "said"),
    [
        ((0.9, 0.61), 0.05, "Not intelligible at this budget"),
        ((0.9, 0.6), 0.05, None),
        ((0.9, 0.8), 0.5, "Copy-synthesis has a CER of 50.0 %"),
        ((None, None), 0.05, None),
    ],
)
def test_table_b_says_when_nothing_can_be_understood(rates: tuple, copy: float, said: str | None):
    found = [result(system, 0, cer, copy) for system, cer in zip(("causal", "tacotron2"), rates, strict=True)]
    written = tables.table_b(found)
    assert all(row[9] == "12.5 %" for row in rows_of(written)[2:])
    notes = tables.intelligible(found)
    assert (said in notes[0] and notes[0] in written) if said else not notes
    *_, last = rows_of(written)
    assert last[0] == "copy-synthesis" and last[5].startswith(f"{100 * copy:.1f} % [")


def test_sizes_that_differ_are_noted():
    found = [result("causal", 0), result("tacotron2", 0, parameters=3_900_000)]
    assert "Parameters differ by 11%" in tables.table_a(found) and "Parameters differ" not in tables.table_a(found[:1])


def test_the_table_of_hard_sentences_has_a_row_per_category():
    copies = {"wer_insertions": 0.05, "wer_deletions": 0.1, "wer_length": 300, "wer": 0.2}
    lines = [line(1, "lists", "a b c d", "a b c d e"), line(2, "odd", "a b", "")]
    summary = hard.summary(lines, copies, [lines[0], line(2, "odd", "a b", "a b")])
    written = tables.table_hard([{"system": "causal", "by": {"asr": "whisper"}, **summary}])
    header, _, lists, odd, both = rows_of(written)
    assert [row[1] for row in (lists, odd, both)] == ["lists", "odd", "all"]
    assert lists[4:12] == ["1", "+0.8", "0", "0", "0", "-0.4", "0", "0"] and odd[8:12] == ["2", "+1.8", "1", "1"]
    assert odd[-1] == "1" and both[3] == "6"


def write_voice(folder: Path, names: list[str]) -> Path:
    (folder / "wavs").mkdir(parents=True)
    for name in names:
        soundfile.write(folder / "wavs" / f"{name}.wav", np.zeros(2205), 22_050)
    (folder / "metadata.csv").write_text("".join(f"{name}|Text {name}|text of {name}\n" for name in names))
    return folder


def test_two_folders_become_one_corpus(tmp_path: Path):
    first = write_voice(tmp_path / "LJSpeech-1.1", ["LJ001-0001", "LJ001-0002", "LJ002-0001"])
    second = write_voice(tmp_path / "Kathleen", ["arctic_a0007"])
    for _ in range(2):
        voices.make_corpus([first, second], tmp_path / "corpus")
    found = read_corpus(tmp_path / "corpus", "librispeech")
    assert [(one.speaker, one.chapter, one.text) for one in found] == [
        ("Kathleen", "Kathleen", "text of arctic_a0007"),
        ("LJSpeech", "LJ001", "text of LJ001-0001"),
        ("LJSpeech", "LJ001", "text of LJ001-0002"),
        ("LJSpeech", "LJ002", "text of LJ002-0001"),
    ]
    assert (tmp_path / "corpus" / found[1].path).resolve() == first / "wavs" / "LJ001-0001.wav"
    with pytest.raises(UserError, match="two names, not Kathleen and Kathleen"):
        voices.make_corpus([second, second], tmp_path / "other")


def test_a_voice_is_taken_from_held_out_recordings_that_say_something_else():
    """Each recording in turn, and never that of the text itself."""
    rows = [
        Row(f"{speaker}{number}", f"{speaker}{number}.wav", "", speaker, "c", "", text, seconds=1.0, frames=86)
        for speaker, texts in (("a", "xyz"), ("b", "xw"))
        for number, text in enumerate(texts)
    ]
    texts = {f"/raw/{row.path}": row.text for row in rows}
    found = voices.references(rows, Path("/raw"), list("xyxyx"))
    assert list(found) == ["a", "b"] and all(len(paths) == 5 for paths in found.values())
    for speaker, paths in found.items():
        assert all(Path(path).name.startswith(speaker) for path in paths)
        assert not any(texts[path] == text for path, text in zip(paths, "xyxyx", strict=True))
    assert len(set(found["a"])) == 3
    with pytest.raises(UserError, match="b has no held-out recording of another text than 'x'"):
        voices.references([row for row in rows if row.speaker == "a" or row.text == "x"], Path("/raw"), ["x"])


def test_voices_are_told_apart_by_the_mean_of_their_references():
    """Two sentences of a: one is nearer to a, one to b; and b speaks like b."""
    east, north, between = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.6, 0.8])
    embeddings = {Path("ra"): east, Path("rb"): north, Path("a1"): east, Path("a2"): between, Path("b1"): north}
    references = {Path("ra"): ("reference", "a"), Path("rb"): ("reference", "b")}
    spoken = {Path("a1"): ("spoken", "a"), Path("a2"): ("spoken", "a"), Path("b1"): ("spoken", "b")}
    found = voices.compare(embeddings, spoken, references)
    assert found["references"] == {"a": 1, "b": 1} and found["recordings"] == {}
    assert found["voices"]["a"] == pytest.approx(
        {"n": 2, "right": 0.8, "wrong": 0.4, "closer_to_right": 1, "smallest_margin": -0.2}
    )
    assert found["voices"]["b"]["closer_to_right"] == 1
    written = tables.table_voices([{"system": "causal-table", **found}])
    assert rows_of(written)[2] == ["causal-table", "a", "2", "0.800", "0.400", "1 of 2", "-0.200"]


def test_without_the_judge_a_sentence_says_so(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Resemblyzer cannot be imported' >&2\nexit 2\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match="the judge failed: Resemblyzer cannot be imported"):
        voices._embed(str(python), [])
    with pytest.raises(UserError, match="cannot be run: No such file"):
        voices._embed(str(tmp_path / "nothing"), [])


def test_size_of_a_state_counts_what_its_views_keep():
    whole = torch.zeros(100, 4)
    state = {"a": [whole[:10], (whole[90:], None)], "frame": 3}
    assert streaming.size_of(state) == {"values": 20 * 4 * 4, "held": 100 * 4 * 4}
