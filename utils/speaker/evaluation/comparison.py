"""Paired comparisons of recognizers on the same trials: differences of their EERs, by duration and test condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.plots import percent
from utils.speaker.evaluation.conditions import CLEAN, CONDITIONS
from utils.speaker.evaluation.det import Det, make_det
from utils.speaker.evaluation.metrics import interval
from utils.speaker.evaluation.rates import RATES, Rates, row_name
from utils.speaker.evaluation.results import read_evaluation
from utils.speaker.evaluation.systems import differing_flags, facts_of, system_labels

Rows = dict[str, NDArray[np.float64]]  # row -> (1 + n,): an EER on all trials, and in each of n draws of the speakers
Curves = dict[str, list[list[Det]]]  # row -> of each system, of each of its seeds


def compare(systems: Sequence[Sequence[Path]]) -> tuple[dict[str, Any], Curves]:
    """EERs of systems, and the differences of the later ones to the first, with 95 % intervals; and DET curves.

    Args:
        systems: the evaluations of each, folders or files of rates; those of one are seeds, whose EERs are averaged.

    The draws of the speakers are those of the evaluations, the same for all. The means are over the conditions, clean
    recordings among them. Files of rates have no curves. `UserError` for evaluations on different trials.
    """
    paths = [path for system in systems for path in system]
    evaluations = [Rates.read(rates_file(path)) for path in paths]
    _require_same_trials(evaluations, paths)
    about = evaluations[0].about
    rates = iter(_shared(evaluations))
    by_system = [_mean([next(rates) for _ in system]) for system in systems]
    reports = iter(each.about for each in evaluations)
    reports = [[next(reports) for _ in system] for system in systems]
    conditions = [{row for row in each.rows if row in CONDITIONS} for each in evaluations]
    left_out = sorted(set.union(*conditions) - set.intersection(*conditions))
    report = {
        "systems": [[str(path) for path in system] for system in systems],
        "labels": system_labels(systems),
        "facts": [facts_of(each) for each in reports],
        "flags": differing_flags(reports),
        "rows": {row: _row([rates[row] for rates in by_system]) for row in by_system[0]},
        "draws": len(by_system[0][CLEAN]) - 1,
        **{name: about[name] for name in ("interval_reason", "targets", "nontargets", "trial_speakers")},
        "warnings": [f"not all evaluations have the conditions {', '.join(left_out)}"] if left_out else [],
    }
    return report, _curves(systems, by_system[0])


def rates_file(evaluation: Path) -> Path:
    """The rates of an evaluation, which is a folder or that file."""
    return evaluation / RATES if evaluation.is_dir() else evaluation


def _require_same_trials(evaluations: Sequence[Rates], paths: Sequence[Path]) -> None:
    first = evaluations[0].about
    for path, each in zip(paths, evaluations, strict=True):
        if each.about["trials"] != first["trials"]:
            raise UserError(f"{path} was evaluated on other trials than {paths[0]}: only the same can be compared")
        if each.about["seed"] != first["seed"]:
            raise UserError(f"{path} drew its speakers by another seed than {paths[0]}: evaluate both with one --seed")
    if CLEAN not in evaluations[0].rows:
        raise UserError("the trials are of one kind: error rates need target and non-target trials")


def _shared(evaluations: Sequence[Rates]) -> list[Rows]:
    """The rows that all have, with as many draws as all have, which are the same ones; and the means."""
    names = [row for row in evaluations[0].rows if all(row in each.rows for each in evaluations)]
    lengths = {row: min(len(each.rows[row]) for each in evaluations) for row in names}
    shared = [{row: each.rows[row][: lengths[row]] for row in names} for each in evaluations]
    conditions = [row for row in names if row in CONDITIONS]
    if conditions:
        for sides in ("both", "one"):
            rows = [CLEAN, *(row_name(condition, sides) for condition in conditions)]
            for rates in shared:
                rates[row_name("mean", sides)] = np.mean([rates[row] for row in rows], axis=0)
    return shared


def _mean(seeds: Sequence[Rows]) -> Rows:
    return {row: np.mean([rates[row] for rates in seeds], axis=0) for row in seeds[0]}


def _curves(systems: Sequence[Sequence[Path]], rows: Rows) -> Curves:
    """Curves of durations and of both sides in a condition, of all evaluations that have scores."""
    curves = {}
    for place, path in [(place, path) for place, system in enumerate(systems) for path in system if path.is_dir()]:
        evaluation = read_evaluation(path)
        scores = {(CLEAN if name == "full" else name): values for name, values in evaluation.scores.items()}
        scores |= {name: values[0].astype(np.float64) for name, values in evaluation.conditions.items()}
        for row, values in scores.items():
            if row in rows:
                of_systems = curves.setdefault(row, [[] for _ in systems])
                of_systems[place].append(make_det(values, evaluation.trials.targets))
    return curves


def _row(rates: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
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
