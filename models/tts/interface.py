"""What every text-to-mel model returns: T frames, N tokens, mels as natural logarithms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.tts.pitch import Pitch


@dataclass(frozen=True)
class Comparison:
    """A model's mel of texts whose true mels set its lengths, and what it found in them."""

    mel: Tensor  # (b, t, n_mels), of no meaning beyond an utterance's length
    durations: Tensor  # (b, n) int64, frames of each token; an utterance's durations add up to its length
    heard: Pitch | None = None  # that of the true mels, for models with pitch
    predicted: Pitch | None = None  # that which the texts let expect


@dataclass(frozen=True)
class Synthesis:
    """Speech for one text."""

    mel: Tensor  # (t, n_mels)
    durations: Tensor  # (n,) int64, frames of each token, adding up to T
    alignment: Tensor  # (t, n), the share that each token has in each frame
    truncated: bool  # stopped at the limit on its length, not at its own end
