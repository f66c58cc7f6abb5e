"""Mamba and Mamba-2 mixers in plain torch, with the state-dict keys and shapes of mamba-ssm's `Mamba` and `Mamba2`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.scan import causal_conv, selective_scan, ssd


class Mamba(nn.Module):
    """Mamba mixer (Gu and Dao 2023, figure 3): (B, L, d_model) -> (B, L, d_model), causal.

    Right padding cannot reach earlier frames; outputs on padding are meaningless and for the caller to mask.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias = nn.Parameter(_initial_dt_bias(self.d_inner))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        _exempt_from_decay(self.A_log, self.D, self.dt_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)  # (B, L, d_inner) each
        x = F.silu(causal_conv(x, self.conv1d.weight, self.conv1d.bias))
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.dt_proj.weight, self.dt_proj.bias
            dt = F.softplus(F.linear(dt.to(weight.dtype), weight, bias))  # (B, L, d_inner)
            A = -self.A_log.exp()
        y, _ = selective_scan(x, dt, A, B, C, self.D)
        return self.out_proj(y * F.silu(gate))


class Mamba2(nn.Module):
    """Mamba-2 mixer (Dao and Gu 2024, figure 6): (B, L, d_model) -> (B, L, d_model), causal.

    Right padding cannot reach earlier frames; outputs on padding are meaningless and for the caller to mask.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
    ) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise ValueError(f"expand * d_model = {self.d_inner} must be a multiple of headdim = {headdim}")
        self.d_state, self.headdim, self.ngroups = d_state, headdim, ngroups
        self.nheads = self.d_inner // headdim
        if self.nheads % ngroups:
            raise ValueError(f"the number of heads, {self.nheads}, must be a multiple of ngroups = {ngroups}")
        conv_dim = self.d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + conv_dim + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, d_conv, groups=conv_dim)
        self.dt_bias = nn.Parameter(_initial_dt_bias(self.nheads))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, self.d_inner // ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        _exempt_from_decay(self.A_log, self.D, self.dt_bias)

    def forward(self, x: Tensor) -> Tensor:
        groups_states = self.ngroups * self.d_state
        gate, xBC, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * groups_states, self.nheads], dim=-1)
        xBC = F.silu(causal_conv(xBC, self.conv1d.weight, self.conv1d.bias))
        x, B, C = xBC.split([self.d_inner, groups_states, groups_states], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)  # (B, L, H)
            A = -self.A_log.exp()
        y, _ = ssd(
            x.unflatten(-1, (self.nheads, self.headdim)),
            dt,
            A,
            B.unflatten(-1, (self.ngroups, self.d_state)),
            C.unflatten(-1, (self.ngroups, self.d_state)),
            self.D,
        )
        return self.out_proj(self.norm(y.flatten(2), gate))


class GatedRMSNorm(nn.Module):
    """RMSNorm(x * silu(gate)) over groups of channels, as Mamba-2 ends: (B, L, D), (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, group_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.group_size, self.eps = group_size, eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x * F.silu(gate)
        normal = F.rms_norm(x.unflatten(-1, (-1, self.group_size)), (self.group_size,), eps=self.eps)
        return normal.flatten(-2) * self.weight


def _initial_dt_bias(size: int, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high], in frames (Gu and Dao 2023, section 3.6)."""
    dt = torch.exp(torch.rand(size) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def _exempt_from_decay(*parameters: nn.Parameter) -> None:
    """Marks parameters that the optimiser must not pull towards zero: that would change the model's time scales."""
    for parameter in parameters:
        parameter.no_weight_decay = True
