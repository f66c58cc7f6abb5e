"""The checkpoints of a run folder: `best.pt` to use, `last.pt` to resume from, and older ones.

`last-1.pt` was `last.pt` before the newest save, `last-2.pt` before that. At any moment every file is intact or absent,
and after the first save at least one is intact.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from utils.checkpoint import BEST, LAST, hash_path, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import write_text
from utils.training.runlog import LOG


class CheckpointStore:
    """Keeps `keep_last` resumable checkpoints in `directory`, and finds the newest intact one."""

    def __init__(self, directory: Path, keep_last: int) -> None:
        self.directory, self.keep_last = directory, keep_last

    def save_last(self, checkpoint: dict[str, Any]) -> None:
        """Writes `last.pt`; the old one becomes `last-1.pt`, in case a disk error damages the new one."""
        self._make_room()
        save_checkpoint(self.directory / LAST, checkpoint)
        for path in self._saved()[self.keep_last :]:
            _remove(path)

    def save_best(self, checkpoint: dict[str, Any]) -> None:
        """Writes `best.pt`."""
        save_checkpoint(self.directory / BEST, checkpoint)

    def has_best(self) -> bool:
        """True if there is a `best.pt`."""
        return (self.directory / BEST).exists()

    def newest(self) -> dict[str, Any] | None:
        """The newest intact resumable checkpoint; None if none was saved, `UserError` if all are damaged.

        Damaged ones are renamed, with a warning.
        """
        saved = self._saved()
        for path in saved:
            try:
                return load_checkpoint(path)
            except UserError as error:
                aside = _set_aside(path, "damaged")
                print(f"warning: {error}; it was renamed {aside.name}, and the one before it is tried", file=sys.stderr)
        if saved:
            raise UserError(f"no checkpoint in {self.directory} is intact; delete the folder to start again")
        return None

    def begin_from(self, path: Path, step: int) -> None:
        """Renames what is newer than the checkpoint `path` of `step`: the run restarts from it.

        If it is not among the checkpoints of the folder, these and their log are of another run, and all are renamed.
        """
        saved = self._saved()
        newer = list(itertools.takewhile(lambda each: not (path.exists() and each.samefile(path)), saved))
        best, is_foreign = self.directory / BEST, len(newer) == len(saved)
        if best.exists() and (is_foreign or load_checkpoint(best)["step"] > step):
            newer.append(best)
        if is_foreign and (self.directory / LOG).exists():
            newer.append(self.directory / LOG)
        for each in newer:
            _set_aside(each, "superseded")

    def _saved(self) -> list[Path]:
        """Newest first."""
        ages = (path.stem.removeprefix("last-") for path in self.directory.glob("last-*.pt"))
        older = map(self._older, sorted(int(age) for age in ages if age.isdigit()))
        return [path for path in (self.directory / LAST, *older) if path.exists()]

    def _make_room(self) -> None:
        """Gives `last.pt` the second name `last-1.pt`, after renaming older ones by one number."""
        last = self.directory / LAST
        if self.keep_last == 1 or not last.exists():
            return
        age = 1
        while self._older(age).exists() and age < self.keep_last:
            age += 1
        for number in range(age, 1, -1):
            source, target = self._older(number - 1), self._older(number)
            _clear_for(source, target)
            hash_path(source).unlink(missing_ok=True)
            os.replace(source, target)
        _clear_for(last, self._older(1))
        try:
            os.link(last, self._older(1))
        except OSError:  # a file system without hard links: for a moment there is no last.pt
            os.replace(last, self._older(1))

    def _older(self, age: int) -> Path:
        return self.directory / f"last-{age}.pt"


def _clear_for(source: Path, target: Path) -> None:
    """Removes `target` and writes the hash that it will have as the new name of `source`.

    The hash comes first: a crash leaves a checkpoint without a hash, never with a wrong one.
    """
    _remove(target)
    if hash_path(source).exists():
        write_text(hash_path(target), hash_path(source).read_text("utf-8", "replace").replace(source.name, target.name))


def _remove(path: Path) -> None:
    for each in (hash_path(path), path):
        each.unlink(missing_ok=True)


def _set_aside(path: Path, suffix: str) -> Path:
    aside = path.with_name(f"{path.name}.{suffix}")
    os.replace(path, aside)
    hash_path(path).unlink(missing_ok=True)
    return aside
