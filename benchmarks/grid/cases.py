"""Inputs of the scans on which errors are measured: the usual ones, and those that caught other implementations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scan_inputs(mixer: str, case: str, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `models.engine.selective_scan` ("mamba") or `ssd` ("mamba2") in float32, small but for the length.

    usual: A = -1 to -N, dt log-uniform in 1e-3 to 0.1, as at initialization. hard: dt up to 1. gaps: usual, dt = 0 in
    stretches. slow: dt = 1e-3, A = -1e-2. slow-random: the same with dt uniform in 0 to 2e-3.
    """
    draw = torch.Generator().manual_seed(seed)
    batch, channels, d_state = 2, 8, 16
    heads, groups = (4, 2) if mixer == "mamba2" else (channels, None)
    dt = _steps(case, (batch, length, heads), draw)
    A = -torch.arange(1.0, 17.0)
    if case in ("slow", "slow-random"):
        A = torch.full((16,), -1e-2)
    if mixer == "mamba":
        shapes = {"u": (batch, length, channels), "B": (batch, length, d_state), "C": (batch, length, d_state)}
        A = A.repeat(channels, 1)
    else:
        grouped = (batch, length, groups, d_state)
        shapes = {"x": (batch, length, heads, channels), "B": grouped, "C": grouped}
        A = A[:: 16 // heads] if case in ("slow", "slow-random") else A[[0, 3, 7, 15]]
    normal = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return {**normal, "dt": dt, "A": A.contiguous(), "D": torch.randn(heads, generator=draw)}


def _steps(case: str, shape: tuple[int, int, int], draw: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=draw)
    if case == "slow":
        return torch.full(shape, 1e-3)
    if case == "slow-random":
        return 2e-3 * uniform
    low, high = (1e-3, 1.0) if case == "hard" else (1e-3, 0.1)
    dt = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
    if case == "gaps":
        frames = torch.arange(shape[1])
        dt = dt * ((frames // 50) % 2 == 0)[:, None]
    return dt
