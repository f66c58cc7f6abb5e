"""The TacoMamba speaker encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.norm import BatchNorm
from models.speaker.config import ENCODERS, POOLINGS, SpeakerConfig
from models.speaker.pooling import StatisticsPooling
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
    """Subsampling, mixer stack, pooling, embedding: (b, t, n_mels) -> (b, embedding_dim).

    With `all_layers` the input of the stack and the outputs of all blocks are pooled together (multi-layer feature
    aggregation, Desplanques et al. 2020, section 3.3); with `mel_statistics` the spectrum's mean and deviation reach
    the embedding directly, so that depth need not carry them.
    """

    takes_padding = True

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.subsampling = Subsampling(config.n_mels, config.d_model, config.subsampling)
        self.stack = MixerStack(config, config.causal)
        self.all_layers = config.all_layers
        self.expand = nn.Linear(
            config.d_model * (config.n_layers + 1 if config.all_layers else 1), config.pooled_channels
        )
        self.pooling = POOLINGS[config.pooling](config.pooled_channels)
        self.mel_statistics = StatisticsPooling(config.n_mels) if config.mel_statistics else None
        pooled = self.pooling.out_dim + (self.mel_statistics.out_dim if config.mel_statistics else 0)
        self.pooled_norm = BatchNorm(pooled)
        self.embedding = nn.Linear(pooled, config.embedding_dim)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        x, reduced = self.subsampling(mel, lengths)
        outputs = self.stack.all_outputs(x, reduced)
        x = torch.cat(outputs, dim=-1) if self.all_layers else outputs[-1]
        pooled = [self.pooling(F.gelu(self.expand(x)), reduced)]
        if self.mel_statistics is not None:
            pooled.append(self.mel_statistics(mel, lengths))
        return self.embedding(self.pooled_norm(torch.cat(pooled, dim=-1)))
