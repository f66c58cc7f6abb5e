"""Metrics of speech: values that follow from their definitions, and every path of small tables."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import scipy.fft
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.features.mel import MelExtractor
from utils.features.recipe import RECIPES
from utils.tts.speech_metrics import (
    CEPSTRA,
    PitchErrors,
    bootstrap_ratio,
    mel_cepstra,
    pitch,
    pitch_errors,
    warp,
)

RECIPE = RECIPES["hifigan-22k"]
DECIBEL = 20 / math.log(10)  # dB in a natural-log unit of amplitude


def speech_like(frames: int, seed: int, channels: int = 80) -> np.ndarray:
    """Smooth random log-mels (t, m)."""
    draw = np.random.default_rng(seed).normal(size=(frames + 8, channels)).cumsum(axis=0)
    return draw[8:] - 5


def all_paths(rows: int, columns: int, place: tuple[int, int] = (0, 0)):
    """Every path from `place` to the last cell by steps of (1, 1), (1, 0) and (0, 1)."""
    if place == (rows - 1, columns - 1):
        yield [place]
    for step in ((1, 1), (1, 0), (0, 1)):
        after = place[0] + step[0], place[1] + step[1]
        if after[0] < rows and after[1] < columns:
            for rest in all_paths(rows, columns, after):
                yield [place, *rest]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_warping_takes_the_cheapest_of_all_paths(rows: int, columns: int, seed: int):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(rows, 20)), draw.normal(size=(columns, 20))
    cost = np.linalg.norm(mel_cepstra(a)[:, None] - mel_cepstra(b), axis=2)
    warped = warp(a, b)
    assert warped.path.tolist() in [[list(place) for place in one] for one in all_paths(rows, columns)]
    best = min(sum(cost[place] for place in one) for one in all_paths(rows, columns))
    assert warped.distances.sum() == pytest.approx(best * 10 * math.sqrt(2) / math.log(10))


def test_dtw_undoes_a_change_of_pace(seed):
    frames = speech_like(300, seed)
    slowed = np.repeat(frames, np.random.default_rng(seed).integers(1, 4, size=300), axis=0)
    warped = warp(frames, slowed)
    assert len(warped.path) == len(slowed) and warped.distances.mean() < 1e-9


def test_cepstra_are_the_scaled_orthonormal_cosine_transform():
    mel = speech_like(7, seed=4)
    expected = scipy.fft.dct(mel, type=2, norm="ortho")[:, 1 : CEPSTRA + 1] * math.sqrt(2 / 80)
    assert mel_cepstra(mel) == pytest.approx(expected)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("order", [1, 13])
def test_distortion_is_the_rms_difference_of_smooth_spectra_in_db(order: int, power: float):
    ripple = 3 / DECIBEL * np.cos(math.pi / 80 * order * (np.arange(80) + 0.5))  # 3 dB high, RMS 3 / sqrt(2)
    mel = speech_like(20, seed=5)
    assert warp(power * mel, power * (mel + ripple), power).distances.mean() == pytest.approx(3 / math.sqrt(2))


def test_distortion_hears_neither_level_nor_fine_detail():
    mel = speech_like(20, seed=6)
    fine = np.cos(math.pi / 80 * 14 * (np.arange(80) + 0.5))
    assert warp(mel, mel + 2.5 + fine).distances.mean() == pytest.approx(0, abs=1e-9)


def glide(low: float, high: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """A harmonic tone whose pitch glides, with silence before and after, and its pitch at every sample."""
    samples = int(seconds * RECIPE.sample_rate)
    f0 = np.geomspace(low, high, samples)
    phase = 2 * np.pi * np.cumsum(f0) / RECIPE.sample_rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 9))
    noise = 1e-4 * np.random.default_rng(0).normal(size=samples + 2 * 5120)
    return np.pad(0.2 * tone, 5120) + noise, np.pad(f0, 5120, constant_values=np.nan)


def test_pitch_of_a_glide_is_found_in_the_frames_of_the_mels():
    audio, true = glide(100, 240, 1.5)
    found = pitch(audio, RECIPE)
    assert len(found) == len(MelExtractor(RECIPE)(audio)) == RECIPE.frames(len(audio))
    centers = np.arange(len(found)) * RECIPE.hop_length - RECIPE.pad[0] + RECIPE.n_fft // 2
    expected = true[centers]
    voiced = ~np.isnan(found)
    assert (voiced != ~np.isnan(expected)).sum() <= 6  # frames that lie across either edge of the tone
    both = voiced & ~np.isnan(expected)
    cents = 1200 * np.log2(found[both] / expected[both])
    assert np.abs(np.median(cents)) < 6 and np.quantile(np.abs(cents), 0.95) < 25  # the grid's step is 20 cents


def test_missing_librosa_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(UserError, match="F0 needs .* pip install -r requirements-demo.txt"):
        pitch(np.zeros(22_050), RECIPE)
    with pytest.raises(UserError, match="MCD needs .* pip install -r requirements-demo.txt"):
        warp(np.zeros((3, 80)), np.zeros((3, 80)))


def test_pitch_errors_count_what_they_say():
    nan = math.nan
    a, b = np.array([100.0, 200.0, nan, nan]), np.array([110.0, 400.0, 150.0])
    path = np.array([[0, 0], [1, 1], [2, 2], [3, 2], [1, 1]])
    errors = pitch_errors(a, b, path)
    assert (errors.frames, errors.both_voiced, errors.voicing_errors) == (5, 3, 2)
    metrics = errors.metrics()
    assert metrics["f0_rmse_hz"] == pytest.approx(math.sqrt((10**2 + 2 * 200**2) / 3))
    assert metrics["f0_rmse_cents"] == pytest.approx(math.sqrt(((1200 * math.log2(1.1)) ** 2 + 2 * 1200**2) / 3))
    assert metrics["voicing_error"] == 0.4 and metrics["voiced_frames"] == 3
    silent = pitch_errors(np.array([nan]), np.array([nan]), np.array([[0, 0]]))
    assert silent.metrics()["f0_rmse_hz"] is None and silent.metrics()["voicing_error"] == 0
    assert PitchErrors.total([errors, silent]).metrics()["voicing_error"] == pytest.approx(2 / 6)


def test_bootstrap_of_a_ratio_covers_all_draws_of_two_utterances():
    """One of the two twice has a chance of 1/4 each, so that both extremes lie within the interval."""
    above, below = [1, 4], [10, 10]
    ratios = sorted({(above[i] + above[j]) / (below[i] + below[j]) for i, j in itertools.product(range(2), repeat=2)})
    assert bootstrap_ratio(above, below, n=500, seed=1) == pytest.approx((ratios[0], ratios[-1]))
    assert bootstrap_ratio(above, below, n=50, seed=2) == bootstrap_ratio(above, below, n=50, seed=2)
    assert bootstrap_ratio([3], [10]) is None


def test_bootstrap_of_many_utterances_has_the_width_of_their_spread():
    """The interval of a mean of 400 values of deviation 0.1 is 4 standard errors of 0.005 wide."""
    values = np.random.default_rng(5).normal(0.5, 0.1, 400)
    low, high = bootstrap_ratio(values, np.ones(400), n=2000)
    assert low < values.mean() < high and high - low == pytest.approx(4 * 0.98 * 0.005, rel=0.15)
