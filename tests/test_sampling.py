"""The order of samples and the schedules: pure functions of seed, place and step."""

from __future__ import annotations

import pickle
from itertools import islice

import pytest

from utils.training.sampling import EpochOrder, PlaceBatches
from utils.training.schedule import linear_warmup, warmup_cosine


def epochs(order: EpochOrder, count: int) -> list[list[int]]:
    size = order.size
    return [[order[epoch * size + position] for position in range(size)] for epoch in range(count)]


def test_each_epoch_takes_every_item_once_in_a_new_order():
    first, second, third = epochs(EpochOrder(50, seed=3), 3)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(50))
    assert first != second and second != third and first != list(range(50))


def test_the_order_is_that_of_the_seed_wherever_one_looks_first():
    forward = epochs(EpochOrder(20, seed=3), 4)
    order = EpochOrder(20, seed=3)
    backward = [[order[epoch * 20 + position] for position in range(20)] for epoch in (3, 2, 1, 0)][::-1]
    assert forward == backward
    assert forward != epochs(EpochOrder(20, seed=4), 4)


def test_the_order_can_be_sent_to_a_spawned_worker():
    order = EpochOrder(9, seed=1)
    assert [order[place] for place in range(30)] == [pickle.loads(pickle.dumps(order))[place] for place in range(30)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_the_global_batch(world):
    shares = [list(PlaceBatches(2, 5, 7, rank, world)) for rank in range(world)]
    for step, batches in enumerate(zip(*shares, strict=True), start=2):
        assert sorted(place for batch in batches for place in batch) == list(range(step * 7, step * 7 + 7))
    assert [len(PlaceBatches(2, 5, 7, rank, world)) for rank in range(world)] == [3] * world


def test_learning_rate_rises_then_falls_to_its_end():
    factors = [warmup_cosine(step, 100, 0.1, 0.05) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0 and factors[-1] == pytest.approx(0.05)
    assert all(later < earlier for earlier, later in zip(islice(factors, 10, None), factors[11:], strict=False))
    assert warmup_cosine(0, 1, 0.0, 0.5) == 1.0


def test_margin_rises_from_zero():
    assert [linear_warmup(step, 10, 0.5) for step in range(7)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert linear_warmup(0, 10, 0.0) == 1.0
