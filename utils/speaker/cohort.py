"""Adaptive score normalization (s-norm) by a cohort of other speakers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

_BLOCK = 4096  # recordings compared with the cohort at once


@dataclass(frozen=True)
class Cohort:
    """Unit-normalized embeddings (c, d) of speakers who are not tested, and how many of them count."""

    embeddings: NDArray[np.float32]
    top: int

    @classmethod
    def load(cls, path: str | Path, model_hash: str, top: int) -> Self:
        """Reads a file that `test.py embed --out` or `people export` wrote; `UserError` if it cannot be a cohort.

        It needs two embeddings or more, of the model `model_hash`.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"there is no cohort at {path}; test.py embed --out writes one")
        try:
            with safe_open(path, framework="numpy") as file:
                owner, names = (file.metadata() or {}).get("model_hash"), set(file.keys())
                embeddings = file.get_tensor("embeddings") if "embeddings" in names else None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a file of embeddings, or it is damaged: {error}") from error
        if owner is None or embeddings is None:
            raise UserError(f"{path} is not a file of embeddings, as test.py embed --out writes it")
        if owner != model_hash:
            raise UserError(f"the cohort {path} is of model {owner}, and the checkpoint is model {model_hash}")
        if len(embeddings) < 2:
            raise UserError(f"the cohort {path} has one embedding; two are needed")
        return cls(embeddings, top)

    def statistics(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean and standard deviation (2, n) of the cosines of `embeddings` (n, d) with the `top` nearest of each."""
        top = min(self.top, len(self.embeddings))
        found = np.empty((2, len(embeddings)))
        for start in range(0, len(embeddings), _BLOCK):
            block = slice(start, start + _BLOCK)
            cosines = (embeddings[block] @ self.embeddings.T).astype(np.float64)
            nearest = np.partition(cosines, -top, axis=1)[:, -top:]
            found[:, block] = nearest.mean(1), nearest.std(1).clip(1e-6)
        return found


def normalize(
    scores: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scores (n,) normalized by the statistics (2, n) of both sides: the mean of both standard scores.

    Symmetric adaptive s-norm with cohorts of each side, S-norm 1 of Matejka et al. 2017.
    """
    return ((scores - first[0]) / first[1] + (scores - second[0]) / second[1]) / 2
