"""Batches of sequences with right padding: which frames are valid, and operations on these alone."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lengths: Tensor, length: int) -> Tensor:
    """Marks the valid frames: (b,) -> (b, length)."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


def reverse_by_length(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the valid part of each sequence, not its right padding: x (b, l, d), lengths (b,) -> (b, l, d)."""
    position = torch.arange(x.shape[1], device=x.device)
    mirrored = lengths.unsqueeze(1) - 1 - position  # (b, l), negative on padding
    index = torch.where(mirrored >= 0, mirrored, position)
    return torch.gather(x, 1, index.unsqueeze(-1).expand_as(x))


def without_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Subtracts the mean of each sequence from its frames: x (b, t, m), lengths (b,) -> (b, t, m), 0 on padding."""
    mask = length_mask(lengths, x.shape[1]).unsqueeze(-1)
    return (x - (x * mask).sum(1, keepdim=True) / lengths[:, None, None]) * mask
