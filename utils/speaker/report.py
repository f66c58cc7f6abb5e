"""Reports of an evaluation: figures by condition, as JSON, as a table and as pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.commands import REPORT
from utils.files import write_json, write_text
from utils.lists import join_fields
from utils.plots import percent
from utils.speaker import plots
from utils.speaker.identification import PARTS, Answer, confusion_matrix
from utils.speaker.metrics import bootstrap_eer, det_curve, eer, min_dcf, rates_at
from utils.speaker.trials import TrialSet

CONDITIONS = ("all", "same_sex", "cross_chapter", "1.5s", "3s", "full")
P_TARGETS = (0.01, 0.05)
MIN_SPEAKERS = 3  # with two, every replicate that has both kinds of trials is the same one

ANSWERS, RECORDINGS = "identification.txt", "recordings.txt"
SCORES = {"full": "scores.txt", "1.5s": "scores-1.5s.txt", "3s": "scores-3s.txt"}
PICTURES = ("det.png", "scores.png", "confusion.png")


@dataclass
class Evaluation:
    """Raw results. `reasons` says why verification or identification is missing; `warnings` are for the user.

    `scores`: name of a duration -> cosines (N,) of `trials`; `answers`: part of identification -> answers;
    `source`: where the recordings and lists come from; `threshold`: a cosine that was tuned elsewhere.
    """

    title: str
    source: dict[str, Any]
    threshold: float | None = None
    trials: TrialSet | None = None
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=lambda: {part: [] for part in PARTS})
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def build_report(evaluation: Evaluation, about: dict[str, Any], bootstrap: int, seed: int) -> dict[str, Any]:
    """The content of report.json; `about` describes the model and the command."""
    trials, threshold = evaluation.trials, evaluation.threshold
    if trials is None:
        verification = dict.fromkeys(CONDITIONS, absent(evaluation.reasons["verification"]))
    else:
        verification = verification_report(trials, evaluation.scores, bootstrap, seed)
    known = trials is not None and threshold is not None
    return {
        "title": evaluation.title,
        "identification": identification_report(evaluation.answers, evaluation.reasons.get("identification")),
        "verification": verification,
        "operating_point": operating_point(trials, evaluation.scores["full"], threshold) if known else None,
        "source": evaluation.source,
        "trial_speakers": len(trials.speakers()) if trials is not None else 0,
        "warnings": evaluation.warnings,
        **about,
    }


def absent(reason: str, targets: int = 0, nontargets: int = 0) -> dict[str, Any]:
    """A verification condition without figures, and why."""
    figures = ("eer", "eer_ci", "threshold", *(f"min_dcf_{p}" for p in P_TARGETS))
    return {**dict.fromkeys(figures), "targets": targets, "nontargets": nontargets, "reason": reason}


def verification_report(
    trials: TrialSet, scores: dict[str, NDArray[np.float64]], bootstrap: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Figures of each condition.

    `all` and `full` are the same: all trials, whole recordings. `same_sex` keeps trials whose sides have one sex, both
    known. `cross_chapter` keeps target trials across chapters and all non-targets. `1.5s` and `3s` are all trials with
    both sides cut to their middle 1.5 s or 3 s (recordings that are shorter are used whole). `eer_ci` is the 95 %
    interval from `bootstrap` draws of the speakers.
    """
    settings = (bootstrap, seed)
    everything = np.ones(len(trials), dtype=bool)
    speakers_known = trials.labels_match_paths()
    report = {"all": _condition(trials, scores["full"], everything, *settings)}
    if any(trials.speakers().values()):
        report["same_sex"] = _condition(trials, scores["full"], trials.same_sex(), *settings)
    else:
        report["same_sex"] = absent("the speakers' sex is not known (no SPEAKERS.TXT names them)")
    if speakers_known:
        report["cross_chapter"] = _condition(trials, scores["full"], trials.cross_chapter(), *settings)
    else:
        report["cross_chapter"] = absent("the trial list's labels do not follow the speakers in its paths")
    for name in ("1.5s", "3s"):
        report[name] = _condition(trials, scores[name], everything, *settings)
    return {**report, "full": report["all"]}


def _condition(
    trials: TrialSet, scores: NDArray[np.float64], chosen: NDArray[np.bool_], bootstrap: int, seed: int
) -> dict[str, Any]:
    targets, scores = trials.targets[chosen], scores[chosen]
    counts = {"targets": int(targets.sum()), "nontargets": int((~targets).sum())}
    missing = [name for name, count in counts.items() if not count]
    if missing:
        kinds = {"targets": "target", "nontargets": "non-target"}
        return absent(f"no {' and no '.join(kinds[name] for name in missing)} trials", **counts)
    rate, threshold = eer(scores, targets)
    result: dict[str, Any] = {"eer": rate, "eer_ci": None, "threshold": threshold}
    result |= {f"min_dcf_{p}": min_dcf(scores, targets, p) for p in P_TARGETS}
    result |= counts
    first, second = (side[chosen] for side in trials.sides("speaker"))
    result["speakers"] = len(np.union1d(first, second))
    if not trials.labels_match_paths():
        result["eer_ci_reason"] = "the trial list's labels do not follow the speakers in its paths"
    elif result["speakers"] < MIN_SPEAKERS:
        result["eer_ci_reason"] = f"fewer than {MIN_SPEAKERS} speakers"
    else:
        interval = bootstrap_eer(scores, targets, first, second, bootstrap, seed)
        if interval is None:
            result["eer_ci_reason"] = "no draw of the speakers had both kinds of trials"
        else:
            result["eer_ci"] = list(interval)
    return result


