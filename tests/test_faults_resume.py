"""Rows 23 to 25 of the fault matrix: killed or stopped at any step, a resumed run is the same run.

tests/signal_at_step.py sends the signals, so that they come at the step that is meant on any machine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from root import ROOT
from training_runs import assert_same_run, flags, losses, train

from utils.checkpoint import load_checkpoint
from utils.training.runlog import read_log

STEPS = ["--steps", "40", "--save-every", "8", "--dropout", "0.1", "--ema", "0.9"]
# name -> the step at which a signal comes, the signal, how often, and flags of the run.
CASES = {
    "fp32": (13, "SIGKILL", 1, ["--workers", "0"]),
    "bf16, 2 workers": (21, "SIGKILL", 1, ["--workers", "2", "--amp", "bf16"]),
    "fp16": (19, "SIGKILL", 1, ["--amp", "fp16", "--lr", "0.01"]),
    "SIGTERM": (10, "SIGTERM", 1, ["--workers", "0"]),
    "SIGINT": (11, "SIGINT", 1, ["--workers", "2"]),
    "SIGUSR1": (16, "SIGUSR1", 1, ["--workers", "0"]),
    "second": (13, "SIGTERM", 2, ["--workers", "0"]),
}
KILLED = [name for name, (_, number, _, _) in CASES.items() if number == "SIGKILL"]


def assert_resumes_to(reference: Path, processed: Path, run: Path, *words: str) -> None:
    """Resumed, the run has the reference's losses, weights, average and scaler; each step stands once in its log."""
    saved = load_checkpoint(run / "last.pt")["step"] if (run / "last.pt").exists() else 0
    assert train(processed, run, *STEPS, *words, "--resume", "auto") == 0
    assert_same_run(reference, run)
    lines = read_log(run)
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 41))
    if 0 < saved < 40:
        assert [line["resumed_from"] for line in lines if "resumed_from" in line][-1] == saved
    one, other = (load_checkpoint(folder / "last.pt")["training"] for folder in (reference, run))
    assert one["scaler"] == other["scaler"] and one["updates"] == other["updates"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    best, again = (load_checkpoint(folder) for folder in (reference, run))
    assert best["step"] == again["step"] and best["metrics"] == again["metrics"]


@pytest.fixture(scope="module")
def references(processed, tmp_path_factory) -> Path:
    """The uninterrupted runs."""
    folder = tmp_path_factory.mktemp("references")
    for name in KILLED:
        assert train(processed, folder / name, *STEPS, *CASES[name][3]) == 0
    return folder


@pytest.fixture(scope="module")
def signalled(processed, tmp_path_factory) -> dict[str, tuple[int, Path]]:
    """Exit codes and folders of the runs that got a signal."""
    folder = tmp_path_factory.mktemp("signalled")
    cases = {
        name: [str(step), number, "0", str(times), *flags(processed, folder / name, *STEPS, *words)]
        for name, (step, number, times, words) in CASES.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "tests/signal_at_step.py", str(folder / "cases.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
    assert "Traceback" not in result.stderr, result.stderr
    return {name: (code, folder / name) for name, code in json.loads(result.stdout).items()}


@pytest.mark.parametrize("name", KILLED)
def test_row_23_kill_9_then_resume_is_the_same_run(references, signalled, processed, name):
    code, run = signalled[name]
    assert code == -signal.SIGKILL and max(losses(run)) == CASES[name][0]
    assert load_checkpoint(run / "last.pt")["step"] == CASES[name][0] // 8 * 8
    assert_resumes_to(references / name, processed, run, *CASES[name][3])


def test_row_24_the_scaler_was_saved_in_mid_growth(references):
    """What row 23 compares for fp16: a scale that has fallen, and a tracker that has counted steps since."""
    lines = read_log(references / "fp16")
    scaler = load_checkpoint(references / "fp16" / "last-1.pt")["training"]["scaler"]
    skipped = [line["step"] for line in lines if "skipped" in line]
    assert skipped and scaler["scale"] == 65536 * scaler["backoff_factor"] ** len(skipped)
    assert scaler["_growth_tracker"] == 32 - skipped[-1] > 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_row_25_a_signal_saves_and_the_resumed_run_is_the_same_run(references, signalled, processed, name):
    code, run = signalled[name]
    assert code == 128 + signal.Signals[name]
    step = load_checkpoint(run / "last.pt")["step"]
    assert step == max(losses(run)) == CASES[name][0]  # the step in flight was finished and saved
    assert_resumes_to(references / "fp32", processed, run, *CASES[name][3])


def test_row_25_a_second_signal_exits_at_once(signalled):
    """The save that the first one requested is dropped; the checkpoint before is intact."""
    code, run = signalled["second"]
    assert code == -signal.SIGTERM
    assert max(losses(run)) == 13 and load_checkpoint(run / "last.pt")["step"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_row_23_at_many_moments(processed, tmp_path, amp, workers):
    """SIGKILL from outside, at six moments of one run after another, in the middle of any operation."""
    words = [*STEPS, "--workers", workers, "--amp", amp]
    assert train(processed, tmp_path / "reference", *words) == 0
    run = tmp_path / "run"
    for step in (1, 7, 8, 15, 26, 39):
        command = [sys.executable, "train_tacomamba.py", *flags(processed, run, *words, "--resume", "auto")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and max(losses(run), default=0) < step:
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert_resumes_to(tmp_path / "reference", processed, run, *words)
