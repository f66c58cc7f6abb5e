"""Pitch estimation from log-mels, contours through tokens, and rendered harmonics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.tts.durations import positions
from models.tts.pitch import (
    FIRST,
    GRID,
    JUMP,
    LOWEST,
    PER_OCTAVE,
    TOP,
    Harmonics,
    Pitch,
    best_contour,
    contour,
    grid_hz,
    interpolate_unvoiced,
)
from utils.features.audio import load_audio
from utils.features.harmonics import tones
from utils.features.mel import MelExtractor
from utils.features.recipe import RECIPES, MelRecipe

RECIPE = RECIPES["hifigan-22k"]
CENTS = 1200.0


def harmonics_of(recipe: MelRecipe) -> Harmonics:
    module = Harmonics(recipe.n_mels)
    module.set_tones(torch.from_numpy(tones(grid_hz().numpy(), recipe)))
    return module


@pytest.fixture(scope="module")
def harmonics() -> Harmonics:
    return harmonics_of(RECIPE)


def synthetic_voice(hz: np.ndarray, rate: int = RECIPE.sample_rate) -> np.ndarray:
    """A voice of 20 harmonics whose fundamental frequency is hz (s,)."""
    phase = 2 * np.pi * np.cumsum(hz) / rate
    return sum(0.05 / n * np.sin(n * phase + n) * (n * hz < rate / 2) for n in range(1, 21)).astype(np.float32)


def even(frames: int, tokens: int) -> torch.Tensor:
    """Durations (1, tokens) that share frames out evenly."""
    return torch.diff(torch.linspace(0, frames, tokens + 1).round().long())[None]


def track(harmonics: Harmonics, mel: np.ndarray, tokens: int = 10) -> Pitch:
    frames = len(mel)
    return harmonics.track(torch.from_numpy(mel)[None], torch.tensor([frames]), even(frames, tokens))


def octaves(hz: np.ndarray) -> np.ndarray:
    return np.log2(hz / LOWEST)


@pytest.mark.parametrize(("low", "high"), [(90.0, 130.0), (120.0, 240.0), (400.0, 220.0)])
def test_a_glide_is_estimated(harmonics, low, high):
    """Within 50 cents at every frame, and voiced, for any level and envelope."""
    hz = np.geomspace(low, high, RECIPE.sample_rate)
    mel = MelExtractor(RECIPE)(synthetic_voice(hz))
    middles = hz[np.arange(len(mel)) * RECIPE.hop_length + RECIPE.hop_length // 2]
    envelope = np.sin(np.linspace(0, 5, RECIPE.n_mels), dtype=np.float32)
    for estimate in (track(harmonics, mel), track(harmonics, mel - 3 + 2 * envelope)):
        inner = slice(2, -2)
        assert CENTS * np.abs(estimate.frame[0].numpy() - octaves(middles))[inner].max() < 50
        assert estimate.voiced.sum() > 0.9 * len(mel)
        assert (estimate.voiced <= even(len(mel), 10)).all()


@pytest.mark.parametrize(
    "recipe", [RECIPES["speaker-16k"], dataclasses.replace(RECIPE, n_mels=64, f_max=7000.0)], ids=["16k", "64"]
)
def test_a_glide_is_estimated_with_other_recipes(recipe):
    hz = np.geomspace(150.0, 250.0, recipe.sample_rate)
    mel = MelExtractor(recipe)(synthetic_voice(hz, recipe.sample_rate))
    middle = (recipe.win_length if recipe.padding == "none" else recipe.hop_length) // 2  # of the first frame
    middles = hz[np.arange(len(mel)) * recipe.hop_length + middle]
    estimate = track(harmonics_of(recipe), mel)
    assert CENTS * np.median(np.abs(estimate.frame[0].numpy() - octaves(middles))) < 50


def test_between_voices_the_pitch_is_between_theirs(harmonics):
    """150 Hz, noise, 250 Hz, four tokens each: noise changes neither the contour nor the voiced frames beside it."""
    draw, length = np.random.default_rng(0), 32 * RECIPE.hop_length
    parts = [
        synthetic_voice(np.full(length, 150.0)),
        draw.normal(0, 0.05, length),
        synthetic_voice(np.full(length, 250.0)),
    ]
    mel = MelExtractor(RECIPE)(np.concatenate(parts).astype(np.float32))
    estimate = track(harmonics, mel, 12)
    low, high = octaves(np.array([150.0, 250.0]))
    assert (
        CENTS * (estimate.token[0, :4] - low).abs().max() < 50
        and CENTS * (estimate.token[0, -4:] - high).abs().max() < 50
    )
    assert (estimate.token[0].diff() > -0.05).all()
    assert estimate.token[0, 4:8].min() > low - 0.05 and estimate.token[0, 4:8].max() < high + 0.05
    voiced = estimate.voiced[0] / 8
    assert voiced[:3].min() > 0.9 and voiced[-3:].min() > 0.9 and voiced[5:7].max() < 0.3
    assert CENTS * (estimate.frame[0, 2:28] - low).abs().max() < 50


def test_unvoiced_tokens_are_interpolated_between_the_middles_of_voiced_ones():
    pitch, durations = torch.tensor([[9.0, 1.0, 9.0, 2.0, 9.0], [9.0] * 5]), torch.tensor([[2, 2, 4, 4, 1], [1] * 5])
    is_voiced = torch.tensor([[False, True, False, True, False], [False] * 5])
    found = interpolate_unvoiced(pitch, durations, is_voiced)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 1 + 3 / 7, 2.0, 2.0]))
    assert found[1].tolist() == [FIRST] * 5


def test_templates_fade_where_channels_are_too_wide_for_harmonics(harmonics):
    """No edge where a tone's harmonics end: of voices up to 200 Hz nothing is left of them above 4 kHz."""
    below = harmonics.templates[: int(PER_OCTAVE * octaves(np.array(200.0)))].abs()
    assert below[:, 10:40].max() > 2 and below[:, 58:].max() < 0.5


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_few_frames_have_a_pitch(harmonics, frames):
    mel = MelExtractor(RECIPE)(synthetic_voice(np.full(8000, 200.0)))[10 : 10 + frames]
    estimate = track(harmonics, mel, 1)
    assert estimate.token.shape == (1, 1) and estimate.frame.shape == (1, frames)
    assert CENTS * (estimate.frame - octaves(np.array(200.0))).abs().max() < 50


