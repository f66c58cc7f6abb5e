"""Rows 18 to 22 of the fault matrix: death, a full disk and damage while checkpoints are saved and kept."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from root import ROOT
from training_runs import flags, losses, train

from utils.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import remove_leftovers
from utils.training.checkpoints import CheckpointStore
from utils.training.runlog import read_log


def content(step: int, numbers: int = 20_000) -> dict:
    """A checkpoint of about 80 kB whose weights hold its step."""
    return {"task": "toy", "step": step, "model": {"weight": torch.full((numbers,), float(step))}}


def is_intact(checkpoint: dict, step: int) -> bool:
    weight = checkpoint["model"]["weight"]
    return checkpoint["step"] == step and bool((weight == step).all())


def in_a_child(action) -> int:
    """Runs `action` in a forked process and returns how that ended, as os.waitpid gives it."""
    return os.waitpid(fork(action), 0)[1]


def fork(action) -> int:
    """Runs `action` in a forked process, whose number this is, on one thread: OpenMP's others do not survive a fork."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            action()
        finally:
            os._exit(1)
    return child


def die_at_byte(store: CheckpointStore, step: int, offset: int) -> None:
    """The kernel kills the process, with SIGXFSZ, as it writes byte `offset` of any file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))
    store.save_last(content(step))


def offsets(size: int) -> list[int]:
    return [1, size - 1, *random.Random(18).sample(range(2, size - 1), 18)]


@pytest.mark.parametrize("keep_last", [1, 2])
def test_row_18_death_at_a_byte_of_a_save_leaves_the_checkpoint_before(tmp_path, keep_last):
    """20 offsets, the first and the last byte among them; after each the run continues and saves."""
    store = CheckpointStore(tmp_path, keep_last)
    store.save_last(content(0))
    size = (tmp_path / LAST).stat().st_size
    for step, offset in enumerate(offsets(size), start=1):
        status = in_a_child(lambda step=step, offset=offset: die_at_byte(store, step, offset))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ
        assert is_intact(store.newest(), step - 1)
        assert list(tmp_path.glob(".*.tmp"))  # what a dead process cannot remove
        remove_leftovers(tmp_path)
        store.save_last(content(step))
        assert is_intact(store.newest(), step) and not list(tmp_path.glob(".*.tmp"))
    assert len(list(tmp_path.glob("*.pt"))) == keep_last


def test_row_18_kill_9_in_a_large_save_leaves_the_checkpoint_before(tmp_path):
    """Three times, as soon as some of 64 MiB has been written."""
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save_last(content(0))
    for step in (1, 2, 3):
        child = fork(lambda step=step: store.save_last(content(step, numbers=2**24)))
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 2**20 for path in tmp_path.glob(f".{LAST}.*.tmp")):
            assert time.monotonic() < deadline
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert is_intact(store.newest(), 0)
        remove_leftovers(tmp_path)


@pytest.mark.slow
def test_row_18_at_every_256th_byte(tmp_path):
    """Also between the files of a save: the number of bytes of the hash lets the old files' moves be cut as well."""
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in range(3):
        store.save_last(content(step, numbers=100))
    step = 2
    for offset in [*range(0, 90), *range(90, (tmp_path / LAST).stat().st_size, 256)]:
        status = in_a_child(lambda offset=offset, step=step: die_at_byte(store, step + 1, offset))
        assert os.WTERMSIG(status) == signal.SIGXFSZ
        assert is_intact(store.newest(), step)
        remove_leftovers(tmp_path)
        step += 1
        store.save_last(content(step, numbers=100))


