"""The trainer through its script: logs, checkpoints, the same bits from the same seed, resume, ranks, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import preprocess
import test as evaluate_script
import train_tacomamba
from utils.checkpoint import load_checkpoint
from utils.training.runlog import read_log

ROOT = Path(__file__).resolve().parents[1]
MODEL = ["--d-model", "16", "--n-layers", "1", "--headdim", "8", "--d-state", "8", "--pooled-channels", "16"]
SMALL = [*MODEL, "--batch-size", "8", "--crop-seconds", "0.5", "--log-every", "1", "--threads", "1", "--no-tensorboard"]
SMALL += ["--margin-warmup", "0.1"]
RUN_FIELDS = {"step", "loss", "loss_hex", "lr", "frames_per_s"}


def flags(data: Path, out: Path, *words: str) -> list[str]:
    return ["--task", "speaker", "--data", str(data), "--out", str(out), *SMALL, *words]


def train(data: Path, out: Path, *words: str) -> int:
    return train_tacomamba.main(flags(data, out, *words))


def losses(run: Path) -> dict[int, str]:
    return {line["step"]: line["loss_hex"] for line in read_log(run)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt")["model"]


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.fixture(scope="module")
def uninterrupted(processed, tmp_path_factory) -> Path:
    """40 steps with dropout, so that torch's own random numbers matter too."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(processed, run, "--steps", "40", "--save-every", "20", "--dropout", "0.1") == 0
    return run