def test_half_precision_changes_no_pitch(harmonics):
    mel = MelExtractor(RECIPE)(synthetic_voice(np.geomspace(150, 250, 20_000)))
    exact = track(harmonics, mel)
    with torch.autocast("cpu", torch.bfloat16):
        rough = track(harmonics, mel)
    assert all(torch.equal(*pair) for pair in zip(exact, rough, strict=True))


def test_noise_and_silence_have_no_voice(harmonics, seed):
    noise = np.random.default_rng(seed).normal(0, 0.05, RECIPE.sample_rate).astype(np.float32)
    for samples in (noise, np.zeros_like(noise)):
        estimate = track(harmonics, MelExtractor(RECIPE)(samples))
        assert estimate.voiced.sum() < 0.1 * estimate.frame.shape[1]
        assert estimate.frame.isfinite().all() and estimate.token.isfinite().all()


def test_rendered_harmonics_are_estimated_again(harmonics):
    pitch = torch.linspace(0.5, 2.5, 120)[None]
    estimate = track(harmonics, harmonics.render(pitch)[0].numpy())
    assert CENTS * (estimate.frame - pitch).abs().max() < 50


def test_templates_between_pitches_are_between_theirs(harmonics):
    pitch = torch.tensor([[3 / PER_OCTAVE, 3.5 / PER_OCTAVE, -1.0, TOP, TOP + 1]])
    rendered = harmonics.render(pitch)[0]
    torch.testing.assert_close(rendered[0], harmonics.templates[3])
    torch.testing.assert_close(rendered[1], (harmonics.templates[3] + harmonics.templates[4]) / 2)
    torch.testing.assert_close(rendered[2], harmonics.templates[0])
    torch.testing.assert_close(rendered[3:], harmonics.templates[-1:].expand(2, -1))


