"""A speaker's voice as a vector that is added to hidden sequences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("table", "embedding")


class SpeakerCondition(nn.Module):
    """Speaker ids (B,) of a table, or given embeddings (B, E) of any length -> (B, d_model).

    Embeddings are scaled to length 1 first, so that it does not matter whether they are means or single ones.
    """

    def __init__(self, kind: str, n_speakers: int, speaker_dim: int, d_model: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown kind of speaker condition: {kind!r}")
        self.kind = kind
        self.table = nn.Embedding(n_speakers, d_model) if kind == "table" else None
        self.projection = nn.Linear(speaker_dim, d_model) if kind == "embedding" else None

    def forward(self, speaker: Tensor) -> Tensor:
        if self.table is not None:
            return self.table(speaker)
        return self.projection(F.normalize(speaker, dim=-1))


def build_condition(config: dict, d_model: int) -> SpeakerCondition | None:
    """The condition that a configuration asks for; None for a model of one voice."""
    if config["speaker"] == "none":
        return None
    return SpeakerCondition(config["speaker"], config["n_speakers"], config["speaker_dim"], d_model)
