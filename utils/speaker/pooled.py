"""Several evaluations as one: the scores of all folds of a cross-validation in one list of trials.

Five held-out speakers say little; four folds of five, pooled, are an open-set test of twenty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.commands import REPORT
from utils.errors import UserError
from utils.files import read_json
from utils.lists import Trial, split_fields
from utils.speaker.identification import PARTS, Answer
from utils.speaker.report import ANSWERS, RECORDINGS, SCORES, Evaluation
from utils.speaker.trials import Origin, TrialSet


def pool(title: str, evaluations: Sequence[Evaluation]) -> Evaluation:
    """All trials, scores and answers of `evaluations` in one; parts that none of them has get a reason."""
    pooled = Evaluation(title, {"pooled": [evaluation.source for evaluation in evaluations]})
    with_trials = [evaluation for evaluation in evaluations if evaluation.trials is not None]
    if with_trials:
        trials = [trial for evaluation in with_trials for trial in _trials(evaluation.trials)]
        pairs = (zip(each.trials.items, each.trials.origins, strict=True) for each in with_trials)
        pooled.trials = TrialSet.build(trials, {path: origin for each in pairs for path, origin in each})
        pooled.scores = {name: np.concatenate([each.scores[name] for each in with_trials]) for name in SCORES}
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
    """What `utils.speaker.report.write_report` wrote; `UserError` if it is missing or incomplete."""
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
    if (folder / ANSWERS).exists():
        for part, *answer in _read(folder / ANSWERS):
            evaluation.answers[part].append(Answer(*answer))
    return evaluation


def _read(path: Path) -> list[list[str]]:
    try:
        return [split_fields(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; evaluate again") from error
