"""The x-vector baseline (Snyder et al. 2018, "X-vectors: robust DNN embeddings for speaker recognition", table 1)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.norm import BatchNorm
from models.padding import length_mask
from models.speaker.config import ENCODERS, SpeakerConfig
from models.speaker.pooling import StatisticsPooling

LAYERS = ((512, 5, 1), (512, 3, 2), (512, 3, 3), (512, 1, 1), (1500, 1, 1))


class TDNNLayer(nn.Module):
    """Dilated convolution over time, ReLU, batch norm: (b, l, d), lengths (b,) -> (b, l, c), zeros on padding."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        self.norm = BatchNorm(out_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.norm(F.relu(rearrange(self.conv(rearrange(x, "b l d -> b d l")), "b c l -> b l c")))
        return y * length_mask(lengths, y.shape[1]).unsqueeze(-1)


@ENCODERS.register("xvector")
class XVector(nn.Module):
    """Five TDNN layers, statistics pooling, and the affine layer segment6: (b, l, n_mels) -> (b, embedding_dim).

    Log-mels replace the paper's 24 MFCCs, and the loss that all models here share replaces its segment7 and softmax.
    """

    takes_padding = False  # in training: batch norm would count it

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        if config.causal:
            raise ValueError("xvector has no causal form, but tacomamba has one")
        self.layers = nn.ModuleList()
        width = config.n_mels
        for out_dim, kernel, dilation in LAYERS:
            self.layers.append(TDNNLayer(width, out_dim, kernel, dilation))
            width = out_dim
        self.pooling = StatisticsPooling(width)
        self.embedding = nn.Linear(self.pooling.out_dim, config.embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, lengths)
        return self.embedding(self.pooling(x, lengths))
