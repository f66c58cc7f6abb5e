"""Segments of a timeline, their RTTM form, and the error rates of one timeline against another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Segment(NamedTuple):
    """Somebody speaks from `start` to `end`, in s."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Errors:
    """Seconds of missed speech, false alarm and confusion, and `speech`, those of the reference, summed over people."""

    missed: float
    false_alarm: float
    confusion: float
    speech: float

    def __add__(self, other: Errors) -> Errors:
        return Errors(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def rate(self) -> float:
        """The diarization error rate, as a fraction."""
        return (self.missed + self.false_alarm + self.confusion) / self.speech


def to_rttm(segments: Iterable[Segment], recording: str) -> str:
    """Lines of NIST's RTTM format; white space in names, which separates its fields, becomes "_"."""
    name = "_".join(recording.split())
    return "".join(
        f"SPEAKER {name} 1 {start:.3f} {end - start:.3f} <NA> <NA> {'_'.join(speaker.split())} <NA> <NA>\n"
        for start, end, speaker in segments
    )


def errors(reference: Sequence[Segment], found: Sequence[Segment], collar: float = 0.0, named: bool = False) -> Errors:
    """The errors of `found`, overlapping speech included, by the definition of md-eval and pyannote.metrics.

    `collar` s on both sides of each border of the reference are not scored: md-eval's collar, and half of that of
    pyannote.metrics. Without `named`, speakers are paired such that the confusion is least.
    """
    borders = [time for segment in reference for time in segment[:2]]
    edges = [time for segment in found for time in segment[:2]]
    edges += [time + shift for time in borders for shift in (-collar, 0, collar)]
    times = np.unique(edges)
    middles, seconds = (times[:-1] + times[1:]) / 2, np.diff(times)
    if borders and collar:
        distance = np.abs(middles[:, None] - np.array(borders)).min(axis=1)
        seconds = np.where(distance < collar, 0.0, seconds)
    said, names = _activity(reference, middles)
    heard, found_names = _activity(found, middles)
    together = (said * seconds) @ heard.T  # seconds in common: (reference speakers, found speakers)
    if named:
        same = np.array(names)[:, None] == np.array(found_names) if together.size else np.zeros(together.shape, bool)
        correct = float(together[same].sum())
    else:
        from scipy.optimize import linear_sum_assignment

        correct = float(together[linear_sum_assignment(-together)].sum())
    in_reference, in_found = said.sum(axis=0), heard.sum(axis=0)
    return Errors(
        missed=float((seconds * (in_reference - in_found).clip(0)).sum()),
        false_alarm=float((seconds * (in_found - in_reference).clip(0)).sum()),
        confusion=float((seconds * np.minimum(in_reference, in_found)).sum()) - correct,
        speech=float((seconds * in_reference).sum()),
    )


def _activity(segments: Sequence[Segment], times: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """Who speaks at `times` (t,), 0 or 1: (speakers, t), and their names."""
    names = sorted({segment.speaker for segment in segments})
    active = np.zeros((len(names), len(times)))
    for start, end, speaker in segments:
        active[names.index(speaker), (start < times) & (times < end)] = 1.0
    return active, names