def limited(limit: int, words: list[str]) -> subprocess.CompletedProcess:
    """train_tacomamba.py that cannot write beyond byte `limit` of a file: Python ignores SIGXFSZ and gets an error."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "train_tacomamba.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=limit_files)


def test_row_19_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(processed, tmp_path):
    run = tmp_path / "run"
    words = ["--save-every", "2", "--dropout", "0.1"]
    assert train(processed, run, "--steps", "4", *words) == 0
    before = {path.name: path.read_bytes() for path in run.glob("*.pt")}
    result = limited(len(before[LAST]) // 2, flags(processed, run, "--steps", "8", "--resume", "auto", *words))
    assert result.returncode == 2
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "last.pt could not be written" in error and "too large" in error
    assert "Traceback" not in result.stderr and not list(run.glob(".*.tmp"))
    assert load_checkpoint(run / LAST)["step"] == 4 and (run / LAST).read_bytes() == before[LAST]
    assert train(processed, run, "--steps", "8", "--resume", "auto", *words) == 0  # with room again
    assert sorted(losses(run)) == list(range(1, 9))


@pytest.fixture
def damaged_run(processed, tmp_path) -> Path:
    """A run of 6 steps with checkpoints of steps 6 and 4."""
    run = tmp_path / "run"
    assert train(processed, run, "--steps", "6", "--save-every", "2") == 0
    assert [load_checkpoint(run / name)["step"] for name in (LAST, "last-1.pt")] == [6, 4]
    return run


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_rows_20_and_21_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    processed, damaged_run, tmp_path, capsys, damage
):
    """The finished run equals the undamaged one. torch.load does not notice the flipped bit."""
    path = damaged_run / LAST
    data = bytearray(path.read_bytes())
    intact = load_checkpoint(path)["model"]
    if damage == "flipped":
        place = data.find(intact["classifier.weight"].numpy().tobytes())
        assert place > 0
        data[place + 5] ^= 1
        path.write_bytes(data)
        assert torch.load(path, weights_only=True)["step"] == 6
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    assert train(processed, damaged_run, "--steps", "6", "--save-every", "2", "--resume", "auto") == 0
    warning = capsys.readouterr().err
    assert "warning: " in warning and "last.pt.damaged" in warning
    last = load_checkpoint(path)
    assert last["step"] == 6 and all(torch.equal(tensor, last["model"][name]) for name, tensor in intact.items())
    assert sorted(losses(damaged_run)) == list(range(1, 7))
    assert load_checkpoint(damaged_run / "last-1.pt")["step"] == 4


def test_when_no_checkpoint_is_intact_the_run_does_not_start_again(processed, damaged_run, capsys):
    for name in (LAST, "last-1.pt"):
        (damaged_run / name).write_bytes(b"")
    assert train(processed, damaged_run, "--steps", "6", "--resume", "auto") == 2
    assert "no checkpoint in" in capsys.readouterr().err
    assert sorted(losses(damaged_run)) == list(range(1, 7))


class Malice:
    """Unpickled, it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_row_22_a_malicious_checkpoint_runs_no_code(processed, damaged_run, tmp_path, capsys):
    trap = tmp_path / "trap"
    hidden = load_checkpoint(damaged_run / LAST) | {"training": Malice(str(trap))}
    torch.save(hidden, damaged_run / LAST)
    (damaged_run / f"{LAST}.sha256").unlink()
    assert train(processed, damaged_run, "--steps", "6", "--resume", str(damaged_run / LAST)) == 2
    assert "is not a checkpoint, or it is damaged" in capsys.readouterr().err and not trap.exists()
    assert train(processed, damaged_run, "--steps", "6", "--save-every", "2", "--resume", "auto") == 0
    assert "warning: " in capsys.readouterr().err and not trap.exists()
    torch.load(damaged_run / "last.pt.damaged", weights_only=False)
    assert trap.exists()  # the trap is a real one


def test_older_checkpoints_are_renumbered_and_the_oldest_is_removed(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in range(1, 6):
        store.save_last(content(step))
        store.save_best(content(step))
        names = {path.name for path in tmp_path.iterdir()}
        expected = [BEST, LAST, "last-1.pt", "last-2.pt"][: step + 1]
        assert names == {*expected, *(f"{name}.sha256" for name in expected)}
        for age, name in enumerate(expected[1:]):
            assert is_intact(load_checkpoint(tmp_path / name), step - age)


def test_going_back_renames_the_newer_checkpoints(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        store.save_last(content(step))
    store.save_best(content(2))
    store.begin_from(tmp_path / "last-1.pt", 2)
    assert is_intact(store.newest(), 2) and (tmp_path / "last.pt.superseded").exists() and store.has_best()
    store.save_last(content(9))
    assert [store.newest()["step"], load_checkpoint(tmp_path / "last-1.pt")["step"]] == [9, 2]


def test_going_back_renames_a_best_checkpoint_that_is_newer_or_of_another_run(tmp_path):
    store = CheckpointStore(tmp_path / "run", keep_last=3)
    for step in (1, 2, 3):
        store.save_last(content(step))
    store.save_best(content(3))
    store.begin_from(tmp_path / "run" / "last-1.pt", 2)
    assert not store.has_best() and is_intact(store.newest(), 2)
    store.save_best(content(1))
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1}\n')
    save_checkpoint(tmp_path / "other.pt", content(2))
    store.begin_from(tmp_path / "other.pt", 2)
    assert not store.has_best() and store.newest() is None and not (tmp_path / "run" / "log.jsonl").exists()


def test_a_damaged_hash_is_that_of_a_damaged_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2):
        store.save_last(content(step))
    (tmp_path / "last.pt.sha256").write_bytes(b"\xff\xfe\x80")
    assert is_intact(store.newest(), 1)


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*paths: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        store.save_last(content(step))
    assert is_intact(load_checkpoint(tmp_path / LAST), 3) and is_intact(load_checkpoint(tmp_path / "last-1.pt"), 2)


def test_a_save_that_fails_raises_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / LAST, content(1))


@pytest.mark.parametrize("line", ['{"step": 2', "[]", '{"a": 4}'])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match="line 2 of .*log.jsonl"):
        read_log(tmp_path)
