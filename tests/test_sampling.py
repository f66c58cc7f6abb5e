"""The order of samples and the schedules: pure functions of seed, place and step."""

from __future__ import annotations

import pickle
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import train_tacomamba
from models.speaker import SpeakerConfig
from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.speaker.recognizer import embed_mels
from utils.speaker.scoring.back_end import BackEnd
from utils.speaker.training.task import SpeakerTask
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.sampling import BucketOrder, EpochOrder, ShareBatches, balanced_places
from utils.training.schedule import linear_warmup, warmup_cosine


def epochs(order: EpochOrder, count: int) -> list[list[int]]:
    size = order.size
    return [[order[epoch * size + position] for position in range(size)] for epoch in range(count)]


def test_each_epoch_takes_every_item_once_in_a_new_order():
    first, second, third = epochs(EpochOrder(50, seed=3, smallest_batch=7), 3)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(50))
    assert first != second and second != third and first != list(range(50))


def test_the_order_is_that_of_the_seed_wherever_one_looks_first():
    forward = epochs(EpochOrder(20, seed=3, smallest_batch=7), 4)
    order = EpochOrder(20, seed=3, smallest_batch=7)
    backward = [[order[epoch * 20 + position] for position in range(20)] for epoch in (3, 2, 1, 0)][::-1]
    assert forward == backward
    assert forward != epochs(EpochOrder(20, seed=4, smallest_batch=7), 4)


def test_the_order_can_be_sent_to_a_spawned_worker():
    order = EpochOrder(9, seed=1, smallest_batch=7)
    assert [order[place] for place in range(30)] == [pickle.loads(pickle.dumps(order))[place] for place in range(30)]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2)])
def test_ranks_and_micro_batches_divide_the_global_batch(world, accumulate):
    order = EpochOrder(50, 0, smallest_batch=7)
    ranks = [Ranks(rank, world, torch.device("cpu")) for rank in range(world)]
    samplers = [ShareBatches(order, 14, 3, each, accumulate) for each in ranks]
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [3 * accumulate] * world
    for step in range(3):
        micros = [share[step * accumulate : (step + 1) * accumulate] for share in shares]
        places = [place for rank in micros for micro in rank for place in micro]
        assert sorted(places) == list(range(14 + step * 7, 21 + step * 7))
        assert min(len(micro) for rank in micros for micro in rank) >= 7 // (world * accumulate)


def lengths_like_librispeech(size: int) -> np.ndarray:
    """Frames of 10 ms; most utterances of LibriSpeech's training folders last 12 to 16 s."""
    draw = np.random.default_rng(5)
    long, short = draw.normal(1450, 120, size), draw.uniform(150, 1400, size)
    return np.where(draw.random(size) < 0.6, long, short).clip(120, 2450).astype(int)


def batches_of(order: BucketOrder, place: int, count: int) -> list[range]:
    found = []
    for _ in range(count):
        found.append(order.batch(place))
        place = found[-1].stop
    return found


def epoch_of_batches(order: BucketOrder, epoch: int) -> list[list[int]]:
    size, found = len(order.lengths), []
    place = epoch * size
    while place < (epoch + 1) * size:
        batch = order.batch(place)
        found.append([order[place] for place in batch])
        place = batch.stop
    return found


