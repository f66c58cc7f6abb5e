"""Reports of speaker evaluations, by condition: as JSON, as a table, as pictures; and reports of several as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from utils.commands import REPORT, counted
from utils.errors import UserError
from utils.escapes import json_text
from utils.files import atomic_write, read_json, write_text
from utils.lists import Trial, join_fields, read_lines, split_fields
from utils.plots import FORMATS, percent
from utils.speaker.evaluation import ratios
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.figures import PICTURES, draw_verification
from utils.speaker.evaluation.identification import PARTS, Answer, Confusion, confusions
from utils.speaker.evaluation.metrics import P_TARGETS, bootstrap_eer, error_rates
from utils.speaker.evaluation.ratios import ratio_metrics
from utils.speaker.evaluation.trials import DURATIONS, Origin, TrialSet

CONDITIONS = ("all", "same_sex", "cross_chapter", "1.5s", "3s", "full")
MIN_SPEAKERS = 3  # with two, every replicate that has both kinds of trials is the same one
UNLIKE_PATHS = "the labels of the trial list do not follow the speakers in its paths"

ANSWERS, ERRORS, RECORDINGS = "identification.txt", "errors.txt", "recordings.txt"
CONDITION_SCORES = "conditions.safetensors"
LLR, COSINE = "llr", "cosine"
DERIVED = {LLR: "llr.safetensors", COSINE: "cosines.safetensors"}  # beside the scores
SCORES = {name: "scores.txt" if seconds is None else f"scores-{name}.txt" for name, seconds in DURATIONS.items()}
COMPARISON = "comparison.html"


@dataclass
class Evaluation:
    """Raw results of an evaluation.

    `scores`: name of a duration -> cosines (n,) of `trials`, by s-norm if the model has a cohort; `conditions`: name of
    a test condition -> such scores (3, n) float32 of the trials with both sides in the condition, the first side alone,
    the second alone; `derived`: `LLR` if the model has a calibration, `COSINE` if it has a cohort -> name
    of a duration or of a test condition -> such float32 scores of these trials; `answers`: part of identification ->
    answers; `source`: recordings and lists; `reasons`: why verification or identification is missing; `warnings`:
    sentences for the user.
    """

    title: str
    source: dict[str, Any]
    trials: TrialSet | None = None
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    conditions: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    derived: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=lambda: {part: [] for part in PARTS})
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def derived_of(self, name: str) -> dict[str, NDArray[np.float32]]:
        """The arrays of a duration or of a test condition, by kind."""
        return {kind: arrays[name] for kind, arrays in self.derived.items() if name in arrays}


def build_report(evaluation: Evaluation, about: dict[str, Any], bootstrap: int, seed: int) -> dict[str, Any]:
    """Builds the content of report.json; `about` describes the model and the command."""
    trials = evaluation.trials
    if trials is None:
        verification = dict.fromkeys(CONDITIONS, _absent(evaluation.reasons["verification"]))
    else:
        verification = verification_report(evaluation, bootstrap, seed)
    return {
        "title": evaluation.title,
        "identification": identification_report(evaluation.answers, evaluation.reasons.get("identification")),
        "verification": verification,
        "conditions": conditions_report(evaluation, verification["all"], bootstrap, seed),
        "operating_point": verification["all"]["operating_point"],
        "source": evaluation.source,
        "trial_speakers": len(trials.speakers()) if trials is not None else 0,
        "warnings": evaluation.warnings,
        **about,
    }


def _absent(reason: str, targets: int = 0, nontargets: int = 0) -> dict[str, Any]:
    """A verification condition without metrics, and the reason."""
    metrics = ("eer", "eer_ci", "threshold", *(f"min_dcf_{p}" for p in P_TARGETS))
    return {
        **dict.fromkeys(metrics),
        **ratio_metrics(),
        "targets": targets,
        "nontargets": nontargets,
        "reason": reason,
    }


def verification_report(evaluation: Evaluation, bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """Metrics of each condition.

    `all` and `full` are the same: all trials, entire recordings. `same_sex` keeps trials whose sides have one sex, both
    known. `cross_chapter` keeps target trials across chapters and all non-targets. `1.5s` and `3s` are all trials with
    both sides cut to their middle 1.5 s or 3 s (shorter recordings stay as they are). `eer_ci` is the 95 % interval
    from `bootstrap` draws of the speakers. EER, threshold and minDCF are of the scores, the others of
    log-likelihood ratios; those of `cosine` are of plain cosines.
    """
    trials = evaluation.trials

    def condition(duration: str, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        scores = evaluation.scores[duration], evaluation.derived_of(duration)
        return _condition(trials, *scores, chosen, bootstrap, seed)

    report = {name: condition(name, np.ones(len(trials), dtype=bool)) for name in DURATIONS}
    report["all"] = report["full"]
    reasons = {}
    if not any(trials.speakers().values()):
        reasons["same_sex"] = "the sex of the speakers is not known (no SPEAKERS.TXT names them)"
    if not trials.labels_match_paths():
        reasons["cross_chapter"] = UNLIKE_PATHS
    for name, chosen in (("same_sex", trials.same_sex()), ("cross_chapter", trials.cross_chapter())):
        if name in reasons:
            report[name] = _absent(reasons[name])
        else:
            report[name] = condition("full", chosen)
    return {name: report[name] for name in CONDITIONS}


def _condition(
    trials: TrialSet,
    scores: NDArray[np.float64],
    derived: dict[str, NDArray[np.float32]],
    chosen: NDArray[np.bool_],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    targets, scores = trials.targets[chosen], scores[chosen]
    derived = {kind: values[chosen] for kind, values in derived.items()}
    counts = {"targets": int(targets.sum()), "nontargets": int((~targets).sum())}
    missing = [kind for kind, count in zip(("target", "non-target"), counts.values(), strict=True) if not count]
    if missing:
        return _absent(f"no {' and no '.join(missing)} trials", **counts)
    result = {**_order_metrics(scores, targets), "eer_ci": None}
    result |= ratio_metrics(derived.get(LLR), targets)
    result |= {COSINE: _order_metrics(derived[COSINE], targets)} if COSINE in derived else {}
    first, second = (side[chosen] for side in trials.sides("speaker"))
    result |= {**counts, "speakers": int(np.count_nonzero(np.bincount(np.concatenate([first, second]))))}
    if problem := interval_problem(trials, result["speakers"]):
        return {**result, "eer_ci_reason": problem}
    interval = bootstrap_eer(scores, targets, first, second, bootstrap, seed)
    if interval is None:
        return {**result, "eer_ci_reason": "no draw of the speakers had both kinds of trials"}
    return {**result, "eer_ci": list(interval)}


def _order_metrics(scores: NDArray[np.floating], targets: NDArray[np.bool_]) -> dict[str, Any]:
    """EER, its threshold, and minDCF of scores (n,)."""
    rates = error_rates(scores, targets)
    rate, threshold = rates.eer()
    return {"eer": rate, "threshold": threshold, **{f"min_dcf_{p}": rates.min_dcf(p) for p in P_TARGETS}}


def interval_problem(trials: TrialSet, speakers: int) -> str | None:
    """Why there is no interval by draws of the `speakers` of some trials; None if there is one."""
    if not trials.labels_match_paths():
        return UNLIKE_PATHS
    return f"fewer than {MIN_SPEAKERS} speakers" if speakers < MIN_SPEAKERS else None


def conditions_report(
    evaluation: Evaluation, clean: dict[str, Any], bootstrap: int, seed: int
) -> dict[str, dict[str, Any]]:
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
            everything = np.ones(len(chosen), dtype=bool)
            report[name][sides] = _condition(chosen, scores, of_sides, everything, bootstrap, seed)
    return report


def by_sides(trials: TrialSet, values: NDArray[np.floating]) -> dict[str, tuple[TrialSet, NDArray[np.float64]]]:
    """Trials and values of a test condition by the sides that are in it; `values` (3, n) as in `Evaluation`."""
    values = values.astype(np.float64)
    return {"both": (trials, values[0]), "one": (trials.twice(), values[1:].ravel())}


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
        rows |= {name if sides == "both" else f"{name}, one side": metrics for sides, metrics in by_side.items()}
    shown = []
    for name, metrics in rows.items():
        if COSINE in metrics:
            kinds = metrics[COSINE], metrics
            cells = [percent(each["eer"]) for each in kinds]
            cells += [f"{each[f'min_dcf_{p}']:.3f}" for p in P_TARGETS for each in kinds]
            shown.append(f"{name:<21}{''.join(f'{cell:>12}' for cell in cells)}")
    heads = "".join(f"{head:>12}{'s-norm':>12}" for head in ("cosines: EER", "minDCF .01", "minDCF .05"))
    return ["", f"{'by s-norm':<21}{heads}", *shown] if shown else []


def write_report(out: Path, report: dict[str, Any], evaluation: Evaluation, pictures: str = "png") -> None:
    """Writes report, scores, answers and pictures into `out`, after removing those of an earlier evaluation.

    `pictures` is their format. `report.json` is written last: a folder that has it is complete.
    """
    clear_report(out)
    if evaluation.trials is not None:
        write_text(out / RECORDINGS, "".join(evaluation.trials.recordings()))
        for duration, scores in evaluation.scores.items():
            write_text(out / SCORES[duration], "".join(evaluation.trials.lines(scores)))
        draw_verification(out, report, evaluation.trials, evaluation.scores, pictures)
    arrays = {CONDITION_SCORES: evaluation.conditions}
    arrays |= {DERIVED[kind]: values for kind, values in evaluation.derived.items()}
    for name, values in arrays.items():
        if values:
            with atomic_write(out / name) as file:
                file.write(save(values))
    given = {part: answers for part, answers in evaluation.answers.items() if answers}
    if given:
        lines = (join_fields(part, *answer) for part, answers in given.items() for answer in answers)
        write_text(out / ANSWERS, "".join(lines))
        write_text(out / ERRORS, "".join(_error_lines(given)))
    write_text(out / REPORT, json_text(report) + "\n")


def clear_report(out: Path) -> None:
    """Removes the files of an earlier evaluation or comparison, and pictures of every format."""
    names = REPORT, ANSWERS, ERRORS, RECORDINGS, CONDITION_SCORES, COMPARISON, *DERIVED.values(), *SCORES.values()
    pictures = (*PICTURES, "confusion")  # the last was drawn by earlier versions
    for name in (*names, *(f"{picture}.{kind}" for picture in pictures for kind in FORMATS)):
        (out / name).unlink(missing_ok=True)


def _error_lines(given: dict[str, list[Answer]]) -> Iterator[str]:
    """The content of errors.txt: a line of names, and one for each speaker and whom they were taken for."""
    yield join_fields("part", *Confusion._fields)
    for part, answers in given.items():
        yield from (join_fields(part, *map(str, each)) for each in confusions(answers))


def pool(title: str, evaluations: Sequence[Evaluation]) -> Evaluation:
    """Joins all trials, scores and answers of `evaluations`, such as the folds of a cross-validation.

    Five held-out speakers give wide intervals; four folds of five, pooled, are an open-set test of twenty. A part that
    no evaluation has gets a reason.
    """
    pooled = Evaluation(title, {"pooled": [evaluation.source for evaluation in evaluations]})
    with_trials = [evaluation for evaluation in evaluations if evaluation.trials is not None]
    if with_trials:
        trials = [trial for evaluation in with_trials for trial in _trials(evaluation.trials)]
        pairs = (zip(each.trials.items, each.trials.origins, strict=True) for each in with_trials)
        pooled.trials = TrialSet.build(trials, {path: origin for each in pairs for path, origin in each})
        pooled.scores = {name: np.concatenate([each.scores[name] for each in with_trials]) for name in SCORES}
        shared = [name for name in with_trials[0].conditions if all(name in each.conditions for each in with_trials)]
        pooled.conditions = {name: np.hstack([each.conditions[name] for each in with_trials]) for name in shared}
        for name in (*SCORES, *shared):
            arrays = [each.derived_of(name) for each in with_trials]
            for kind in set.intersection(*map(set, arrays)):
                pooled.derived.setdefault(kind, {})[name] = np.hstack([each[kind] for each in arrays])
    else:
        pooled.reasons["verification"] = "none of the evaluations has trials"
    pooled.answers = {part: [answer for each in evaluations for answer in each.answers[part]] for part in PARTS}
    if not any(pooled.answers.values()):
        pooled.reasons["identification"] = "none of the evaluations has identification"
    return pooled


def _trials(trials: TrialSet) -> Iterator[Trial]:
    for target, a, b in zip(trials.targets, trials.a, trials.b, strict=True):
        yield Trial(bool(target), trials.items[a], trials.items[b])


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the raw results that `write_report` wrote; `UserError` if they are missing or incomplete."""
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or not {"title", "source", "verification"} <= set(report):
        raise UserError(f"{folder / REPORT} is not the report of an evaluation")
    evaluation = Evaluation(report["title"], report["source"])
    if (folder / RECORDINGS).exists():
        origins = {
            path: Origin(*("" if value == "-" else value for value in origin))
            for path, *origin in _read(folder / RECORDINGS)
        }
        rows = {name: _read(folder / file) for name, file in SCORES.items()}
        trials = [Trial(target == "1", a, b) for _, target, a, b in rows["full"]]
        evaluation.trials = TrialSet.build(trials, origins)
        evaluation.scores = {name: np.array([float(score) for score, *_ in lines]) for name, lines in rows.items()}
    if (folder / CONDITION_SCORES).exists():
        scores = _read_arrays(folder / CONDITION_SCORES)
        evaluation.conditions = {name: scores[name] for name in report["conditions"] if name != CLEAN}
    evaluation.derived = {
        kind: _read_arrays(folder / name) for kind, name in DERIVED.items() if (folder / name).exists()
    }
    if (folder / ANSWERS).exists():
        for part, *answer in _read(folder / ANSWERS):
            evaluation.answers[part].append(Answer(*answer))
    return evaluation


def _read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); run evaluate again") from error


def _read(path: Path) -> list[list[str]]:
    try:
        return [split_fields(line) for line in read_lines(path)]
    except UserError as error:
        raise UserError(f"{error}; run evaluate again") from error
