"""Augmentation of a crop: filled bands, noise of a known power, and samples that their place determines."""

from __future__ import annotations

import numpy as np
import pytest

from utils.features.store import FeatureStore
from utils.speaker.training.augment import Noise, SpecAugment, add_noise
from utils.speaker.training.crops import CropDataset
from utils.training.sampling import EpochOrder

FILL = np.arange(80, dtype=np.float32) + 100


def test_masks_are_bands_of_the_fill_no_wider_than_allowed():
    mel = np.zeros((50, 80), dtype=np.float32)
    widths = set()
    for seed in range(200):
        masked = SpecAugment(1, 7, 0, 0)(mel, np.random.default_rng(seed), FILL)
        channels = np.flatnonzero(masked[0])
        assert (masked == masked[0]).all() and np.array_equal(masked[0, channels], FILL[channels])
        assert len(channels) == 0 or channels[-1] - channels[0] + 1 == len(channels)
        widths.add(len(channels))
        frames = np.flatnonzero(SpecAugment(0, 0, 1, 9)(mel, np.random.default_rng(seed), FILL)[:, 0])
        assert len(frames) <= 9 and (len(frames) == 0 or frames[-1] - frames[0] + 1 == len(frames))
    assert widths == set(range(8))
    assert not mel.any()


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
def test_noise_has_the_ratio_that_was_asked_for(snr, seed):
    """Mean power of speech over mean power of what was added: within 0.3 dB over 100,000 cells."""
    draw = np.random.default_rng(seed)
    mel = draw.normal(-3, 1, (1250, 80)).astype(np.float32)
    noisy = add_noise(mel, draw, snr, snr)
    speech = np.exp(2 * mel.astype(np.float64))
    added = np.exp(2 * noisy.astype(np.float64)) - speech
    assert added.min() > -1e-6
    assert 10 * np.log10(speech.mean() / added.mean()) == pytest.approx(snr, abs=0.3)


def crops(processed, crop: int | tuple[int, int] = 50, *augmentations) -> CropDataset:
    store = FeatureStore.open(processed)
    items = list(range(0, len(store), 3))
    mean, _ = store.statistics(items, 0)
    order = EpochOrder(len(items), seed=0, smallest_batch=8)
    lengths = (crop, crop) if isinstance(crop, int) else crop
    labels = list(range(len(items)))
    return CropDataset(store, items, labels, lambda mel: mean, order, lengths, augmentations, seed=0)


def test_a_sample_depends_on_its_place_alone(processed):
    one, other = (crops(processed, 50, Noise(noise_share=0.5), SpecAugment()) for _ in range(2))
    there, back = [one[place] for place in range(70)], [other[place] for place in reversed(range(70))][::-1]
    for (mel, label), (again, same) in zip(there, back, strict=True):
        assert label == same and np.array_equal(mel, again)
    assert len({mel.tobytes() for mel, _ in there}) == 70


def test_each_batch_draws_the_length_of_its_crops(processed):
    one, other = crops(processed, (20, 24)), crops(processed, (20, 24))
    lengths = [len(one[place][0]) for place in range(400)]
    batches = [lengths[first : first + 8] for first in range(0, 400, 8)]
    assert all(len(set(batch)) == 1 for batch in batches)
    assert {batch[0] for batch in batches} == {20, 21, 22, 23, 24}
    assert lengths == [len(other[place][0]) for place in reversed(range(400))][::-1]


def test_an_utterance_shorter_than_the_crop_is_repeated(processed):
    dataset = crops(processed, 700)
    item = dataset.items[dataset.order[0]]
    mel, _ = dataset[0]
    whole = dataset.store.mel(item)
    assert len(mel) == 700 > 2 * len(whole)
    assert np.array_equal(mel[: len(whole)], whole) and np.array_equal(mel[len(whole) : 2 * len(whole)], whole)


def test_statistics_are_those_of_the_given_utterances(processed):
    store = FeatureStore.open(processed)
    frames = np.concatenate([store.mel(item) for item in (1, 4, 7)]).astype(np.float64)
    mean, std = store.statistics([1, 4, 7], 0)
    assert np.allclose(mean, frames.mean(0), atol=1e-4) and np.allclose(std, frames.std(0), atol=1e-3)
