"""The checkpoints of a run folder: `best.pt` to use, `last.pt` to go on from, and the ones before it.

`last-1.pt` is the `last.pt` of the save before, `last-2.pt` of the one before that, as many as are kept. Every file is
whole or absent at any moment, and so is at least one of them once one was saved.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from utils.checkpoint import BEST, LAST, hash_path, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import write_text


class CheckpointStore:
    """Saves into `directory`, keeping `keep_last` checkpoints to go on from, and finds the newest that is whole."""

    def __init__(self, directory: Path, keep_last: int) -> None:
        self.directory, self.keep_last = directory, keep_last

    def save_last(self, checkpoint: dict[str, Any]) -> None:
        """Writes `last.pt`; the old one becomes `last-1.pt` first, so that it outlives even a bad disk sector."""
        self._make_room()
        save_checkpoint(self.directory / LAST, checkpoint)
        for path in self._saved()[self.keep_last :]:
            _remove(path)

    def save_best(self, checkpoint: dict[str, Any]) -> None:
        """Writes `best.pt`."""
        save_checkpoint(self.directory / BEST, checkpoint)

    def has_best(self) -> bool:
        """Whether there is a `best.pt`."""
        return (self.directory / BEST).exists()

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint to go on from that is whole; None if none was saved, `UserError` if all are damaged.

        A damaged one is set aside under another name, with a warning.
        """
        saved = self._saved()
        for path in saved:
            try:
                return load_checkpoint(path)
            except UserError as error:
                aside = _set_aside(path, "damaged")
                print(f"warning: {error}; it is now {aside.name}, and the one before it is tried", file=sys.stderr)
        if saved:
            raise UserError(f"no checkpoint in {self.directory} is whole; delete the folder to begin anew")
        return None

    def begin_from(self, path: Path) -> None:
        """Sets aside the checkpoints newer than `path`, or all if it is not among them: their future is given up."""
        for saved in self._saved():
            if path.exists() and saved.samefile(path):
                return
            _set_aside(saved, "superseded")

    def sweep(self) -> None:
        """Removes the temporary files that a killed process has left."""
        for path in self.directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _saved(self) -> list[Path]:
        """Newest first."""
        older = {int(path.stem.rpartition("-")[2]): path for path in self.directory.glob("last-*.pt") if _number(path)}
        return [path for path in (self.directory / LAST, *(older[age] for age in sorted(older))) if path.exists()]

    def _make_room(self) -> None:
        """Gives `last.pt` a second name, that of the save before, after moving those before it on by one."""
        last = self.directory / LAST
        if self.keep_last == 1 or not last.exists():
            return
        age = 1
        while self._older(age).exists() and age < self.keep_last:
            age += 1
        for number in range(age, 1, -1):
            _move(self._older(number - 1), self._older(number))
        second = self._older(1)
        _remove(second)
        if hash_path(last).exists():  # the hash goes first: a crash leaves a file without one, never with a wrong one
            write_text(hash_path(second), hash_path(last).read_text(encoding="utf-8").replace(LAST, second.name))
        try:
            os.link(last, second)
        except OSError:  # a file system without second names: for a moment there is no last.pt
            os.replace(last, second)

    def _older(self, age: int) -> Path:
        return self.directory / f"last-{age}.pt"


def _number(path: Path) -> bool:
    return path.stem.rpartition("-")[2].isdigit()


def _move(source: Path, target: Path) -> None:
    _remove(target)
    if hash_path(source).exists():
        text = hash_path(source).read_text(encoding="utf-8").replace(source.name, target.name)
        write_text(hash_path(target), text)
        hash_path(source).unlink()
    os.replace(source, target)


def _remove(path: Path) -> None:
    for name in (hash_path(path), path):
        with contextlib.suppress(FileNotFoundError):
            name.unlink()


def _set_aside(path: Path, word: str) -> Path:
    aside = path.with_name(f"{path.name}.{word}")
    os.replace(path, aside)
    hash_path(path).unlink(missing_ok=True)
    return aside