def operating_point(trials: TrialSet, scores: NDArray[np.float64], threshold: float) -> dict[str, float] | None:
    """Error rates at a threshold that was tuned elsewhere; None where trials of one kind are missing."""
    if trials.targets.all() or not trials.targets.any():
        return None
    false_rejection, false_acceptance = rates_at(scores, trials.targets, threshold)
    return {"threshold": threshold, "false_rejection": false_rejection, "false_acceptance": false_acceptance}


def identification_report(answers: dict[str, list[Answer]], reason: str | None) -> dict[str, dict[str, Any]]:
    """Accuracy of each part: `utterance` (chapters heard in training) and `chapter` (others)."""
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
    """The figures for people, one line per condition."""
    lines = [
        f"{'verification':<15}{'EER':>9}  {'95 % interval':<19}{'minDCF .01':>11}{'.05':>8}{'targets':>9}{'others':>9}"
    ]
    for name in CONDITIONS:
        figures = report["verification"][name]
        if figures["eer"] is None:
            lines.append(f"{name:<15}{'-':>9}  {figures['reason']}")
            continue
        interval = figures["eer_ci"]
        shown = " to ".join(percent(bound) for bound in interval) if interval else figures["eer_ci_reason"]
        costs = f"{figures['min_dcf_0.01']:>11.3f}{figures['min_dcf_0.05']:>8.3f}"
        counts = f"{figures['targets']:>9}{figures['nontargets']:>9}"
        lines.append(f"{name:<15}{percent(figures['eer']):>9}  {shown:<19}{costs}{counts}")
    lines += ["", f"{'identification':<15}{'accuracy':>9}  {'recordings':<19}"]
    for part in PARTS:
        figures = report["identification"][part]
        if figures["accuracy"] is None:
            lines.append(f"by {part:<12}{'-':>9}  {figures['reason']}")
        else:
            shown = f"{figures['n']} of {figures['speakers']} speakers"
            lines.append(f"by {part:<12}{percent(figures['accuracy']):>9}  {shown}")
    return "\n".join(lines)


def write_report(out: Path, report: dict[str, Any], evaluation: Evaluation) -> None:
    """Writes report, scores, answers and pictures into `out`; files of an earlier evaluation there give way.

    `report.json` is written last, so that where it stands, everything does.
    """
    for name in (REPORT, ANSWERS, RECORDINGS, *SCORES.values(), *PICTURES):
        (out / name).unlink(missing_ok=True)
    if evaluation.trials is not None:
        write_text(out / RECORDINGS, "".join(evaluation.trials.recordings()))
        for duration, scores in evaluation.scores.items():
            write_text(out / SCORES[duration], "".join(evaluation.trials.lines(scores)))
        _draw_verification(out, report, evaluation.trials, evaluation.scores)
    given = {part: answers for part, answers in evaluation.answers.items() if answers}
    if given:
        lines = (join_fields(part, *answer) for part, answers in given.items() for answer in answers)
        write_text(out / ANSWERS, "".join(lines))
        parts = {f"by {part}": confusion_matrix(answers) for part, answers in given.items()}
        plots.draw_confusions(out / "confusion.png", parts, f"{evaluation.title}: identification")
    write_json(out / REPORT, report)


def _draw_verification(
    out: Path, report: dict[str, Any], trials: TrialSet, scores: dict[str, NDArray[np.float64]]
) -> None:
    """DET curves of the conditions that have figures, and the histogram of the scores of whole recordings."""
    chosen = {"same_sex": trials.same_sex(), "cross_chapter": trials.cross_chapter()}
    everything = np.ones(len(trials), dtype=bool)
    curves = {}
    for name in ("all", "same_sex", "cross_chapter", "3s", "1.5s"):
        rate = report["verification"][name]["eer"]
        if rate is not None:
            mask = chosen.get(name, everything)
            values = scores.get(name, scores["full"])[mask]
            curves[name.replace("_", " ")] = (*det_curve(values, trials.targets[mask]), rate)
    if not curves:
        return
    plots.draw_det(out / "det.png", curves, f"{report['title']}: detection errors")
    thresholds = {"EER threshold of these trials": report["verification"]["all"]["threshold"]}
    if report["operating_point"]:
        thresholds["threshold of the checkpoint"] = report["operating_point"]["threshold"]
    plots.draw_scores(out / "scores.png", scores["full"], trials.targets, thresholds, f"{report['title']}: scores")