def test_a_run_leaves_what_it_promises(uninterrupted):
    lines = read_log(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, 41))
    for line in lines:
        assert RUN_FIELDS <= set(line) and float.fromhex(line["loss_hex"]) == line["loss"]
        assert line["frames_per_s"] > 0 and line["cpu_s_per_step"] > 0
    assert [line["step"] for line in lines if "valid_eer" in line] == [20, 40]
    values = [line["loss"] for line in lines]
    assert sum(values[-5:]) < 0.8 * sum(values[4:9])  # from the step on that has the whole margin
    best, last = load_checkpoint(uninterrupted), load_checkpoint(uninterrupted / "last.pt")
    assert best["metrics"]["valid_eer"] == min(line["valid_eer"] for line in lines if "valid_eer" in line)
    assert last["step"] == 40 and last["training"]["samples"] == 320 and "training" not in best
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["config"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__


def test_the_saved_configuration_repeats_the_run(uninterrupted, tmp_path):
    words = ["--config", str(uninterrupted / "config.yaml"), "--out", str(tmp_path / "again"), "--workers", "2"]
    assert train_tacomamba.main(words) == 0
    assert_same_run(uninterrupted, tmp_path / "again")


def test_another_seed_gives_another_run(uninterrupted, processed, tmp_path):
    assert train(processed, tmp_path / "other", "--steps", "1", "--seed", "1", "--dropout", "0.1") == 0
    assert losses(tmp_path / "other")[1] != losses(uninterrupted)[1]


def test_sigterm_saves_and_the_resumed_run_is_the_same_run(uninterrupted, processed, tmp_path):
    run = tmp_path / "stopped"
    words = flags(processed, run, "--steps", "40", "--save-every", "20", "--dropout", "0.1")
    process = subprocess.Popen([sys.executable, "train_tacomamba.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not losses(run) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    stopped = load_checkpoint(run / "last.pt")["step"]
    assert 1 <= stopped < 40
    assert train(processed, run, "--steps", "40", "--save-every", "20", "--dropout", "0.1", "--resume", "auto") == 0
    assert_same_run(uninterrupted, run)


def test_a_finished_run_is_left_alone(uninterrupted, processed, capsys):
    before = (uninterrupted / "last.pt").stat().st_mtime_ns
    assert train(processed, uninterrupted, "--steps", "40", "--dropout", "0.1", "--resume", "auto") == 0
    assert "trained to step 40 already" in capsys.readouterr().out
    assert (uninterrupted / "last.pt").stat().st_mtime_ns == before


def test_a_run_folder_in_use_and_contradictions_are_refused_together(uninterrupted, processed, capsys):
    with pytest.raises(SystemExit) as exit_:
        train(processed, uninterrupted, "--causal", "--normalise", "utterance", "--headdim", "7")
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "is not empty" in message and "--headdim 7" in message and "contradict" in message


def test_resuming_another_model_is_refused(uninterrupted, processed, capsys):
    assert train(processed, uninterrupted, "--steps", "60", "--d-model", "24", "--lr", "3", "--resume", "auto") == 2
    message = capsys.readouterr().err
    assert "model_config" in message and "--lr" in message
    assert load_checkpoint(uninterrupted / "last.pt")["step"] == 40


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--data", "nowhere"], "no features in nowhere"),
        (["--protocol", "other"], "other"),
        (["--resume", "nothing.pt"], "no checkpoint at nothing.pt"),
        (["--device", "abacus"], "device abacus cannot be used"),
        (["--device", "meta"], "none of cpu, cuda and mps"),
        (["--crop-seconds", "0.01"], "shorter than one frame"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(processed, tmp_path, capsys, change, sentence):
    assert train(processed, tmp_path / "run", *change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_validation_trials_the_last_checkpoint_is_the_best(processed, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(processed, run, "--steps", "3", "--save-every", "1", "--valid-utterances", "1") == 0
    assert "no validation" in capsys.readouterr().out
    assert load_checkpoint(run)["step"] == 3 and load_checkpoint(run)["metrics"] == {}


@pytest.mark.parametrize("flag", ["--batch-size=1", "--margin=nan", "--weight-decay=-5", "--noise-snr 9 3"])
def test_flags_that_make_no_sense_are_refused(processed, tmp_path, flag):
    with pytest.raises(SystemExit) as exit_:
        train(processed, tmp_path / "run", *flag.split())
    assert exit_.value.code == 2 and not (tmp_path / "run").exists()


def test_resuming_on_another_training_list_is_refused(uninterrupted, processed, tmp_path, capsys):
    words = ["--dataset", "librispeech", "--raw", json.loads((processed / "meta.json").read_text())["raw"]]
    heldout = processed / "protocols" / "default" / "heldout_speakers.txt"
    words += ["--out", str(processed), "--protocol", "again", "--seed", "5", "--heldout-speakers", str(heldout)]
    assert preprocess.main([*words, "--num-proc", "1"]) == 0
    assert train(processed, uninterrupted, "--steps", "60", "--protocol", "again", "--resume", "auto") == 2
    assert "training_list" in capsys.readouterr().err
    evaluation = ["evaluate", "--checkpoint", str(uninterrupted), "--data", str(processed), "--protocol", "again"]
    assert evaluate_script.main([*evaluation, "--out", str(tmp_path / "report")]) == 0
    identification = json.loads((tmp_path / "report" / "report.json").read_text())["identification"]
    assert identification["utterance"]["accuracy"] is None and "may have been" in identification["utterance"]["reason"]


def test_a_loss_that_is_not_finite_stops_the_run(processed, tmp_path, capsys):
    assert train(processed, tmp_path / "run", "--steps", "30", "--lr", "1e30", "--warmup", "0") == 2
    assert "the loss of step" in capsys.readouterr().err


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full(uninterrupted, processed, tmp_path, amp):
    """The first loss within 2 % of float32's, and the run learns."""
    assert train(processed, tmp_path / amp, "--steps", "20", "--amp", amp, "--dropout", "0.1") == 0
    values = [line["loss"] for line in read_log(tmp_path / amp) if "loss" in line]
    assert values[0] == pytest.approx(float.fromhex(losses(uninterrupted)[1]), rel=0.02)
    assert sum(values[-4:]) < sum(values[2:6])


@pytest.mark.parametrize("model", ["tacomamba", "xvector"])
def test_two_ranks_train_one_model_on_the_same_samples(processed, tmp_path, model):
    """First loss to 1e-6 relative (the order of sums), later ones to 1e-3: AdamW amplifies rounding."""
    words = ["--steps", "4", "--save-every", "4", "--model", model]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [*torchrun, "train_tacomamba.py", *flags(processed, tmp_path / "two", *words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert train(processed, tmp_path / "one", *words) == 0
    one, two = ([float.fromhex(value) for value in losses(tmp_path / run).values()] for run in ("one", "two"))
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-3)


def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
