"""Embedded recordings of validation speakers, to whom calibration and thresholds are fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LONG = 8.0  # seconds; recordings from here on count as a kind of their own
MIN_SPEAKERS = 3
TOO_OPTIMISTIC = "validation is on training speakers, so that its error and the thresholds are too optimistic"
CUTS = (0.75, 1.5, 3.0)  # seconds of the middle of recordings, which stand for short ones


class Recordings(NamedTuple):
    """Unit-normalized embeddings (n, d) of recordings, and their seconds (n,)."""

    embeddings: NDArray[np.float32]
    seconds: NDArray[np.float64]


class Part(NamedTuple):
    """Embeddings of about `seconds` of some recordings, their `lengths`, and which of the validation's they are of."""

    seconds: float
    embeddings: NDArray[np.float32]
    lengths: NDArray[np.float64]
    chosen: NDArray[np.bool_]


@dataclass(frozen=True)
class Validation:
    """Recordings of known speakers: `whole` of `seconds` (n,), and `cut`, seconds -> embeddings (n, d) of that much."""

    cut: Mapping[float, NDArray[np.float32]]
    whole: NDArray[np.float32]
    labels: NDArray[np.str_]
    seconds: NDArray[np.float64]

    @classmethod
    def of(
        cls, cut: Mapping[float, NDArray], whole: NDArray[np.float32], speakers: Sequence[str], seconds: Sequence[float]
    ) -> Validation:
        """From sequences (n) of speakers and seconds."""
        return cls(cut, whole, np.asarray(speakers), np.asarray(seconds, dtype=np.float64))

    def subset(self, chosen: NDArray[np.bool_]) -> Validation:
        """Those of the recordings (n,) that are chosen."""
        cut = {seconds: vectors[chosen] for seconds, vectors in self.cut.items()}
        return Validation(cut, self.whole[chosen], self.labels[chosen], self.seconds[chosen])

    def parts(self) -> list[Part]:
        """Each cut, and the entire recordings below `LONG` and the others, by rising seconds.

        A part of entire recordings needs `MIN_SPEAKERS`; without any such part there are none at all.
        """
        everyone = np.ones(len(self.labels), dtype=bool)
        groups = [
            group for group in (self.seconds < LONG, self.seconds >= LONG) if self._speakers(group) >= MIN_SPEAKERS
        ]
        parts = [
            Part(seconds, vectors, np.minimum(self.seconds, seconds), everyone) for seconds, vectors in self.cut.items()
        ]
        parts += [
            Part(float(np.median(self.seconds[group])), self.whole[group], self.seconds[group], group)
            for group in groups
        ]
        return sorted(parts, key=lambda part: part.seconds) if groups else []

    def _speakers(self, chosen: NDArray[np.bool_]) -> int:
        return len(np.unique(self.labels[chosen]))


def useful_cuts(lengths: Sequence[float]) -> list[float]:
    """Those of `CUTS` that shorten most recordings of `lengths` in s."""
    return [seconds for seconds in CUTS if seconds < np.median(lengths)]
