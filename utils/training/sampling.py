"""Which sample stands at which place of a training run: a pure function of the seed and the place.

Places count the samples of the global batch from the start of the run, so that neither ranks, workers nor an
interruption change what is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


class EpochOrder:
    """Item of each place: every epoch is a new permutation of all groups, with one item of each group.

    groups: item numbers by group; groups of one item each make ordinary epochs over the items.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        self.groups = groups
        self.seed = seed
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, place: int) -> int:
        epoch, position = divmod(place, len(self.groups))
        return int(self._permutation(epoch)[position])

    def _draw(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, 1, epoch])
        order = generator.permutation(len(self.groups))
        return np.array([self.groups[group][generator.integers(len(self.groups[group]))] for group in order])


class PlaceBatches(Sampler[list[int]]):
    """The places of each step's share of the global batch: rank r of w takes every w-th place from r on."""

    def __init__(self, first_step: int, steps: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.steps = range(first_step, steps)
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.batch_size
            yield list(range(start + self.rank, start + self.batch_size, self.world))

    def __len__(self) -> int:
        return len(self.steps)
