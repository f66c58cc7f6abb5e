"""A folder that a command fills belongs to one process: a second one is refused and learns who the first is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from root import ROOT
from training_runs import flags, losses

from utils.errors import UserError
from utils.locks import LOCK, only_writer
from utils.training.runlog import read_log

HOLD = """
import sys, time
from pathlib import Path
from utils.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def held(tmp_path):
    """A folder and the process that fills it."""
    folder = tmp_path / "new" / "folder"
    holder = start("-c", HOLD, folder)
    assert holder.stdout.readline() == "held\n"
    yield folder, holder
    holder.kill()
    holder.communicate()


def test_a_second_process_is_refused_until_the_first_has_died(held):
    folder, holder = held
    with pytest.raises(UserError, match=f"process {holder.pid} on .* is writing in {folder}"), only_writer(folder):
        pass
    holder.kill()
    holder.wait()
    with only_writer(folder):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} on ")
    assert not (folder / LOCK).exists()


def test_a_process_can_wait_for_the_first(held):
    folder, holder = held
    told = []

    def say(text: str) -> None:
        told.append(text)
        holder.kill()

    with only_writer(folder, say):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} on ")
    assert len(told) == 1 and told[0].startswith(f"process {holder.pid} on ") and told[0].endswith("waiting for it")


def test_what_a_killed_process_left_unfinished_is_removed(held):
    folder, holder = held
    (folder / ".report.json.a1b2_3d4.tmp").write_text("{")
    (folder / ".part.a1b2_3d4.tmp").mkdir()
    (folder / ".part.a1b2_3d4.tmp" / "half").write_text("x")
    holder.kill()
    holder.wait()
    with only_writer(folder):
        assert os.listdir(folder) == [LOCK]


def test_folders_that_stay_empty_are_removed_and_others_kept(tmp_path):
    with only_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists() and tmp_path.exists()
    with only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_child_does_not_inherit_the_lock(tmp_path):
    """As a loading process that outlives the run."""
    with only_writer(tmp_path / "folder"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        handle = os.open(tmp_path / "folder" / LOCK, os.O_RDWR)
    try:
        with only_writer(tmp_path / "folder"):
            pass
    finally:
        os.close(handle)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("resume", ["auto", "off"])
def test_a_second_training_is_refused_at_once(processed, tmp_path, resume):
    run = tmp_path / "run"
    words = flags(processed, run, "--steps", "100000", "--save-every", "20", "--resume", resume)
    first = start("train_tacomamba.py", *words)
    while max(losses(run), default=0) < 3:
        assert first.poll() is None
        time.sleep(0.02)
    second = forked.run("train_tacomamba.py", *words)
    assert second.returncode == 2 and first.poll() is None
    assert second.stderr.startswith(f"error: process {first.pid} on ") and second.stderr.count("\n") == 1
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 143 and not (run / LOCK).exists()
    assert [line["step"] for line in read_log(run)] == list(range(1, len(read_log(run)) + 1))


def test_two_trainings_that_start_together(processed, tmp_path):
    words = flags(processed, tmp_path / "run", "--steps", "40", "--save-every", "3", "--resume", "auto")
    both = [start("train_tacomamba.py", *words) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    assert all("Traceback" not in error for error, _ in ends)
    assert sorted(code for _, code in ends) in ([0, 2], [0, 0])  # the second may start when the first has finished
    assert sorted(losses(tmp_path / "run")) == list(range(1, 41))


def test_reports_are_locked_too(held, trained_run, processed, tmp_path):
    folder, holder = held
    evaluate = ["evaluate", "--checkpoint", trained_run, "--data", processed, "--bootstrap", "5", "--out"]
    done = forked.run("test.py", *evaluate, folder)
    assert f"process {holder.pid} on" in done.stderr and done.returncode == 2
    done = forked.run("test.py", *evaluate, tmp_path / "report")
    assert not done.stderr and done.returncode == 0 and not (tmp_path / "report" / LOCK).exists()
    done = forked.run("test.py", "pool", tmp_path / "report", "--bootstrap", "5", "--out", folder)
    assert f"process {holder.pid} on" in done.stderr and done.returncode == 2
    assert [path.name for path in Path(folder).iterdir()] == [LOCK]
