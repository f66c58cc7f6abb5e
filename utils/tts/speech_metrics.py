"""Objective measures between two pieces of speech that say the same: spectral distance, pitch, length.

Frames are those of a mel recipe, so that a spectrogram (T, M) and a pitch track (T,) of one recording belong together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.errors import UserError
from utils.features.recipe import MelRecipe

Floats = NDArray[np.float64]

CEPSTRA = 13
F0_RANGE = (60.0, 500.0)  # Hz; men's creak and most women's laughter lie outside, nearly all of reading inside
_F0_STEP = 0.2  # semitones; half of it is 10 cents, far below the errors measured, and 3 to 4 times faster than 0.1
_DECIBEL = 10 * math.sqrt(2) / math.log(10)


def mel_cepstra(mel: ArrayLike, power: float = 1.0) -> Floats:
    """Cepstral coefficients 1 to 13 (T, 13) of natural-log mels (T, M) whose mels are amplitudes to the `power`.

    c_k = 2/M sum_m x_m cos(pi k (m + 1/2) / M), the orthonormal DCT-II times sqrt(2/M), which is the scale at which
    x_m = c_0/2 + sum_k c_k cos(pi k (m + 1/2) / M). Coefficient 0, the level, is left out.
    """
    mel = np.asarray(mel, dtype=np.float64) / power
    channels = mel.shape[1]
    phases = np.outer(np.arange(channels) + 0.5, np.arange(1, min(CEPSTRA, channels - 1) + 1))
    return mel @ (2 / channels * np.cos(np.pi / channels * phases))


def _librosa(user: str) -> ModuleType:
    """librosa, whose functions compile for some 20 s when they are first used."""
    try:
        import librosa
    except ImportError as error:
        raise UserError(f"{user} needs the package librosa: pip install -r requirements-demo.txt") from error
    return librosa


class Warped(NamedTuple):
    """Two spectrograms laid side by side: their path (P, 2), and the distances (P,) in dB along it."""

    path: NDArray[np.int64]
    distances: Floats

    @property
    def mcd(self) -> float:
        """Mel-cepstral distortion in dB."""
        return float(self.distances.mean())


def warp(a: ArrayLike, b: ArrayLike, power: float = 1.0) -> Warped:
    """Aligns two natural-log mel spectrograms (T, M) and (U, M) by DTW and measures their mel-cepstral distortion.

    This is the MCD of log-mel cepstra: 10 sqrt(2) / ln 10 times the Euclidean distance of `mel_cepstra`, averaged over
    the path (the formula of Kubichek, "Mel-cepstral distance measure for objective speech quality assessment", 1993).
    A frame's distance is the root mean square over mel channels of the difference in dB of two spectra that are
    smoothed and freed of level. MCDs of cepstra from other analyses (WORLD, SPTK) are near it, not equal.

    The path is librosa's, by steps of (1, 1), (1, 0) and (0, 1) without weights or limits on slope (Sakoe and Chiba,
    1978), from the first pair of frames to the last; `UserError` if librosa is not installed.
    """
    first, second = mel_cepstra(a, power), mel_cepstra(b, power)
    _, backwards = _librosa("MCD").sequence.dtw(first.T, second.T)
    path = backwards[::-1]
    return Warped(path, _DECIBEL * np.linalg.norm(first[path[:, 0]] - second[path[:, 1]], axis=1))


class PitchErrors(NamedTuple):
    """Counts and sums over pairs of frames; those of several utterances are added field by field."""

    frames: int
    both_voiced: int
    voicing_errors: int
    squared_hz: float
    squared_cents: float

    @classmethod
    def total(cls, parts: Iterable[PitchErrors]) -> PitchErrors:
        """The errors of all `parts` together."""
        return cls(*(sum(values) for values in zip(*parts, strict=True)))

    def metrics(self) -> dict[str, float | None]:
        """RMSE in Hz and in cents where both are voiced (None if that is nowhere), and the rate of voicing errors."""
        voiced = self.both_voiced
        return {
            "f0_rmse_hz": math.sqrt(self.squared_hz / voiced) if voiced else None,
            "f0_rmse_cents": math.sqrt(self.squared_cents / voiced) if voiced else None,
            "voicing_error": self.voicing_errors / self.frames,
            "voiced_frames": voiced,
        }


def pitch_errors(a: Floats, b: Floats, path: NDArray[np.int64]) -> PitchErrors:
    """Compares pitch tracks (T,) and (U,) in Hz, NaN where unvoiced, along a path (P, 2) of their frames."""
    first, second = a[path[:, 0]], b[path[:, 1]]
    voiced = ~np.isnan(first), ~np.isnan(second)
    both = voiced[0] & voiced[1]
    first, second = first[both], second[both]
    return PitchErrors(
        frames=len(path),
        both_voiced=int(both.sum()),
        voicing_errors=int((voiced[0] != voiced[1]).sum()),
        squared_hz=float(((first - second) ** 2).sum()),
        squared_cents=float(((1200 * np.log2(first / second)) ** 2).sum()),
    )


def pitch(samples: ArrayLike, recipe: MelRecipe) -> Floats:
    """Fundamental frequency (T,) in Hz of samples (S,), NaN where unvoiced, in the frames of the recipe's mels.

    Probabilistic YIN (Mauch and Dixon, 2014) by librosa, 60 to 500 Hz; `UserError` if librosa is not installed.
    """
    librosa = _librosa("F0")
    low, high = F0_RANGE
    length = recipe.n_fft
    while length // 2 < recipe.sample_rate / low + 2:  # YIN compares half a frame with itself one period later
        length *= 2
    margin = (length - recipe.n_fft) // 2  # frames of any length are centered where those of the mels are
    samples = np.asarray(samples, dtype=np.float32)
    padded = np.pad(samples, [side + margin for side in recipe.pad])
    f0, voiced, _ = librosa.pyin(
        padded,
        fmin=low,
        fmax=high,
        sr=recipe.sample_rate,
        frame_length=length,
        hop_length=recipe.hop_length,
        resolution=_F0_STEP,
        center=False,
    )
    return np.where(voiced, f0, np.nan)


def length_errors(predicted: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """Bias of the total length, and mean absolute error of the single lengths (N,), as shares of the true ones."""
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    return {
        "duration_bias": float(predicted.sum() / true.sum() - 1),
        "duration_error": float(np.abs(predicted / true - 1).mean()),
    }


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, n: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of sum(numerators) / sum(denominators) when the N utterances are drawn anew `n` times.

    Arguments (N,), one value an utterance, denominators above 0. None for a single utterance, which has no spread.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if len(above) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(above), np.full(len(above), 1 / len(above)), size=n)  # how often each is drawn
    low, high = np.quantile((drawn @ above) / (drawn @ below), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
