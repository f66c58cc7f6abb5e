"""Unit-normalized embeddings: their cosine, and the mean that a speaker is enrolled by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def unit(vectors: NDArray) -> NDArray[np.float32]:
    """Vectors (..., d) scaled to length 1."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def cosine(first: NDArray, second: NDArray) -> float:
    """Cosine of two unit-normalized embeddings (d,), summed in double precision."""
    return float(np.dot(first.astype(np.float64), second.astype(np.float64)))


def enrollment_mean(embeddings: NDArray) -> NDArray[np.float32]:
    """Unit-normalized mean (d,) of embeddings (n, d), each scaled to length 1 first.

    So neither a speaker with more recordings nor a recording with a longer embedding gets an advantage.
    """
    return unit(unit(embeddings).mean(axis=0, dtype=np.float64))


def enroll(speakers: Sequence[str], embeddings: NDArray) -> tuple[list[str], NDArray[np.float32]]:
    """Distinct names in order, and their enrollments (s, d), from embeddings (n, d) of recordings of `speakers` (n)."""
    labels = np.asarray(speakers)
    names = sorted(set(speakers))
    return names, np.stack([enrollment_mean(embeddings[labels == name]) for name in names])
