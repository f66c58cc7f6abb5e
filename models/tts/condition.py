"""A speaker's voice as a vector that is added to hidden sequences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.tts.config import TextToMelConfig


class SpeakerCondition(nn.Module):
    """Adds the voice to a sequence: x (b, l, d_model), speaker -> (b, l, d_model).

    Speakers are ids (b,) of a table, or embeddings (b, e), which are scaled to length 1 so that means of several and
    single ones count alike. A model of one voice has no parameters here, and x stays as it is.
    """

    def __init__(self, config: TextToMelConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.n_speakers, config.d_model) if config.voice == "table" else None
        self.projection = nn.Linear(config.speaker_dim, config.d_model) if config.voice == "embedding" else None

    def forward(self, x: Tensor, speaker: Tensor | None) -> Tensor:
        if self.table is not None:
            return x + self.table(speaker).unsqueeze(1)
        if self.projection is not None:
            return x + self.projection(F.normalize(speaker, dim=-1)).unsqueeze(1)
        return x
