"""Calibration: from cosines to log-likelihood ratios.

The longer two recordings are, the higher are all their cosines; so the lengths are a second input. Of the forms tried
on validation speakers left out of the fit (an interaction with the cosine, the shorter length, the difference of both),
none had a lower Cllr.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from utils.speaker.operating import MIN_SPEAKERS

_STEPS = 100  # of Newton's method, which needs some ten
_PRECISION = 1e-10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """LLR = `weights` (3,) times (1, cosine, log of the geometric mean of both lengths in s).

    LLR is the natural logarithm of p(cosine | same speaker) / p(cosine | different speakers). Lengths count as if they
    were within `seconds` (2,), the least and the greatest that the weights were fitted to.
    """

    weights: Floats
    seconds: Floats

    @classmethod
    def fit(
        cls,
        cut: Mapping[float, NDArray[np.float32]],
        whole: NDArray[np.float32],
        speakers: Sequence[str],
        lengths: Sequence[float],
    ) -> Self | None:
        """Fits all pairs of recordings by logistic regression; arguments as those of `OperatingPoints.fit`.

        Same and different speakers, and each cut and the entire recordings, have equal weight.

        Returns:
            None with fewer than `MIN_SPEAKERS` speakers, or if none of them has two recordings.
        """
        labels, lengths = np.asarray(speakers), np.asarray(lengths, dtype=np.float64)
        a, b = np.triu_indices(len(labels), 1)
        targets = labels[a] == labels[b]
        if len(np.unique(labels)) < MIN_SPEAKERS or not targets.any():
            return None
        parts = [(vectors, np.minimum(lengths, seconds)) for seconds, vectors in cut.items()] + [(whole, lengths)]
        cosines = np.concatenate([(vectors @ vectors.T)[a, b] for vectors, _ in parts]).astype(np.float64)
        logs = np.concatenate([_log_mean(seconds[a], seconds[b]) for _, seconds in parts])
        inputs = np.stack([cosines, logs], axis=1)
        known = np.concatenate([seconds for _, seconds in parts])
        return cls(logistic_regression(inputs, np.tile(targets, len(parts))), np.array([known.min(), known.max()]))

    def __call__(self, cosines: ArrayLike, first: ArrayLike, second: ArrayLike) -> Floats:
        """LLRs of cosines of recordings of `first` and `second` seconds; elementwise."""
        logs = _log_mean(np.clip(first, *self.seconds), np.clip(second, *self.seconds))
        return self.weights[0] + self.weights[1] * np.asarray(cosines, dtype=np.float64) + self.weights[2] * logs

    def to_tensors(self) -> dict[str, Tensor]:
        """The content of a checkpoint."""
        return {name: torch.from_numpy(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        return cls(tensors["weights"].numpy(), tensors["seconds"].numpy())


def _log_mean(first: ArrayLike, second: ArrayLike) -> Floats:
    """Logarithm of the geometric mean."""
    return (np.log(first) + np.log(second)) / 2


def logistic_regression(inputs: Floats, targets: NDArray[np.bool_]) -> Floats:
    """Weights (1 + d,), the constant first, whose log-odds of `inputs` (n, d) fit `targets` (n,) at equal prior.

    Both classes have the same total weight. Their labels are not 1 and 0 but (N + 1) / (N + 2) and 1 / (N + 2) for N
    trials of a class (Platt 1999), so that the weights are finite for classes that do not overlap. By Newton's method.
    """
    middle, spread = inputs.mean(0), inputs.std(0)
    spread = np.where(spread > 1e-9, spread, np.inf)  # an input that does not vary gets the weight 0
    x = np.column_stack([np.ones(len(inputs)), (inputs - middle) / spread])
    counts = np.array([np.count_nonzero(~targets), np.count_nonzero(targets)])
    share = 0.5 / counts[targets.astype(int)]
    labels = np.where(targets, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))

    def loss(weights: Floats) -> float:
        odds = x @ weights
        return float(share @ (np.logaddexp(0, odds) - labels * odds))

    weights, now = np.zeros(x.shape[1]), math.log(2)
    for _ in range(_STEPS):
        chance = 0.5 * (1 + np.tanh(0.5 * (x @ weights)))
        gradient = x.T @ (share * (chance - labels))
        curvature = (x * (share * chance * (1 - chance))[:, None]).T @ x
        step = np.linalg.lstsq(curvature, gradient)[0]
        while (then := loss(weights - step)) > now and abs(step).max() > _PRECISION:
            step = step / 2
        weights, now = weights - step, then
        if abs(step).max() <= _PRECISION:
            break
    slopes = weights[1:] / spread
    return np.append(weights[0] - slopes @ middle, slopes)
