"""Loading processes that fail: too little shared memory, a death, a wait without end; real processes and signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from root import ROOT
from toy_training import ToyTask, TrainingOptions
from training_runs import flags, losses

from utils.checkpoint import load_checkpoint
from utils.training.distributed import Ranks
from utils.training.loading import Batches


def start(command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    while max(losses(run), default=0) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def toy(tmp_path: Path, **task: object) -> list[str]:
    """A command that trains the toy task with two loading processes."""
    words = ["--steps", "1000", "--save-every", "1000", "--workers", "2"]
    scenarios = [{"out": str(tmp_path / "run"), "flags": words, "task": task}]
    (tmp_path / "scenarios.json").write_text(json.dumps(scenarios))
    return [sys.executable, "tests/toy_training.py", str(tmp_path / "scenarios.json")]


@pytest.mark.parametrize("filled", ["", "dd if=/dev/zero of=/dev/shm/full bs=1k count=64 status=none;"])
def test_too_little_shared_memory_is_a_sentence(processed, tmp_path, filled):
    """64 KiB of it, in part and completely in use."""
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    words = flags(processed, tmp_path / "run", "--steps", "6", "--workers", "2", "--batch-size", "32")
    train = shlex.join([sys.executable, "train_tacomamba.py", *words])
    script = f"{shlex.join(mount[2:])}; {filled} exec {train}"
    process = start(["unshare", "-m", "bash", "-c", script])
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in error
    sentence = error.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and "fewer --workers" in sentence and "/dev/shm" in sentence


def test_the_death_of_a_loading_process_is_a_sentence(processed, tmp_path):
    words = flags(processed, tmp_path / "run", "--steps", "100000", "--workers", "2")
    process = start([sys.executable, "train_tacomamba.py", *words])
    wait_for_step(process, tmp_path / "run", 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in error, error
    assert re.search("a process of --workers was lost( while it sent a batch)?: use fewer", error.splitlines()[-1])


@pytest.mark.parametrize(
    ("workers", "is_slow", "count"), [(None, False, 0), (None, True, 1), (0, True, 0), (2, False, 2)]
)
def test_samples_that_are_slow_to_load_get_a_process_of_their_own(workers, is_slow, count):
    options = TrainingOptions(workers=workers, batch_size=8)
    task = ToyTask(options, 0)
    task.is_slow_to_load = is_slow
    with contextlib.closing(Batches(task, options, Ranks(0, 1, torch.device("cpu")), 0, 2)) as batches:
        assert len(getattr(batches._iterator, "_workers", [])) == count
        assert len(batches.of_step(lambda: False)) == 1


def test_the_death_of_a_loading_process_interrupts_no_operator():
    """A handler of SIGCHLD that raises would do so in the middle of whatever the main thread does."""
    script = """
import os, signal, sys, time
sys.path.insert(0, "tests")
from toy_training import ToyTask, TrainingOptions
from utils.training.distributed import Ranks
from utils.training.loading import Batches, loading_errors
import torch
options = TrainingOptions(workers=1, batch_size=8)
batches = Batches(ToyTask(options, 0), options, Ranks(0, 1, torch.device("cpu")), 0, 1000)
assert batches.of_step(lambda: False)
os.kill(batches._iterator._workers[0].pid, signal.SIGKILL)
end = time.monotonic() + 1
while time.monotonic() < end:
    pass
print("not interrupted", flush=True)
with loading_errors():
    while True:
        batches.of_step(lambda: False)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout == "not interrupted\n" and "UserError: a process of --workers was lost" in result.stderr


def test_an_error_in_a_loading_process_is_its_sentence(tmp_path):
    process = start(toy(tmp_path, unreadable=40))
    process.communicate(timeout=60)
    import torch

    assert torch.load(tmp_path / "run" / "ranks" / "0.pt")["error"] == "item 40 cannot be read: for a reason"


def test_sigterm_ends_a_run_whose_loader_hangs(tmp_path):
    """The last complete step is saved."""
    process = start(toy(tmp_path, stuck=44))
    wait_for_step(process, tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=40)
    assert process.returncode == 0 and "stopping after this step; once more ends at once" in error
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 5
