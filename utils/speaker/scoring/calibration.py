"""Calibration: from normalized cosines to log-likelihood ratios.

The longer two recordings are, the higher are all their scores; so the lengths are a second input. An interaction with
the score, the shorter length instead of the mean, and the difference of both were tried on speakers left out of the
fit: none lowered Cllr reliably.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from utils.speaker.scoring.validation import Part, Validation

_STEPS = 100  # of Newton's method, which needs some ten
_PRECISION = 1e-10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """LLR = `weights` (3,) times (1, score, log of the geometric mean of both lengths in s).

    LLR is the natural logarithm of p(score | same speaker) / p(score | different speakers). Lengths count as if they
    were within `seconds` (2,), the least and the greatest that the weights were fitted to.
    """

    weights: Floats
    seconds: Floats

    @classmethod
    def fit(cls, validation: Validation, score: Callable[[NDArray, NDArray], Floats]) -> Self | None:
        """Fits pairs of recordings by logistic regression; `score` gives (n, m) of embeddings (n, d) and (m, d).

        Each part of the validation has equal weight, and so have pairs of one speaker and of two.

        Returns:
            None without parts, or if no speaker has two recordings in one of them.
        """
        parts = validation.parts()
        pairs = [_pairs(part, validation.labels[part.chosen], score) for part in parts]
        pairs = [each for each in pairs if each[1].any()]
        if not pairs:
            return None
        known = [min(part.lengths.min() for part in parts), validation.seconds.max()]
        return cls(logistic_regression(*zip(*pairs, strict=True)), np.array(known))

    def __call__(self, scores: ArrayLike, first: ArrayLike, second: ArrayLike) -> Floats:
        """LLRs of scores of recordings of `first` and `second` seconds; elementwise."""
        logs = _log_mean(np.clip(first, *self.seconds), np.clip(second, *self.seconds))
        return self.weights[0] + self.weights[1] * np.asarray(scores, dtype=np.float64) + self.weights[2] * logs

    def to_tensors(self) -> dict[str, Tensor]:
        """The content of a checkpoint."""
        return {name: torch.from_numpy(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        return cls(tensors["weights"].numpy(), tensors["seconds"].numpy())


def _pairs(
    part: Part, labels: NDArray[np.str_], score: Callable[[NDArray, NDArray], Floats]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores and logarithms of lengths (p, 2), and whether the speakers agree (p,), of all pairs of a part."""
    a, b = np.triu_indices(len(labels), 1)
    logs = _log_mean(part.lengths[a], part.lengths[b])
    return np.stack([score(part.embeddings, part.embeddings)[a, b], logs], axis=1), labels[a] == labels[b]


def _log_mean(first: ArrayLike, second: ArrayLike) -> Floats:
    """Logarithm of the geometric mean."""
    return (np.log(first) + np.log(second)) / 2


def logistic_regression(inputs: Sequence[Floats], targets: Sequence[NDArray[np.bool_]]) -> Floats:
    """Weights (1 + d,), the constant first, whose log-odds fit `targets` (n_i,) of `inputs` (n_i, d) at equal priors.

    Each of the parts, and in each both classes, have the same total weight. Labels are not 1 and 0 but
    (N + 1) / (N + 2) and 1 / (N + 2) for the N trials of a class (Platt 1999), so that the weights are finite for
    classes that do not overlap. By Newton's method.
    """
    shares, labels = zip(*map(_shares_and_labels, targets), strict=True)
    share, label, inputs = np.concatenate(shares) / len(targets), np.concatenate(labels), np.concatenate(inputs)
    middle, spread = inputs.mean(0), inputs.std(0)
    spread = np.where(spread > 1e-9, spread, np.inf)  # an input that does not vary gets the weight 0
    x = np.column_stack([np.ones(len(inputs)), (inputs - middle) / spread])

    def loss(weights: Floats) -> float:
        odds = x @ weights
        return float(share @ (np.logaddexp(0, odds) - label * odds))

    weights, now = np.zeros(x.shape[1]), math.log(2)
    for _ in range(_STEPS):
        chance = 0.5 * (1 + np.tanh(0.5 * (x @ weights)))
        gradient = x.T @ (share * (chance - label))
        curvature = (x * (share * chance * (1 - chance))[:, None]).T @ x
        step = np.linalg.lstsq(curvature, gradient)[0]
        while (then := loss(weights - step)) > now and abs(step).max() > _PRECISION:
            step = step / 2
        weights, now = weights - step, then
        if abs(step).max() <= _PRECISION:
            break
    slopes = weights[1:] / spread
    return np.append(weights[0] - slopes @ middle, slopes)


def _shares_and_labels(targets: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Weights (n,), 1/2 for each class, and the labels of Platt (n,)."""
    same, different = np.count_nonzero(targets), np.count_nonzero(~targets)
    label = np.where(targets, (same + 1) / (same + 2), 1 / (different + 2))
    return np.where(targets, 0.5 / max(same, 1), 0.5 / max(different, 1)), label
