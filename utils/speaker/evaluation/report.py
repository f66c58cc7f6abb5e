"""Reports of speaker evaluations, by condition: as JSON, as a table, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.commands import COMPARISON, REPORT, counted
from utils.files import write_json
from utils.plots import FORMATS, percent, save_figure
from utils.speaker.evaluation import ratios
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.det import make_det
from utils.speaker.evaluation.identification import PARTS, Answer
from utils.speaker.evaluation.metrics import P_TARGETS, error_rates, interval
from utils.speaker.evaluation.plots import det_figure, draw_scores
from utils.speaker.evaluation.rates import RATES, Rates, choices, interval_problem, row_name
from utils.speaker.evaluation.ratios import ratio_metrics
from utils.speaker.evaluation.results import COSINE, FILES, LLR, Evaluation, by_sides, write_results
from utils.speaker.evaluation.trials import DURATIONS, TrialSet

CONDITIONS = ("all", "same_sex", "cross_chapter", "1.5s", "3s", "full")
PICTURES = ("det", "scores")


def build_report(evaluation: Evaluation, rates: Rates, about: dict[str, Any]) -> dict[str, Any]:
    """Builds the content of report.json; `rates` are those of the evaluation, `about` describes model and command."""
    trials = evaluation.trials
    if trials is None:
        verification = dict.fromkeys(CONDITIONS, _absent(evaluation.reasons["verification"]))
    else:
        verification = verification_report(evaluation, rates)
    return {
        "title": evaluation.title,
        "identification": identification_report(evaluation.answers, evaluation.reasons.get("identification")),
        "verification": verification,
        "conditions": conditions_report(evaluation, rates, verification["all"]),
        "operating_point": verification["all"]["operating_point"],
        "source": evaluation.source,
        "trial_speakers": len(trials.speakers()) if trials is not None else 0,
        "warnings": evaluation.warnings,
        **about,
    }


def _absent(reason: str, targets: int = 0, nontargets: int = 0) -> dict[str, Any]:
    """A verification condition without metrics, and the reason."""
    metrics = ("eer", "eer_ci", "threshold", *(f"min_dcf_{p}" for p in P_TARGETS))
    counts = {"targets": targets, "nontargets": nontargets}
    return {**dict.fromkeys(metrics), **ratio_metrics(), **counts, "reason": reason}


def verification_report(evaluation: Evaluation, rates: Rates) -> dict[str, dict[str, Any]]:
    """Metrics of each condition.

    `all` and `full` are the same: all trials, entire recordings. `same_sex` keeps trials whose sides have one sex, both
    known. `cross_chapter` keeps target trials across chapters and all non-targets. `1.5s` and `3s` are all trials with
    both sides cut to their middle 1.5 s or 3 s (shorter recordings stay as they are). `eer_ci` is the 95 % interval
    over draws of the speakers. EER, threshold and minDCF are of the scores, the others of
    log-likelihood ratios; those of `cosine` are of plain cosines.
    """
    trials = evaluation.trials
    report = {
        name: _condition(trials, evaluation.scores[name], evaluation.derived_of(name), _draws(rates, name))
        for name in DURATIONS
    }
    report["all"] = report["full"]
    for name, chosen in choices(trials).items():
        if isinstance(chosen, str):
            report[name] = _absent(chosen)
        else:
            derived = {kind: values[chosen] for kind, values in evaluation.derived_of("full").items()}
            scores = evaluation.scores["full"][chosen]
            report[name] = _condition(trials.select(chosen), scores, derived, _draws(rates, name))
    return {name: report[name] for name in CONDITIONS}


def _draws(rates: Rates, row: str) -> NDArray[np.float64] | None:
    """The rates of the draws in a row; None if it has no trials of one kind."""
    values = rates.rows.get(CLEAN if row == "full" else row)
    return None if values is None else values[1:]


def _condition(
    trials: TrialSet,
    scores: NDArray[np.float64],
    derived: dict[str, NDArray[np.float32]],
    draws: NDArray[np.float64] | None,
) -> dict[str, Any]:
    targets = trials.targets
    counts = {"targets": int(targets.sum()), "nontargets": int((~targets).sum())}
    missing = [kind for kind, count in zip(("target", "non-target"), counts.values(), strict=True) if not count]
    if missing:
        return _absent(f"no {' and no '.join(missing)} trials", **counts)
    result = {**_order_metrics(scores, targets), "eer_ci": None}
    result |= ratio_metrics(derived.get(LLR), targets)
    result |= {COSINE: _order_metrics(derived[COSINE], targets)} if COSINE in derived else {}
    result |= {**counts, "speakers": trials.speaker_count()}
    if problem := interval_problem(trials):
        return {**result, "eer_ci_reason": problem}
    if bounds := interval(draws):
        return {**result, "eer_ci": list(bounds)}
    return {**result, "eer_ci_reason": "no draw of the speakers had both kinds of trials"}


def _order_metrics(scores: NDArray[np.floating], targets: NDArray[np.bool_]) -> dict[str, Any]:
    """EER, its threshold, and minDCF of scores (n,)."""
    rates = error_rates(scores, targets)
    rate, threshold = rates.eer()
    return {"eer": rate, "threshold": threshold, **{f"min_dcf_{p}": rates.min_dcf(p) for p in P_TARGETS}}


def conditions_report(evaluation: Evaluation, rates: Rates, clean: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics of each test condition by the sides that are in it, `both` or `one`; empty if nothing but clean is.

    `clean` are those of all trials. With one side in a condition, each trial counts twice: once for either side.
    """
    if not evaluation.conditions:
        return {}
    report = {CLEAN: {"both": clean}}
    for name, values in evaluation.conditions.items():
        derived = {kind: by_sides(evaluation.trials, each) for kind, each in evaluation.derived_of(name).items()}
        report[name] = {}
        for sides, (chosen, scores) in by_sides(evaluation.trials, values).items():
            of_sides = {kind: each[sides][1] for kind, each in derived.items()}
            report[name][sides] = _condition(chosen, scores, of_sides, _draws(rates, row_name(name, sides)))
    return report


