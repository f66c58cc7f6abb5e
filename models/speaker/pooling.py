"""Pooling over time that respects lengths: (b, l, dim), lengths (b,) -> (b, out_dim)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.mamba import length_mask
from models.speaker.config import POOLINGS

VARIANCE_FLOOR = 1e-5


def weighted_statistics(x: Tensor, weights: Tensor) -> Tensor:
    """Concatenated weighted mean and standard deviation; x and weights (b, l, d), weights summing to 1 over l."""
    mean = (weights * x).sum(1)
    variance = (weights * (x - mean.unsqueeze(1)).square()).sum(1)
    return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=-1)


@POOLINGS.register("statistics")
class StatisticsPooling(nn.Module):
    """Mean and standard deviation over the valid frames (Snyder et al. 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = 2 * dim

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = length_mask(lengths, x.shape[1]).unsqueeze(-1)
        return weighted_statistics(x.float(), mask / lengths[:, None, None].float())


@POOLINGS.register("attentive")
class AttentiveStatisticsPooling(nn.Module):
    """Channel-wise attentive statistics (Okabe et al. 2018, equations 2 to 6, one attention weight per channel).

    With `global_context` the attention also reads the utterance's mean and deviation (Desplanques et al. 2020,
    section 3.1); without it each frame's score depends on that frame alone, so that a stream can be pooled.
    """

    def __init__(self, dim: int, bottleneck: int = 128, global_context: bool = False) -> None:
        super().__init__()
        self.out_dim = 2 * dim
        self.context = StatisticsPooling(dim) if global_context else None
        self.hidden = nn.Linear(3 * dim if global_context else dim, bottleneck)
        self.score = nn.Linear(bottleneck, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        inputs = x
        if self.context is not None:
            statistics = self.context(x, lengths).to(x.dtype)
            inputs = torch.cat([x, statistics.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=-1)
        scores = self.score(torch.tanh(self.hidden(inputs))).float()
        mask = length_mask(lengths, x.shape[1]).unsqueeze(-1)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
        return weighted_statistics(x.float(), weights)
