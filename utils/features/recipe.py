"""The mel recipe: the parameters of log-mel features, stored with data and models and compared wherever they meet."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.files import sha256_text

CHOICES = {
    "window": ("hann",),
    "mel_scale": ("slaney", "htk"),
    "mel_norm": ("slaney", "none"),
    "power": (1.0, 2.0),
    "padding": ("none", "hifigan"),
    "normalisation": ("none",),
    "log": ("natural",),
}


@dataclass(frozen=True)
class MelRecipe:
    """All parameters of a log-mel spectrogram.

    Lengths are in samples, frequencies in Hz. The spectrum of a frame is `(|STFT|^2 + power_floor)^(power / 2)`;
    mel energies are clamped from below at `log_floor` before the logarithm.

    `padding` "none" computes frame t from the samples [t * hop_length, t * hop_length + win_length) alone: no frame
    reaches beyond the audio, so features of a stream equal those of the file. "hifigan" pads
    (n_fft - hop_length) // 2 samples on both sides by reflection (Kong et al., "HiFi-GAN", 2020, its public code),
    which gives samples // hop_length frames.

    `normalisation` "none": features do not depend on statistics of the utterance; models normalize with those of their
    training set.
    """

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    window: str
    n_mels: int
    f_min: float
    f_max: float
    mel_scale: str
    mel_norm: str
    power: float
    power_floor: float
    padding: str
    normalisation: str
    log: str
    log_floor: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and type(value) is int:  # a JSON file may hold 8000 for 8000.0
                object.__setattr__(self, field.name, float(value))
            elif type(value).__name__ != field.type:
                raise UserError(f"the mel recipe's {field.name} must be of type {field.type}, not {value!r}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(str, allowed))
                raise UserError(f"the mel recipe's {name} is {getattr(self, name)!r}; it can be {choices}")
        if not 0 < self.hop_length <= self.win_length <= self.n_fft:
            raise UserError("a mel recipe needs 0 < hop_length <= win_length <= n_fft")
        if self.sample_rate < 1 or self.n_mels < 1 or not self.log_floor > 0 or not self.power_floor >= 0:
            raise UserError("a mel recipe needs a sample rate, a number of mels and a log floor above 0")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise UserError("a mel recipe needs 0 <= f_min < f_max <= sample_rate / 2")

    @functools.cached_property
    def hash(self) -> str:
        """Identifier of this recipe: 12 hex digits of SHA-256."""
        return sha256_text(json.dumps(self.to_dict(), sort_keys=True))[:12]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> MelRecipe:
        """Inverse of `to_dict`; `UserError` for missing, unknown or impossible fields."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or set(fields) != set(names):
            raise UserError(f"a mel recipe has exactly the fields {', '.join(names)}")
        return cls(**fields)

    @property
    def pad(self) -> tuple[int, int]:
        """Numbers of samples to add before and after the audio, so that torch's frames of `n_fft` obey `padding`.

        With "none" these samples fall where the window, centered in n_fft, is zero: they shift the frames without
        entering them.
        """
        if self.padding == "hifigan":
            return (self.n_fft - self.hop_length) // 2, (self.n_fft - self.hop_length) // 2
        left = (self.n_fft - self.win_length) // 2
        return left, self.n_fft - self.win_length - left

    @property
    def min_samples(self) -> int:
        """Length of the shortest audio that gives a frame (and, with reflection, that can be reflected)."""
        shortest = self.n_fft - sum(self.pad)
        return max(shortest, self.pad[0] + 1) if self.padding == "hifigan" else shortest

    def frames(self, samples: int) -> int:
        """Number of frames of audio of `samples` samples; 0 if it is too short for one."""
        if samples < self.min_samples:
            return 0
        return 1 + (samples + sum(self.pad) - self.n_fft) // self.hop_length

    def samples(self, frames: int) -> int:
        """Length of the shortest audio that gives `frames` frames, at least one."""
        return max(self.min_samples, (frames - 1) * self.hop_length + self.n_fft - sum(self.pad))

    def require_frame(self, samples: int) -> None:
        """Raises `UserError` if audio of `samples` samples is too short for a frame."""
        if self.frames(samples) == 0:
            seconds, needed = samples / self.sample_rate, self.min_samples / self.sample_rate
            raise UserError(f"audio of {seconds:.3f} s is too short: a frame needs {needed:.3f} s")

    def seconds(self, frames: int) -> float:
        """Time in s that `frames` frames span."""
        return frames * self.hop_length / self.sample_rate

    def channel(self, hertz: float) -> float:
        """The channel that peaks at a frequency, between two numbers (from 0) if none does exactly."""
        low, high, place = (_mel(value, self.mel_scale) for value in (self.f_min, self.f_max, hertz))
        return (place - low) / (high - low) * (self.n_mels + 1) - 1


def _mel(hertz: float, scale: str) -> float:
    """A frequency on the scale of HTK, or on Slaney's: linear to 1 kHz, then 27 steps for a factor of 6.4."""
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


RECIPES = {
    name: MelRecipe.from_dict(fields)
    for name, fields in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
DEFAULT_RECIPE = {"speaker": "speaker-16k", "tts": "hifigan-22k"}


def require_same(have: MelRecipe, want: MelRecipe, have_name: str, want_name: str) -> None:
    """Raises `UserError` unless the recipes are equal; it names the differing fields, with both values and hashes."""
    if have == want:
        return
    first, second = have.to_dict(), want.to_dict()
    differences = ", ".join(f"{key} {first[key]} against {second[key]}" for key in first if first[key] != second[key])
    raise UserError(
        f"the mel recipe of {have_name} ({have.hash}) is not that of {want_name} ({want.hash}): {differences}"
    )
