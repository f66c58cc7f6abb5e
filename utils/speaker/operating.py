"""Thresholds of open-set identification, taken in the way that they are used.

The more people are enrolled and the shorter a recording is, the higher is the best score of a stranger. So thresholds
are taken from validation speakers for several durations and numbers of enrolled, each such that a share of
`STRANGERS_NAMED` of the strangers is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.speaker.identification import enrollment_mean

STRANGERS_NAMED = 0.05
ENROLLED = (1, 2, 5, 10, 20, 50, 100, 200, 500)
RECORDINGS = 3  # of an enrollment
_STEPS = 40  # halvings of the interval of cosines


@dataclass(frozen=True)
class OperatingPoints:
    """`thresholds` (d, n) for recordings of `seconds` (d,) and for `enrolled` (n,) people, both rising."""

    seconds: NDArray[np.float64]
    enrolled: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        embeddings: Mapping[float, NDArray[np.float32]],
        whole: NDArray[np.float32],
        speakers: Sequence[str],
    ) -> Self | None:
        """Takes the thresholds from unit-normalized embeddings (n, e) of recordings of `speakers` (n).

        Args:
            embeddings: seconds -> embeddings of that much of each recording.
            whole: those of entire recordings; each speaker is enrolled with the first `RECORDINGS`.

        Returns:
            None with fewer than three speakers.
        """
        labels = np.asarray(speakers)
        names = np.unique(labels)
        if len(names) < 3:
            return None
        enrolled = np.stack([enrollment_mean(whole[labels == name][:RECORDINGS]) for name in names])
        counts = np.array([count for count in ENROLLED if count < len(names)], dtype=np.float64)
        rows = []
        for _, vectors in sorted(embeddings.items()):
            scores = (vectors @ enrolled.T).astype(np.float64)
            others = scores[labels[:, None] != names].reshape(len(labels), len(names) - 1)
            rows.append([_threshold(others, int(count)) for count in counts])
        return cls(np.array(sorted(embeddings)), counts, np.array(rows))

    def threshold(self, seconds: float, enrolled: int) -> float:
        """The threshold for a recording of `seconds` and `enrolled` people.

        It is linear in the logarithms of both between the points and, for more people than there were, beyond them.
        """
        by_count = [np.interp(np.log(seconds), np.log(self.seconds), column) for column in self.thresholds.T]
        x, count = np.log(self.enrolled), np.log(max(enrolled, 1))
        if count > x[-1] and len(x) > 1:
            slope = (by_count[-1] - by_count[0]) / (x[-1] - x[0])
            return float(min(1.0, by_count[-1] + slope * (count - x[-1])))
        return float(np.interp(count, x, by_count))

    def to_tensors(self) -> dict[str, Tensor]:
        """The content of a checkpoint."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("seconds", "enrolled", "thresholds")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        return cls(**{name: tensor.numpy() for name, tensor in tensors.items()})


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