def identification_report(answers: dict[str, list[Answer]], reason: str | None) -> dict[str, dict[str, Any]]:
    """Accuracy of each part: `utterance` (chapters seen in training) and `chapter` (others)."""
    report = {}
    for part in PARTS:
        given = answers[part]
        report[part] = {"accuracy": None, "n": 0, "reason": reason or "no test recordings of this kind"}
        if given:
            correct = sum(answer.speaker == answer.named for answer in given)
            speakers = len({answer.speaker for answer in given})
            report[part] = {"accuracy": correct / len(given), "n": len(given), "speakers": speakers}
    return report


def table(report: dict[str, Any]) -> str:
    """Formats a report as text, one line per condition and per part of identification."""
    counts = f"{'targets':>9}{'nontargets':>12}"
    lines = [f"{'verification':<15}{'EER':>9}  {'95 % interval':<19}{'minDCF .01':>11}{'.05':>8}{counts}"]
    for name in CONDITIONS:
        metrics = report["verification"][name]
        if metrics["eer"] is None:
            lines.append(f"{name:<15}{'-':>9}  {metrics['reason']}")
            continue
        interval = metrics["eer_ci"]
        shown = " to ".join(map(percent, interval)) if interval else metrics["eer_ci_reason"]
        costs = f"{metrics['min_dcf_0.01']:>11.3f}{metrics['min_dcf_0.05']:>8.3f}"
        counts = f"{metrics['targets']:>9}{metrics['nontargets']:>12}"
        lines.append(f"{name:<15}{percent(metrics['eer']):>9}  {shown:<19}{costs}{counts}")
    lines += ratios.lines(report["verification"])
    lines += _condition_lines(report["conditions"])
    lines += _normalized_lines(report)
    lines += ["", f"{'identification':<15}{'accuracy':>9}  {'recordings':<19}"]
    for part in PARTS:
        result = report["identification"][part]
        if result["accuracy"] is None:
            lines.append(f"by {part:<12}{'-':>9}  {result['reason']}")
        else:
            shown = f"{result['n']} of {counted(result['speakers'], 'speaker')}"
            lines.append(f"by {part:<12}{percent(result['accuracy']):>9}  {shown}")
    return "\n".join(lines)


