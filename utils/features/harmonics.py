"""Log-mel frames of harmonic tones, references for the estimation of pitch from mels."""

from __future__ import annotations

import numpy as np

from utils.features.mel import MelExtractor
from utils.features.recipe import MelRecipe

SECONDS = 0.25
LEVEL = 0.05  # amplitude of the fundamental


def tones(frequencies: np.ndarray, recipe: MelRecipe) -> np.ndarray:
    """Computes the mean log-mel frame of a steady tone of each fundamental frequency.

    Args:
        frequencies: fundamental frequencies in Hz (F,).

    Returns:
        Frames (F, n_mels) float32.
    """
    extract = MelExtractor(recipe)
    time = np.arange(int(SECONDS * recipe.sample_rate)) / recipe.sample_rate
    return np.stack(
        [_inner_frame(extract(_tone(frequency, time, recipe.sample_rate / 2))) for frequency in frequencies]
    )


def _tone(frequency: float, time: np.ndarray, highest: float) -> np.ndarray:
    """Sums harmonics up to `highest` Hz, the n-th with 1/n of the first one's amplitude, like a glottal source (S,).

    Phases grow with the square of n, so that the tone has no sharp peaks.
    """
    numbers = np.arange(1, int(highest / frequency) + 1)[:, None]
    waves = np.cos(2 * np.pi * frequency * numbers * time + 0.7 * numbers**2) / numbers
    return (LEVEL * waves.sum(0)).astype(np.float32)


def _inner_frame(mel: np.ndarray) -> np.ndarray:
    quarter = len(mel) // 4
    return mel[quarter : len(mel) - quarter].mean(0)
