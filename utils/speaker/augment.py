"""Changes of a training crop that leave its speaker who he is; all on log-mels (T, n_mels), drawn from a generator."""

from __future__ import annotations

import numpy as np

TILT = 3.0  # largest difference between the noise's level at the two ends of the mel axis, in nepers


def add_noise(mel: np.ndarray, generator: np.random.Generator, lowest_snr: float, highest_snr: float) -> np.ndarray:
    """`mel`, the natural log of magnitudes, with steady noise of a random color at a random ratio in dB.

    Speech and noise have independent phases, so their powers add. The noise's power in a cell is exponentially
    distributed, as that of a Gaussian noise's Fourier coefficient, and its log falls or rises along the mel axis.
    """
    frames, channels = mel.shape
    power = np.exp(2 * mel.astype(np.float64))
    shape = np.exp(2 * generator.uniform(-TILT, TILT) * (np.arange(channels) / channels - 0.5))
    ratio = 10 ** (-generator.uniform(lowest_snr, highest_snr) / 10)
    noise = generator.exponential(size=(frames, channels)) * shape * (ratio * power.mean() / shape.mean())
    return (0.5 * np.log(power + noise)).astype(np.float32)


def spec_augment(
    mel: np.ndarray,
    generator: np.random.Generator,
    fill: np.ndarray,
    frequency_masks: int,
    frequency_width: int,
    time_masks: int,
    time_width: int,
) -> np.ndarray:
    """`mel` with random bands of channels and of frames set to `fill` (n_mels,) (Park et al. 2019, section 2).

    Each band is 0 to its largest width wide, uniformly.
    """
    mel = np.array(mel)
    frames, channels = mel.shape
    for _ in range(frequency_masks):
        width = int(generator.integers(min(frequency_width, channels) + 1))
        low = int(generator.integers(channels - width + 1))
        mel[:, low : low + width] = fill[low : low + width]
    for _ in range(time_masks):
        width = int(generator.integers(min(time_width, frames) + 1))
        low = int(generator.integers(frames - width + 1))
        mel[low : low + width] = fill
    return mel
