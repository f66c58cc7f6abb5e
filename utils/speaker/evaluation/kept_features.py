"""Features of test recordings in files: decoded and degraded once for all models of a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.features.recipe import MelRecipe
from utils.files import atomic_write, sha256_text
from utils.speaker.evaluation.trials import TrialSet
from utils.speaker.recognizer import Mel


class KeptFeatures:
    """Features of the recordings of a trial list, in `folder`; of the trials, because babble is made of all of them.

    An audio file that has another size or time than before is read anew. Degradations are taken to be those of the code
    that kept them.
    """

    def __init__(self, folder: Path, recipe: MelRecipe, root: Path, trials: TrialSet) -> None:
        self._root, self._trials = root, trials
        self._folder = folder / f"{recipe.hash}-{trials.hash()[:12]}"

    def mel(self, name: str, path: str, make: Callable[[], Mel]) -> Mel:
        """Features (t, n_mels) of a recording under the root in a condition; what `make` returns, where none are kept.

        `UserError` if a file of the folder is damaged.
        """
        words = f"{name} {self._status(path)}{self._all if name == 'babble' else ''}"
        file = self._folder / f"{sha256_text(words)}.npy"
        if file.exists():
            try:
                return np.load(file, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{file} is damaged ({error}): remove it") from error
        mel = make()
        with atomic_write(file) as opened:
            np.save(opened, mel, allow_pickle=False)
        return mel

    @functools.cached_property
    def _all(self) -> str:
        """The files of all recordings, of which babble is made."""
        return "".join(f" {self._status(path)}" for path in self._trials.items)

    def _status(self, path: str) -> str:
        status = (self._root / path).stat()
        return f"{path} {status.st_size} {status.st_mtime_ns}"
