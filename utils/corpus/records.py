"""How a corpus lands on disk: one process at a time, and a record inside it that it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, staging_directory

RECORD = ".complete"  # lies inside the folder it speaks of, so that both come and go together

Say = Callable[[str], None]


def read_record(target: Path, suffix: str) -> dict[str, Any] | None:
    """The completion record of a split's folder; None where the folder does not exist.

    Args:
        target: the split's folder.
        suffix: how the names of its recordings end.

    Raises:
        UserError: the folder is there, but is not, or no longer, complete.
    """
    if not target.exists():
        return None
    if not (target / RECORD).exists():
        raise UserError(f"{target} exists, but not as download.py leaves it: move it away, or give another --root")
    record = read_json(target / RECORD)
    found = count_recordings(target, suffix)
    if found != record.get("utterances"):
        raise UserError(
            f"{target} holds {found} of its {record.get('utterances')} recordings: move it away and run again"
        )
    return record


def finished_record(
    corpus: Path, split: Path, suffix: str, wanted: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """The record of a made corpus that is what was asked for; None if one has to be made.

    Args:
        corpus: its folder.
        split: the folder in it, or itself, that has the record.
        suffix: how the names of its recordings end.
        wanted: the settings that it should have been made with, and the hash of its `plan`.
        overwrite: whether one of other settings is to be replaced.

    Raises:
        UserError: a corpus of other settings is in the way and `overwrite` is False, or some other folder is.
    """
    record = read_record(split, suffix)
    if record is None and corpus.exists():
        raise UserError(f"{corpus} exists, but not as download.py leaves it: move it away, or give another --root")
    if record is None or record["settings"] == wanted:
        return record
    if overwrite:
        return None
    had = record["settings"]
    changes = [f"{key} {had[key]} -> {wanted[key]}" for key in wanted if key != "plan" and had[key] != wanted[key]]
    told = ", ".join(changes) or "another version of the demo's voices and sentences"
    raise UserError(f"{corpus} was made with other settings ({told}): --overwrite replaces it")


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """As `staging_directory`, but what is at `path` by then gives way."""
    replaced = path.with_name(f".{path.name}.replaced.tmp")
    with staging_directory(path) as staging:
        yield staging
        if path.exists():
            os.rename(path, replaced)
    shutil.rmtree(replaced, ignore_errors=True)


def count_recordings(folder: Path, suffix: str) -> int:
    """How many files below `folder` end in `suffix`."""
    return sum(name.endswith(suffix) for _, _, names in os.walk(folder) for name in names)


@contextlib.contextmanager
def only_one(folder: Path, say: Say) -> Iterator[None]:
    """Waits until no other process builds in `folder`; the lock ends with its process, however that ends."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"another process works on {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Says in a sentence what a disk or its owner refused while `folder` was written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = "what has been downloaded is kept: make room and run again"
            raise UserError(f"there is no room left under {folder} ({error.strerror}); {kept}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        raise


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes the staging folders of runs that were killed; the caller holds the lock."""
    for leftover in folder.glob(pattern):
        shutil.rmtree(leftover)
