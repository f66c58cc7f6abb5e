"""Which sample stands at which place of a training run, and where batches end: functions of the seed and the place.

Places count the samples of the global batches from the start of the run, so that neither ranks, workers, micro-batches
nor an interruption change what is trained on: how far a run has come is one number, the samples it has consumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError
from utils.training.options import TrainingOptions

POOL_BATCHES = 100  # batches of like length are formed among so many batches' worth of utterances
JITTER = 0.05  # of a length where utterances are ordered by length, so that neighbors change from epoch to epoch


class Order(Protocol):
    """The samples of a run: the item at each place, and the global batch that begins at a place."""

    smallest_batch: int  # no batch has fewer samples

    def __getitem__(self, place: int) -> int:
        """The item at a place."""

    def batch(self, place: int) -> range:
        """The places of the batch that begins at `place`, where the batch before it ended."""


class EpochOrder:
    """Every epoch takes each of `size` items once, in a new order; `batch_size` samples a batch."""

    def __init__(self, size: int, seed: int, batch_size: int) -> None:
        self.size, self.seed, self.smallest_batch = size, seed, batch_size
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        epoch, position = divmod(place, self.size)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, 1, epoch]).permutation(self.size)
            self._epoch = epoch
        return int(self._permutation[position])

    def batch(self, place: int) -> range:
        """A batch may begin in one epoch and end in the next."""
        return range(place, place + self.smallest_batch)


class BucketOrder:
    """Every epoch takes each item once, in batches of like length within a budget of padded frames.

    An epoch is dealt at random into pools, the items of a pool are sorted by (jittered) length and cut into batches
    whose size times longest length stays within `batch_frames`, and the batches of all pools are shuffled. Raises
    `UserError` if an item alone exceeds the budget.
    """

    def __init__(self, lengths: Sequence[int], seed: int, batch_frames: int) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.seed, self.batch_frames = seed, batch_frames
        longest = int(self.lengths.max())
        if longest > batch_frames:
            raise UserError(f"--batch-frames {batch_frames} cannot hold the longest utterance, {longest} frames")
        self.smallest_batch = min(len(self.lengths), -(-(batch_frames // longest) // 2))  # see _cut
        self._epoch, self._items, self._ends = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        epoch, position = divmod(place, len(self.lengths))
        self._prepare(epoch)
        return int(self._items[position])

    def batch(self, place: int) -> range:
        """A batch never crosses the end of an epoch."""
        epoch, position = divmod(place, len(self.lengths))
        self._prepare(epoch)
        number = int(np.searchsorted(self._ends, position, side="right"))
        begins = int(self._ends[number - 1]) if number else 0
        if begins != position:
            raise ValueError(f"no batch begins at place {place}")
        return range(place, place + int(self._ends[number]) - position)

    def _prepare(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        draw = np.random.default_rng([self.seed, 1, epoch])
        size = len(self.lengths)
        pools = max(1, int(self.lengths.sum() // (POOL_BATCHES * self.batch_frames)))
        batches = []
        for pool in np.array_split(draw.permutation(size), min(pools, size)):
            shown_lengths = self.lengths[pool] * draw.uniform(1 - JITTER, 1 + JITTER, len(pool))
            batches += self._cut(pool[np.argsort(-shown_lengths, kind="stable")])
        batches = [batches[number] for number in draw.permutation(len(batches))]
        self._items, self._ends = np.concatenate(batches), np.cumsum([len(batch) for batch in batches])
        self._epoch = epoch

    def _cut(self, items: np.ndarray) -> list[np.ndarray]:
        """Batches from items of falling length.

        A rest of less than half the batch before it is evened out with it, so that none is much smaller than others.
        """
        starts, longest = [0], 0
        for position, length in enumerate(self.lengths[items].tolist()):
            longest = max(longest, length)
            if (position + 1 - starts[-1]) * longest > self.batch_frames:
                starts.append(position)
                longest = length
        if len(starts) > 1 and 2 * (len(items) - starts[-1]) < starts[-1] - starts[-2]:
            starts[-1] = (starts[-2] + len(items)) // 2
        return np.split(items, starts[1:])


def make_order(lengths: Sequence[int], options: TrainingOptions) -> Order:
    """The order that the options of batches ask for, of utterances of `lengths` frames."""
    if options.batch_frames:
        return BucketOrder(lengths, options.seed, options.batch_frames)
    return EpochOrder(len(lengths), options.seed, options.batch_size)


class ShareBatches(Sampler[list[int]]):
    """The places of one rank's micro-batches: part p of a global batch in P parts takes every P-th place from p on.

    The parts of a step are its `accumulate` micro-batches times the ranks; a batch has at least as many samples.
    """

    def __init__(self, order: Order, place: int, steps: int, rank: int, world: int, accumulate: int) -> None:
        self.order, self.place, self.steps = order, place, steps
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __iter__(self) -> Iterator[list[int]]:
        place = self.place
        for _ in range(self.steps):
            places = self.order.batch(place)
            for micro in range(self.accumulate):
                yield list(places[micro * self.world + self.rank :: self.world * self.accumulate])
            place = places.stop

    def __len__(self) -> int:
        return self.steps * self.accumulate
