"""The trivial encoder that others must beat: statistics of the mels and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from models.norm import BatchNorm
from models.speaker.config import ENCODERS, SpeakerConfig
from models.speaker.pooling import StatisticsPooling


@ENCODERS.register("statistics")
class StatisticsEncoder(nn.Module):
    """Mean and deviation of each mel channel, batch norm, linear: (b, t, n_mels) -> (b, embedding_dim)."""

    takes_padding = True

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.pooling = StatisticsPooling(config.n_mels)
        self.norm = BatchNorm(self.pooling.out_dim)
        self.embedding = nn.Linear(self.pooling.out_dim, config.embedding_dim)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        return self.embedding(self.norm(self.pooling(mel, lengths)))
