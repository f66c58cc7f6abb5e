"""Folders of noises and of impulse responses, from which training and test conditions draw."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.corpus.layouts import SNDFILE_SUFFIXES
from utils.errors import UserError
from utils.features.audio import UNSTATED
from utils.features.degrade import cut, resample
from utils.files import sha256_text

KEPT = 256  # decoded impulse responses


@dataclass(frozen=True)
class Sound:
    """A recording that can be read in parts: `samples` is its length at its own `rate`."""

    path: Path
    rate: int
    samples: int

    def read(self, rate: int, start: float = 0.0, length: int | None = None) -> np.ndarray:
        """Samples (S,) float32 of the first channel at `rate` Hz, or `length` of them from the share `start` on.

        A sound that is shorter than `length` is repeated.
        """
        import soundfile

        needed = self.samples if length is None else -(-length * self.rate // rate)
        first = int(start * max(0, self.samples - needed + 1))
        try:
            found, _ = soundfile.read(self.path, needed, first, dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error
        if not len(found) or not np.isfinite(found).all():
            raise UserError(f"{self.path} holds no samples there, or some that are not finite")
        samples = resample(np.ascontiguousarray(found[:, 0]), self.rate, rate)
        return samples if length is None else cut(samples, 0, length)


class SoundFolder:
    """The audio files below a folder, in order of their paths; `digest` is a hash of the paths and sizes."""

    def __init__(self, folder: Path) -> None:
        import soundfile

        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SNDFILE_SUFFIXES)
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        if not paths:
            raise UserError(f"{folder} holds no audio that libsndfile reads")
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
        self.digest = sha256_text(json.dumps(names))[:12]
        self.sounds = []
        for path in paths:
            try:
                info = soundfile.info(path)
            except soundfile.LibsndfileError as error:
                raise UserError(f"{path} is not audio that can be read: {error.error_string}") from error
            if not 0 < info.frames < UNSTATED:
                raise UserError(f"{path} is empty, or does not state its length: convert it, or take it away")
            self.sounds.append(Sound(path, info.samplerate, info.frames))

    def piece(self, length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
        """A random part (length,) float32 of a random file at `rate` Hz."""
        sound = self.sounds[rng.integers(len(self.sounds))]
        return sound.read(rate, rng.random(), length)

    def whole(self, rate: int, rng: np.random.Generator) -> np.ndarray:
        """A random file (S,) float32 at `rate` Hz."""
        return _kept(self.sounds[rng.integers(len(self.sounds))], rate)


@functools.lru_cache(maxsize=KEPT)
def _kept(sound: Sound, rate: int) -> np.ndarray:
    return sound.read(rate)
