"""The level and the statistics of features, and the back end of embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.speaker import SpeakerConfig, SpeakerModel
from models.speaker.model import FLOOR, FeatureNorm
from utils.features.mel import MelExtractor
from utils.features.recipe import RECIPES
from utils.speaker.scoring.back_end import BackEnd

SMALL = {"d_model": 16, "n_layers": 1, "headdim": 8, "d_state": 4, "pooled_channels": 16, "embedding_dim": 24}


def speech(seconds: float = 3.0) -> np.ndarray:
    """Harmonics in bursts above weak noise, 16 kHz."""
    draw, time = np.random.default_rng(5), np.arange(round(16_000 * seconds)) / 16_000
    voiced = sum(np.sin(2 * np.pi * 130 * k * time + k) / k for k in range(1, 40))
    return (0.1 * voiced * (np.sin(2 * np.pi * 2.5 * time) > 0) + 1e-3 * draw.standard_normal(len(time))).astype("f4")


@pytest.mark.parametrize("causal", [False, True])
def test_a_gain_changes_no_embedding(causal):
    """From -40 to +10 dB; also with samples of 16 bits, whose rounding noise the gain does not scale."""
    torch.manual_seed(0)
    model = SpeakerModel(SpeakerConfig(**SMALL, causal=causal), 4).eval()
    extract, samples = MelExtractor(RECIPES["speaker-16k"]), speech()

    def embed(x: np.ndarray) -> np.ndarray:
        mel = torch.from_numpy(extract(x))[None]
        return torch.nn.functional.normalize(model.embed(mel, torch.tensor([mel.shape[1]])), dim=-1)[0].detach().numpy()

    for decibels in (-40, -20, -6, 10):
        changed = samples * np.float32(10 ** (decibels / 20))
        assert embed(samples) @ embed(changed) > 0.9999
        assert embed(samples) @ embed(np.round(changed * 2**15).astype("f4") / np.float32(2**15)) > 0.999


def test_without_level_by_hand():
    norm = FeatureNorm(SpeakerConfig(**SMALL, n_mels=2))
    mel = torch.tensor([[[2.0, 2.0], [2.0, -50.0], [9.0, 9.0]]])
    level = 0.5 * np.log((2 * np.exp(4.0) + np.exp(4.0) + np.exp(-100.0)) / 4)
    without = norm.without_level(mel, torch.tensor([2]))[0, :2]
    np.testing.assert_allclose(without, [[2 - level, 2 - level], [2 - level, FLOOR]], rtol=1e-6)


def test_the_causal_level_sees_the_past_only():
    norm = FeatureNorm(SpeakerConfig(**SMALL, n_mels=3, causal=True))
    torch.manual_seed(1)
    mel = torch.randn(1, 12, 3)
    whole = norm.without_level(mel, torch.tensor([12]))
    for length in (1, 5):
        np.testing.assert_allclose(
            norm.without_level(mel[:, :length], torch.tensor([length])), whole[:, :length], rtol=1e-6
        )


def test_whitening_by_definition():
    """The covariance within speakers of whitened embeddings, shrunk as before, is that of the identity's size."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    x = draw.standard_normal((20, 6))[labels] + draw.standard_normal((200, 6)) * [3, 2, 1, 1, 0.5, 0.1]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4")
    back_end = BackEnd.fit(x, labels, shrinkage=0.0)
    y = (x - back_end.center) @ back_end.whitening
    within = y - np.stack([y[labels == label].mean(0) for label in range(20)])[labels]
    covariance = within.T @ within / (200 - 20)
    np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(6), atol=1e-4 * covariance[0, 0])
    np.testing.assert_allclose(np.linalg.norm(back_end(x), axis=1), 1, rtol=1e-5)


def test_a_back_end_of_single_recordings_only_centers():
    x = np.eye(3, dtype="f4")
    back_end = BackEnd.fit(x, np.arange(3))
    np.testing.assert_allclose(back_end.center, np.full(3, 1 / 3), rtol=1e-6)
    assert np.array_equal(back_end.whitening, np.eye(3))


def test_a_back_end_survives_a_checkpoint():
    back_end = BackEnd.fit(np.random.default_rng(0).standard_normal((9, 4)).astype("f4"), np.arange(9) % 3)
    again = BackEnd.from_tensors(back_end.to_tensors())
    x = np.eye(4, dtype="f4")
    assert np.array_equal(again(x), back_end(x))
