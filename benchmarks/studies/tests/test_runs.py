"""The benchmarks of text to mel on a small system: trained, judged, streamed."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_whisper
import pytest
from shown_commands import load_script

from benchmarks.studies.synthesis import hard, runs, streaming
from utils.errors import UserError
from utils.features.recipe import RECIPES
from utils.features.store import FeatureStore
from utils.files import read_json, sha256_file, write_text
from utils.lists import as_lines, read_lines
from utils.training.runlog import cpu_time, read_log
from utils.tts import evaluate as synthesis
from utils.tts.evaluate import SynthesisEvaluation
from utils.tts.synthesizer import Synthesizer
from utils.tts.text_lists import read_text_lists

SCRIPT, STREAMING = "benchmarks/studies/text_to_mel.py", "benchmarks/studies/streaming.py"


@pytest.fixture(scope="module")
def trained(ljspeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[argparse.Namespace, runs.Training]:
    """The benchmark's arguments, and a run of a tiny causal system whose budget is a single step."""
    import preprocess

    out = tmp_path_factory.mktemp("benchmark")
    raw = ["--dataset", "ljspeech", "--raw", str(ljspeech_root), "--out", str(out / "data"), "--num-proc", "1"]
    assert preprocess.main(raw) == 0
    preset = out / "tiny.yaml"
    sizes = {"d-model": 16, "n-layers": 1, "encoder-layers": 1, "headdim": 8, "d-state": 8, "postnet-channels": 16}
    preset.write_text(json.dumps({"task": "tts", "batch-size": 4, **sizes}), encoding="utf-8")
    words = ["--data", str(out / "data"), "--out", str(out / "runs"), "--calibration-steps", "4"]
    args = load_script(SCRIPT).build_parser().parse_args([*words, "--config-a", str(preset)])
    args.to_recalibrate = set()
    return args, runs.training(args, "table-a", "causal", 0, args.config_a, 1e-9)


def test_a_run_is_calibrated_and_trained_once(trained: tuple[argparse.Namespace, runs.Training]):
    args, one = trained
    steps = runs.planned_steps(args, one)
    entry = read_json(args.out / runs.STEPS)["table-a/causal"]
    assert steps == 1 and entry["cpu_s_per_step"] > 0 and entry["flags"] == ["--decoder", "causal"]
    assert len(entry["load_average"]) == 3 and entry["date"]
    run = runs.train(args, one, steps)
    files = {path: path.stat().st_mtime_ns for path in [args.out / runs.STEPS, *run.iterdir()]}
    assert runs.planned_steps(args, one) == steps and runs.train(args, one, steps) == run
    assert {path: path.stat().st_mtime_ns for path in files} == files
    done, seconds = cpu_time(read_log(run))
    assert done[-1] == steps and seconds[-1] > 0

    by = runs.judged_by(run / "best.pt", one.data)
    assert by["model"] == Synthesizer.load(run / "last.pt", "cpu").model_hash and not by["another_list"]
    assert by["splits"] == {"test": sha256_file(one.data / "protocols" / "default" / "test.txt")}

    out = args.out / "streaming"
    words = ["--checkpoint", str(run / "last.pt"), "--out", str(out), "--chunks", "7", "32", "--repeats", "1"]
    assert load_script(STREAMING).main([*words, "--parts", "exactness", "state", "first-piece"]) == 0
    found = read_json(out / "streaming.json")
    assert [row["chunk"] for row in found["exactness"]["chunks"]] == [7, 32]
    assert all(row["mel"] < 1e-5 for row in found["exactness"]["chunks"])
    after = found["state"]["sizes"]
    assert list(after) == ["1 s", "60 s"] and after["1 s"] == after["60 s"] and after["1 s"]["values"] > 0
    assert found["first-piece"]["seconds"] >= streaming.SENTENCE
    assert "decoder state after 60 s" in (out / "streaming.md").read_text(encoding="utf-8")


