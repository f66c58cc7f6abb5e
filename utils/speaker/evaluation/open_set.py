"""Open-set identification: how many people are found, and how many strangers are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.speaker.embeddings import enrollment_mean
from utils.speaker.scoring.operating import RECORDINGS

FALSE_ACCEPTS = 0.01  # share of strangers named, at which detection is compared


class OpenSetRates(NamedTuple):
    """Shares of the probes.

    `detected`: of the enrolled, named right where `FALSE_ACCEPTS` of the strangers are named; at the given thresholds:
    `found` and `confused`, of the enrolled, named right and as others, and `strangers`, of the others, named.
    """

    detected: float
    found: float
    confused: float
    strangers: float


def open_set_rates(
    vectors: NDArray[np.float32],
    speakers: Sequence[str],
    seconds: Sequence[float],
    threshold: Callable[[float, int], float],
    enrolled: int,
    draws: int,
    seed: int,
    probed: str | None = None,
) -> OpenSetRates:
    """Identifies unit-normalized embeddings (n, e) of recordings of `speakers` (n) among some of the speakers.

    In each of `draws`, `enrolled` speakers are enrolled from `RECORDINGS` random ones of their recordings. Their other
    recordings, and all of the other speakers, are probes.

    Args:
        threshold: gives the least cosine by the length of a probe in s and the number of enrolled. A probe scores by
            how far it is above that.
        probed: a speaker whose recordings alone are probes, and who is enrolled in every second draw.

    Raises:
        ValueError: there are no more speakers than `enrolled`, or one has no more than `RECORDINGS` recordings.
    """
    labels, rng = np.asarray(speakers), np.random.default_rng([seed, enrolled])
    names, counts = np.unique(labels, return_counts=True)
    if len(names) <= enrolled or counts.min() <= RECORDINGS:
        raise ValueError(f"more than {enrolled} speakers are needed, and more than {RECORDINGS} recordings of each")
    thresholds = np.array([threshold(each, enrolled) for each in seconds])
    is_probe = np.ones(len(labels), dtype=bool) if probed is None else labels == probed
    known, right, strangers = [], [], []
    for draw in range(draws):
        order = rng.permutation(names)
        if probed is not None:
            order = np.insert(order[order != probed], 0 if draw % 2 else len(order) - 1, probed)
        chosen = order[:enrolled]
        used = [rng.choice(np.flatnonzero(labels == name), RECORDINGS, replace=False) for name in chosen]
        scores = vectors @ np.stack([enrollment_mean(vectors[places]) for places in used]).T
        lead, named = scores.max(1) - thresholds, chosen[scores.argmax(1)]
        is_known = np.isin(labels, chosen)
        strangers.append(lead[is_probe & ~is_known])
        is_known[np.concatenate(used)] = False
        is_known &= is_probe
        known.append(lead[is_known])
        right.append((named == labels)[is_known])
    lead, is_right, of_strangers = map(np.concatenate, (known, right, strangers))
    bound = np.sort(of_strangers)[::-1][int(FALSE_ACCEPTS * len(of_strangers))]
    return OpenSetRates(
        detected=float(np.mean(is_right & (lead > bound))),
        found=float(np.mean(is_right & (lead >= 0))),
        confused=float(np.mean(~is_right & (lead >= 0))),
        strangers=float(np.mean(of_strangers >= 0)),
    )
