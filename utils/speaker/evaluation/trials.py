"""Verification trials as arrays: the recordings on both sides, the conditions they fall into, and their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.files import sha256_text
from utils.lists import Trial, join_fields, trial_lines

DURATIONS: dict[str, float | None] = {"full": None, "1.5s": 1.5, "3s": 3.0}
"""Name of a duration -> seconds kept of the middle of both sides (None: all); shorter recordings stay as they are."""

_SCORING_BLOCK = 1 << 16  # trials scored at once: their embeddings are copied


class Origin(NamedTuple):
    """Speaker, chapter and sex of a recording; `sex` is "F", "M" or "" where it is not known."""

    speaker: str
    chapter: str
    sex: str


@dataclass(frozen=True)
class TrialSet:
    """n trials over m distinct recordings.

    `items` (m paths) and `origins` (m) describe the recordings; `targets` (n,) is true for trials of one speaker; `a`
    and `b` (n,) are the indices of both sides.
    """

    items: tuple[str, ...]
    origins: tuple[Origin, ...]
    targets: NDArray[np.bool_]
    a: NDArray[np.int64]
    b: NDArray[np.int64]

    @classmethod
    def build(cls, trials: Sequence[Trial], origins: Mapping[str, Origin]) -> TrialSet:
        """Numbers the recordings of `trials` in the order of their paths; `origins` must hold each path."""
        items = sorted({path for trial in trials for path in (trial.a, trial.b)})
        index = {path: number for number, path in enumerate(items)}
        return cls(
            items=tuple(items),
            origins=tuple(origins[path] for path in items),
            targets=np.array([trial.target for trial in trials], dtype=bool),
            a=np.array([index[trial.a] for trial in trials], dtype=np.int64),
            b=np.array([index[trial.b] for trial in trials], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def sides(self, field: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A field of `Origin` for both sides of each trial, (n,) and (n,), as places in the order of its values."""
        values = np.array([getattr(origin, field) for origin in self.origins], dtype=np.str_)
        places = np.unique(values, return_inverse=True)[1]
        return places[self.a], places[self.b]

    def speakers(self) -> dict[str, str]:
        """Speaker -> sex of all speakers of the trials, in order of name."""
        return dict(sorted((origin.speaker, origin.sex) for origin in self.origins))

    def labels_match_paths(self) -> bool:
        """True if a trial is a target exactly when its two paths name one speaker."""
        first, second = self.sides("speaker")
        return bool(np.array_equal(first == second, self.targets))

    def same_sex(self) -> NDArray[np.bool_]:
        """Trials whose two sides have one sex, known for both: the harder confusions."""
        first, second = self.sides("sex")
        known = np.array([bool(origin.sex) for origin in self.origins])
        return (first == second) & known[self.a]

    def cross_chapter(self) -> NDArray[np.bool_]:
        """Target trials across two chapters, and all non-targets.

        A chapter is a recording session. Pairs within one make the error rate too low, because the room agrees as well.
        Non-targets never share a session.
        """
        first, second = self.sides("chapter")
        return ~self.targets | (first != second)

    def score(self, embeddings: NDArray[np.float32], others: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """Cosines (n,) of unit-normalized `embeddings` (m, d) of the recordings; of the second sides in `others`."""
        others = embeddings if others is None else others
        scores = np.empty(len(self))
        for start in range(0, len(self), _SCORING_BLOCK):
            block = slice(start, start + _SCORING_BLOCK)
            first, second = embeddings[self.a[block]], others[self.b[block]]
            scores[block] = np.einsum("nd,nd->n", first, second, dtype=np.float64)
        return scores

    def hash(self) -> str:
        """SHA-256 of the trials in any order, in hexadecimal."""
        return sha256_text("".join(sorted(trial_lines([each]) for each in self.trials())))

    def trials(self) -> Iterator[Trial]:
        """The trials, in order."""
        for target, a, b in zip(self.targets, self.a, self.b, strict=True):
            yield Trial(bool(target), self.items[a], self.items[b])

    def speaker_count(self) -> int:
        """The number of speakers on either side of the trials."""
        return len(np.unique(np.concatenate(self.sides("speaker"))))

    def select(self, chosen: NDArray[np.bool_]) -> TrialSet:
        """The `chosen` trials (n,), of the same recordings."""
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in ("targets", "a", "b")})

    def twice(self) -> TrialSet:
        """The trials, and the trials again."""
        return dataclasses.replace(self, **{name: np.tile(getattr(self, name), 2) for name in ("targets", "a", "b")})

    def lines(self, scores: Iterable[float]) -> Iterator[str]:
        """`score target path-a path-b` of each trial; nine digits distinguish all float32 scores."""
        for score, target, a, b in zip(scores, self.targets, self.a, self.b, strict=True):
            yield join_fields(f"{score:.9g}", str(int(target)), self.items[a], self.items[b])

    def recordings(self) -> Iterator[str]:
        """`path speaker chapter sex` of each recording, `-` for unknown fields."""
        for item, origin in zip(self.items, self.origins, strict=True):
            yield join_fields(item, *(value or "-" for value in origin))
