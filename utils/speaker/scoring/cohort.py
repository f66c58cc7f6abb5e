"""Adaptive score normalization (s-norm) by a cohort of other speakers.

A recording in noise, on the telephone or of one second has lower cosines with everybody, its own speaker included.
Relative to its cosines with the nearest of a cohort, it is like others again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError
from utils.speaker.embedding_file import read_embeddings
from utils.speaker.embeddings import enroll, unit

MIN_COHORT = 50  # training speakers
_SPEAKERS = 200  # training speakers at most that a cohort is made of
_RECORDINGS = 2  # of each
_TOP = 0.5  # share of the cohort, nearest to a recording, that counts
_BLOCK = 4096  # recordings compared with the cohort at once


@dataclass(frozen=True)
class Cohort:
    """Unit-normalized embeddings (c, d) of speakers who are not tested, and how many of them count."""

    embeddings: NDArray[np.float32]
    top: int

    @classmethod
    def fit(cls, embeddings: NDArray[np.float32], speakers: Sequence[str]) -> Self:
        """Makes a cohort of as many voices as there are `speakers` of the recordings embedded, (n, d).

        Each voice is the mean of two random speakers, so that a published cohort holds nobody's own.
        """
        _, means = enroll(speakers, embeddings)
        order = np.random.default_rng(0).permutation(len(means))
        return cls(unit(means[order] + means[np.roll(order, 1)]), nearest(len(means)))

    @classmethod
    def load(cls, path: str | Path, model_hash: str, top: int | None = None) -> Self:
        """Reads a file that `test.py embed --out` or `people export` wrote; `UserError` if it cannot be a cohort.

        It needs two embeddings or more, of the model `model_hash`. By default a share of `_TOP` counts.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no cohort at {path}; test.py embed --out writes one")
        embeddings, owner = read_embeddings(path)
        if owner != model_hash:
            raise UserError(f"the cohort {path} is of model {owner}, and the checkpoint is model {model_hash}")
        if len(embeddings) < 2:
            raise UserError(f"the cohort {path} has fewer than two embeddings")
        return cls(embeddings, nearest(len(embeddings)) if top is None else top)

    def to_tensors(self) -> dict[str, Tensor]:
        """The content of a checkpoint."""
        return {"embeddings": torch.from_numpy(self.embeddings), "top": torch.tensor(self.top)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        return cls(tensors["embeddings"].numpy(), int(tensors["top"]))

    def statistics(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean and standard deviation (2, n) of the cosines of `embeddings` (n, d) with the `top` nearest of each."""
        top = min(self.top, len(self.embeddings))
        found = np.empty((2, len(embeddings)))
        for start in range(0, len(embeddings), _BLOCK):
            block = slice(start, start + _BLOCK)
            cosines = (embeddings[block] @ self.embeddings.T).astype(np.float64)
            highest = np.partition(cosines, -top, axis=1)[:, -top:]
            found[:, block] = highest.mean(1), highest.std(1).clip(1e-6)
        return found


def nearest(count: int) -> int:
    """How many of a cohort of `count` voices are compared with a recording."""
    return max(2, round(_TOP * count))  # one has no deviation


def normalize(
    scores: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scores normalized by the statistics (2, ...) of both sides, of broadcastable shapes: the mean standard score.

    Symmetric adaptive s-norm with cohorts of each side, S-norm 1 of Matejka et al. 2017.
    """
    return ((scores - first[0]) / first[1] + (scores - second[0]) / second[1]) / 2


def cohort_of(speakers: Sequence[str], embed: Callable[[list[int]], NDArray[np.float32]]) -> Cohort | None:
    """The cohort of training recordings, by the speaker of each; None for too few speakers.

    `embed` gives the embeddings (n, d) of the recordings at n places.
    """
    places = cohort_recordings(speakers)
    return Cohort.fit(embed(places), [speakers[place] for place in places]) if places else None


def cohort_recordings(speakers: Sequence[str]) -> list[int]:
    """Places of the training recordings to make a cohort of, by the speaker of each; none of too few speakers."""
    draw, labels = np.random.default_rng(0), np.asarray(speakers)
    names = np.unique(labels)
    if len(names) < MIN_COHORT:
        return []
    places = [
        draw.permutation(np.flatnonzero(labels == name))[:_RECORDINGS] for name in draw.permutation(names)[:_SPEAKERS]
    ]
    return np.concatenate(places).tolist()
