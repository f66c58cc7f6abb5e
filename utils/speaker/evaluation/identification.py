"""Closed-set identification among known speakers, by the classifier or by enrollment."""

from __future__ import annotations

from collections import Counter
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


class Confusion(NamedTuple):
    """How many of a speaker's recordings were taken for somebody else."""

    speaker: str
    named: str
    count: int
    recordings: int


def confusions(given: Sequence[Answer]) -> list[Confusion]:
    """The errors among answers: the most frequent first, then by the speakers' names."""
    recordings = Counter(answer.speaker for answer in given)
    errors = Counter(answer[:2] for answer in given if answer.speaker != answer.named)
    found = [Confusion(*pair, count, recordings[pair[0]]) for pair, count in errors.items()]
    return sorted(found, key=lambda each: (-each.count, each))
