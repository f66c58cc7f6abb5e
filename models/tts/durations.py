"""How many frames each token lasts: prediction, rounding, and the way from tokens to frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.mamba import length_mask
from models.tts.condition import build_condition
from models.tts.convolution import ResidualConvs

MOST_DROPOUT = 0.1  # more of it in front of an exponential would bias the mean
LONGEST_TOKEN = 256  # frames; a token that lasts longer is a mistake, whatever was predicted


class DurationPredictor(nn.Module):
    """Mean frames of each token, as their logarithm: hidden (B, N, D), lengths (B,) -> (B, N).

    The gradient stops at `hidden`: durations are a sum over the alignment and would bend the encoder towards it.
    """

    def __init__(self, config: dict, n_layers: int = 2, kernel: int = 3) -> None:
        super().__init__()
        d_model = config["d_model"]
        self.condition = build_condition(config, d_model)
        dropout = min(config["dropout"], MOST_DROPOUT)
        self.convs = ResidualConvs(d_model, n_layers, kernel, causal=False, dropout=dropout)
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.output = nn.Linear(d_model, 1)

    def forward(self, hidden: Tensor, lengths: Tensor, speaker: Tensor | None) -> Tensor:
        x = hidden.detach()
        if self.condition is not None:
            x = x + self.condition(speaker).unsqueeze(1)
        x = self.norm(self.convs(x, lengths))
        log_mean = self.output(x).squeeze(-1)
        return log_mean.to(torch.promote_types(log_mean.dtype, torch.float32)).clamp(max=math.log(LONGEST_TOKEN))


def duration_loss(log_mean: Tensor, durations: Tensor, lengths: Tensor) -> Tensor:
    """Poisson deviance / 2 of durations (B, N) under predicted means, summed over valid tokens: a scalar.

    With the logarithm as link and a bias in the last layer its optimum predicts totals without bias: the derivative
    with respect to the bias is the difference of the totals (McCullagh and Nelder 1989, section 2.2.4). The squared
    error of logarithms finds the geometric mean instead, which is 10 to 15 % short for speech.
    """
    target = durations.to(log_mean.dtype)
    valid = length_mask(lengths, log_mean.shape[1])
    deviance = torch.special.xlogy(target, target) - target * log_mean - target + log_mean.exp()
    return deviance.masked_fill(~valid, 0.0).sum()


def round_durations(mean: Tensor, lengths: Tensor) -> Tensor:
    """Whole frames (B, N) int64, at least 1 a token, 0 on padding, whose running sums follow those of `mean` (B, N).

    Rounding the running sum keeps the total within half a frame; rounding each token would add up errors.
    """
    valid = length_mask(lengths, mean.shape[1])
    ends = mean.double().clamp(min=1.0).masked_fill(~valid, 0.0).cumsum(1).add(0.5).floor().long()
    return torch.diff(ends, dim=1, prepend=ends.new_zeros(len(ends), 1)).masked_fill(~valid, 0)


def at_pace(mean: Tensor, pace: float) -> Tensor:
    """Means (B, N) of at least a frame whose total is that of `mean` over `pace`, or a frame a token if that is more.

    A token cannot be shorter than a frame, so the longer ones give more: their common factor is found by bisection.
    """
    mean = mean.clamp(min=1.0)
    if pace == 1.0:
        return mean
    wanted = mean.sum(1, keepdim=True) / pace
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 1 / pace)
    for _ in range(40):
        middle = (low + high) / 2
        is_short = (mean * middle).clamp(min=1.0).sum(1, keepdim=True) < wanted
        low, high = torch.where(is_short, middle, low), torch.where(is_short, high, middle)
    return (mean * high).clamp(min=1.0)


def positions(durations: Tensor, start: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token, place inside it and its duration for the frames from `start` on: durations (B, N) -> three (B, frames).

    Frames beyond the last token that has any belong to it.
    """
    ends = durations.cumsum(1)
    frame = torch.arange(start, start + frames, device=durations.device).expand(len(durations), -1).contiguous()
    last = (durations > 0).sum(1, keepdim=True) - 1
    token = torch.searchsorted(ends, frame, right=True).minimum(last)
    length = durations.gather(1, token)
    return token, frame - ends.gather(1, token) + length, length
