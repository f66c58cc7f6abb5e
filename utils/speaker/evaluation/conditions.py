"""Test conditions: degradations of the recordings of trials, each with fixed settings and always the same.

What is random is drawn by the condition and the path of a recording, whatever else is tested.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from models.config import Registry
from utils.errors import UserError
from utils.features import degrade
from utils.features.degrade import Scene
from utils.features.store import FULL_SCALE, to_pcm
from utils.features.windows import middle

CLEAN = "clean"
GROUPS = {"cut": ("cut1", "cut2")}  # words that stand for several conditions
VOICES = 5  # speakers in babble

Condition = Callable[[np.ndarray, np.random.Generator, Scene], np.ndarray]
CONDITIONS: Registry[Condition] = Registry()


@CONDITIONS.register("level")
def _level(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """20 dB quieter, and rounded to 16 bits after that."""
    return to_pcm(degrade.gain(samples, -20.0)).astype(np.float32) / np.float32(FULL_SCALE)


@CONDITIONS.register("noise")
def _noise(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """White noise at 10 dB."""
    return degrade.add_noise(samples, degrade.colored_noise(len(samples), 0.0, rng), 10.0)


@CONDITIONS.register("babble")
def _babble(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Five recordings of other test speakers at 10 dB."""
    return degrade.add_noise(samples, degrade.babble([scene.voice(len(samples)) for _ in range(VOICES)]), 10.0)


@CONDITIONS.register("telephone")
def _telephone(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """300 to 3400 Hz, 8 kHz, 8-bit mu-law."""
    return degrade.telephone(samples, scene.rate, "ulaw")


@CONDITIONS.register("mp3")
def _mp3(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """MP3 at the level that gives 24 kbit/s of samples at 16 kHz."""
    return degrade.codec(samples, scene.rate, "mp3", 0.91)


@CONDITIONS.register("reverb")
def _reverb(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """A random room of RT60 0.4 s."""
    return degrade.reverberate(samples, degrade.random_room(rng, scene.rate, 0.4))


@CONDITIONS.register("tilt")
def _tilt(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """A dull microphone: falling by 4 dB per octave, and without what is above 4 kHz."""
    return degrade.low_pass(degrade.tilt(samples, scene.rate, -4.0), scene.rate, 4000.0)


@CONDITIONS.register("cut1")
def _cut1(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The middle second; shorter recordings stay as they are."""
    return middle(samples, scene.rate)


@CONDITIONS.register("cut2")
def _cut2(samples: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The middle two seconds; shorter recordings stay as they are."""
    return middle(samples, 2 * scene.rate)


def parse_conditions(text: str) -> list[str]:
    """The conditions in a comma-separated list of names, each once, without "clean"; ValueError for unknown names."""
    names = [name for word in text.split(",") for name in GROUPS.get(word.strip(), (word.strip(),))]
    for name in names:
        if name not in (CLEAN, *CONDITIONS):
            raise ValueError(f"there is no condition {name!r}, only {', '.join((CLEAN, *CONDITIONS))} and cut (both)")
    return [name for name in dict.fromkeys(names) if name != CLEAN]


@dataclass(frozen=True)
class Degrader:
    """Degrades recordings of trials: `speakers` maps their paths to their speakers, `read` gives samples at `rate`."""

    speakers: Mapping[str, str]
    read: Callable[[str], np.ndarray]
    rate: int

    def __call__(self, name: str, path: str) -> np.ndarray:
        """Samples (S,) float32 of a recording in a condition."""
        rng = np.random.default_rng(list(hashlib.sha256(f"{name}/{path}".encode()).digest()))
        return CONDITIONS[name](self.read(path), rng, Scene(self.rate, functools.partial(self._voice, path, rng)))

    def _voice(self, path: str, rng: np.random.Generator, length: int) -> np.ndarray:
        """A random part (length,) of a random recording of another speaker; a shorter one is repeated."""
        other = path
        while self.speakers[other] == self.speakers[path]:
            other = self._paths[rng.integers(len(self._paths))]
        samples = self.read(other)
        return degrade.cut(samples, int(rng.integers(max(1, len(samples) - length + 1))), length)

    @functools.cached_property
    def _paths(self) -> list[str]:
        if len(set(self.speakers.values())) < 2:
            raise UserError("babble needs recordings of at least two speakers in the trial list")
        return sorted(self.speakers)
