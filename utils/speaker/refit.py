"""Scoring of a trained recognizer, fitted to its speakers in a folder of features anew, without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.features.recipe import require_same
from utils.features.store import FeatureStore
from utils.speaker.evaluation.metrics import eer
from utils.speaker.protocol import read_protocol
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.scoring.cohort import cohort_of
from utils.speaker.scoring.scoring import Scoring
from utils.speaker.scoring.validation import MIN_SPEAKERS, TOO_OPTIMISTIC, Validation, useful_cuts


def refit(recognizer: SpeakerRecognizer, data: Path, protocol_name: str) -> dict[str, dict[str, Any]]:
    """Cohort, calibration and thresholds, as in a checkpoint, and metrics, from the recordings of a protocol.

    The cohort is of its training recordings, or stays if they are of too few speakers; the others are fitted to all
    recordings of its validation trials.
    Validation in training draws at most `--valid-utterances` of these, and is otherwise the same. `UserError` for
    features of another recipe, and for too few speakers.
    """
    store = FeatureStore.open(data)
    require_same(store.recipe, recognizer.recipe, f"the features in {data}", "the checkpoint")
    protocol = read_protocol(data / "protocols" / protocol_name)
    if not protocol.valid_trials:
        raise UserError(f"protocol {protocol_name} in {data} has no validation trials")
    training = store.listed(protocol.train, "training")

    def embed(places: list[int]) -> NDArray[np.float32]:
        return recognizer.embed_durations([training[place] for place in places], store.mel, [None], desc="cohort")[0]

    cohort = cohort_of([store.rows[item].speaker for item in training], embed) or recognizer.scoring.cohort
    paths = {path for trial in protocol.valid_trials for path in (trial.a, trial.b)}
    items = [item for item, row in enumerate(store.rows) if row.path in paths]
    rows = [store.rows[item] for item in items]
    speakers, lengths = [row.speaker for row in rows], [row.seconds for row in rows]
    cuts = useful_cuts(lengths)
    *cut, whole = recognizer.embed_durations(items, store.mel, [*cuts, None], desc="validation")
    scoring = Scoring.fit(cohort, Validation.of(dict(zip(cuts, cut, strict=True)), whole, speakers, lengths))
    if scoring.calibration is None:
        raise UserError(
            f"the validation trials in {data} are not of {MIN_SPEAKERS} speakers with two recordings of like length"
        )
    if set(speakers).intersection(recognizer.speakers):
        print(f"warning: {TOO_OPTIMISTIC}", file=sys.stderr)
    place = {row.path: number for number, row in enumerate(rows)}
    trials = [(trial.target, place[trial.a], place[trial.b]) for trial in protocol.valid_trials]
    rate, threshold = eer(*scoring.of_trials(whole, trials))
    return {**scoring.to_tensors(), "metrics": {"valid_eer": rate, "valid_threshold": threshold}}
