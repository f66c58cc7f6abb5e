"""Objective metrics between two utterances of one text: spectral distance, pitch, length.

Frames are those of a mel recipe: a spectrogram (t, n_mels) and a pitch track (t,) of one recording have the same ones.
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
F0_RANGE = (60.0, 500.0)  # Hz; nearly all read speech lies inside, creaky voice and laughter outside
_F0_STEP = 0.2  # semitones; half of it is 10 cents, far below the errors measured, and 3 to 4 times faster than 0.1
_DECIBEL = 10 * math.sqrt(2) / math.log(10)


def mel_cepstra(mel: ArrayLike, power: float = 1.0) -> Floats:
    """Cepstral coefficients 1 to 13 (t, 13) of natural-log mels (t, m) whose mels are amplitudes to the `power`.

    c_k = 2/m sum_i x_i cos(pi k (i + 1/2) / m), the orthonormal DCT-II times sqrt(2/m), which is the scale at which
    x_i = c_0/2 + sum_k c_k cos(pi k (i + 1/2) / m). Coefficient 0, the level, is left out.
    """
    mel = np.asarray(mel, dtype=np.float64) / power
    channels = mel.shape[1]
    phases = np.outer(np.arange(channels) + 0.5, np.arange(1, min(CEPSTRA, channels - 1) + 1))
    return mel @ (2 / channels * np.cos(np.pi / channels * phases))


def import_librosa(user: str) -> ModuleType:
    """Imports librosa, whose functions compile for some 20 s at their first call.

    `UserError`, which names the `user` who asked for it, if it is not installed.
    """
    try:
        import librosa
    except ImportError as error:
        raise UserError(f"{user} needs the package librosa: pip install -r requirements-demo.txt") from error
    return librosa


class Warped(NamedTuple):
    """The DTW path (p, 2) of two spectrograms, and the distances (p,) in dB along it."""

    path: NDArray[np.int64]
    distances: Floats


def warp(a: ArrayLike, b: ArrayLike, power: float = 1.0) -> Warped:
    """Aligns natural-log mel spectrograms (t, m) and (u, m) by DTW and measures their mel-cepstral distortion.

    The MCD is 10 sqrt(2) / ln 10 times the Euclidean distance of `mel_cepstra`, averaged over the path (Kubichek 1993,
    "Mel-cepstral distance measure for objective speech quality assessment"). The distance of two frames is the root
    mean square over channels of the difference in dB between their smoothed spectra without level. Cepstra of other
    analyses (WORLD, SPTK) give similar, not equal values.

    The path is librosa's, by steps of (1, 1), (1, 0) and (0, 1) without weights or slope limits (Sakoe and Chiba 1978),
    from the first pair of frames to the last; `UserError` if librosa is not installed.
    """
    first, second = mel_cepstra(a, power), mel_cepstra(b, power)
    _, backwards = import_librosa("MCD").sequence.dtw(first.T, second.T)
    path = backwards[::-1]
    return Warped(path, _DECIBEL * np.linalg.norm(first[path[:, 0]] - second[path[:, 1]], axis=1))


class PitchErrors(NamedTuple):
    """Counts and sums over pairs of frames; those of several utterances add up by field."""

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
        """RMSE in Hz and cents over frames where both are voiced (None without any), and the rate of voicing errors."""
        voiced = self.both_voiced
        return {
            "f0_rmse_hz": math.sqrt(self.squared_hz / voiced) if voiced else None,
            "f0_rmse_cents": math.sqrt(self.squared_cents / voiced) if voiced else None,
            "voicing_error": self.voicing_errors / self.frames,
            "voiced_frames": voiced,
        }


def pitch_errors(a: Floats, b: Floats, path: NDArray[np.int64]) -> PitchErrors:
    """Compares pitch tracks (t,) and (u,) in Hz, NaN where unvoiced, along a path (p, 2) of their frames."""
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
    """Fundamental frequency (t,) in Hz of samples (n,), NaN where unvoiced, in the frames of the recipe.

    Probabilistic YIN (Mauch and Dixon 2014) by librosa, 60 to 500 Hz; `UserError` if librosa is not installed.
    """
    librosa = import_librosa("F0")
    low, high = F0_RANGE
    length = recipe.n_fft
    while length // 2 < recipe.sample_rate / low + 2:  # YIN compares half a frame with the half one period later
        length *= 2
    margin = (length - recipe.n_fft) // 2  # the frames keep the centers of the mel frames
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


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, n: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of sum(numerators) / sum(denominators) over `n` bootstrap samples of the utterances.

    Both have one value per utterance, the denominators above 0. None for a single utterance, which has no spread.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if len(above) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(above), np.full(len(above), 1 / len(above)), size=n)  # number of draws of each
    low, high = np.quantile((drawn @ above) / (drawn @ below), [0.025, 0.975])
    return float(low), float(high)
