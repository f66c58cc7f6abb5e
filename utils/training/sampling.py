"""Which sample stands at which place of a training run: a pure function of the seed and the place.

Places count the samples of the global batch from the start of the run, so that neither ranks, workers nor an
interruption change what is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochOrder:
    """Item of each place: every epoch takes each of `size` items once, in a new order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        epoch, position = divmod(place, self.size)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, 1, epoch]).permutation(self.size)
            self._epoch = epoch
        return int(self._permutation[position])


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
