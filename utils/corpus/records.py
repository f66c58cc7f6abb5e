"""Completion records of corpora on disk, and locks so that one process at a time writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.espeak import require_espeak
from utils.files import read_json, staging_directory

RECORD = ".complete"  # inside the folder that it describes, so that both appear and vanish together

Say = Callable[[str], None]


def read_record(target: Path, suffix: str) -> dict[str, Any] | None:
    """Reads the completion record of a split's folder; None if the folder does not exist.

    Args:
        target: the split's folder.
        suffix: file name extension of its recordings.

    Raises:
        UserError: the folder exists, but is not, or no longer, complete.
    """
    if not target.exists():
        return None
    if not (target / RECORD).exists():
        raise UserError(f"{target} exists, but was not made by download.py: move it away, or give another --root")
    record = read_json(target / RECORD)
    found = count_recordings(target, suffix)
    if found != record.get("utterances"):
        raise UserError(
            f"{target} holds {found} of its {record.get('utterances')} recordings: move it away and run again"
        )
    return record


def make_once(
    corpus: Path,
    split: Path,
    suffix: str,
    wanted: dict[str, Any],
    overwrite: bool,
    make: Callable[[], dict[str, Any]],
    say: Say,
) -> tuple[dict[str, Any], bool]:
    """Makes a synthetic corpus unless the requested one exists; only one process at a time makes it.

    Args:
        corpus: its folder.
        split: the folder with the record: in the corpus, or the corpus itself.
        suffix: file name extension of its recordings.
        wanted: the requested settings, and the hash of the `plan`.
        overwrite: whether a corpus of other settings is to be replaced.
        make: makes the corpus and returns its completion record.

    Returns:
        The completion record, and whether the corpus was made now.

    Raises:
        UserError: espeak-ng is missing, a corpus of other settings exists and `overwrite` is False, or a folder of
            other content exists.
    """
    request = (corpus, split, suffix, wanted, overwrite)
    if (record := _finished_record(*request)) is not None:
        return record, False
    require_espeak()
    with disk_errors(corpus.parent), only_one(corpus.parent, say):
        remove_leftovers(corpus.parent, f".{corpus.name}.*.tmp")
        record = _finished_record(*request)  # another process may have finished it meanwhile
        return (make(), True) if record is None else (record, False)


def _finished_record(
    corpus: Path, split: Path, suffix: str, wanted: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """Reads the record of the requested corpus; None if it must be made."""
    record = read_record(split, suffix)
    if record is None and corpus.exists():
        raise UserError(f"{corpus} exists, but was not made by download.py: move it away, or give another --root")
    if record is None or record["settings"] == wanted:
        return record
    if overwrite:
        return None
    had = record["settings"]
    changes = [f"{key} {had[key]} -> {wanted[key]}" for key in wanted if key != "plan" and had[key] != wanted[key]]
    reason = ", ".join(changes) or "another version of the demo's voices and sentences"
    raise UserError(f"{corpus} was made with other settings ({reason}): --overwrite replaces it")


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Replaces `path` by a new folder if the block succeeds; otherwise as `staging_directory`."""
    replaced = path.with_name(f".{path.name}.replaced.tmp")
    with staging_directory(path) as staging:
        yield staging
        if path.exists():
            os.rename(path, replaced)
    shutil.rmtree(replaced, ignore_errors=True)


def count_recordings(folder: Path, suffix: str) -> int:
    """Counts the files below `folder` whose names end in `suffix`."""
    return sum(name.endswith(suffix) for _, _, names in os.walk(folder) for name in names)


@contextlib.contextmanager
def only_one(folder: Path, say: Say) -> Iterator[None]:
    """Waits until no other process writes in `folder`; the lock ends with its process, however that ends."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"another process is writing in {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission, while `folder` is written, into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = "what has been downloaded is kept: free some space and run again"
            raise UserError(f"there is no space left under {folder} ({error.strerror}); {kept}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        raise


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes the staging folders of killed runs; the caller holds the lock."""
    for leftover in folder.glob(pattern):
        shutil.rmtree(leftover)
