"""Log-likelihood ratios: calibration and its metrics against slow definitions, and the decisions of verify."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import answer, call, problems
from hypothesis import given
from hypothesis import strategies as st
from test_metrics import trials
from test_operating import voices

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.speaker.evaluation.metrics import act_dcf, cllr, error_rates, min_cllr
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.scoring.calibration import Calibration, logistic_regression
from utils.speaker.scoring.decision import llr_threshold
from utils.speaker.scoring.scoring import Scoring
from utils.speaker.scoring.validation import Validation


def slow_cllr(llrs, targets) -> float:
    """The definition, trial by trial."""
    missed = [math.log2(1 + math.exp(-llr)) for llr, target in zip(llrs, targets, strict=True) if target]
    alarmed = [math.log2(1 + math.exp(llr)) for llr, target in zip(llrs, targets, strict=True) if not target]
    return (sum(missed) / len(missed) + sum(alarmed) / len(alarmed)) / 2


def slow_min_cllr(scores, targets) -> float:
    """The least Cllr of all maps onto pools of neighboring scores, the best ratio in each, that never fall."""
    levels, best = sorted(set(scores)), math.inf
    counts = [[sum((targets == kind) & (scores == level)) for kind in (True, False)] for level in levels]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    for cuts in itertools.product([False, True], repeat=len(levels) - 1):
        pools = [[*counts[0]]]
        for cut, (target, other) in zip(cuts, counts[1:], strict=True):
            if cut:
                pools.append([target, other])
            else:
                pools[-1] = [pools[-1][0] + target, pools[-1][1] + other]
        odds = [target / totals[0] / (other / totals[1]) if other else math.inf for target, other in pools]
        if odds != sorted(odds):
            continue
        missed = sum(t * math.log2(1 + 1 / ratio) for (t, _), ratio in zip(pools, odds, strict=True) if t)
        alarmed = sum(o * math.log2(1 + ratio) for (_, o), ratio in zip(pools, odds, strict=True) if o)
        best = min(best, (missed / totals[0] + alarmed / totals[1]) / 2)
    return best


@given(trials())
def test_cllr_equals_its_definition(case):
    llrs, targets, _ = case
    assert cllr(llrs, targets) == pytest.approx(slow_cllr(llrs, targets), abs=1e-12)


@given(trials(levels=4))
def test_min_cllr_is_the_least_of_all_maps_that_never_fall(case):
    scores, targets, _ = case
    assert min_cllr(scores, targets) == pytest.approx(slow_min_cllr(scores, targets), abs=1e-12)
    assert 0 <= min_cllr(scores, targets) <= min(1 + 1e-12, cllr(scores, targets) + 1e-12)
    assert min_cllr(3 * scores + 1, targets) == min_cllr(scores, targets)


def test_cllr_by_hand():
    assert cllr([0, 0, 0], [1, 0, 0]) == pytest.approx(1)
    assert min_cllr([0, 0, 0], [1, 0, 0]) == pytest.approx(1)
    assert min_cllr([1, 2, 3], [0, 0, 1]) == 0
    assert cllr([50.0, -50.0], [1, 0]) == pytest.approx(0, abs=1e-12)
    assert cllr([-2.0, 2.0], [1, 0]) == pytest.approx(math.log2(1 + math.e**2))


@given(trials(), st.sampled_from([0.01, 0.05, 0.5, 0.9]))
def test_the_actual_cost_is_that_of_the_decisions_of_bayes(case, prior):
    llrs, targets, _ = case
    accepted = [prior * math.exp(llr) >= 1 - prior for llr in llrs]
    missed = np.mean([not accept for accept, target in zip(accepted, targets, strict=True) if target])
    alarmed = np.mean([accept for accept, target in zip(accepted, targets, strict=True) if not target])
    expected = (prior * missed + (1 - prior) * alarmed) / min(prior, 1 - prior)
    assert act_dcf(llrs, targets, prior) == pytest.approx(expected, abs=1e-12)
    assert act_dcf(llrs, targets, prior) >= error_rates(llrs, targets).min_dcf(prior) - 1e-12


@given(st.floats(0.001, 0.999), st.floats(0.01, 100), st.floats(-9, 9))
def test_the_decision_costs_least(prior, cost, llr):
    posterior = prior * math.exp(llr) / (prior * math.exp(llr) + 1 - prior)
    cost_of_accepting, cost_of_rejecting = cost * (1 - posterior), posterior
    if abs(cost_of_accepting - cost_of_rejecting) > 1e-9:
        assert (llr >= llr_threshold(prior, cost)) == (cost_of_accepting < cost_of_rejecting)


@given(trials(levels=30), st.integers(0, 99))
def test_no_other_weights_fit_better(case, seed):
    """The loss, trial by trial, rises from the fitted weights in every direction that was drawn."""
    scores, targets, _ = case
    draw = np.random.default_rng(seed)
    inputs = np.stack([scores, draw.normal(size=len(scores))], axis=1)
    weights = logistic_regression([inputs], [targets])

    def loss(weights: np.ndarray) -> float:
        total, count = 0.0, {kind: sum(targets == kind) for kind in (True, False)}
        for row, target in zip(inputs, targets, strict=True):
            chance = 1 / (1 + math.exp(-(weights[0] + weights[1:] @ row)))
            label = (count[True] + 1) / (count[True] + 2) if target else 1 / (count[False] + 2)
            total -= (label * math.log(chance) + (1 - label) * math.log(1 - chance)) / count[bool(target)]
        return total

    fitted = loss(weights)
    assert all(loss(weights + 0.05 * draw.normal(size=3)) >= fitted - 1e-9 for _ in range(8))


def test_an_input_that_does_not_vary_gets_no_weight():
    draw = np.random.default_rng(0)
    targets = np.arange(400) < 200
    inputs = np.stack([draw.normal(size=400) + targets, np.full(400, 1.1)], axis=1)
    weights = logistic_regression([inputs], [targets])
    assert weights[2] == 0 and weights[:2] == pytest.approx(logistic_regression([inputs[:, :1]], [targets]))


def test_ratios_of_gaussian_scores_are_the_true_ones(seed):
    """Two Gaussians of one variance: the true log-likelihood ratio is linear."""
    draw = np.random.default_rng(seed)
    targets = np.arange(40_000) % 10 == 0
    scores = draw.normal(size=40_000) + 2 * targets
    weights = logistic_regression([scores[:, None]], [targets])
    assert weights == pytest.approx([-2, 2], abs=0.2)
    llrs = weights[0] + weights[1] * scores
    assert min_cllr(llrs, targets) <= cllr(llrs, targets) < min_cllr(llrs, targets) + 0.02


def calibration_of(*recordings) -> Calibration | None:
    """Of cosines."""
    return Calibration.fit(Validation.of(*recordings), Scoring().scores)


def test_the_lengths_lower_the_cost():
    """Cosines of cuts are lower, those of targets more so: one map of cosines alone serves neither."""
    whole, labels = voices(14, 6, 0.6)
    cut, _ = voices(14, 6, 1.2)
    lengths = np.random.default_rng(1).uniform(4, 9, len(labels))
    a, b = np.triu_indices(len(labels), 1)
    targets = np.array(labels)[a] == np.array(labels)[b]
    both = [((x @ x.T)[a, b], seconds) for x, seconds in ((cut, np.full(len(labels), 1.5)), (whole, lengths))]
    fitted = calibration_of({1.5: cut}, whole, labels, lengths)
    alone = logistic_regression([scores[:, None] for scores, _ in both], [targets] * 2)
    costs = [cllr(fitted(scores, seconds[a], seconds[b]), targets) for scores, seconds in both]
    without = [cllr(alone[0] + alone[1] * scores, targets) for scores, _ in both]
    assert np.mean(costs) < 0.9 * np.mean(without)
    assert fitted.weights[1] > 0 > fitted.weights[2]
    assert fitted(0.5, 2, 8) == fitted(0.5, 8, 2) == pytest.approx(fitted(0.5, 4, 4))
    assert fitted(0.5, 0.1, 99) == fitted(0.5, 1.5, lengths.max())
    again = Calibration.from_tensors(fitted.to_tensors())
    assert again(0.3, 2, 3) == fitted(0.3, 2, 3)


def test_few_speakers_give_no_calibration():
    vectors, labels = voices(2, 5, 0.2)
    assert calibration_of({}, vectors, labels, [4.0] * len(labels)) is None
    assert calibration_of({}, vectors[::5], labels[::5], [4.0] * 2) is None


@pytest.fixture(scope="module")
def recordings(librispeech_root: Path) -> dict[str, list[Path]]:
    """Voice -> its recordings."""
    folders = sorted((librispeech_root / "LibriSpeech" / "train-tiny").iterdir())
    return {folder.name: sorted(folder.rglob("*.flac")) for folder in folders}


def test_compare_in_any_order_and_company(trained_run, recordings):
    recognizer = SpeakerRecognizer.load(trained_run, "cpu")
    a, b = recordings["101"][0], recordings["106"][0]
    llr = recognizer.compare(a, b)
    assert llr == pytest.approx(recognizer.compare(b, a), abs=1e-4) and llr < recognizer.compare(a, a)
    vectors = recognizer.embed_files([*recordings["103"][:5], b, *recordings["107"][:5], a])
    seconds = [soundfile.info(path).duration for path in (a, b)]
    score = float(vectors[-1].astype(np.float64) @ vectors[5].astype(np.float64))
    assert recognizer.scoring.calibration(score, *seconds) == pytest.approx(llr, abs=1e-3)


def test_a_packed_model_gives_the_ratios_of_its_run(trained_run, packed_model, recordings):
    run, packed = SpeakerRecognizer.load(trained_run, "cpu"), SpeakerRecognizer.load(packed_model, "cpu")
    assert (run.scoring.calibration.weights == packed.scoring.calibration.weights).all()
    for a, b in (("101", "101"), ("101", "107")):
        pair = recordings[a][0], recordings[b][1]
        assert packed.compare(*pair) == pytest.approx(run.compare(*pair), abs=0.05)


def test_verify_decides_at_the_operating_point(trained_run, recordings, capsys):
    a, b = recordings["101"][:2]
    verify = ["verify", "--checkpoint", trained_run, a, b]
    recognizer = SpeakerRecognizer.load(trained_run, "cpu")
    given = answer(capsys, *verify)
    assert given["llr"] == pytest.approx(recognizer.compare(a, b), abs=1e-4)
    assert (given["prior"], given["cost_false_accept"], given["llr_threshold"]) == (0.5, 1, 0)
    assert given["same"] is (given["llr"] >= 0)
    for shift, same in ((-0.1, True), (0.1, False)):
        needed = given["llr"] + shift
        for words in (["--prior", 1 / (1 + math.exp(needed))], ["--cost-false-accept", math.exp(needed)]):
            moved = answer(capsys, *verify, *words)
            assert moved["llr_threshold"] == pytest.approx(needed) and moved["same"] is same
    assert call(*verify, "--prior", 0.01, "--cost-false-accept", 10) == 0
    shown = f"log-likelihood ratio {given['llr']:.2f}, cosine {given['score']:.3f}; threshold 6.90 at a prior of 0.01"
    assert shown in capsys.readouterr().out
    both = problems(capsys, *verify, "--threshold", 0.1, "--prior", 0.1, "--cost-false-accept", 2)
    assert "--threshold and --prior contradict" in both and "--threshold and --cost-false-accept contradict" in both
    for words in (["--prior", 0], ["--prior", 1], ["--cost-false-accept", 0]):
        assert words[0] in problems(capsys, *verify, *words)


def test_a_checkpoint_of_before_decides_by_a_given_cosine_alone(trained_run, recordings, tmp_path, capsys):
    content = load_checkpoint(trained_run)
    del content["calibration"]
    points = content["operating_points"]
    content["operating_points"] = {**points, "same": points["seconds"]}  # as it was stored then
    save_checkpoint(tmp_path / "old.pt", content)
    verify = ["verify", "--checkpoint", tmp_path / "old.pt", *recordings["101"][:2]]
    assert "the checkpoint has no calibration" in problems(capsys, *verify)
    given = answer(capsys, *verify, "--threshold", -1)
    assert given["llr"] is None and given["same"] is True and given["threshold"] == -1
    with pytest.raises(UserError, match="pack --data fits one"):
        SpeakerRecognizer.load(tmp_path / "old.pt", "cpu").compare(*recordings["101"][:2])
