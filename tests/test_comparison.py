"""Paired comparisons of systems, on synthetic scores whose differences are known."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

import test
from utils.commands import REPORT
from utils.lists import Trial
from utils.speaker.evaluation.metrics import bootstrap_rates
from utils.speaker.evaluation.rates import RATES, Rates
from utils.speaker.evaluation.report import build_report, write_report
from utils.speaker.evaluation.results import Evaluation
from utils.speaker.evaluation.trials import DURATIONS, Origin, TrialSet

ORIGINS = {
    f"{speaker}/{number}.flac": Origin(str(speaker), "1", "") for speaker in range(20, 44) for number in range(6)
}
PATHS = sorted(ORIGINS)
TRIALS = [
    Trial(ORIGINS[a].speaker == ORIGINS[b].speaker, a, b) for place, a in enumerate(PATHS) for b in PATHS[place + 1 :]
]
TARGETS = np.array([trial.target for trial in TRIALS])
PLAIN = ["clean", "1.5s", "3s"]


def scores(distance: float, seed: int) -> np.ndarray:
    """Gaussian scores whose EER is that of `distance` deviations between targets and others."""
    return np.random.default_rng(seed).normal(size=len(TRIALS)) + distance * TARGETS


def true_eer(distance: float) -> float:
    return NormalDist().cdf(-distance / 2)


def written(
    folder: Path, full: np.ndarray, trials=TRIALS, about=None, draws=100, seed=0, **conditions: np.ndarray
) -> Path:
    """The folder of an evaluation with these scores, for all durations, and in conditions, for all sides."""
    evaluation = Evaluation("synthetic", {"data": "none"})
    evaluation.trials = TrialSet.build(trials, ORIGINS)
    evaluation.scores = dict.fromkeys(DURATIONS, full)
    evaluation.conditions = {name: np.array([values] * 3, dtype=np.float32) for name, values in conditions.items()}
    folder.mkdir()
    rates = Rates.of(evaluation, draws, seed)
    write_report(folder, build_report(evaluation, rates, about or {}), evaluation, rates)
    return folder


def call(*words: object) -> int:
    try:
        return test.main([str(word) for word in words])
    except SystemExit as stopped:
        return stopped.code


def compared(out: Path, *systems: object) -> dict:
    assert call("compare", *systems, "--out", out) == 0
    return json.loads((out / "report.json").read_text())["rows"]


def test_a_true_difference_excludes_zero_and_is_held(tmp_path):
    better = written(tmp_path / "a", scores(3, 0), noise=scores(2, 1))
    worse = written(tmp_path / "b", scores(2, 2), noise=scores(1, 3))
    rows = compared(tmp_path / "out", better, worse)
    changes = {"clean": true_eer(2) - true_eer(3), "noise": true_eer(1) - true_eer(2)}
    changes |= {"1.5s": changes["clean"], "noise, one side": changes["noise"]}
    changes |= dict.fromkeys(("mean", "mean, one side"), (changes["clean"] + changes["noise"]) / 2)
    for name, change in changes.items():
        (difference,), ((low, high),) = rows[name]["difference"], rows[name]["difference_ci"]
        assert 0 < low < difference < high and difference == pytest.approx(change, abs=0.03), name
        assert difference == pytest.approx(rows[name]["eer"][1] - rows[name]["eer"][0])
    opposite = compared(tmp_path / "opposite", worse, better)
    mirrored = [-bound for bound in rows["clean"]["difference_ci"][0][::-1]]
    assert opposite["clean"]["difference_ci"][0] == pytest.approx(mirrored)


def test_copies_do_not_differ_and_noise_alone_does_not_exclude_zero(tmp_path):
    first = written(tmp_path / "a", scores(2, 0), noise=scores(1, 1))
    copy = written(tmp_path / "b", scores(2, 0), noise=scores(1, 1))
    other = written(tmp_path / "c", scores(2, 2), noise=scores(1, 3))
    rows = compared(tmp_path / "out", first, copy, other)
    for row in rows.values():
        assert (row["difference"][0], row["difference_ci"][0]) == (0, [0, 0])
        low, high = row["difference_ci"][1]
        assert low < 0 < high


def test_pairing_makes_the_interval_narrow(tmp_path):
    """Speakers of unequal ease, alike for both systems, change each rate, and hardly the difference."""
    ease = {str(speaker): np.random.default_rng(speaker).normal() for speaker in range(20, 44)}
    hard = scores(2, 0) + TARGETS * np.array([ease[ORIGINS[trial.a].speaker] for trial in TRIALS])
    first, second = written(tmp_path / "a", hard), written(tmp_path / "b", hard - 0.3 * TARGETS)
    low, high = compared(tmp_path / "out", first, second)["clean"]["difference_ci"][0]
    speakers = TrialSet.build(TRIALS, ORIGINS).sides("speaker")
    spread = np.ptp(np.quantile(bootstrap_rates(hard, TARGETS, *speakers, n=100), [0.025, 0.975]))
    assert 0 < low and high - low < spread / 2


def test_rates_of_seeds_are_averaged_within_each_draw(tmp_path):
    seeds = [written(tmp_path / f"a{seed}", scores(2, seed)) for seed in range(2)]
    other = written(tmp_path / "b", scores(1.5, 9))
    row = compared(tmp_path / "out", f"{seeds[0]},{seeds[1]}", other)["clean"]
    speakers = TrialSet.build(TRIALS, ORIGINS).sides("speaker")
    draws = [bootstrap_rates(scores(*each), TARGETS, *speakers, n=100) for each in ((2, 0), (2, 1), (1.5, 9))]
    expected = np.quantile(draws[2] - (draws[0] + draws[1]) / 2, [0.025, 0.975])
    assert row["difference_ci"][0] == pytest.approx(expected, abs=1e-6)
    singly = [compared(tmp_path / f"out{seed}", folder, other)["clean"]["eer"][0] for seed, folder in enumerate(seeds)]
    assert row["eer"][0] == pytest.approx(np.mean(singly))


def test_the_order_of_the_trials_does_not_matter(tmp_path):
    order = np.random.default_rng(5).permutation(len(TRIALS))
    first = written(tmp_path / "a", scores(2, 0), noise=scores(1, 1))
    shuffled = [TRIALS[number] for number in order]
    again = written(tmp_path / "b", scores(2, 0)[order], shuffled, noise=scores(1, 1)[order])
    rows = compared(tmp_path / "out", first, again)
    assert all(row["difference_ci"] == [[0, 0]] for row in rows.values())


def test_the_table_and_conditions_that_one_lacks(tmp_path, capsys):
    first = written(tmp_path / "a", scores(2, 0), noise=scores(1, 1), tilt=scores(1, 2))
    second = written(tmp_path / "b", scores(1, 3), noise=scores(1, 4))
    rows = compared(tmp_path / "out", first, second)
    shown = capsys.readouterr()
    assert "not all evaluations have the conditions tilt" in shown.err
    assert list(rows) == [*PLAIN, "noise", "noise, one side", "mean", "mean, one side"]
    assert all(f"\n{name}" in shown.out for name in rows) and "2 against 1" in shown.out
    plain = written(tmp_path / "c", scores(1, 5))
    assert list(compared(tmp_path / "out", first, plain)) == PLAIN


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    first = written(tmp_path / "a", scores(2, 0), noise=scores(1, 1))
    fewer = written(tmp_path / "b", scores(2, 0)[:-1], TRIALS[:-1])
    alike = [trial._replace(target=True) for trial in TRIALS]
    one_kind = written(tmp_path / "c", scores(2, 0), alike)
    nothing = tmp_path / "d"
    nothing.mkdir()
    empty = Evaluation("none", {}, reasons={"verification": "none"})
    write_report(nothing, build_report(empty, Rates({}, {}), {}), empty, Rates({}, {}))
    reseeded = written(tmp_path / "f", scores(2, 0), seed=1)
    (damaged := tmp_path / "g.safetensors").write_bytes((first / RATES).read_bytes()[:-1])
    sentences = {
        (first, fewer): f"{fewer} was evaluated on other trials than {first}",
        (first, one_kind): "on other trials",
        (one_kind, one_kind): "of one kind",
        (first, nothing): f"{nothing / RATES} cannot be read",
        (first, tmp_path / "e"): "cannot be read",
        (first, reseeded): f"{reseeded} drew its speakers by another seed than {first}",
        (first, damaged): f"{damaged} does not hold the rates of an evaluation, or is damaged",
        (first, first / "scores.txt"): "scores.txt does not hold the rates of an evaluation",
        (first, first / "conditions.safetensors"): "conditions.safetensors does not hold the rates",
        (first,): "two evaluations or more",
    }
    for systems, sentence in sentences.items():
        assert call("compare", *systems, "--out", tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out" / "report.json").exists()
    assert call("compare", first, fewer, "--out", fewer) == 2
    assert "is one of the evaluations" in capsys.readouterr().err and (fewer / "scores.txt").exists()


def test_labels_that_contradict_the_paths_leave_only_the_rates(tmp_path):
    odd = [trial._replace(target=number % 2 == 0) for number, trial in enumerate(TRIALS)]
    folders = [written(tmp_path / name, scores(2, seed), odd) for seed, name in enumerate("ab")]
    row = compared(tmp_path / "out", *folders)["clean"]
    assert row["difference_ci"] == [None] and len(row["eer"]) == 2


def test_rates_alone_compare_like_their_evaluations(tmp_path):
    """A published file has the figures of its folder, needs no other, and its draws are the first of more draws."""
    folders = [written(tmp_path / name, scores(2, seed), noise=scores(1, seed)) for seed, name in enumerate("ab")]
    published = tmp_path / "published.safetensors"
    (folders[0] / RATES).rename(published)
    rows = compared(tmp_path / "out", published, folders[1])
    (tmp_path / "out" / "comparison.html").read_text().index("have no curve")
    published.rename(folders[0] / RATES)
    assert rows == compared(tmp_path / "both", *folders)
    more = written(tmp_path / "c", scores(2, 0), draws=150, noise=scores(1, 0))
    assert rows == compared(tmp_path / "more", more, folders[1])
    alone = compared(tmp_path / "alone", folders[0] / RATES, folders[1] / RATES)
    assert alone == rows and "error trade-off" not in (tmp_path / "alone" / "comparison.html").read_text()


def test_an_interrupted_comparison_is_made_again(tmp_path):
    folders = [written(tmp_path / name, scores(2, seed)) for seed, name in enumerate("ab")]
    rows = compared(tmp_path / "out", *folders)
    (tmp_path / "out" / REPORT).unlink()
    assert compared(tmp_path / "out", *folders) == rows


def test_published_rates_keep_no_folder_of_the_machine(tmp_path):
    model = {"name": "net", "training": {"flags": {"data": "/home/ada/features", "init": None}}}
    about = {"model": model, "config": {"evaluations": ["/home/ada/fold0"], "audio_root": "data/raw", "prior": 0.5}}
    folder = written(tmp_path / "one", scores(2, seed=0), about=about)
    before = Rates.read(folder / RATES)
    assert {name: before.about[name] for name in about} == about
    before.published().save(tmp_path / "published", {})
    kept = Rates.read(tmp_path / "published")
    assert kept.about["model"] == {"name": "net", "training": {"flags": {"data": "features", "init": None}}}
    assert kept.about["config"] == {"evaluations": ["fold0"], "audio_root": "data/raw", "prior": 0.5}
    for name, values in before.rows.items():
        np.testing.assert_array_equal(kept.rows[name], values)
