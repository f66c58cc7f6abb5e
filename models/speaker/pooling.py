"""Pooling over time that respects lengths: (b, l, dim), lengths (b,) -> (b, out_dim).

A pooling layer with `step` also pools a stream: it adds the next frames to the `Moments` of those before.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.engine.reference import state_dtype
from models.padding import length_mask
from models.speaker.config import POOLINGS

VARIANCE_FLOOR = 1e-5


def widest(device: torch.device) -> torch.dtype:
    """float64, which sums over hours need; float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(x: Tensor) -> Tensor:
    """At least float32, which sums over time need."""
    return x.to(state_dtype(x.dtype))


def weighted_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance, (b, d) each; x and weights (b, l, d), weights summing to 1 over l."""
    mean = (weights * x).sum(1)
    return mean, (weights * (x - mean.unsqueeze(1)).square()).sum(1)


def joined(mean: Tensor, variance: Tensor) -> Tensor:
    """Concatenated mean and standard deviation: (b, d) each -> (b, 2 d)."""
    return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=-1)


class Moments(NamedTuple):
    """What pooling keeps of the frames of a stream, (b, d) each, in the widest floats."""

    log_weight: Tensor  # log of the sum of the frames' weights; -inf of no frame
    mean: Tensor
    variance: Tensor

    @classmethod
    def none(cls, batch: int, dim: int, device: torch.device) -> Moments:
        """The state before the first frame."""
        zeros = torch.zeros(batch, dim, dtype=widest(device), device=device)
        return cls(zeros - torch.inf, zeros, zeros)

    @classmethod
    def of(cls, x: Tensor, log_weight: Tensor, weights: Tensor) -> Moments:
        """Those of frames x (b, l, d) whose weights (b, l, d) sum to 1 over l, and to exp(log_weight) before."""
        mean, variance = weighted_moments(_wide(x), weights)
        wide = widest(x.device)
        return cls(log_weight.to(wide).expand_as(mean), mean.to(wide), variance.to(wide))

    def merge(self, later: Moments) -> Moments:
        """Those of the frames of both, `later` having some (Chan, Golub and LeVeque 1983, equation 2.1)."""
        log_weight = torch.logaddexp(self.log_weight, later.log_weight)
        share = (later.log_weight - log_weight).exp()
        apart = later.mean - self.mean
        variance = torch.lerp(self.variance, later.variance, share) + share * (1 - share) * apart.square()
        return Moments(log_weight, self.mean + share * apart, variance)

    def pooled(self) -> Tensor:
        """What pooling gives for these frames: (b, 2 d) float32."""
        return joined(self.mean, self.variance).float()


@POOLINGS.register("statistics")
class StatisticsPooling(nn.Module):
    """Mean and standard deviation over the valid frames (Snyder et al. 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.out_dim = dim, 2 * dim

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = length_mask(lengths, x.shape[1]).unsqueeze(-1)
        x = _wide(x)
        return joined(*weighted_moments(x, mask / lengths[:, None, None].to(x.dtype)))

    def step(self, x: Tensor, state: Moments) -> Moments:
        """Adds the next frames of a stream, (b, l, d)."""
        frames = x.shape[1]
        weights = x.new_full((1, frames, 1), 1 / frames, dtype=torch.float32)
        return state.merge(Moments.of(x, weights.new_full((1, 1), math.log(frames)), weights))


@POOLINGS.register("attentive")
class AttentiveStatisticsPooling(nn.Module):
    """Channel-wise attentive statistics (Okabe et al. 2018, equations 2 to 6, one attention weight per channel).

    With `global_context` the attention also reads the utterance's mean and deviation (Desplanques et al. 2020,
    section 3.1); without it each frame's score depends on that frame alone, so that a stream can be pooled.
    """

    def __init__(self, dim: int, bottleneck: int = 128, global_context: bool = False) -> None:
        super().__init__()
        self.dim, self.out_dim = dim, 2 * dim
        self.context = StatisticsPooling(dim) if global_context else None
        self.hidden = nn.Linear(3 * dim if global_context else dim, bottleneck)
        self.score = nn.Linear(bottleneck, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        inputs = x
        if self.context is not None:
            statistics = self.context(x, lengths).to(x.dtype)
            inputs = torch.cat([x, statistics.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=-1)
        mask = length_mask(lengths, x.shape[1]).unsqueeze(-1)
        weights = self._scores(inputs).masked_fill(~mask, -torch.inf).softmax(dim=1)
        return joined(*weighted_moments(_wide(x), weights))

    def step(self, x: Tensor, state: Moments) -> Moments:
        """Adds the next frames of a stream, (b, l, d); without global context."""
        scores = self._scores(x)
        return state.merge(Moments.of(x, scores.logsumexp(1), scores.softmax(1)))

    def _scores(self, x: Tensor) -> Tensor:
        return _wide(self.score(torch.tanh(self.hidden(x))))
