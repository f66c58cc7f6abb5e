"""From mean durations to integers, and from tokens to their frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.padding import length_mask


def round_durations(mean: Tensor, lengths: Tensor) -> Tensor:
    """Whole frames (b, n) int64, at least 1 a token, 0 on padding, whose running sums follow those of `mean` (b, n).

    Rounding the running sum keeps the total within half a frame; errors of single roundings would add up.
    """
    valid = length_mask(lengths, mean.shape[1])
    ends = mean.double().clamp(min=1.0).masked_fill(~valid, 0.0).cumsum(1).add(0.5).floor().long()
    return torch.diff(ends, dim=1, prepend=ends.new_zeros(len(ends), 1)).masked_fill(~valid, 0)


def at_pace(mean: Tensor, pace: float) -> Tensor:
    """Mean durations (b, n) whose total is that of `mean` divided by `pace`, and of at least one frame each.

    No token can be shorter than a frame, so longer ones shrink more: bisection finds the factor that they share.
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


class Positions(NamedTuple):
    """Places of frames in the text: (b, frames) int64 each."""

    token: Tensor
    place: Tensor  # inside the token, from 0
    length: Tensor  # frames of the token

    def of(self, values: Tensor) -> Tensor:
        """Repeats values of tokens over their frames: (b, n) or (b, n, d) -> (b, frames) or (b, frames, d)."""
        if values.dim() == 2:
            return values.gather(1, self.token)
        return values.gather(1, self.token.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def positions(durations: Tensor, start: int, frames: int) -> Positions:
    """Places of `frames` frames from frame `start` on, for tokens of the given durations (b, n).

    Frames after the end belong to the last token whose duration is not 0.
    """
    ends = durations.cumsum(1)
    frame = torch.arange(start, start + frames, device=durations.device).expand(len(durations), -1).contiguous()
    last = (durations > 0).sum(1, keepdim=True) - 1
    token = torch.searchsorted(ends, frame, right=True).minimum(last)
    length = durations.gather(1, token)
    return Positions(token, frame - ends.gather(1, token) + length, length)
