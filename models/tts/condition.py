"""A speaker's voice as a vector that is added to hidden sequences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.tts.config import TextToMelConfig


class SpeakerCondition(nn.Module):
    """Speaker ids (b,) of a table, or given embeddings (b, e) of any length -> (b, d_model).

    Embeddings are scaled to length 1 first, so that it does not matter whether they are means or single ones.
    """

    def __init__(self, config: TextToMelConfig) -> None:
        super().__init__()
        is_table = config.voice == "table"
        self.table = nn.Embedding(config.n_speakers, config.d_model) if is_table else None
        self.projection = None if is_table else nn.Linear(config.speaker_dim, config.d_model)

    def forward(self, speaker: Tensor) -> Tensor:
        if self.table is not None:
            return self.table(speaker)
        return self.projection(F.normalize(speaker, dim=-1))


def build_condition(config: TextToMelConfig) -> SpeakerCondition | None:
    """The condition that a configuration asks for; None for a model of one voice."""
    return None if config.voice == "none" else SpeakerCondition(config)
