"""Metrics of speaker verification: EER, minDCF, Cllr, the DET curve, and intervals by resampling speakers.

A trial is accepted when its score reaches the threshold. Every metric takes O(n log n) time and O(n) memory for n
trials, and depends on the order of the scores alone, except those of the values of log-likelihood ratios: Cllr and
actDCF. Trials of equal score are accepted or rejected together, so that
the order of a list does not matter, and constant scores have an EER of exactly 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from utils.speaker.scoring.decision import llr_threshold

Floats = NDArray[np.float64]

P_TARGETS = (0.01, 0.05)  # the priors of minDCF and actDCF in reports
_REACH = 1000  # points on both sides of a crossing that are searched first


@dataclass(frozen=True)
class ErrorRates:
    """Both error rates at every threshold that makes a difference, from "accept all" to "reject all".

    `scores` (k,) are the distinct scores in ascending order. `fnr` and `fpr` (k + 1,) are the rates of rejected targets
    and of accepted non-targets after rejecting the lowest scores, one more at each point: point 0 is (FNR 0, FPR 1).
    """

    scores: Floats
    fnr: Floats
    fpr: Floats

    def threshold(self, point: int) -> float:
        """The threshold at `point`: half-way between the last score rejected and the first accepted."""
        around = self.scores[max(point - 1, 0) : point + 1]
        return float(around.mean())

    def eer(self) -> tuple[float, float]:
        """Equal error rate, a fraction, and the score that decides nearest to it (accept at or above).

        The rate is read where the line through the points crosses FNR = FPR.
        """
        rate, point = _crossing(self.fnr, self.fpr)
        return rate, self.threshold(point)

    def min_dcf(self, p_target: float) -> float:
        """Least detection cost over all thresholds, normalized by the better of accepting all and rejecting all.

        min over t of [p_target FNR(t) + (1 - p_target) FPR(t)] / min(p_target, 1 - p_target), as in the NIST speaker
        recognition evaluations with costs of 1; at most 1.
        """
        return float((p_target * self.fnr + (1 - p_target) * self.fpr).min() / min(p_target, 1 - p_target))


def error_rates(scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> ErrorRates:
    """Error rates of all thresholds.

    `scores` (n,), `targets` (n,) true for trials of one speaker, `weights` (n,) at least 0 (default: 1 each).
    Raises ValueError for shapes that differ, scores that are not finite, or targets or non-targets without weight.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    weights = np.ones(scores.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != targets.shape or scores.shape != weights.shape:
        raise ValueError(f"scores {scores.shape}, targets {targets.shape} and weights {weights.shape} must be (n,)")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    order, ends = _sorted_groups(scores)
    fnr, fpr = _rates(targets[order], weights[order], ends)
    if not len(ends) or not (np.isfinite(fnr).all() and np.isfinite(fpr).all()):
        raise ValueError("both target and non-target trials are needed")
    return ErrorRates(scores[order][ends], fnr, fpr)


def _sorted_groups(scores: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ascending order of `scores` (n,), and the last place in it of each of the k distinct scores."""
    order = np.argsort(scores, kind="stable")
    last = np.append(np.diff(scores[order]) > 0, True)[: len(scores)]
    return order, np.flatnonzero(last)


def _rates(targets: NDArray[np.bool_], weights: NDArray, ends: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """FNR and FPR (k + 1,) of trials in ascending order of score; NaN where a class has no weight."""
    rejected_targets = np.cumsum(weights * targets)[ends]
    rejected_nontargets = np.cumsum(weights * ~targets)[ends]
    fnr, fpr = np.zeros(len(ends) + 1), np.ones(len(ends) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fnr[1:] = rejected_targets / rejected_targets[-1:]
        fpr[1:] = 1 - rejected_nontargets / rejected_nontargets[-1:]
    return fnr, fpr


def _crossing(fnr: Floats, fpr: Floats) -> tuple[float, int]:
    """The rate at which the line through the points crosses FNR = FPR, and the point nearest to it."""
    gap = fpr - fnr  # from 1 down to -1, never rising
    after = int(np.argmax(gap <= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    rate = fnr[before] + share * (fnr[after] - fnr[before])
    return float(rate), after if share >= 0.5 else before


def eer(scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """`ErrorRates.eer` of trials; arguments as `error_rates`."""
    return error_rates(scores, targets, weights).eer()


def rates_at(scores: ArrayLike, targets: ArrayLike, thresholds: ArrayLike) -> tuple[float, float]:
    """FNR and FPR when trials (n,) at or above `thresholds`, one or (n,), are accepted."""
    accepted, targets = np.asarray(scores) >= thresholds, np.asarray(targets, dtype=bool)
    return float(1 - accepted[targets].mean()), float(accepted[~targets].mean())


def act_dcf(llrs: ArrayLike, targets: ArrayLike, p_target: float) -> float:
    """Detection cost when log-likelihood ratios (n,) are believed: as `ErrorRates.min_dcf`, at the threshold of Bayes.

    It may be above 1, where accepting or rejecting all would have been better.
    """
    fnr, fpr = rates_at(llrs, targets, llr_threshold(p_target))
    return (p_target * fnr + (1 - p_target) * fpr) / min(p_target, 1 - p_target)


def cllr(llrs: ArrayLike, targets: ArrayLike) -> float:
    """Cost of log-likelihood ratios (n,), natural logarithms, in bits (Brümmer and du Preez 2006).

    The mean cost of all decisions that can be based on them; 1 for ratios that say nothing, 0 for perfect ones.
    """
    llrs, targets = np.asarray(llrs, dtype=np.float64), np.asarray(targets, dtype=bool)
    missed, alarmed = np.logaddexp(0, -llrs[targets]).mean(), np.logaddexp(0, llrs[~targets]).mean()
    return float((missed + alarmed) / (2 * np.log(2)))


def min_cllr(scores: ArrayLike, targets: ArrayLike) -> float:
    """The least Cllr of all maps of scores (n,) that never fall: what remains once calibration is perfect.

    The best map is isotonic regression, which pools adjacent violators.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    order, ends = _sorted_groups(scores)
    of_targets, of_all = (np.diff(np.cumsum(kind[order])[ends], prepend=0) for kind in (targets, np.ones_like(targets)))
    while True:
        share = of_targets / of_all
        starts = np.flatnonzero(np.append(True, share[1:] > share[:-1]))  # a run that does not rise is one pool
        if len(starts) == len(share):
            break
        of_targets, of_all = np.add.reduceat(of_targets, starts), np.add.reduceat(of_all, starts)
    rates = [counts / counts.sum() for counts in (of_targets, of_all - of_targets)]
    costs = [own[own > 0] @ np.log2(1 + other[own > 0] / own[own > 0]) for own, other in (rates, rates[::-1])]
    return float(sum(costs) / 2)


def bootstrap_rates(
    scores: ArrayLike, targets: ArrayLike, speaker_a: ArrayLike, speaker_b: ArrayLike, n: int = 1000, seed: int = 0
) -> Floats:
    """EER (n,) of bootstrap samples of the speakers, not of the trials; NaN for those without both kinds of trials.

    Scores of one speaker are correlated, so that resampling trials gives intervals that are far too narrow. Each
    replicate draws as many speakers as there are, with replacement; a trial within speaker s then counts as often as s
    was drawn, one between s and t as often as the pair (w_s w_t). `speaker_a`, `speaker_b` (n,) name the two sides.
    The draws depend on the seed and the names alone: rates of several systems on the same trials are paired.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    order, ends = _sorted_groups(scores)
    pairs, weights = speaker_draws(speaker_a, speaker_b, n, seed)
    crossings = _Crossings(targets[order], pairs[order], int(pairs.max()) + 1, ends)
    return np.fromiter(map(crossings.rate, weights), dtype=np.float64, count=n)


def speaker_draws(
    speaker_a: ArrayLike, speaker_b: ArrayLike, n: int, seed: int
) -> tuple[NDArray[np.int64], Iterator[NDArray[np.int64]]]:
    """Numbers (trials,) of the pairs of speakers of trials, and n weights (pairs,), as `bootstrap_rates` draws them."""
    names, codes = _numbered(np.concatenate([speaker_a, speaker_b]))
    half = len(codes) // 2
    pairs, pair_of_trial = _numbered(codes[:half] * len(names) + codes[half:])
    first, second = np.divmod(pairs, len(names))

    def draw() -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        for _ in range(n):
            drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            yield drawn[first] * np.where(first != second, drawn[second], 1)

    return pair_of_trial, draw()


def _numbered(values: NDArray) -> tuple[NDArray, NDArray[np.int64]]:
    """The distinct `values` (n,) in ascending order, and the place of each value among them."""
    if np.issubdtype(values.dtype, np.integer) and len(values) and 0 <= values.min() and values.max() < 4 * len(values):
        present = np.bincount(values) > 0  # without sorting
        return np.flatnonzero(present), (np.cumsum(present) - 1)[values]
    return np.unique(values, return_inverse=True)


class _Crossings:
    """Equal error rates of the same trials with many weights.

    Trials far from the crossing count by their sums alone, which are those of the pairs of speakers: so the points
    around the unweighted crossing are searched first, and more of them for the few weights that cross elsewhere.
    """

    def __init__(
        self, targets: NDArray[np.bool_], pairs: NDArray[np.int64], count: int, ends: NDArray[np.int64]
    ) -> None:
        """Takes trials in ascending order of score, each of one of `count` pairs, and the `ends` of distinct scores."""
        self._targets, self._pairs, self._count = targets, pairs, count
        self._starts = np.append(0, ends + 1)  # trials rejected at each point
        fnr, fpr = _rates(targets, np.ones(len(targets), dtype=np.int64), ends)
        self._middle = _crossing(fnr, fpr)[1] if np.isfinite(fnr[-1] + fpr[-1]) else 0
        self._all = self._sums(len(targets))
        self._windows: list[tuple[int, int, tuple[NDArray[np.int64], NDArray[np.int64]]]] = []

    def _sums(self, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Targets and non-targets of each pair among the first `stop` trials."""
        targets, pairs = self._targets[:stop], self._pairs[:stop]
        return tuple(np.bincount(pairs[kind], minlength=self._count) for kind in (targets, ~targets))

    def _window(self, level: int) -> tuple[int, int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """First and last point of a window, four times as wide with each level, and the sums below it."""
        if level == len(self._windows):
            reach = max(_REACH, len(self._starts) // 256) * 4**level
            low, high = max(self._middle - reach, 0), min(self._middle + reach, len(self._starts) - 1)
            self._windows.append((low, high, self._sums(self._starts[low])))
        return self._windows[level]

    def rate(self, weights: NDArray[np.int64]) -> float:
        """The equal error rate with the `weights` (pairs,); NaN if a kind of trials has none."""
        totals = [int(sums @ weights) for sums in self._all]
        level = 0
        while all(totals):
            low, high, below = self._window(level)
            trials = slice(self._starts[low], self._starts[high])
            weight, targets = weights[self._pairs[trials]], self._targets[trials]
            inside = self._starts[low + 1 : high + 1] - self._starts[low] - 1
            shares = []
            for sums, chosen, total in zip(below, (targets, ~targets), totals, strict=True):
                before = int(sums @ weights)
                shares.append(np.append(before, before + np.cumsum(weight * chosen)[inside]) / total)
            fnr, fpr = shares[0], 1 - shares[1]
            if fpr[0] > fnr[0] and fpr[-1] <= fnr[-1]:
                return _crossing(fnr, fpr)[0]
            level += 1
        return np.nan


def interval(values: ArrayLike) -> tuple[float, float] | None:
    """95 % percentile interval of the `values` (n,) that are not NaN; None if all are."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def det_curve(scores: ArrayLike, targets: ArrayLike, points: int = 1000) -> tuple[Floats, Floats]:
    """FPR and FNR of about `points` points or fewer to draw, evenly spread along the curve on normal-deviate axes."""
    rates = error_rates(scores, targets)
    if len(rates.fnr) <= points:
        return rates.fpr, rates.fnr
    step = np.hypot(np.diff(normal_deviate(rates.fpr)), np.diff(normal_deviate(rates.fnr)))
    along = np.concatenate([[0.0], np.cumsum(step)])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)))
    return rates.fpr[chosen], rates.fnr[chosen]


def normal_deviate(rates: ArrayLike, floor: float = 1e-5) -> Floats:
    """Inverse of the normal distribution function, of rates held within `floor` and 1 - `floor`."""
    clipped = np.clip(np.asarray(rates, dtype=np.float64), floor, 1 - floor)
    return torch.special.ndtri(torch.from_numpy(clipped)).numpy()
