"""The ECAPA-TDNN baseline (Desplanques et al. 2020), written from the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.norm import BatchNorm
from models.speaker.config import ENCODERS, SpeakerConfig
from models.speaker.pooling import AttentiveStatisticsPooling
from models.speaker.xvector import TDNNLayer

RES2_SCALE = 8
DILATIONS = (2, 3, 4)
POOLED_CHANNELS, BOTTLENECK = 1536, 128


class SqueezeExcitation(nn.Module):
    """Rescales channels by a gate from their mean over the valid frames (section 3.2, equations 4 and 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, BOTTLENECK)
        self.up = nn.Linear(BOTTLENECK, channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mean = x.sum(1) / lengths.unsqueeze(1).to(x.dtype)  # padding holds zeros
        return x * torch.sigmoid(self.up(F.relu(self.down(mean)))).unsqueeze(1)


class Res2Layer(nn.Module):
    """Hierarchical convolutions over eight groups of channels, each with the last output added (Gao et al. 2019)."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        width = channels // RES2_SCALE
        self.layers = nn.ModuleList(TDNNLayer(width, width, kernel, dilation) for _ in range(RES2_SCALE - 1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        first, *groups = x.chunk(RES2_SCALE, dim=-1)
        outputs = [first]
        for position, (layer, group) in enumerate(zip(self.layers, groups, strict=True)):
            outputs.append(layer(group if position == 0 else group + outputs[-1], lengths))
        return torch.cat(outputs, dim=-1)


class SERes2Block(nn.Module):
    """Pointwise TDNN, Res2 dilated convolution, pointwise TDNN, squeeze-excitation, skip connection (figure 1)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.enter = TDNNLayer(channels, channels, 1, 1)
        self.res2 = Res2Layer(channels, 3, dilation)
        self.leave = TDNNLayer(channels, channels, 1, 1)
        self.excitation = SqueezeExcitation(channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.leave(self.res2(self.enter(x, lengths), lengths), lengths)
        return x + self.excitation(y, lengths)


@ENCODERS.register("ecapa")
class ECAPA(nn.Module):
    """ECAPA-TDNN (figure 2): (b, l, n_mels), lengths (b,) -> (b, embedding_dim).

    Blocks read the sum of all earlier outputs (section 3.3), the last 1x1 layer reads their concatenation.
    """

    takes_padding = False  # in training: batch norm would count it

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        channels = config.channels
        if config.causal:
            raise ValueError("ecapa has no causal form, but tacomamba has one")
        if channels % RES2_SCALE:
            raise ValueError(f"channels {channels} must be a multiple of {RES2_SCALE}")
        self.enter = TDNNLayer(config.n_mels, channels, 5, 1)
        self.blocks = nn.ModuleList(SERes2Block(channels, dilation) for dilation in DILATIONS)
        self.aggregate = nn.Linear(len(DILATIONS) * channels, POOLED_CHANNELS)
        self.pooling = AttentiveStatisticsPooling(POOLED_CHANNELS, global_context=True)
        self.pooled_norm = BatchNorm(self.pooling.out_dim)
        self.embedding = nn.Linear(self.pooling.out_dim, config.embedding_dim)
        self.embedding_norm = BatchNorm(config.embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = total = self.enter(x, lengths)
        outputs = []
        for block in self.blocks:
            x = block(total, lengths)
            total = total + x
            outputs.append(x)
        x = F.relu(self.aggregate(torch.cat(outputs, dim=-1)))
        return self.embedding_norm(self.embedding(self.pooled_norm(self.pooling(x, lengths))))
