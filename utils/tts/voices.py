"""Voices of text to mel: the model's input is nothing, a speaker's number, or an embedding by a speaker recognizer."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.files import write_bytes
from utils.speaker.recognizer import SpeakerRecognizer
from utils.training.options import TrainingOptions

# The entries of a speaker checkpoint that a checkpoint of text to mel holds, to embed reference recordings with.
KEPT = (
    *("model_config", "recipe", "recipe_hash", "speakers", "speeds", "metrics", "step", "training_list"),
    *("model", "back_end"),
)


def store_embeddings(store: FeatureStore, recognizer: SpeakerRecognizer) -> np.ndarray:
    """Unit-normalized embeddings (len(store), e) of all recordings of a store, computed from its raw audio.

    They are kept in the store's folder under the recognizer's hash, because embedding a corpus takes long.
    """
    path = store.directory / "speaker_embeddings" / f"{recognizer.model_hash}.safetensors"
    names = [row.utterance for row in store.rows]
    if path.exists():
        try:
            known = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: delete it, and it is computed again") from error
        if set(names) <= set(known):
            return np.stack([known[name] for name in names])
    raw = Path(store.meta["raw"])
    if not (raw / store.rows[0].path).is_file():
        raise UserError(f"speaker embeddings need the recordings, and {raw / store.rows[0].path} is missing")
    embeddings = recognizer.embed_files([raw / row.path for row in store.rows], desc="voices")
    write_bytes(path, save(dict(zip(names, embeddings, strict=True))))
    return embeddings


class Voices:
    """The model's input for the voice of each utterance, by `--voice`.

    `embeddings` (len(store), e) are of single recordings. Training embeds another recording of the speaker than the one
    to speak, because synthesis from a reference recording does so too.
    """

    def __init__(
        self, store: FeatureStore, items: list[int], kind: str, speaker_encoder: Path | None, training: TrainingOptions
    ) -> None:
        self.kind, self.seed = kind, training.seed
        self.of_item = [row.speaker for row in store.rows]
        self.speakers = sorted({self.of_item[item] for item in items})
        if self.kind == "none" and len(self.speakers) > 1:
            raise UserError(f"the training list has {len(self.speakers)} speakers: give --voice table or embedding")
        self.recognizer = self.embeddings = None
        self.recordings: dict[str, list[int]] = defaultdict(list)
        if self.kind == "embedding":
            recognizer = SpeakerRecognizer.load(speaker_encoder, "cpu", training.backend)
            checkpoint = load_checkpoint(speaker_encoder)
            self.recognizer = {name: checkpoint[name] for name in KEPT if name in checkpoint}
            self.hash = recognizer.model_hash
            self.embeddings = store_embeddings(store, recognizer)
            for item in items:
                self.recordings[self.of_item[item]].append(item)

    @property
    def dim(self) -> int:
        """Size of an embedding; 0 without embeddings."""
        return 0 if self.embeddings is None else self.embeddings.shape[1]

    def means(self) -> Tensor | None:
        """The training speakers' enrollments: unit-normalized means (n_speakers, e)."""
        if self.embeddings is None:
            return None
        means = torch.stack([torch.from_numpy(self._mean(speaker)) for speaker in self.speakers])
        return torch.nn.functional.normalize(means, dim=-1)

    def _mean(self, speaker: str) -> np.ndarray:
        return self.embeddings[self.recordings[speaker]].mean(0)

    def at(self, item: int, place: int | None) -> Any:
        """The model's input for an utterance: None, an id, or an embedding (e,); without a place the speaker's mean."""
        speaker = self.of_item[item]
        if self.kind == "none":
            return None
        if self.kind == "table":
            return self.speakers.index(speaker)
        if place is None:
            return self._mean(speaker)
        others = [other for other in self.recordings[speaker] if other != item] or [item]
        return self.embeddings[others[np.random.default_rng([self.seed, 5, place]).integers(len(others))]]
