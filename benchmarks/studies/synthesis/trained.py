"""Models of text to mel that were trained on the features that they are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.features.recipe import require_same
from utils.features.store import FeatureStore
from utils.lists import training_list_hash
from utils.tts.synthesizer import Synthesizer


def load_trained(
    path: Path, store: FeatureStore, training: Sequence[str], device: str = "cpu", backend: str = "auto"
) -> Synthesizer:
    """A model of one voice; `UserError` for one of another recipe, other symbols, another list or several voices."""
    synthesizer = Synthesizer.load(path, device, backend)
    require_same(store.recipe, synthesizer.recipe, f"the features in {store.directory}", str(path))
    if synthesizer.front_end.vocabulary != store.vocabulary:
        raise UserError(f"{path} was trained on other symbols than those in {store.directory}")
    if synthesizer.training_list != training_list_hash(training):
        raise UserError(
            f"{path} was trained on another list of utterances than that of --protocol in {store.directory}"
        )
    if synthesizer.config.voice != "none":
        raise UserError(f"{path} is a model of several voices, and this measures models of one")
    return synthesizer
