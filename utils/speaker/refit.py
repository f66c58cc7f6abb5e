"""Thresholds and calibration of a trained recognizer, fitted to validation speakers anew, without training."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from utils.errors import UserError
from utils.features.recipe import require_same
from utils.features.store import FeatureStore
from utils.speaker.calibration import Calibration
from utils.speaker.operating import MIN_SPEAKERS, OperatingPoints, useful_cuts
from utils.speaker.protocol import read_protocol
from utils.speaker.recognizer import SpeakerRecognizer


def refit(recognizer: SpeakerRecognizer, data: Path, protocol_name: str) -> dict[str, dict[str, Tensor]]:
    """Operating points and calibration, as in a checkpoint, from all recordings of a protocol's validation trials.

    Validation in training draws at most `--valid-utterances` of them, and is otherwise the same. `UserError` for
    features of another recipe, and for too few speakers.
    """
    store = FeatureStore.open(data)
    require_same(store.recipe, recognizer.recipe, f"the features in {data}", "the checkpoint")
    protocol = read_protocol(data / "protocols" / protocol_name)
    if not protocol.valid_trials:
        raise UserError(f"protocol {protocol_name} in {data} has no validation trials")
    paths = {path for trial in protocol.valid_trials for path in (trial.a, trial.b)}
    items = [item for item, row in enumerate(store.rows) if row.path in paths]
    speakers, lengths = [store.rows[item].speaker for item in items], [store.rows[item].seconds for item in items]
    cuts = useful_cuts(lengths)
    *cut, whole = recognizer.embed_durations(items, store.mel, [*cuts, None], desc="validation")
    recordings = dict(zip(cuts, cut, strict=True)), whole, speakers, lengths
    points, calibration = OperatingPoints.fit(*recordings), Calibration.fit(*recordings)
    if calibration is None:
        raise UserError(
            f"the validation trials in {data} are not of {MIN_SPEAKERS} speakers with two recordings of like length"
        )
    return {"operating_points": points.to_tensors(), "calibration": calibration.to_tensors()}
