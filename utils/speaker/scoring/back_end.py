"""The back end of a recognizer: a linear map of embeddings, fitted without gradients, before cosines are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHRINKAGE = 0.5  # share of the isotropic covariance: embeddings of few speakers say little about most directions


@dataclass(frozen=True)
class BackEnd:
    """Centering and whitening within speakers: x (n, d) -> (x - `center`) `whitening`, of shapes (d,) and (d, d).

    Within-class covariance normalization (Hatch, Kajarekar and Stolcke 2006) with a covariance shrunk toward a multiple
    of the identity.
    """

    center: NDArray[np.float32]
    whitening: NDArray[np.float32]

    @classmethod
    def none(cls, dim: int) -> Self:
        """The back end that changes nothing but length."""
        return cls(np.zeros(dim, dtype=np.float32), np.eye(dim, dtype=np.float32))

    @classmethod
    def fit(cls, embeddings: NDArray[np.float32], labels: NDArray[np.int64], shrinkage: float = SHRINKAGE) -> Self:
        """Fits unit-normalized embeddings (n, d) of the speakers `labels` (n,).

        The center weighs speakers equally, the covariance within them recordings.
        """
        x = embeddings.astype(np.float64)
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        means = np.zeros((len(counts), x.shape[1]))
        np.add.at(means, classes, x)
        means /= counts[:, None]
        within = x - means[classes]
        covariance = within.T @ within / max(len(x) - len(counts), 1)
        scale = np.trace(covariance) / x.shape[1]
        if not scale > 0:  # one recording of each speaker
            return cls(means.mean(0).astype(np.float32), np.eye(x.shape[1], dtype=np.float32))
        shrunk = (1 - shrinkage) * covariance / scale + shrinkage * np.eye(x.shape[1])
        values, vectors = np.linalg.eigh(shrunk)
        whitening = (vectors / np.sqrt(values)) @ vectors.T
        return cls(means.mean(0).astype(np.float32), whitening.astype(np.float32))

    def __call__(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps unit-normalized embeddings (n, d), and scales them to length 1 again."""
        x = (embeddings - self.center) @ self.whitening
        return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)

    def to_tensors(self) -> dict[str, Tensor]:
        """The content of a checkpoint."""
        return {"center": torch.from_numpy(self.center), "whitening": torch.from_numpy(self.whitening)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        return cls(tensors["center"].numpy(), tensors["whitening"].numpy())
