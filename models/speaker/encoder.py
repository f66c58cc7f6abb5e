"""The TacoMamba speaker encoder."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.norm import BatchNorm
from models.speaker.config import ENCODERS, POOLINGS, SpeakerConfig
from models.stack import MixerStack


class Subsampling(nn.Module):
    """Causal strided convolution, GELU: (b, t, n_mels), lengths (b,) -> (b, ceil(t / factor), d), lengths.

    Output frame i sees input frames up to `factor` i + `factor` - 1, so that a stream can be processed in groups of
    `factor` frames.
    """

    def __init__(self, n_mels: int, d_model: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.kernel = 2 * factor + 1
        self.conv = nn.Conv1d(n_mels, d_model, self.kernel, stride=factor)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        missing = -x.shape[1] % self.factor
        x = F.pad(rearrange(x, "b t m -> b m t"), (self.kernel - self.factor, missing))
        return rearrange(F.gelu(self.conv(x)), "b d l -> b l d"), (lengths + self.factor - 1) // self.factor


@ENCODERS.register("tacomamba")
class TacoMambaEncoder(nn.Module):
    """Subsampling, mixer stack, attentive statistics pooling, embedding: (b, t, n_mels) -> (b, embedding_dim)."""

    takes_padding = True

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.subsampling = Subsampling(config.n_mels, config.d_model, config.subsampling)
        self.stack = MixerStack(config, config.causal)
        self.expand = nn.Linear(config.d_model, config.pooled_channels)
        self.pooling = POOLINGS[config.pooling](config.pooled_channels)
        self.pooled_norm = BatchNorm(self.pooling.out_dim)
        self.embedding = nn.Linear(self.pooling.out_dim, config.embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x, lengths = self.subsampling(x, lengths)
        x = F.gelu(self.expand(self.stack(x, lengths)))
        return self.embedding(self.pooled_norm(self.pooling(x, lengths)))
