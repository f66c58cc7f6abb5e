"""Raw results of speaker evaluations: scores of trials and answers of identification, kept in files and pooled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from utils.commands import ANSWERS, RECORDINGS, REPORT, counted
from utils.errors import UserError
from utils.files import read_json, write_bytes, write_text
from utils.lists import Trial, join_fields, read_lines, split_fields
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.identification import PARTS, Answer, Confusion, confusions
from utils.speaker.evaluation.trials import DURATIONS, Origin, TrialSet

ERRORS = "errors.txt"
CONDITION_SCORES = "conditions.safetensors"
LLR, COSINE = "llr", "cosine"
DERIVED = {LLR: "llr.safetensors", COSINE: "cosines.safetensors"}  # beside the scores
SCORES = {name: "scores.txt" if seconds is None else f"scores-{name}.txt" for name, seconds in DURATIONS.items()}
FILES = (ANSWERS, ERRORS, RECORDINGS, CONDITION_SCORES, *DERIVED.values(), *SCORES.values())


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


def by_sides(trials: TrialSet, values: NDArray[np.floating]) -> dict[str, tuple[TrialSet, NDArray[np.float64]]]:
    """Trials and values of a test condition by the sides that are in it; `values` (3, n) as in `Evaluation`."""
    values = values.astype(np.float64)
    return {"both": (trials, values[0]), "one": (trials.twice(), values[1:].ravel())}


def write_results(out: Path, evaluation: Evaluation) -> None:
    """Writes scores and answers into `out`."""
    if evaluation.trials is not None:
        write_text(out / RECORDINGS, "".join(evaluation.trials.recordings()))
        for duration, scores in evaluation.scores.items():
            write_text(out / SCORES[duration], "".join(evaluation.trials.lines(scores)))
    arrays = {CONDITION_SCORES: evaluation.conditions}
    arrays |= {DERIVED[kind]: values for kind, values in evaluation.derived.items()}
    for name, values in arrays.items():
        if values:
            write_bytes(out / name, save(values))
    given = {part: answers for part, answers in evaluation.answers.items() if answers}
    if given:
        lines = (join_fields(part, *answer) for part, answers in given.items() for answer in answers)
        write_text(out / ANSWERS, "".join(lines))
        write_text(out / ERRORS, "".join(_error_lines(given)))


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
    pooled.warnings = list(dict.fromkeys(warning for evaluation in evaluations for warning in evaluation.warnings))
    with_trials = [evaluation for evaluation in evaluations if evaluation.trials is not None]
    if len({COSINE in evaluation.derived for evaluation in with_trials}) > 1:
        raise UserError("some evaluations have scores normalized by a cohort, others cosines, which cannot be pooled")
    if with_trials:
        trials = [trial for evaluation in with_trials for trial in evaluation.trials.trials()]
        if repeated := len(trials) - len(set(trials)):
            pooled.warnings.append(f"{counted(repeated, 'trial')} of several evaluations count several times")
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


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the raw results that `write_report` wrote; `UserError` if they are missing or damaged."""
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or not {"title", "source", "verification"} <= set(report):
        raise UserError(f"{folder / REPORT} is not the report of an evaluation")
    try:
        return _read_results(folder, report)
    except (LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the files in {folder} are damaged ({reason}); run evaluate again") from error


def _read_results(folder: Path, report: dict[str, Any]) -> Evaluation:
    evaluation = Evaluation(report["title"], report["source"], warnings=list(report.get("warnings", [])))
    if (folder / RECORDINGS).exists():
        origins = {
            path: Origin(*("" if value == "-" else value for value in origin))
            for path, *origin in _read(folder / RECORDINGS)
        }
        rows = {name: _read(folder / file) for name, file in SCORES.items()}
        trials = [Trial(target == "1", a, b) for _, target, a, b in rows["full"]]
        evaluation.trials = TrialSet.build(trials, origins)
        evaluation.scores = {
            name: np.array([float(score) for (score, *_), _ in zip(lines, trials, strict=True)])
            for name, lines in rows.items()
        }
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
