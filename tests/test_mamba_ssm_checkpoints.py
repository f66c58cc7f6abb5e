"""Weights of mamba-ssm in our mixers, against its slow path frame by frame."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mamba import Mamba, Mamba2


def sequential_mamba(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The slow path of mamba-ssm's Mamba, frame by frame; x (l, d_model)."""
    (channels, states), rank = state["A_log"].shape, state["dt_proj.weight"].shape[1]
    taps, A = state["conv1d.weight"][:, 0], -state["A_log"].exp()
    recent, h, outputs = x.new_zeros(channels, taps.shape[1]), x.new_zeros(channels, states), []
    for frame in x:
        projected = state["in_proj.weight"] @ frame
        recent = torch.cat([recent[:, 1:], projected[:channels, None]], dim=1)
        u = F.silu((recent * taps).sum(1) + state["conv1d.bias"])
        dt, B, C = (state["x_proj.weight"] @ u).split([rank, states, states])
        dt = F.softplus(state["dt_proj.weight"] @ dt + state["dt_proj.bias"])
        h = torch.exp(dt[:, None] * A) * h + (dt * u)[:, None] * B
        outputs.append(state["out_proj.weight"] @ ((h @ C + state["D"] * u) * F.silu(projected[channels:])))
    return torch.stack(outputs)


def sequential_mamba2(state: dict[str, Tensor], x: Tensor, headdim: int, groups: int, states: int) -> Tensor:
    """mamba-ssm's Mamba2 with its gated norm (norm_before_gate=False), frame by frame; x (l, d_model)."""
    heads = len(state["dt_bias"])
    channels = heads * headdim
    taps, A = state["conv1d.weight"][:, 0], -state["A_log"].exp()
    recent, h, outputs = x.new_zeros(taps.shape), x.new_zeros(heads, headdim, states), []
    for frame in x:
        z, xBC, dt = (state["in_proj.weight"] @ frame).split([channels, len(taps), heads])
        recent = torch.cat([recent[:, 1:], xBC[:, None]], dim=1)
        u, B, C = F.silu((recent * taps).sum(1) + state["conv1d.bias"]).split([channels, *[groups * states] * 2])
        dt = F.softplus(dt + state["dt_bias"])
        u = u.view(heads, headdim)
        y = torch.empty_like(u)
        for head in range(heads):
            group = slice(head * groups // heads * states, (head * groups // heads + 1) * states)
            h[head] = torch.exp(dt[head] * A[head]) * h[head] + dt[head] * torch.outer(u[head], B[group])
            y[head] = h[head] @ C[group] + state["D"][head] * u[head]
        gated = (y.flatten() * F.silu(z)).view(groups, -1)
        normal = gated / torch.sqrt((gated**2).mean(1, keepdim=True) + 1e-5)
        outputs.append(state["out_proj.weight"] @ (normal.flatten() * state["norm.weight"]))
    return torch.stack(outputs)


def load(module: nn.Module, shapes: dict[str, tuple[int, ...]], seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module in float64 with random parameters of these names and shapes, loaded strictly, and these parameters."""
    draw = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=draw) / math.sqrt(shape[-1]) for name, shape in shapes.items()}
    module.load_state_dict(state, strict=True)
    return module.double(), {name: value.double() for name, value in state.items()}


@pytest.mark.parametrize(("d_state", "d_conv", "expand"), [(16, 4, 2), (5, 3, 3)])
def test_mamba_loads_checkpoints_of_mamba_ssm(d_state, d_conv, expand, seed):
    d_model, rank = 20, 2
    inner = expand * d_model
    shapes = {
        "A_log": (inner, d_state),
        "D": (inner,),
        "in_proj.weight": (2 * inner, d_model),
        "conv1d.weight": (inner, 1, d_conv),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * d_state, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "out_proj.weight": (d_model, inner),
    }
    module, state = load(Mamba(d_model, d_state, d_conv, expand), shapes, seed)
    x = torch.randn(2, 37, d_model, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    expected = torch.stack([sequential_mamba(state, row) for row in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("d_state", "headdim", "groups"), [(16, 8, 1), (5, 4, 2)])
def test_mamba2_loads_checkpoints_of_mamba_ssm(d_state, headdim, groups, seed):
    d_model, inner = 16, 32
    heads, conv = inner // headdim, inner + 2 * groups * d_state
    shapes = {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "in_proj.weight": (inner + conv + heads, d_model),
        "conv1d.weight": (conv, 1, 4),
        "conv1d.bias": (conv,),
        "norm.weight": (inner,),
        "out_proj.weight": (d_model, inner),
    }
    module, state = load(Mamba2(d_model, d_state, headdim=headdim, ngroups=groups), shapes, seed)
    x = torch.randn(2, 37, d_model, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    expected = torch.stack([sequential_mamba2(state, row, headdim, groups, d_state) for row in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)
