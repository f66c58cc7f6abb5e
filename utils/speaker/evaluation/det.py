"""Detection error trade-off curves with bands by resampling speakers, up to where the trials are too few."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from utils.speaker.evaluation.metrics import det_curve, eer, normal_deviate, speaker_draws

Floats = NDArray[np.float64]

LEAST_ERRORS = 3
"""Errors of a kind below which no curve is drawn: none in n trials is within the 95 % interval of a rate of 3 / n
(the rule of three: Hanley and Lippman-Hand 1983, JAMA 249)."""

BAND_DRAWS = 200
_POINTS = 150  # along a band
_FLOOR = 1e-9  # rates of 0 and 1 have no deviate


class Det(NamedTuple):
    """A curve: false acceptance and false rejection rates (k,), its EER, and the least rates that are drawn.

    `band` holds its lower and its upper edge as normal deviates of both rates: (2, 2, m); None without draws.
    """

    fpr: Floats
    fnr: Floats
    eer: float
    least: tuple[float, float]
    band: Floats | None = None


def make_det(scores: Floats, targets: NDArray[np.bool_], speakers: tuple[NDArray, NDArray] | None = None) -> Det:
    """The curve of trials (n,), with a 95 % band over draws of the `speakers` (n,) of both sides if they are given."""
    nontargets, of_targets = np.count_nonzero(~targets), np.count_nonzero(targets)
    fpr, fnr = det_curve(scores, targets)
    shown = np.minimum(np.round(fpr * nontargets), np.round(fnr * of_targets)) >= LEAST_ERRORS
    least = LEAST_ERRORS / nontargets, LEAST_ERRORS / of_targets
    curve = Det(fpr[shown], fnr[shown], eer(scores, targets)[0], least)
    with_band = speakers is not None and shown.any()
    return curve._replace(band=_band(curve, scores, targets, speakers)) if with_band else curve


def _band(curve: Det, scores: Floats, targets: NDArray[np.bool_], speakers: tuple[NDArray, NDArray]) -> Floats | None:
    """Percentiles of the curves of the draws along lines that cross the diagonal of the axes at right angles.

    So the band treats both rates alike, and at the diagonal it is the interval of the EER.
    """
    along, _ = _turned(curve.fpr, curve.fnr)
    places = np.linspace(along.min(), along.max(), _POINTS)
    bins, count = _bins(scores, targets)
    pairs, weights = speaker_draws(*speakers, BAND_DRAWS, seed=0)
    kinds = [(bins[kind], pairs[kind]) for kind in (targets, ~targets)]
    heights = []
    for weight in weights:
        rejected = [np.bincount(place, weight[pair], count).cumsum() for place, pair in kinds]
        if all(sums[-1] for sums in rejected):
            fnr, tnr = (sums / sums[-1] for sums in rejected)
            heights.append(np.interp(places, *_turned(1 - tnr, fnr)))
    if not heights:
        return None
    edges = np.quantile(heights, [0.025, 0.975], axis=0)
    return np.array([[height - places / 2, height + places / 2] for height in edges])


def _turned(fpr: Floats, fnr: Floats) -> tuple[Floats, Floats]:
    """Places along the curve, which never fall as the threshold rises, and heights on the diagonal, in deviates."""
    x, y = normal_deviate(fpr, _FLOOR), normal_deviate(fnr, _FLOOR)
    return y - x, (x + y) / 2


def _bins(scores: Floats, targets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Numbers trials (n,) by bins of the score that are even in deviates, for targets and for others; and the count."""
    shares = torch.special.ndtr(torch.linspace(-4, 4, _POINTS, dtype=torch.float64)).numpy()
    edges = np.unique([np.quantile(scores[kind], shares, method="nearest") for kind in (targets, ~targets)])
    return np.searchsorted(edges, scores, side="right"), len(edges) + 1
