"""Training that begins with a trained encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from root import ROOT

import preprocess
import train_tacomamba
from benchmarks import adaptation
from utils.checkpoint import load_checkpoint, save_checkpoint

PRESET = ROOT / "configs" / "speaker-large-margin.yaml"
FEW = ("--config", PRESET, "--crop-seconds", 1, "--no-tensorboard", "--valid-every", 1)


def train(*words: object) -> int:
    try:
        return train_tacomamba.main([str(word) for word in words])
    except SystemExit as stopped:
        return stopped.code


def begun(data: Path, run: Path, out: Path, *more: object) -> dict:
    """The checkpoint after one step that changes no parameter."""
    assert train("--data", data, "--out", out, "--init", run, *FEW, "--steps", 1, "--lr", 1e-30, *more) == 0
    return load_checkpoint(out)


def test_encoder_statistics_and_classifier_are_taken_and_no_flag_repeated(processed, trained_run, tmp_path):
    before, after = load_checkpoint(trained_run), begun(processed, trained_run, tmp_path / "run")
    encoder = {key: value for key, value in before["model_config"].items() if key != "margin"}
    assert {key: value for key, value in after["model_config"].items() if key != "margin"} == encoder
    assert (before["model_config"]["margin"], after["model_config"]["margin"]) == (0.2, 0.5)
    changed = [key for key, value in before["model"].items() if not torch.equal(after["model"][key], value)]
    assert changed and all("running" in key or "num_batches" in key for key in changed)  # of batch norm


def test_the_shipped_encoder_is_taken_by_its_name(processed, tmp_path):
    before, after = load_checkpoint("speaker"), begun(processed, "speaker", tmp_path / "run")
    assert "classifier.weight" in after["model"] and after["speakers"] != before["speakers"]
    for key in ("encoder.embedding.weight", "feature_norm.std"):
        assert torch.equal(before["model"][key], after["model"][key])


def test_other_speakers_get_a_new_classifier(librispeech_root, trained_run, tmp_path):
    (tmp_path / "held.txt").write_text("101\n106\n107\n")
    words = ["--layout", "librispeech", "--raw", librispeech_root, "--out", tmp_path / "data"]
    assert preprocess.main([str(word) for word in [*words, "--heldout-speakers", tmp_path / "held.txt"]]) == 0
    before, after = load_checkpoint(trained_run), begun(tmp_path / "data", trained_run, tmp_path / "run", "--seed", 1)
    assert before["speakers"] != after["speakers"]
    for key in ("encoder.embedding.weight", "feature_norm.mean"):
        assert torch.equal(before["model"][key], after["model"][key])
    assert len(after["model"]["classifier.weight"]) == len(after["speakers"])
    vectors = after["model"]["classifier.weight"] @ before["model"]["classifier.weight"].T
    assert vectors.abs().max() < before["model"]["classifier.weight"].square().sum(1).min()


def test_the_classifier_loses_the_classes_of_other_speeds(processed, stored, trained_run, tmp_path):
    fast = begun(stored, trained_run, tmp_path / "fast", "--speed-perturbation")
    weight = fast["model"]["classifier.weight"]
    assert len(weight) == 3 * len(fast["speakers"])
    after = begun(processed, tmp_path / "fast", tmp_path / "run")
    assert torch.equal(after["model"]["classifier.weight"], weight[: len(fast["speakers"])])


def test_resuming_does_not_begin_again(processed, trained_run, tmp_path):
    words = ["--data", processed, "--init", trained_run, *FEW, "--resume", "auto"]
    assert train(*words, "--out", tmp_path / "two", "--steps", 2) == 0
    assert train(*words, "--out", tmp_path / "one", "--steps", 2, "--save-every", 1) == 0
    shutil.copy(tmp_path / "one" / "last-1.pt", tmp_path / "one" / "last.pt")
    shutil.copy(tmp_path / "one" / "last-1.pt.sha256", tmp_path / "one" / "last.pt.sha256")
    assert train(*words, "--out", tmp_path / "one", "--steps", 2) == 0
    one, two = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in two)


def changed_by_training(processed: Path, run: Path, out: Path, part: str) -> list[str]:
    words = ["--data", processed, "--out", out, "--init", run, *FEW, "--freeze", part]
    assert train(*words, "--steps", 3, "--ema", 0.9) == 0
    before, after = load_checkpoint(run)["model"], load_checkpoint(out)["model"]
    return [key for key, value in before.items() if not torch.equal(after[key], value)]


def test_a_frozen_encoder_stays_and_the_classifier_learns(processed, trained_run, tmp_path):
    assert changed_by_training(processed, trained_run, tmp_path / "run", "encoder") == ["classifier.weight"]


def test_frozen_statistics_stay_and_the_encoder_learns(processed, trained_run, tmp_path):
    changed = changed_by_training(processed, trained_run, tmp_path / "run", "statistics")
    assert "encoder.embedding.weight" in changed
    assert not [key for key in changed if "running" in key or "num_batches" in key]


def test_few_new_speakers_keep_the_back_end_and_the_thresholds(librispeech_root, tmp_path):
    words = ["--layout", "librispeech", "--raw", librispeech_root, "--out", tmp_path / "data"]
    words += ["--heldout-speakers", 0, "--valid-speakers", 0, "--no-identification-tests"]
    assert preprocess.main([str(word) for word in words]) == 0
    before, after = load_checkpoint("speaker"), begun(tmp_path / "data", "speaker", tmp_path / "run")
    for kept in ("back_end", "operating_points"):
        assert all(torch.equal(after[kept][name], value) for name, value in before[kept].items())


def test_the_benchmark_of_adaptation_runs(librispeech_root, trained_run, tmp_path, capsys):
    (tmp_path / "speakers.txt").write_text("".join(f"{speaker}\n" for speaker in range(101, 107)))
    words = ["--speech", librispeech_root / "LibriSpeech" / "train-tiny", "--speakers", tmp_path / "speakers.txt"]
    words += ["--checkpoint", trained_run, "--new", 2, "--seconds", 3, "--draws", 1, "--out", tmp_path / "out"]
    flags = ["--", "--steps", 1, "--crop-seconds", 1]
    assert adaptation.main([str(word) for word in [*words, *flags]]) == 0
    shown = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:6]] == [f"| {name}" for name in adaptation.MEASURES]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--d-model", 64), "has another encoder: --d-model (32 there, 64 here)"),
        (("--init", "nowhere/run"), "there is no checkpoint at nowhere/run"),
    ],
)
def test_what_does_not_fit_is_refused(processed, trained_run, tmp_path, capsys, more, sentence):
    assert train("--data", processed, "--out", tmp_path / "run", "--init", trained_run, *FEW, *more) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_freezing_needs_a_model(processed, tmp_path, capsys):
    assert train("--data", processed, "--out", tmp_path / "run", "--freeze", "encoder") == 2
    assert "--freeze encoder needs --init" in capsys.readouterr().err


def test_a_model_of_text_to_mel_is_refused(processed, trained_run, tmp_path, capsys):
    save_checkpoint(tmp_path / "voice.pt", {**load_checkpoint(trained_run), "task": "tts"})
    assert train("--data", processed, "--out", tmp_path / "run", "--init", tmp_path / "voice.pt", *FEW) == 2
    assert "holds a model of --task tts" in capsys.readouterr().err
