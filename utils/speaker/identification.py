"""Closed-set identification among known speakers, by the classifier or by enrollment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PARTS = ("utterance", "chapter")
"""Test parts: other utterances of chapters that training used, and other chapters (recording sessions)."""


class Answer(NamedTuple):
    """The speaker of a test recording, the speaker that the system named, and the recording's path."""

    speaker: str
    named: str
    path: str


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


def answers(items: Sequence[tuple[str, str]], scores: NDArray, names: Sequence[str]) -> list[Answer]:
    """Answers of a system with `scores` (n, s) over `names` (s) for `items` (n), each (speaker, path)."""
    best = np.asarray(scores).argmax(axis=1) if items else []
    return [Answer(speaker, names[index], path) for (speaker, path), index in zip(items, best, strict=True)]


def by_part(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    """Places in `test` of each part; both lists hold (speaker, chapter).

    A test recording counts as `utterance` when its chapter occurs among that speaker's training chapters, else as
    `chapter`.
    """
    seen = set(train)
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for place, item in enumerate(test):
        parts["utterance" if item in seen else "chapter"].append(place)
    return parts


def confusion_matrix(given: Sequence[Answer]) -> tuple[list[str], NDArray[np.int64]]:
    """Names (s) of all who spoke or were named, and counts (s, s): row = speaker, column = named.

    Names that are numbers come first, in numerical order.
    """
    names = sorted({name for answer in given for name in (answer.speaker, answer.named)}, key=_number_first)
    index = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for answer in given:
        counts[index[answer.speaker], index[answer.named]] += 1
    return names, counts


def _number_first(name: str) -> tuple[bool, int, str]:
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