def test_the_best_contour_is_that_of_brute_force(seed):
    draw = np.random.default_rng(seed)
    evidence = draw.random((4, 3, GRID)) * 0.3
    grid = np.arange(GRID)
    jump = JUMP / PER_OCTAVE * np.abs(grid[:, None] - grid)
    for row, found in zip(evidence, best_contour(torch.from_numpy(evidence)), strict=True):
        totals = (row[0][:, None, None] - jump[:, :, None]) + row[1][:, None] - jump[None] + row[2]
        best = np.unravel_index(totals.argmax(), totals.shape)
        assert (found * PER_OCTAVE).round().long().tolist() == list(best)


def test_a_contour_joins_the_middles_of_tokens():
    pitch, durations = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[2, 4, 0]])
    whole = contour(pitch, durations, positions(durations, 0, 7))
    third = 1 / 3  # from the middle at frame 1 to that at frame 4
    expected = [1.0, 1 + third / 2, 1 + 1.5 * third, 1 + 2.5 * third, 2.0, 2.0, 2.0]
    torch.testing.assert_close(whole, torch.tensor([expected]))
    pieces = [contour(pitch, durations, positions(durations, start, 2)) for start in (0, 2, 4)]
    assert torch.equal(torch.cat(pieces, 1), whole[:, :6])
    one = torch.tensor([[3]])
    assert contour(torch.tensor([[1.5]]), one, positions(one, 0, 3)).tolist() == [[1.5] * 3]


def test_padding_and_batch_change_no_pitch(harmonics):
    mels = [MelExtractor(RECIPE)(synthetic_voice(np.geomspace(150, 250, seconds * 5000))) for seconds in (4, 2)]
    together = np.full((2, len(mels[0]), RECIPE.n_mels), 1.7, dtype=np.float32)
    durations = torch.zeros(2, 10, dtype=torch.long)
    for row, (mel, tokens) in enumerate(zip(mels, (10, 6), strict=True)):
        together[row, : len(mel)] = mel
        durations[row, :tokens] = even(len(mel), tokens)
    lengths = torch.tensor([len(mel) for mel in mels])
    estimate = harmonics.track(torch.from_numpy(together), lengths, durations)
    alone = track(harmonics, mels[1], 6)
    assert torch.equal(estimate.token[1, :6], alone.token[0])
    assert torch.equal(estimate.frame[1, : len(mels[1])], alone.frame[0])
    torch.testing.assert_close(estimate.voiced[1, :6], alone.voiced[0])


@pytest.mark.real
def test_the_pitch_of_a_real_voice_agrees_with_pyin(harmonics, real_data):
    """Where both find a voice, the median difference is below 30 cents, and 5 % of frames differ by 3 semitones.

    Tokens are taken as 5 frames long, about a phoneme's length.
    """
    pytest.importorskip("librosa")
    from utils.tts.speech_metrics import pitch

    differences = []
    for path in sorted((real_data / "tts_dev" / "LJSpeech-1.1" / "wavs").glob("*.wav"))[:60:10]:
        samples = load_audio(path, RECIPE.sample_rate)
        truth = octaves(pitch(samples, RECIPE))
        mel = MelExtractor(RECIPE)(samples)
        estimate = track(harmonics, mel, len(mel) // 5)
        surely = np.repeat(estimate.voiced[0].numpy() > 2.5, even(len(mel), len(mel) // 5)[0])
        both = surely & ~np.isnan(truth)
        differences.append(CENTS * np.abs(estimate.frame[0].numpy() - truth)[both])
    together = np.concatenate(differences)
    assert len(together) > 1000
    assert np.median(together) < 30
    assert (together > 300).mean() < 0.05
