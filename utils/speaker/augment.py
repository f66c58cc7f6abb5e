"""Augmentations: changes of a training crop, a log-mel (t, n_mels), that keep its speaker recognizable.

Each is a configuration whose options become flags, and a function of a crop, a random generator and `fill` (n_mels,),
the training set's mean. They apply in the order of registration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.config import Config, Registry, option

TILT = 3.0  # largest difference in nepers between the levels of the noise at the two ends of the mel axis


class Augmentation(Protocol):
    """A configured augmentation."""

    def __call__(self, mel: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        """A changed copy of a crop, or the crop itself."""


AUGMENTATIONS: Registry[type[Config]] = Registry()


@AUGMENTATIONS.register("noise")
@dataclass(frozen=True)
class Noise(Config):
    """Steady synthetic noise of a random color."""

    title = "augmentation: noise"

    noise_share: float = option(0.0, "share of the crops that get synthetic noise", least=0, most=1)
    noise_snr: tuple[float, float] = option((5.0, 30.0), "range of its SNR in dB", metavar=("LOW", "HIGH"))

    def problems(self) -> list[str]:
        """A sentence about a range whose bounds are in the wrong order."""
        low, high = self.noise_snr
        return [] if low <= high else [f"noise_snr {low:g} {high:g}: the first must not be above the second"]

    def __call__(self, mel: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        if self.noise_share and generator.random() < self.noise_share:
            return add_noise(mel, generator, *self.noise_snr)
        return mel


@AUGMENTATIONS.register("spec_augment")
@dataclass(frozen=True)
class SpecAugment(Config):
    """Random bands of channels and of frames set to the training set's mean (Park et al. 2019, section 2)."""

    title = "augmentation: SpecAugment"

    frequency_masks: int = option(2, "masks over mel channels", least=0)
    frequency_width: int = option(10, "largest such mask in channels", least=0)
    time_masks: int = option(2, "masks over time", least=0)
    time_width: int = option(20, "largest such mask in frames", least=0)

    def __call__(self, mel: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        mel = np.array(mel)
        frames, channels = mel.shape
        for _ in range(self.frequency_masks):
            width = int(generator.integers(min(self.frequency_width, channels) + 1))
            low = int(generator.integers(channels - width + 1))
            mel[:, low : low + width] = fill[low : low + width]
        for _ in range(self.time_masks):
            width = int(generator.integers(min(self.time_width, frames) + 1))
            low = int(generator.integers(frames - width + 1))
            mel[low : low + width] = fill
        return mel


def add_noise(mel: np.ndarray, generator: np.random.Generator, lowest_snr: float, highest_snr: float) -> np.ndarray:
    """`mel`, the natural log of magnitudes, with steady noise of a random color at a random ratio in dB.

    Speech and noise have independent phases, so their powers add. The power of the noise in a cell is exponentially
    distributed, like that of a Fourier coefficient of Gaussian noise, and its log is linear along the mel axis.
    """
    frames, channels = mel.shape
    power = np.exp(2 * mel.astype(np.float64))
    shape = np.exp(2 * generator.uniform(-TILT, TILT) * (np.arange(channels) / channels - 0.5))
    ratio = 10 ** (-generator.uniform(lowest_snr, highest_snr) / 10)
    noise = generator.exponential(size=(frames, channels)) * shape * (ratio * power.mean() / shape.mean())
    return (0.5 * np.log(power + noise)).astype(np.float32)
