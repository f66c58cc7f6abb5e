"""Paired comparisons of recognizers on the same trials: differences of their EERs, by duration and test condition."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.cli import progress
from utils.commands import REPORT
from utils.errors import UserError
from utils.files import read_json
from utils.plots import percent
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.det import Det, make_det
from utils.speaker.evaluation.metrics import bootstrap_rates, eer, interval
from utils.speaker.evaluation.report import Evaluation, by_sides, interval_problem, read_evaluation
from utils.speaker.evaluation.systems import differing_flags, facts_of, system_labels
from utils.speaker.evaluation.trials import TrialSet

Rates = NDArray[np.float64]  # (1 + n,): an EER on all trials, and in each of n draws of the speakers
Curves = dict[str, list[list[Det]]]  # row -> of each system, of each of its seeds

_ONE = ", one side"  # the end of the names of rows with one side of the trials in a condition


def read_sorted(folder: Path) -> Evaluation:
    """Reads an evaluation, its trials in the order of their recordings; `UserError` if it has no trials."""
    evaluation = read_evaluation(folder)
    trials = evaluation.trials
    if trials is None:
        raise UserError(f"{folder} has no trials to compare")
    order = np.lexsort((trials.b, trials.a))
    columns = {name: getattr(trials, name)[order] for name in ("targets", "a", "b")}
    return dataclasses.replace(
        evaluation,
        trials=dataclasses.replace(trials, **columns),
        scores={name: scores[order] for name, scores in evaluation.scores.items()},
        conditions={name: cosines[:, order] for name, cosines in evaluation.conditions.items()},
        derived={
            kind: {name: values[..., order] for name, values in arrays.items()}
            for kind, arrays in evaluation.derived.items()
        },
    )


def require_same_trials(evaluations: Sequence[Evaluation], folders: Sequence[Path]) -> TrialSet:
    """The trials of all `evaluations`; `UserError` if they differ, or if they are of one kind."""
    first = evaluations[0].trials
    for folder, evaluation in zip(folders, evaluations, strict=True):
        trials = evaluation.trials
        same = all(np.array_equal(getattr(trials, name), getattr(first, name)) for name in ("targets", "a", "b"))
        if not same or trials.items != first.items:
            raise UserError(f"{folder} was evaluated on other trials than {folders[0]}: only the same can be compared")
    if first.targets.all() or not first.targets.any():
        raise UserError("the trials are of one kind: error rates need target and non-target trials")
    return first


def compare(systems: Sequence[Sequence[Path]], bootstrap: int, seed: int) -> tuple[dict[str, Any], Curves]:
    """EERs of systems, and the differences of the later ones to the first, with 95 % intervals; and DET curves.

    Args:
        systems: the folders of the evaluations of each; those of one are seeds, whose EERs are averaged.
        bootstrap: draws of the speakers, each the same for all systems, seeds, durations and conditions.

    The means are over the conditions, clean recordings among them. Curves are of the rows without means and without
    one side in a condition. `UserError` for evaluations on different trials.
    """
    folders = [folder for system in systems for folder in system]
    evaluations = [read_sorted(folder) for folder in folders]
    trials = require_same_trials(evaluations, folders)
    named = [set(evaluation.conditions) for evaluation in evaluations]
    shared = [name for name in evaluations[0].conditions if name in set.intersection(*named)]
    left_out = sorted(set.union(*named).difference(shared))
    problem = interval_problem(trials, len(trials.speakers()))
    bar = progress(evaluations, desc="bootstrap", unit="evaluation")
    rates = iter([_rates(each, shared, 0 if problem else bootstrap, seed) for each in bar])
    by_system = [_mean([next(rates) for _ in system]) for system in systems]
    drawn = iter([_curves(each, shared) for each in evaluations])
    curves = [[next(drawn) for _ in system] for system in systems]
    reports = [[read_json(folder / REPORT) for folder in system] for system in systems]
    report = {
        "systems": [[str(folder) for folder in system] for system in systems],
        "labels": system_labels(systems),
        "facts": [facts_of(each) for each in reports],
        "flags": differing_flags(reports),
        "rows": {row: _row([rates[row] for rates in by_system]) for row in by_system[0]},
        "interval_reason": problem,
        "targets": int(trials.targets.sum()),
        "nontargets": int((~trials.targets).sum()),
        "trial_speakers": len(trials.speakers()),
        "warnings": [f"not all evaluations have the conditions {', '.join(left_out)}"] if left_out else [],
    }
    return report, {row: [[seed[row] for seed in seeds] for seeds in curves] for row in curves[0][0]}


def _curves(evaluation: Evaluation, conditions: Sequence[str]) -> dict[str, Det]:
    rows = _rows(evaluation, conditions)
    return {row: make_det(scores, trials.targets) for row, (trials, scores) in rows if not row.endswith(_ONE)}


def _rates(evaluation: Evaluation, conditions: Sequence[str], bootstrap: int, seed: int) -> dict[str, Rates]:
    """Rates of an evaluation by row: durations, conditions by the sides that are in them, and means."""
    rates = {row: _of_draws(*data, bootstrap, seed) for row, data in _rows(evaluation, conditions)}
    if conditions:
        for end in ("", _ONE):
            rows = [CLEAN, *(f"{name}{end}" for name in conditions)]
            rates[f"mean{end}"] = np.mean([rates[row] for row in rows], axis=0)
    return rates


def _rows(
    evaluation: Evaluation, conditions: Sequence[str]
) -> Iterator[tuple[str, tuple[TrialSet, NDArray[np.float64]]]]:
    for duration, scores in evaluation.scores.items():
        yield (CLEAN if duration == "full" else duration), (evaluation.trials, scores)
    for name in conditions:
        sides = by_sides(evaluation.trials, evaluation.conditions[name])
        yield name, sides["both"]
        yield f"{name}{_ONE}", sides["one"]


def _of_draws(trials: TrialSet, scores: NDArray[np.float64], bootstrap: int, seed: int) -> Rates:
    draws = bootstrap_rates(scores, trials.targets, *trials.sides("speaker"), n=bootstrap, seed=seed)
    return np.concatenate([[eer(scores, trials.targets)[0]], draws])


def _mean(seeds: Sequence[dict[str, Rates]]) -> dict[str, Rates]:
    return {row: np.mean([rates[row] for rates in seeds], axis=0) for row in seeds[0]}


def _row(rates: Sequence[Rates]) -> dict[str, Any]:
    """EER of each system and its interval, and `difference` and its interval of each but the first."""
    differences = [later - rates[0] for later in rates[1:]]
    return {
        "eer": [float(each[0]) for each in rates],
        "eer_ci": [interval(each[1:]) for each in rates],
        "difference": [float(each[0]) for each in differences],
        "difference_ci": [interval(each[1:]) for each in differences],
    }


def comparison_table(report: dict[str, Any]) -> str:
    """Formats a comparison as text, one block for each system but the first, with one line for each row."""
    lines = [f"system {number}: {', '.join(folders)}" for number, folders in enumerate(report["systems"], 1)]
    for place in range(1, len(report["systems"])):
        head = f"{f'{place + 1} against 1':<21}{'EER of 1':>9}{f'of {place + 1}':>9}{'difference':>12}"
        lines += ["", f"{head}  95 % interval"]
        for name, row in report["rows"].items():
            low_high = row["difference_ci"][place - 1]
            shown = " to ".join(map(signed, low_high)) if low_high else report["interval_reason"] or "-"
            rates = f"{percent(row['eer'][0]):>9}{percent(row['eer'][place]):>9}"
            lines.append(f"{name:<21}{rates}{signed(row['difference'][place - 1]):>12}  {shown}")
    return "\n".join(lines)


def signed(rate: float) -> str:
    """Formats a difference of fractions as `+5.32 %`."""
    return f"{100 * rate:+.2f} %"
