"""The definition: convolution and both recurrences in plain torch, any float dtype, differentiable by autograd.

The scans run frame by frame, slowly and with much memory. The other backends are tested against these functions in
float64, and a single frame of a stream is one turn of their loops. Shape letters as in `interface`.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of decays and states beside activations of `dtype`: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    """Computes delta from its raw value; dt (b, l, d or h), dt_bias (d or h,)."""
    if dt_bias is not None:
        dt = dt + dt_bias
    return F.softplus(dt) if dt_softplus else dt


def sequence_starts(seq_idx: Tensor) -> Tensor:
    """Marks the frames where a packed sequence begins inside a row: (b, l) -> (b, l), False on the first frame."""
    starts = torch.zeros_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return starts


def numbered(seq_idx: Tensor) -> Tensor:
    """Renumbers the sequences of each row in their order, from 0: (b, l) -> (b, l) int32. Their own may repeat."""
    # Rolled, because torch.export would refuse a length of 2 for a slice without the first frame.
    numbers = (seq_idx != seq_idx.roll(1, 1)).cumsum(1, dtype=torch.int32)
    return numbers - numbers[:, :1]


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Turns autocast off where it is on: an exported graph would keep an idle context as an operator of its own."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Depthwise causal convolution, tap by tap; see `interface.causal_conv`."""
    wide, length, before = state_dtype(x.dtype), x.shape[1], weight.shape[1] - 1
    window = F.pad(x, (0, 0, before, 0)) if initial_state is None else torch.cat((initial_state.to(x.dtype), x), dim=1)
    if seq_idx is not None:
        seq_idx = numbered(seq_idx)
        sequence = F.pad(seq_idx, (before, 0))
    with without_autocast(x.device.type):
        y = torch.zeros((), dtype=wide, device=x.device) if bias is None else bias.to(wide)
        for j, tap in enumerate(weight.to(wide).unbind(1)):
            term = window[:, j : j + length].to(wide) * tap
            if seq_idx is not None:
                term = term * (sequence[:, j : j + length] == seq_idx).unsqueeze(-1)
            y = y + term
        return (F.silu(y) if silu else y).to(x.dtype)


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
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba (Gu and Dao 2023, equations 2a, 2b); see `interface.selective_scan`."""
    wide = state_dtype(u.dtype)
    with without_autocast(u.device.type):
        u_, dt, A, B, C = (tensor.to(wide) for tensor in (u, dt, A, B, C))
        dt = step_size(dt, None if dt_bias is None else dt_bias.to(wide), dt_softplus)
        state = u_.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(wide)
        starts = [None] * u.shape[1] if seq_idx is None else sequence_starts(seq_idx).unbind(1)
        outputs = []
        for u_t, dt_t, B_t, C_t, start in zip(*(v.unbind(1) for v in (u_, dt, B, C)), starts, strict=True):
            if start is not None:
                state = state.masked_fill(start[:, None, None], 0.0)
            state = _decayed(state, dt_t.unsqueeze(-1) * A) + (dt_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
            outputs.append((state @ C_t.unsqueeze(-1)).squeeze(-1))
        y = torch.stack(outputs, dim=1) if outputs else u_
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
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba-2 (Dao and Gu 2024, section 5); see `interface.ssd`."""
    wide = state_dtype(x.dtype)
    heads, groups = x.shape[2], B.shape[2]
    with without_autocast(x.device.type):
        x_, dt, A, B, C = (tensor.to(wide) for tensor in (x, dt, A, B, C))
        dt = step_size(dt, None if dt_bias is None else dt_bias.to(wide), dt_softplus)
        B, C = (tensor.repeat_interleave(heads // groups, dim=2) for tensor in (B, C))  # (b, l, h, n)
        shape = (x.shape[0], heads, x.shape[3], B.shape[3])
        state = x_.new_zeros(shape) if initial_state is None else initial_state.to(wide)
        starts = [None] * x.shape[1] if seq_idx is None else sequence_starts(seq_idx).unbind(1)
        outputs = []
        for x_t, dt_t, B_t, C_t, start in zip(*(v.unbind(1) for v in (x_, dt, B, C)), starts, strict=True):
            if start is not None:
                state = state.masked_fill(start[:, None, None, None], 0.0)
            driven = (dt_t.unsqueeze(-1) * x_t).unsqueeze(-1) * B_t.unsqueeze(2)  # (b, h, p, n)
            state = _decayed(state, (dt_t * A)[..., None, None]) + driven
            outputs.append((state @ C_t.unsqueeze(-1)).squeeze(-1))
        y = torch.stack(outputs, dim=1) if outputs else x_
        if D is not None:
            y = y + x_ * D.to(wide).unsqueeze(-1)
    return y.to(x.dtype), state


def _decayed(state: Tensor, log_decay: Tensor) -> Tensor:
    """Returns exp(log_decay) * state; log_decay, not positive, is broadcast.

    Where the decay is slow, as state + expm1(log_decay) * state, which keeps its digits; where it is strong, that sum
    would round the small factor as a part of 1.
    """
    slow = log_decay > -math.log(2)
    change = torch.where(slow, torch.expm1(log_decay), torch.exp(log_decay))
    return torch.addcmul(slow.to(state.dtype) * state, change, state)
