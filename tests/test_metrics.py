"""EER, minDCF and the bootstrap against threshold sweeps in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.speaker.evaluation import metrics
from utils.speaker.evaluation.metrics import (
    bootstrap_rates,
    det_curve,
    eer,
    error_rates,
    interval,
    normal_deviate,
    rates_at,
)


@st.composite
def trials(draw: st.DrawFn, levels: int = 8, weighted: bool = False):
    """Scores with many ties, labels of both kinds, and whole weights (at least one of each kind counts)."""
    labels = draw(st.permutations([True, False, *draw(st.lists(st.booleans(), max_size=14))]))
    scores = draw(st.lists(st.integers(-levels, levels), min_size=len(labels), max_size=len(labels)))
    weights = [1] * len(labels)
    if weighted:
        weights = draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels)))
        weights[labels.index(True)] = weights[labels.index(False)] = 1
    return np.array(scores) / 4, np.array(labels), np.array(weights)


def sweep(scores, labels, weights) -> list[tuple[Fraction, Fraction]]:
    """(FNR, FPR) at a threshold below all scores, then just above each distinct score: counted one by one."""
    weight = [Fraction(int(w)) for w in weights]
    totals = {kind: sum(w for w, label in zip(weight, labels, strict=True) if label == kind) for kind in (True, False)}
    points = []
    for threshold in [-np.inf, *sorted(set(scores))]:
        accepted = [score > threshold for score in scores]
        rows = list(zip(weight, labels, accepted, strict=True))
        missed = sum(w for w, label, accept in rows if label and not accept)
        passed = sum(w for w, label, accept in rows if not label and accept)
        points.append((missed / totals[True], passed / totals[False]))
    return points


def swept_eer(points: list[tuple[Fraction, Fraction]]) -> Fraction:
    """The least over all segments of the larger of both rates, which is where they are equal."""
    best = Fraction(1)
    for (miss, alarm), (next_miss, next_alarm) in zip(points, points[1:], strict=False):
        before, after = alarm - miss, next_alarm - next_miss
        share = min(max(before / (before - after), Fraction(0)), Fraction(1)) if before != after else Fraction(0)
        at = (miss + share * (next_miss - miss), alarm + share * (next_alarm - alarm))
        best = min(best, max(at))
    return best


def min_dcf(scores, targets, p_target, weights=None) -> float:
    return error_rates(scores, targets, weights).min_dcf(p_target)


@given(trials(weighted=True))
def test_eer_equals_the_sweep(case):
    scores, labels, weights = case
    assert eer(scores, labels, weights)[0] == pytest.approx(float(swept_eer(sweep(scores, labels, weights))), abs=1e-12)


@given(trials(weighted=True), st.sampled_from([0.01, 0.05, 0.5, 0.9]))
def test_min_dcf_equals_the_sweep(case, p_target):
    scores, labels, weights = case
    costs = [p_target * miss + (1 - p_target) * alarm for miss, alarm in sweep(scores, labels, weights)]
    expected = float(min(costs)) / min(p_target, 1 - p_target)
    assert min_dcf(scores, labels, p_target, weights) == pytest.approx(expected, abs=1e-12)
    assert expected <= 1


@given(trials(), st.randoms(use_true_random=False))
def test_order_of_trials_does_not_matter(case, random):
    scores, labels, _ = case
    order = list(range(len(scores)))
    random.shuffle(order)
    assert eer(scores[order], labels[order]) == eer(scores, labels)
    assert min_dcf(scores[order], labels[order], 0.05) == min_dcf(scores, labels, 0.05)


@given(trials())
def test_swapped_labels_mirror_the_error(case):
    scores, labels, _ = case
    assert eer(scores, ~labels)[0] == pytest.approx(1 - eer(scores, labels)[0], abs=1e-12)


@given(trials(weighted=True))
def test_weights_repeat_trials(case):
    scores, labels, weights = case
    repeated = eer(np.repeat(scores, weights), np.repeat(labels, weights))
    assert eer(scores, labels, weights)[0] == pytest.approx(repeated[0], abs=1e-12)


@given(trials())
def test_threshold_works_at_the_point_nearest_to_equality(case):
    scores, labels, _ = case
    points = sweep(scores, labels, np.ones(len(scores)))
    miss, alarm = rates_at(scores, labels, eer(scores, labels)[1])
    nearest = min(abs(float(m - a)) for m, a in points)
    if len(points) > 2:  # constant scores: every threshold is as far from equality
        assert abs(miss - alarm) <= nearest + 1e-12


@pytest.mark.parametrize("labels", [[1, 0], [0, 1], [1, 1, 0, 1], [0] * 9 + [1]])
def test_constant_scores_are_a_coin(labels):
    assert eer([0.25] * len(labels), labels)[0] == 0.5
    assert min_dcf([0.25] * len(labels), labels, 0.01) == 1


def test_perfect_separation():
    scores, labels = [0.1, 0.2, 0.8, 0.9, 0.7], [0, 0, 1, 1, 1]
    rate, threshold = eer(scores, labels)
    assert (rate, min_dcf(scores, labels, 0.01), threshold) == (0, 0, pytest.approx(0.45))
    assert eer(scores, [1 - label for label in labels])[0] == 1


def test_interpolation_by_hand():
    # Points (FNR, FPR): (0, 1), (0, 2/3), (1/2, 1/3), (1, 0): the tied pair at 2 is one step, crossed at FNR 0.4.
    assert eer([1, 2, 2, 3, 3], [0, 1, 0, 1, 0])[0] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("scores", "targets"),
    [([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0]), ([], []), ([1.0, np.nan], [0, 1]), ([1.0], [0, 1])],
)
def test_what_has_no_eer_is_refused(scores, targets):
    with pytest.raises(ValueError):
        eer(scores, targets)


def speaker_trials(speakers: int, each: int, seed: int) -> tuple[np.ndarray, ...]:
    """All pairs of `each` recordings of every speaker; scores depend on the speaker, so that trials of one agree."""
    draw = np.random.default_rng(seed)
    owner = np.repeat(np.arange(speakers), each)
    first, second = np.triu_indices(len(owner), 1)
    targets = owner[first] == owner[second]
    ease = draw.normal(size=speakers)
    scores = np.where(targets, 1.5 + ease[owner[first]], 0) + draw.normal(size=len(first))
    return np.round(scores, 1), targets, owner[first], owner[second]


def test_bootstrap_equals_repeating_the_drawn_speakers(seed):
    scores, targets, first, second = speaker_trials(speakers=6, each=4, seed=seed)
    draw = np.random.default_rng(3)
    rates = []
    for _ in range(40):
        count = np.bincount(draw.integers(6, size=6), minlength=6)
        repeats = np.where(first == second, count[first], count[first] * count[second])
        kept = np.repeat(targets, repeats)
        if kept.any() and not kept.all():
            rates.append(eer(np.repeat(scores, repeats), kept)[0])
    expected = np.quantile(rates, [0.025, 0.975])
    assert interval(bootstrap_rates(scores, targets, first, second, n=40, seed=3)) == pytest.approx(
        tuple(expected), abs=1e-12
    )


def test_bootstrap_is_seeded_and_holds_the_eer():
    data = speaker_trials(speakers=12, each=5, seed=2)
    low, high = interval(bootstrap_rates(*data, n=200, seed=0))
    assert (
        (low, high)
        == interval(bootstrap_rates(*data, n=200, seed=0))
        != interval(bootstrap_rates(*data, n=200, seed=1))
    )
    assert low < eer(data[0], data[1])[0] < high


def test_resampling_speakers_is_wider_than_resampling_trials():
    scores, targets, first, second = speaker_trials(speakers=8, each=8, seed=4)
    low, high = interval(bootstrap_rates(scores, targets, first, second, n=200))
    draw = np.random.default_rng(0)
    samples = [draw.integers(len(scores), size=len(scores)) for _ in range(200)]
    trial_low, trial_high = np.quantile([eer(scores[s], targets[s])[0] for s in samples], [0.025, 0.975])
    assert high - low > 2 * (trial_high - trial_low)


@pytest.mark.parametrize("reach", [1, 3, 1000])
def test_bootstrap_is_the_eer_of_weighted_trials_wherever_it_is_searched(monkeypatch, reach):
    monkeypatch.setattr(metrics, "_REACH", reach)
    rng = np.random.default_rng(7)
    first, second = rng.integers(9, size=(2, 3000))
    targets = first == second
    scores = np.round(rng.normal(size=3000) + 1.2 * targets + 0.4 * rng.normal(size=9)[first], 2)
    rates = metrics.bootstrap_rates(scores, targets, first, second, n=60, seed=5)
    draws = np.random.default_rng(5)
    for rate in rates:
        drawn = np.bincount(draws.integers(9, size=9), minlength=9)
        assert rate == eer(scores, targets, drawn[first] * np.where(targets, 1, drawn[second]))[0]
    assert len(set(rates)) > 50


def test_bootstrap_of_names_equals_that_of_numbers():
    scores, targets, first, second = speaker_trials(speakers=5, each=3, seed=5)
    named = [np.array([f"speaker-{number}" for number in side]) for side in (first, second)]
    assert interval(bootstrap_rates(scores, targets, *named, n=50)) == interval(
        bootstrap_rates(scores, targets, first, second, n=50)
    )


def test_bootstrap_without_both_kinds_has_no_interval():
    assert interval(bootstrap_rates([0.1, 0.2], [1, 1], ["a", "a"], ["a", "a"], n=5)) is None


@given(st.integers(0, 2**32 - 1))
def test_det_curve_is_a_thinned_subset_of_the_error_rates(seed):
    draw = np.random.default_rng(seed)
    targets = draw.random(3000) < 0.2
    scores = draw.normal(size=3000) + 2 * targets
    fpr, fnr = det_curve(scores, targets, points=100)
    rates = error_rates(scores, targets)
    assert {*zip(fpr, fnr, strict=True)} <= {*zip(rates.fpr, rates.fnr, strict=True)}
    assert len(fpr) <= 100 and (fpr[0], fnr[0]) == (1, 0) and (fpr[-1], fnr[-1]) == (0, 1)
    assert (np.diff(fpr) <= 0).all() and (np.diff(fnr) >= 0).all()
    spacing = np.hypot(np.diff(normal_deviate(fpr)), np.diff(normal_deviate(fnr)))
    assert np.median(spacing) == pytest.approx(np.mean(spacing), rel=0.5)


def test_normal_deviate_inverts_the_distribution_and_stays_finite():
    rates = np.array([[0.5, 0.1587], [0.0, 1.0]])
    deviates = normal_deviate(rates, floor=1e-3)
    assert deviates[0] == pytest.approx([0, -1], abs=1e-3)
    assert deviates[1] == pytest.approx([NormalDist().inv_cdf(1e-3), NormalDist().inv_cdf(1 - 1e-3)])


def test_work_grows_no_faster_than_sorting():
    """A million trials, half of them tied, within memory of a few arrays: O(n^2) would need terabytes."""
    draw = np.random.default_rng(0)
    targets = draw.random(1_000_000) < 0.1
    scores = np.round(draw.normal(size=1_000_000) + 2 * targets, 3)
    assert eer(scores, targets)[0] == pytest.approx(NormalDist().cdf(-1), abs=0.003)