@pytest.mark.parametrize(("size", "budget"), [(437, 12_000), (437, 5_000), (5_000, 40_000), (3, 2_600)])
def test_buckets_take_each_item_once_within_the_budget(size, budget):
    order = BucketOrder(lengths_like_librispeech(size), 0, budget)
    epochs = [epoch_of_batches(order, epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(item for batch in batches for item in batch) == list(range(size))
        for batch in batches:
            assert len(batch) >= order.smallest_batch
            assert len(batch) * order.lengths[batch].max() <= budget
    if size > 3:
        assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}


@pytest.mark.parametrize(("size", "budget"), [(437, 12_000), (20_000, 40_000)])
def test_buckets_pad_little_and_fill_the_budget(size, budget):
    order = BucketOrder(lengths_like_librispeech(size), 0, budget)
    batches = epoch_of_batches(order, 0)
    padded = sum(len(batch) * order.lengths[batch].max() for batch in batches)
    assert 1 - order.lengths.sum() / padded < 0.10
    assert padded / (budget * len(batches)) > 0.85
    at_random = [
        order.lengths[batch] for batch in np.array_split(np.random.default_rng(0).permutation(size), size // 8)
    ]
    assert 1 - order.lengths.sum() / sum(len(batch) * batch.max() for batch in at_random) > 0.2


def test_batches_of_an_epoch_are_not_in_order_of_length():
    order = BucketOrder(lengths_like_librispeech(437), 0, 12_000)
    longest = [order.lengths[batch].max() for batch in epoch_of_batches(order, 0)]
    assert longest != sorted(longest) and longest != sorted(longest)[::-1]


def test_buckets_depend_on_seed_and_place_alone():
    lengths = lengths_like_librispeech(200)
    forward = batches_of(BucketOrder(lengths, 3, 9_000), 0, 90)
    order = BucketOrder(lengths, 3, 9_000)
    for batch in reversed(forward):  # wherever a resumed run or a loader worker looks first
        assert order.batch(batch.start) == batch
    copy = pickle.loads(pickle.dumps(order))
    assert [order[place] for place in range(450)] == [copy[place] for place in range(450)]
    assert batches_of(BucketOrder(lengths, 4, 9_000), 0, 90) != forward
    with pytest.raises(ValueError, match="no batch begins"):
        order.batch(forward[0].stop - 1)


def test_an_utterance_beyond_the_budget_is_refused():
    with pytest.raises(UserError, match="cannot hold the longest utterance, 90 frames"):
        BucketOrder([10, 90], 0, 80)


@pytest.mark.parametrize(
    ("counts", "most", "each", "classes"),
    [((40, 6, 1), 30, 10, 3), ((40, 6, 1), 32, 10, 3), ((1, 1), 6, 3, 2), ((5, 2, 3, 1, 4), 5, 2, 2), ((9,), 4, 4, 1)],
)
def test_balanced_places_have_as_many_samples_of_each_label(counts, most, each, classes):
    labels = np.repeat(np.arange(len(counts)), counts).tolist()
    order = EpochOrder(len(labels), 7, 4)
    places = balanced_places(order, labels, most)
    found = np.bincount([labels[order[place]] for place in places], minlength=len(counts))
    assert sorted(found)[-classes:] == [each] * classes and found.sum() == each * classes
    assert places == sorted(set(places)), "a place counts once"
    last = labels[order[places[-1]]]
    assert all(labels[order[place]] != last for place in range(places[-1]) if place not in places), "the first places"


def test_the_back_end_is_fitted_to_as_many_samples_of_each_speaker(processed, tmp_path):
    """Of a training list that has all recordings of one speaker, and one of each other."""
    data = Path(shutil.copytree(processed, tmp_path / "data"))
    train = data / "protocols" / "default" / "train.txt"
    utterances = train.read_text().split()
    first = {utterance.split("-")[0]: utterance for utterance in reversed(utterances)}
    many = utterances[0].split("-")[0]
    kept = [each for each in utterances if each.split("-")[0] == many or each in first.values()]
    train.write_text("".join(f"{utterance}\n" for utterance in kept))
    words = ["--task", "speaker", "--data", str(data), "--out", str(tmp_path / "run"), "--crop-seconds", "0.5"]
    words += "--d-model 32 --n-layers 1 --headdim 16 --pooled-channels 32 --embedding-dim 16".split()
    parser = train_tacomamba.build_parser(words)
    training, config, *options = parser.read_options(
        parser.parse_args(words), TrainingOptions, SpeakerConfig, *SpeakerTask.option_classes()
    )
    task = SpeakerTask(FeatureStore.open(data), train.parent, config, training, options)
    task.model.eval()
    task.validate(Ranks(0, 1, torch.device("cpu")))
    samples = [task.dataset[place] for place in balanced_places(task.order, task.dataset.labels, 4 * len(kept))]
    labels = np.array([label for _, label in samples])
    assert len(set(np.bincount(task.dataset.labels))) > 1 and len(set(np.bincount(labels))) == 1
    expected = BackEnd.fit(embed_mels(task.model, [mel for mel, _ in samples], torch.device("cpu")), labels)
    np.testing.assert_allclose(task.back_end.whitening, expected.whitening, rtol=1e-5, atol=1e-6)


def test_learning_rate_rises_then_falls_to_its_end():
    factors = [warmup_cosine(step, 100, 0.1, 0.05) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0 and factors[-1] == pytest.approx(0.05)
    assert all(later < earlier for earlier, later in zip(islice(factors, 10, None), factors[11:], strict=False))
    assert warmup_cosine(0, 1, 0.0, 0.5) == 1.0


def test_margin_rises_from_zero():
    assert [linear_warmup(step, 10, 0.5) for step in range(7)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert linear_warmup(0, 10, 0.0) == 1.0
