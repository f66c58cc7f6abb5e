"""The order of samples in a training run and the ends of its batches, as functions of the seed and the place.

Places count the samples of all global batches from the start of the run. So ranks, workers, micro-batches and
interruptions do not change the samples, and the number of samples consumed states the progress of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions

POOL_BATCHES = 100  # batches of utterances in a pool, among which those of similar length are batched
JITTER = 0.05  # relative, of lengths before sorting, so that neighbors change from epoch to epoch


class Order:
    """The samples of a run: the item at each place, where every epoch has each of `size` items once."""

    def __init__(self, size: int, seed: int, smallest_batch: int) -> None:
        self.size, self.seed = size, seed
        self.smallest_batch = smallest_batch  # no batch has fewer samples
        self._epoch, self._items = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        """The item at a place."""
        position = self._position(place)
        return int(self._items[position])

    def batch(self, place: int) -> range:
        """The places of the global batch that begins at `place`, where the batch before it ended."""
        raise NotImplementedError

    def _position(self, place: int) -> int:
        """The position of a place in its epoch, whose items it orders."""
        epoch, position = divmod(place, self.size)
        if epoch != self._epoch:
            self._items = self._order(np.random.default_rng([self.seed, 1, epoch]))
            self._epoch = epoch
        return position

    def _order(self, draw: np.random.Generator) -> np.ndarray:
        """The items of an epoch in their order."""
        return draw.permutation(self.size)


class EpochOrder(Order):
    """Random order; all batches have the same size, and one may begin in one epoch and end in the next."""

    def batch(self, place: int) -> range:
        return range(place, place + self.smallest_batch)


class BucketOrder(Order):
    """Batches of similar length within a budget of padded frames, none of which crosses the end of an epoch.

    Items are divided at random into pools, sorted by (jittered) length in each, and cut into batches whose size times
    longest length is at most `batch_frames`; then the batches of all pools are shuffled. Raises `UserError` if an item
    alone exceeds the budget.
    """

    def __init__(self, lengths: Sequence[int], seed: int, batch_frames: int) -> None:
        self.lengths, self.batch_frames = np.asarray(lengths, dtype=np.int64), batch_frames
        longest = int(self.lengths.max())
        if longest > batch_frames:
            raise UserError(f"--batch-frames {batch_frames} cannot hold the longest utterance, {longest} frames")
        super().__init__(len(lengths), seed, min(len(lengths), -(-(batch_frames // longest) // 2)))  # see _cut
        self._ends = np.empty(0, dtype=np.int64)

    def batch(self, place: int) -> range:
        position = self._position(place)
        number = int(np.searchsorted(self._ends, position, side="right"))
        begins = int(self._ends[number - 1]) if number else 0
        if begins != position:
            raise ValueError(f"no batch begins at place {place}")
        return range(place, place + int(self._ends[number]) - position)

    def _order(self, draw: np.random.Generator) -> np.ndarray:
        pools = max(1, int(self.lengths.sum() // (POOL_BATCHES * self.batch_frames)))
        batches = []
        for pool in np.array_split(draw.permutation(self.size), min(pools, self.size)):
            jittered = self.lengths[pool] * draw.uniform(1 - JITTER, 1 + JITTER, len(pool))
            batches += self._cut(pool[np.argsort(-jittered, kind="stable")])
        batches = [batches[number] for number in draw.permutation(len(batches))]
        self._ends = np.cumsum([len(batch) for batch in batches])
        return np.concatenate(batches)

    def _cut(self, items: np.ndarray) -> list[np.ndarray]:
        """Batches from items of falling length.

        If the last batch has less than half the size of the one before it, both are divided evenly.
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
    """The order of utterances of `lengths` frames for the options of batches."""
    if options.batch_frames:
        return BucketOrder(lengths, options.seed, options.batch_frames)
    return EpochOrder(len(lengths), options.seed, options.batch_size)


def balanced_places(order: Order, labels: Sequence[int], most: int) -> list[int]:
    """The first places of a run with equally many samples of each label, and at most `most` in all.

    `labels` are those of the items. Of more than `most` / 2 labels, the first `most` / 2 that the run meets count.
    """
    classes = min(len(set(labels)), most // 2)
    each = most // classes
    places: list[int] = []
    counts: Counter[int] = Counter()
    for place in range(each * order.size):  # an epoch has each label at least once
        label = labels[order[place]]
        if counts[label] < each and (label in counts or len(counts) < classes):
            counts[label] += 1
            places.append(place)
        if len(places) == each * classes:
            break
    return places


class ShareBatches(Sampler[list[int]]):
    """The places of one rank's micro-batches: part i of n of a global batch has every n-th place from i on.

    A step has `accumulate` micro-batches on each rank; a batch has at least as many samples as there are parts.
    """

    def __init__(self, order: Order, place: int, steps: int, ranks: Ranks, accumulate: int) -> None:
        self.order, self.place, self.steps, self.ranks, self.accumulate = order, place, steps, ranks, accumulate

    def __iter__(self) -> Iterator[list[int]]:
        place = self.place
        for _ in range(self.steps):
            places = self.order.batch(place)
            for micro in range(self.accumulate):
                yield list(self.ranks.micro_batch(places, micro, self.accumulate))
            place = places.stop

    def __len__(self) -> int:
        return self.steps * self.accumulate