def _condition_lines(conditions: dict[str, dict[str, Any]]) -> list[str]:
    """The part of the table on test conditions, one line for both sides and one for one side."""
    if not conditions:
        return []
    lines = ["", f"{'condition':<15}{'EER':>9}  {'95 % interval':<19}{ratios.HEAD}"]
    for name, by_side in conditions.items():
        for sides, metrics in by_side.items():
            label = name if sides == "both" else "  one side"
            if metrics["eer"] is None:
                lines.append(f"{label:<15}{'-':>9}  {metrics['reason']}")
                continue
            shown = " to ".join(map(percent, metrics["eer_ci"])) if metrics["eer_ci"] else metrics["eer_ci_reason"]
            lines.append(f"{label:<15}{percent(metrics['eer']):>9}  {shown:<19}{ratios.columns(metrics)}")
    return lines


def _normalized_lines(report: dict[str, Any]) -> list[str]:
    """The part of the table that compares plain cosines with s-norm, if there is a cohort."""
    rows = {**report["verification"]}
    for name, by_side in report["conditions"].items():
        rows |= {row_name(name, sides): metrics for sides, metrics in by_side.items()}
    shown = []
    for name, metrics in rows.items():
        if COSINE in metrics:
            kinds = metrics[COSINE], metrics
            cells = [percent(each["eer"]) for each in kinds]
            cells += [f"{each[f'min_dcf_{p}']:.3f}" for p in P_TARGETS for each in kinds]
            shown.append(f"{name:<21}{''.join(f'{cell:>12}' for cell in cells)}")
    heads = "".join(f"{head:>12}{'s-norm':>12}" for head in ("cosines: EER", "minDCF .01", "minDCF .05"))
    return ["", f"{'by s-norm':<21}{heads}", *shown] if shown else []


def write_report(
    out: Path, report: dict[str, Any], evaluation: Evaluation, rates: Rates, pictures: str = "png"
) -> None:
    """Writes report, results, rates and pictures into `out`, after removing those of an earlier evaluation.

    `pictures` is their format. `report.json` is written last: a folder that has it is complete.
    """
    clear_report(out)
    write_results(out, evaluation)
    if evaluation.trials is not None:
        rates.save(out / RATES, report)
        _draw_verification(out, report, evaluation.trials, evaluation.scores, pictures)
    write_json(out / REPORT, report)


def _draw_verification(out: Path, report: dict[str, Any], trials: TrialSet, scores: dict[str, Any], kind: str) -> None:
    """Draws the DET curves of the conditions that have metrics, and the scores of entire recordings.

    `scores`: name of a duration -> (n,); `kind`: format of the pictures. The curve of all trials has a band if there is
    an interval of its EER; bands of all curves would hide each other.
    """
    chosen = choices(trials)
    everything, curves = np.ones(len(trials), dtype=bool), {}
    for name in ("all", *chosen, "3s", "1.5s"):
        metrics = report["verification"][name]
        if metrics["eer"] is not None:
            mask, bounds = chosen.get(name, everything), metrics["eer_ci"]
            values = scores.get(name, scores["full"])[mask], trials.targets[mask]
            label = f"{name.replace('_', ' ')}: EER {percent(metrics['eer'])}"
            label += f" ({' to '.join(map(percent, bounds))})" if bounds else ""
            curves[label] = [make_det(*values, trials.sides("speaker") if bounds and not curves else None)]
    if not curves:
        return
    save_figure(det_figure(curves, f"{report['title']}: detection errors"), out / f"det.{kind}")
    thresholds = {"EER threshold of these trials": report["verification"]["all"]["threshold"]}
    draw_scores(out / f"scores.{kind}", scores["full"], trials.targets, thresholds, f"{report['title']}: scores")


def clear_report(out: Path) -> None:
    """Removes the files of an earlier evaluation or comparison, and pictures of every format."""
    pictures = (*PICTURES, "confusion")  # the last was drawn by earlier versions
    names = [f"{picture}.{kind}" for picture in pictures for kind in FORMATS]
    for name in (REPORT, COMPARISON, RATES, *FILES, *names):
        (out / name).unlink(missing_ok=True)
