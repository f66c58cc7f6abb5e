"""Thresholds of open-set identification against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.speaker.embeddings import unit
from utils.speaker.scoring.operating import RECORDINGS, STRANGERS_NAMED, OperatingPoints
from utils.speaker.scoring.validation import Validation


def voices(speakers: int, recordings: int, spread: float) -> tuple[np.ndarray, list[str]]:
    draw = np.random.default_rng(0)
    means = np.repeat(draw.standard_normal((speakers, 16)), recordings, axis=0)
    vectors = unit(means + spread * draw.standard_normal(means.shape))
    return vectors, [f"s{number // recordings:02d}" for number in range(speakers * recordings)]


def points_of(*recordings) -> OperatingPoints | None:
    return OperatingPoints.fit(Validation.of(*recordings))


@pytest.mark.parametrize("enrolled", [1, 5, 20])
def test_the_stated_share_of_strangers_is_named(enrolled):
    """Strangers against drawn sets of enrolled people: 5 % within 0.6 % for 6000 draws of 720 recordings."""
    vectors, labels = voices(30, 24, 0.6)
    points = points_of({}, vectors, labels, [4.0] * len(labels))
    names, named, draw = np.array(sorted(set(labels))), 0, np.random.default_rng(1)
    means = {name: unit(vectors[np.array(labels) == name][:RECORDINGS].mean(0)) for name in names}
    for _ in range(6000):
        probe = draw.integers(len(labels))
        chosen = draw.choice(names[names != labels[probe]], enrolled, replace=False)
        best = max(float(vectors[probe] @ means[name]) for name in chosen)
        named += best >= points.identification(4.0, enrolled)
    assert named / 6000 == pytest.approx(STRANGERS_NAMED, abs=0.006)


def test_more_people_and_less_speech_need_more():
    exact, labels = voices(12, 6, 0.2)
    noisy, _ = voices(12, 6, 1.5)
    points = points_of({2.0: noisy}, exact, labels, [6.0] * len(labels))
    by_count = [points.identification(6.0, count) for count in (1, 2, 3, 5, 10, 40, 1000)]
    assert by_count == sorted(by_count) and by_count[-1] <= 1
    lengths = [points.identification(seconds, 5) for seconds in (0.5, 2.0, 4.0, 6.0, 60.0)]
    assert lengths[0] == lengths[1] and lengths[3] == lengths[4]
    assert min(lengths[1], lengths[3]) <= lengths[2] <= max(lengths[1], lengths[3])


def test_long_recordings_have_thresholds_of_their_own():
    """Those of the four speakers who have them; the growth with the number of people is that of everybody."""
    exact, labels = voices(16, 6, 0.2)
    noisy, _ = voices(16, 6, 1.5)
    is_long = np.arange(len(labels)) < 24
    vectors = np.where(is_long[:, None], exact, noisy)
    points = points_of({}, vectors, labels, np.where(is_long, 12.0, 4.0))
    alone = points_of({}, exact[:24], labels[:24], [12.0] * 24)
    assert points.seconds.tolist() == [4.0, 12.0]
    assert points.identification(12.0, 1) == pytest.approx(alone.identification(12.0, 1))
    growth = points.identification(4.0, 10) - points.identification(4.0, 1)
    assert points.identification(12.0, 10) == pytest.approx(points.identification(12.0, 1) + growth)


def test_few_speakers_give_no_points():
    vectors, labels = voices(2, 5, 0.2)
    assert points_of({}, vectors, labels, [4.0] * len(labels)) is None


def test_points_survive_a_checkpoint():
    vectors, labels = voices(12, 6, 0.2)
    points = points_of({1.5: vectors}, vectors, labels, [8.0] * len(labels))
    again = OperatingPoints.from_tensors(points.to_tensors())
    assert again.identification(3.0, 7) == points.identification(3.0, 7)
    old = {**points.to_tensors(), "same": torch.zeros(2)}  # of verification, which is calibrated instead
    assert OperatingPoints.from_tensors(old).identification(3.0, 7) == points.identification(3.0, 7)
