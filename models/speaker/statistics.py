"""The trivial encoder that others must beat: statistics of the mels and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from models.norm import BatchNorm
from models.speaker.config import ENCODERS, SpeakerConfig
from models.speaker.pooling import Moments, StatisticsPooling


@ENCODERS.register("statistics")
class StatisticsEncoder(nn.Module):
    """Mean and deviation of each mel channel, batch norm, linear: (b, t, n_mels) -> (b, embedding_dim)."""

    takes_padding = True
    can_stream = True

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.pooling = StatisticsPooling(config.n_mels)
        self.norm = BatchNorm(self.pooling.out_dim)
        self.embedding = nn.Linear(self.pooling.out_dim, config.embedding_dim)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        return self._embed(self.pooling(mel, lengths))

    def _embed(self, pooled: Tensor) -> Tensor:
        return self.embedding(self.norm(pooled))

    def initial_state(self, batch: int) -> Moments:
        """The state before the first frame of a stream; this and the next as in `TacoMambaEncoder`."""
        return Moments.none(batch, self.pooling.dim, self.embedding.weight.device)

    def step(self, mel: Tensor, state: Moments) -> Moments:
        return self.pooling.step(mel, state)

    def embedding_of(self, state: Moments) -> Tensor:
        return self._embed(state.pooled())
