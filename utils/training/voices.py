"""Speaker embeddings of a feature store's recordings, by our own recogniser, for text to mel in many voices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from utils.cli import UserError
from utils.evaluation.recognizer import SpeakerRecognizer
from utils.features.store import FeatureStore
from utils.files import atomic_write

# What of a recogniser's checkpoint goes into a checkpoint of text to mel, so that it can hear a reference recording.
KEPT = ("model_config", "recipe", "recipe_hash", "speakers", "metrics", "step", "training_list", "model")


def kept_recognizer(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The part of a speaker checkpoint that is needed to embed recordings."""
    return {name: checkpoint[name] for name in KEPT}


def store_embeddings(store: FeatureStore, recognizer: SpeakerRecognizer) -> np.ndarray:
    """Embeddings (len(store), E) float32 of length 1 of all recordings of a store, read from its raw audio.

    Kept in the store's folder under the recogniser's hash, because listening to a corpus takes long.
    """
    path = store.directory / "speaker_embeddings" / f"{recognizer.model_hash}.safetensors"
    names = [row.utterance for row in store.rows]
    if path.exists():
        try:
            known = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: delete it, and it is made anew") from error
        if set(names) <= set(known):
            return np.stack([known[name] for name in names])
    raw = Path(store.meta["raw"])
    if not (raw / store.rows[0].path).is_file():
        raise UserError(f"speaker embeddings are made from the recordings, and {raw / store.rows[0].path} is not there")
    embeddings = recognizer.embed_files([raw / row.path for row in store.rows], desc="voices")
    with atomic_write(path) as file:
        file.write(save(dict(zip(names, embeddings, strict=True))))
    return embeddings