def test_lists_made_anew_make_another_run_and_no_figures_of_the_old_one(
    trained: tuple[argparse.Namespace, runs.Training], tmp_path: Path
):
    """A text of the test list changes places with one of the training list, at the same path."""
    args, one = trained
    run = runs.train(args, one, runs.planned_steps(args, one))
    data = tmp_path / "data"
    shutil.copytree(one.data, data)
    before = runs.judged_by(run / "best.pt", data)
    assert not runs.differences(runs.recorded(run), runs.request_of(replace(one, data=data), "cpu", 1))
    folder = data / "protocols" / "default"
    (first, *train), (held, *test) = (read_lines(folder / f"{name}.txt") for name in ("train", "test"))
    write_text(folder / "train.txt", as_lines(sorted([held, *train])))
    write_text(folder / "test.txt", as_lines(sorted([first, *test])))
    wanted = runs.request_of(replace(one, data=data), "cpu", 1)
    assert runs.differences(runs.recorded(run), wanted) == ["training_list"]
    entry = read_json(args.out / runs.STEPS)["table-a/causal"]
    assert runs.differences(entry, runs.basis(replace(one, data=data), "cpu")) == ["training_list"]
    after = runs.judged_by(run / "best.pt", data)
    assert after["model"] == before["model"] and after["splits"] != before["splits"] and after["another_list"]

    evaluation = SynthesisEvaluation(
        "title", {"protocol": "default", "splits": after["splits"]}, RECIPES["hifigan-22k"]
    )
    store, synthesizer = FeatureStore.open(data), Synthesizer.load(run / "best.pt", "cpu")
    synthesis._rows(evaluation, synthesizer, store, read_text_lists(folder), None, 0)
    with pytest.raises(UserError, match="was not trained on the training list that its data have now"):
        runs.require_unseen({"warnings": evaluation.warnings}, run)
    runs.require_unseen({"warnings": ["2 utterances without a text to speak were left out"]}, run)


def test_a_finished_run_is_not_taken_for_one_of_another_preset(
    trained: tuple[argparse.Namespace, runs.Training], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The new preset is refused by the training script, which shows that it was asked to train."""
    args, one = trained
    run = runs.train(args, one, 1)
    preset, other = tmp_path / "other.yaml", argparse.Namespace(**{**vars(args), "out": tmp_path})
    preset.write_text("no-such-flag: 1", encoding="utf-8")
    shutil.copytree(run, tmp_path / "table-a" / run.name)
    assert runs.train(other, one, 1) == tmp_path / "table-a" / run.name
    with pytest.raises(UserError, match="no-such-flag"):
        runs.train(other, replace(one, preset=preset), 1)
    assert "begun anew: it had another preset_sha256" in capsys.readouterr().out
    left = tmp_path / "table-a" / run.name
    assert [path.name for path in left.iterdir()] == [runs.REQUEST]
    assert runs.recorded(left)["preset_sha256"] == sha256_file(preset)


def test_hard_sentences_are_spoken_judged_and_kept(
    trained: tuple[argparse.Namespace, runs.Training], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two sentences by a recognizer that always hears the same; a second call speaks none of them again."""
    args, one = trained
    checkpoint = runs.train(args, one, 1) / "best.pt"
    (tmp_path / "list.txt").write_text("repeats|the river the river\nwords|boats\n", encoding="utf-8")
    given = {"out": tmp_path, "asr": fake_whisper.install(tmp_path, monkeypatch), "limit": 2}
    args = argparse.Namespace(**{**vars(args), **given, "sentences": tmp_path / "list.txt"})
    found = hard.measure(args, "tiny", checkpoint, tmp_path / "evaluation")
    assert [line["heard"] for line in found["sentences"]] == [fake_whisper.HEARD] * 2
    everything = found["categories"]["all"]
    assert (everything["length"], everything["insertions"] - everything["deletions"]) == (5, 1)
    assert found["reference"]["words"] > 0 and found["checkpoint"] == str(checkpoint)
    sounds = {path: path.stat().st_mtime_ns for path in (tmp_path / "hard" / "tiny").glob("*.wav")}
    espeak = read_json(tmp_path / "results" / "hard" / "espeak-ng.json")
    assert len(sounds) == 2 and len(list((tmp_path / "hard" / "espeak-ng").glob("*.wav"))) == 2
    with pytest.raises(UserError, match="no model can have the name espeak-ng"):
        hard.measure(args, "espeak-ng", checkpoint, tmp_path / "evaluation")
    assert espeak["by"]["voice"] == "en-us" and espeak["sentences"][0]["seconds"] > 0.5
    again = hard.measure(args, "tiny", checkpoint, tmp_path / "evaluation")
    assert {**again, "measured": found["measured"]} == found
    assert {path: path.stat().st_mtime_ns for path in sounds} == sounds


@pytest.mark.slow
def test_streaming_a_minute_takes_no_more_memory_than_some_seconds(
    trained: tuple[argparse.Namespace, runs.Training], tmp_path: Path
):
    args, one = trained
    run = runs.train(args, one, 1)
    words = ["--checkpoint", str(run / "last.pt"), "--out", str(tmp_path), "--parts", "memory"]
    assert load_script(STREAMING).main(words) == 0
    cells = read_json(tmp_path / "streaming.json")["memory"]["cells"]
    assert [cell["one_sentence"] for cell in cells] == [False, True]
    for cell in cells:
        assert cell["long"]["seconds"] >= streaming.LONG > 2 * cell["short"]["seconds"]
        assert cell["ratio"] < 1.1
