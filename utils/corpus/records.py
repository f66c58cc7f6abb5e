"""Completion records of corpora on disk, each written by one process at a time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import importlib.metadata
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.cli import progress
from utils.errors import UserError
from utils.espeak import require_espeak
from utils.files import read_json, remove_leftovers, replacing_directory, write_json, write_text
from utils.locks import only_writer

RECORD = ".complete"  # inside the folder that it describes, so that both appear and vanish together

T = TypeVar("T")
R = TypeVar("R")


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
        raise _foreign(target)
    record = read_json(target / RECORD)
    found = count_recordings(target, suffix)
    if found != record.get("utterances"):
        raise UserError(
            f"{target} holds {found} of its {record.get('utterances')} recordings: move it away and run again"
        )
    return record


def _foreign(folder: Path) -> UserError:
    return UserError(f"{folder} exists, but was not made by download.py: move it away, or give another --root")


@dataclass(frozen=True)
class Synthetic:
    """A synthetic corpus as requested.

    Attributes:
        corpus: its folder, in that of the dataset.
        split: the folder with the record: in the corpus, or the corpus itself.
        suffix: file name extension of its recordings.
        settings: what determines its bytes, and the hash of the `plan`.
        fill: writes the corpus into a folder and returns what its record is to hold.
        summary: describes the corpus, given its record.
        readme: README.TXT after the version of espeak-ng.
    """

    corpus: Path
    split: Path
    suffix: str
    settings: dict[str, Any]
    fill: Callable[[Path], dict[str, Any]]
    summary: Callable[[dict[str, Any]], str]
    readme: str

    def make_once(self, overwrite: bool) -> dict[str, Any]:
        """Makes the corpus unless it exists; only one process at a time makes it.

        Returns:
            The completion record: settings, counts, seconds of speech.

        Raises:
            UserError: espeak-ng is missing, a corpus of other settings exists and `overwrite` is False, or a folder of
                other content exists.
        """
        folder, already = self.corpus.parent, "already complete, "
        record = self._finished(overwrite)
        if record is None:
            require_espeak()
            with disk_errors(folder), only_writer(folder, print):
                remove_leftovers(folder, f".{self.corpus.name}.*.tmp")
                record = self._finished(overwrite)  # another process may have finished it meanwhile
                if record is None:
                    record, already = self._make(), ""
        print(f"{folder.name}: {already}{self.summary(record)} in {self.corpus}")
        return record

    def _finished(self, overwrite: bool) -> dict[str, Any] | None:
        """Reads the record of the corpus; None if it must be made."""
        record = read_record(self.split, self.suffix)
        if record is None and self.corpus.exists():
            raise _foreign(self.corpus)
        if record is None or record["settings"] == self.settings:
            return record
        if overwrite:
            return None
        had, wanted = record["settings"], self.settings
        changes = [f"{key} {had[key]} -> {wanted[key]}" for key in wanted if key != "plan" and had[key] != wanted[key]]
        reason = ", ".join(changes) or "another version of the demo's voices and sentences"
        raise UserError(f"{self.corpus} was made with other settings ({reason}): --overwrite replaces it")

    def _make(self) -> dict[str, Any]:
        version = importlib.metadata.version("espeakng-loader")
        record = {"dataset": self.corpus.parent.name, "split": self.split.name, "synthetic": True}
        with replacing_directory(self.corpus) as staging:
            record |= {"espeakng_loader": version, **self.fill(staging)}
            about = (
                f"This corpus is SYNTHETIC: {self.summary(record)}, spoken by espeak-ng\n(espeakng-loader {version})"
            )
            write_text(staging / "README.TXT", about + self.readme)
            write_json(staging / self.split.relative_to(self.corpus) / RECORD, record)
        return record


def in_threads(work: Callable[[T], R], jobs: Sequence[T], num_proc: int, unit: str) -> list[R]:
    """Results of `work` for each job.

    Threads suffice, because the work is done outside Python: by espeak-ng, numpy and encoders.
    """
    workers = concurrent.futures.ThreadPoolExecutor(num_proc)
    try:
        return list(progress(workers.map(work, jobs), total=len(jobs), desc=unit))
    finally:
        workers.shutdown(cancel_futures=True)


def write_audio(path: Path, samples: Any, rate: int) -> None:
    """Writes 16-bit samples `(S,)`; encoded in memory, because libsndfile hides what the disk refuses."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, samples, rate, subtype="PCM_16", format=path.suffix[1:].upper())
    try:
        path.write_bytes(encoded.getvalue())  # not getbuffer: Python 3.12 crashes if its view outlives the buffer
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def count_recordings(folder: Path, suffix: str) -> int:
    """Counts the files below `folder` whose names end in `suffix`."""
    return sum(name.endswith(suffix) for _, _, names in os.walk(folder) for name in names)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission, while `folder` is written, into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            raise UserError(f"there is no space left under {folder} ({reason}): free some and run again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        raise
