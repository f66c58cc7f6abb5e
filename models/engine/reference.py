"""The definition: both recurrences frame by frame in plain torch, any float dtype, differentiable by autograd.

Slow and large in memory. The other backends are held against these loops in float64, and a single frame of a stream
is one turn of them. Shape letters: B batch, L length, D channels, N state size, H heads, P their channels, G groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of decays and states beside activations of `dtype`: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may come: without one, an operator keeps nothing for it."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    """The step Delta from its raw value; dt (B, L, channels or heads), dt_bias of its last dimension."""
    if dt_bias is not None:
        dt = dt + dt_bias
    return F.softplus(dt) if dt_softplus else dt


def sequence_starts(seq_idx: Tensor) -> Tensor:
    """True where a packed sequence begins inside a row: (B, L) -> (B, L), False on the first frame."""
    starts = torch.zeros_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return starts


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba (Gu and Dao 2023, equations 2a, 2b); see `interface.selective_scan`."""
    wide = state_dtype(u.dtype)
    with torch.autocast(u.device.type, enabled=False):
        u_, dt, A, B, C = (tensor.to(wide) for tensor in (u, dt, A, B, C))
        dt = step_size(dt, None if dt_bias is None else dt_bias.to(wide), dt_softplus)
        state = u_.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(wide)
        starts = [None] * u.shape[1] if seq_idx is None else sequence_starts(seq_idx).unbind(1)
        outputs = []
        for u_t, dt_t, B_t, C_t, start in zip(*(v.unbind(1) for v in (u_, dt, B, C)), starts, strict=True):
            if start is not None:
                state = state.masked_fill(start[:, None, None], 0.0)
            change = torch.expm1(dt_t.unsqueeze(-1) * A)  # (B, D, N); adding it is exact where the decay is slow
            state = torch.addcmul(state, change, state) + (dt_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
            outputs.append((state @ C_t.unsqueeze(-1)).squeeze(-1))
        y = torch.stack(outputs, dim=1)
        if D is not None:
            y = y + u_ * D.to(wide)
        if z is not None:
            y = y * F.silu(z.to(wide))
    return y.to(u.dtype), state


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba-2 (Dao and Gu 2024, section 5); see `interface.ssd`."""
    wide = state_dtype(x.dtype)
    heads, groups = x.shape[2], B.shape[2]
    with torch.autocast(x.device.type, enabled=False):
        x_, dt, A, B, C = (tensor.to(wide) for tensor in (x, dt, A, B, C))
        dt = step_size(dt, None if dt_bias is None else dt_bias.to(wide), dt_softplus)
        B, C = (tensor.repeat_interleave(heads // groups, dim=2) for tensor in (B, C))  # (B, L, H, N)
        shape = (x.shape[0], heads, x.shape[3], B.shape[3])
        state = x_.new_zeros(shape) if initial_state is None else initial_state.to(wide)
        starts = [None] * x.shape[1] if seq_idx is None else sequence_starts(seq_idx).unbind(1)
        outputs = []
        for x_t, dt_t, B_t, C_t, start in zip(*(v.unbind(1) for v in (x_, dt, B, C)), starts, strict=True):
            if start is not None:
                state = state.masked_fill(start[:, None, None, None], 0.0)
            change = torch.expm1(dt_t * A)[..., None, None]
            driven = (dt_t.unsqueeze(-1) * x_t).unsqueeze(-1) * B_t.unsqueeze(2)  # (B, H, P, N)
            state = torch.addcmul(state, change, state) + driven
            outputs.append((state @ C_t.unsqueeze(-1)).squeeze(-1))
        y = torch.stack(outputs, dim=1)
        if D is not None:
            y = y + x_ * D.to(wide).unsqueeze(-1)
    return y.to(x.dtype), state
