"""Thresholds of identification, taken in the way that they are used.

The more people are enrolled and the shorter a recording is, the higher is the best score of a stranger. So thresholds
are taken from validation speakers for several durations and numbers of enrolled people, such that a share of
`STRANGERS_NAMED` of the strangers is named. Verification decides by log-likelihood ratios instead
(utils/speaker/calibration.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.speaker.identification import enrollment_mean

STRANGERS_NAMED = 0.05
ENROLLED = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RECORDINGS = 3  # of an enrollment
LONG = 8.0  # seconds; recordings from here on have thresholds of their own
MIN_SPEAKERS = 3
CUTS = (0.75, 1.5, 3.0)  # seconds of the middle of recordings, which stand for short ones
_STEPS = 40  # halvings of the interval of cosines


@dataclass(frozen=True)
class OperatingPoints:
    """Thresholds `named` (d, n) for recordings of `seconds` (d,) and `enrolled` (n,) people, both rising."""

    seconds: NDArray[np.float64]
    enrolled: NDArray[np.float64]
    named: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        cut: Mapping[float, NDArray[np.float32]],
        whole: NDArray[np.float32],
        speakers: Sequence[str],
        lengths: Sequence[float],
    ) -> Self | None:
        """Takes the thresholds from unit-normalized embeddings (n, e) of recordings of `speakers` (n).

        Args:
            cut: seconds -> embeddings of that much of each recording.
            whole: those of the entire recordings, of `lengths` (n) in s. Recordings of `LONG` or more and the others
                count separately, if both are of `MIN_SPEAKERS` or more.

        Returns:
            None with fewer than `MIN_SPEAKERS` speakers.
        """
        labels, lengths = np.asarray(speakers), np.asarray(lengths, dtype=np.float64)
        groups = length_groups(labels, lengths)
        if not groups:
            return None
        everyone = np.ones(len(labels), dtype=bool)
        points = {seconds: (vectors, everyone) for seconds, vectors in cut.items()}
        points |= {float(np.median(lengths[part])): (whole, part) for part in groups}
        rows = sorted(points.items())
        counts = np.array([count for count in ENROLLED if count < _speakers(labels)], dtype=np.float64)
        named = [_named_thresholds(vectors[part], whole[part], labels[part], counts) for _, (vectors, part) in rows]
        growth = max(named, key=len)
        growth = growth - growth[0]
        return cls(
            seconds=np.array([seconds for seconds, _ in rows]),
            enrolled=counts[: len(growth)],
            named=np.array([row if len(row) == len(growth) else row[0] + growth for row in named]).clip(max=1.0),
        )

    def identification(self, seconds: float, enrolled: int) -> float:
        """The threshold for a recording of `seconds` and `enrolled` people.

        It is linear in the logarithms of both between the points and, for more people than there were, beyond them.
        """
        by_count = [np.interp(np.log(seconds), np.log(self.seconds), column) for column in self.named.T]
        x, count = np.log(self.enrolled), np.log(max(enrolled, 1))
        if count > x[-1] and len(x) > 1:
            slope = (by_count[-1] - by_count[0]) / (x[-1] - x[0])
            return float(min(1.0, by_count[-1] + slope * (count - x[-1])))
        return float(np.interp(count, x, by_count))

    def to_tensors(self) -> dict[str, Tensor]:
        """The content of a checkpoint."""
        return {name: torch.from_numpy(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`; checkpoints of before have thresholds of verification too."""
        return cls(**{field.name: tensors[field.name].numpy() for field in fields(cls)})


def useful_cuts(lengths: Sequence[float]) -> list[float]:
    """Those of `CUTS` that shorten most recordings of `lengths` in s."""
    return [seconds for seconds in CUTS if seconds < np.median(lengths)]


def length_groups(labels: NDArray[np.str_], lengths: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
    """Recordings (n,) below `LONG` and the others, if they are of `MIN_SPEAKERS` or more."""
    return [part for part in (lengths < LONG, lengths >= LONG) if _speakers(labels[part]) >= MIN_SPEAKERS]


def _speakers(labels: NDArray[np.str_]) -> int:
    return len(np.unique(labels))


def _named_thresholds(
    vectors: NDArray[np.float32], whole: NDArray[np.float32], labels: NDArray[np.str_], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Thresholds for those of `counts` below the number of speakers, each enrolled with up to `RECORDINGS`."""
    names = np.unique(labels)
    enrolled = np.stack([enrollment_mean(whole[labels == name][:RECORDINGS]) for name in names])
    scores = (vectors @ enrolled.T).astype(np.float64)
    others = scores[labels[:, None] != names].reshape(len(labels), len(names) - 1)
    return np.array([_threshold(others, int(count)) for count in counts if count < len(names)])


def _threshold(scores: NDArray[np.float64], enrolled: int) -> float:
    """The cosine that the best of `enrolled` scores, drawn from each row (n, m), reaches in `STRANGERS_NAMED`."""
    ordered = np.sort(scores, axis=1)
    low, high = -1.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _named(ordered, enrolled, middle) > STRANGERS_NAMED:
            low = middle
        else:
            high = middle
    return high


def _named(ordered: NDArray[np.float64], enrolled: int, threshold: float) -> float:
    """The probability that the best of `enrolled` scores of a row, drawn without replacement, reaches `threshold`."""
    below, drawn = (ordered < threshold).sum(1)[:, None], np.arange(enrolled)
    return 1 - float(((below - drawn).clip(0) / (ordered.shape[1] - drawn)).prod(1).mean())
