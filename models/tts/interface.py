"""Results of every text-to-mel model: t frames, n tokens, mels as natural logarithms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.tts.pitch import Pitch


@dataclass(frozen=True)
class Comparison:
    """Mels that a model predicts with the lengths of the true ones, and what it estimates from those."""

    mel: Tensor  # (b, t, n_mels), meaningless beyond an utterance's length
    durations: Tensor  # (b, n) int64, frames of each token; an utterance's durations add up to its length
    pitch: Pitch | None = None  # of the true mels, for models with pitch
    predicted_pitch: Pitch | None = None  # from the texts


@dataclass(frozen=True)
class Synthesis:
    """Speech for one text."""

    mel: Tensor  # (t, n_mels)
    durations: Tensor  # (n,) int64, frames of each token, adding up to T
    alignment: Tensor  # (t, n), the share of each token in each frame
    truncated: bool  # cut off at the limit on its length
