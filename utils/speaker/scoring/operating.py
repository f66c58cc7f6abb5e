"""Thresholds of identification, estimated under the conditions in which they are used.

The more people are enrolled and the shorter a recording is, the higher is the best score of a stranger. So thresholds
are taken from validation speakers for several durations and numbers of enrolled people, such that a share of
`STRANGERS_NAMED` of the strangers is named. They are of plain cosines: normalized ones find fewer of many enrolled,
and take voices of one noisy recording for the same person. Verification decides by log-likelihood ratios instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.speaker.embeddings import enrollment_mean
from utils.speaker.scoring.validation import Validation

STRANGERS_NAMED = 0.03  # of other speakers, more than of those that thresholds are taken from (docs/results.md)
ENROLLED = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RECORDINGS = 3  # of an enrollment
_STEPS = 40  # halvings of the interval of cosines


@dataclass(frozen=True)
class OperatingPoints:
    """Thresholds `named` (d, n) for recordings of `seconds` (d,) and `enrolled` (n,) people, both rising."""

    seconds: NDArray[np.float64]
    enrolled: NDArray[np.float64]
    named: NDArray[np.float64]

    @classmethod
    def fit(cls, validation: Validation) -> Self | None:
        """Takes the thresholds from the parts of a validation; None if there are none.

        Parts of few speakers know of few enrolled; from there on their thresholds grow as those of the others.
        """
        parts = validation.parts()
        if not parts:
            return None
        counts = np.array([count for count in ENROLLED if count < len(np.unique(validation.labels))], dtype=np.float64)
        named = []
        for part in parts:
            names, enrolled = _enrolled(validation, part.chosen)
            scores = (part.embeddings @ enrolled.T).astype(np.float64)
            named.append(_named_thresholds(scores, validation.labels[part.chosen], names, counts))
        growth = max(named, key=len)
        growth = growth - growth[0]
        return cls(
            seconds=np.array([part.seconds for part in parts]),
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
        """The inverse of `to_tensors`; older checkpoints also have thresholds of verification."""
        return cls(**{field.name: tensors[field.name].numpy() for field in fields(cls)})


def _enrolled(validation: Validation, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.str_], NDArray[np.float32]]:
    """Speakers (s,) of the chosen recordings, and their enrollments (s, d) from up to `RECORDINGS` entire ones."""
    names = np.unique(validation.labels[chosen])
    places = [np.flatnonzero(chosen & (validation.labels == name))[:RECORDINGS] for name in names]
    return names, np.stack([enrollment_mean(validation.whole[each]) for each in places])


def _named_thresholds(
    scores: NDArray[np.float64], labels: NDArray[np.str_], names: NDArray[np.str_], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Thresholds for those of `counts` below the number of `names` (s,), by scores (n, s) of speakers `labels` (n,)."""
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
