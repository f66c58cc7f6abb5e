"""Equal error rates of an evaluation over draws of its speakers: all that a paired comparison needs, in one file.

The file names no recording: a system's rates can be published without its scores, and compared with those of another
system on the same trials, by anybody who has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from utils.errors import UserError
from utils.files import json_text, write_bytes
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.metrics import bootstrap_rates, eer
from utils.speaker.evaluation.results import Evaluation, by_sides
from utils.speaker.evaluation.trials import TrialSet

RATES = "rates.safetensors"
ONE_SIDE = ", one side"  # the end of the names of rows with one side of the trials in a condition
MIN_SPEAKERS = 3  # with two, every replicate that has both kinds of trials is the same one
UNLIKE_PATHS = "the labels of the trial list do not follow the speakers in its paths"

_ABOUT = ("title", "model", "models", "config")  # parts of the report that say what was evaluated
_OF_TRIALS = {"trials", "targets", "nontargets", "trial_speakers", "interval_reason", "seed"}
_KEY = "evaluation"


@dataclass(frozen=True)
class Rates:
    """Equal error rates of an evaluation.

    `rows`: name of a duration, of a choice of trials or of a test condition -> float64 (1 + n,): the EER of all its
    trials, and those of n draws of the speakers, which are NaN where a draw lacks a kind of trials; n is 0 for rows
    without an interval. `about`: hash and counts of the trials, seed of the draws, why there is no interval.
    """

    rows: dict[str, NDArray[np.float64]]
    about: dict[str, Any]

    @classmethod
    def of(cls, evaluation: Evaluation, bootstrap: int, seed: int) -> Rates:
        """Draws the speakers of an evaluation `bootstrap` times: the same draws for all with its trials and `seed`."""
        trials = evaluation.trials
        if trials is None:
            return cls({}, {})
        rows = {}
        for name, chosen, scores in _rows(evaluation):
            if chosen.targets.any() and not chosen.targets.all():
                draws = 0 if interval_problem(chosen) else bootstrap
                rows[name] = np.append(
                    eer(scores, chosen.targets)[0],
                    bootstrap_rates(scores, chosen.targets, *chosen.sides("speaker"), n=draws, seed=seed),
                )
        about = {
            "trials": trials.hash(),
            "targets": int(trials.targets.sum()),
            "nontargets": int((~trials.targets).sum()),
            "trial_speakers": len(trials.speakers()),
            "interval_reason": interval_problem(trials),
            "seed": seed,
        }
        return cls(rows, about)

    def published(self) -> Rates:
        """These rates with absolute paths in `about` cut to their last part, which name no folder of the machine."""
        return Rates(self.rows, _without_folders(self.about))

    def save(self, path: Path, report: dict[str, Any]) -> None:
        """Writes a file that `read` understands, with what `report` says of the model; draws are kept as float32."""
        about = {**self.about, **{name: report[name] for name in _ABOUT if name in report}}
        arrays = {name: values[1:].astype(np.float32) for name, values in self.rows.items()}
        about["eer"] = {name: float(values[0]) for name, values in self.rows.items()}
        write_bytes(path, save(arrays, {_KEY: json_text(about)}))

    @classmethod
    def read(cls, path: Path) -> Rates:
        """Reads a file that `save` wrote; `UserError` if it is none."""
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                rows = {name: np.append(rate, file.get_tensor(name)) for name, rate in about.pop("eer").items()}
                missing = _OF_TRIALS.difference(about)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}); run evaluate again") from error
        except (SafetensorError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} does not hold the rates of an evaluation, or is damaged") from error
        if missing:
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}; run evaluate again")
        return cls(rows, about)


def _without_folders(value: Any) -> Any:
    """Shortens absolute paths in nested values to their last part."""
    if isinstance(value, dict):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def interval_problem(trials: TrialSet) -> str | None:
    """Why there is no interval by draws of the speakers of some trials; None if there is one."""
    if not trials.labels_match_paths():
        return UNLIKE_PATHS
    return f"fewer than {MIN_SPEAKERS} speakers" if trials.speaker_count() < MIN_SPEAKERS else None


def row_name(condition: str, sides: str) -> str:
    """The name of the row of a test condition with `both` sides of the trials in it, or `one`."""
    return condition if sides == "both" else f"{condition}{ONE_SIDE}"


def _rows(evaluation: Evaluation) -> Iterator[tuple[str, TrialSet, NDArray[np.float64]]]:
    trials = evaluation.trials
    for duration, scores in evaluation.scores.items():
        yield (CLEAN if duration == "full" else duration), trials, scores
    for name, chosen in choices(trials).items():
        if isinstance(chosen, np.ndarray):
            yield name, trials.select(chosen), evaluation.scores["full"][chosen]
    for name, values in evaluation.conditions.items():
        for sides, (chosen, scores) in by_sides(trials, values).items():
            yield row_name(name, sides), chosen, scores


def choices(trials: TrialSet) -> dict[str, NDArray[np.bool_] | str]:
    """Trials (n,) of one sex and across chapters, or why they are not known."""
    unknown = "the sex of the speakers is not known (no SPEAKERS.TXT names them)"
    return {
        "same_sex": trials.same_sex() if any(trials.speakers().values()) else unknown,
        "cross_chapter": trials.cross_chapter() if trials.labels_match_paths() else UNLIKE_PATHS,
    }
