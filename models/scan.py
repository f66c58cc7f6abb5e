"""The state-space mathematics in plain torch: depth-wise causal convolution, selective scan (Mamba), SSD (Mamba-2).

Shape letters: B batch, L length, D channels, N state size, H heads, P channels of a head, G groups, Q chunk length.
All recurrences run in at least float32 with autocast off, whatever the surrounding precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SCAN_CHUNK = 32
SSD_CHUNK = 64


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise causal convolution as shifted multiply-adds, several times faster on a CPU than a grouped conv1d.

    x (B, L, D), weight (D, 1, K), bias (D,) -> (B, L, D); frame t sees frames t-K+1 to t, zeros before the start.
    """
    taps = weight.shape[-1]
    length = x.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = padded[:, :length] * weight[:, 0, 0]
    for k in range(1, taps):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, 0, k])
    return y if bias is None else y + bias


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba (Gu and Dao 2023, equations 2a, 2b and algorithm 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = C_t h_t + D u_t

    u, dt (B, L, D) with dt > 0; A (D, N) negative; B, C (B, L, N); D (D,); initial_state (B, D, N).
    Returns y (B, L, D) in u's dtype and the final state (B, D, N) in float32 or wider.
    Training memory is O(B L D + B D N L / SCAN_CHUNK): each chunk's states are recomputed in backward.
    """
    with torch.autocast(u.device.type, enabled=False):
        wide = torch.promote_types(u.dtype, torch.float32)
        u_, dt_, A_, B_, C_ = (tensor.to(wide) for tensor in (u, dt, A, B, C))
        state = u_.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(wide)
        outputs = []
        for start in range(0, u.shape[1], SCAN_CHUNK):
            part = slice(start, start + SCAN_CHUNK)
            arguments = (state, u_[:, part], dt_[:, part], A_, B_[:, part], C_[:, part])
            if torch.is_grad_enabled():
                y, state = checkpoint(_scan_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                y, state = _scan_chunk(*arguments)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        if D is not None:
            y = torch.addcmul(y, u_, D.to(wide))
    return y.to(u.dtype), state


def _scan_chunk(state: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk of the recurrence, step by step; state (B, D, N), the rest as in `selective_scan`."""
    decay = torch.exp(dt.unsqueeze(-1) * A)  # (B, Q, D, N)
    drive = (dt * u).unsqueeze(-1) * B.unsqueeze(2)  # (B, Q, D, N)
    states = []
    for decay_t, drive_t in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = torch.addcmul(drive_t, decay_t, state)
        states.append(state)
    y = torch.matmul(torch.stack(states, dim=1), C.unsqueeze(-1)).squeeze(-1)  # (B, Q, D)
    return y, state


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2 over chunks (Dao and Gu 2024, section 6 and listing 1).

    The recurrence of `selective_scan` with one scalar decay per head, as matrix products inside chunks and a
    recurrence between them.

    x (B, L, H, P); dt (B, L, H) > 0; A (H,) negative; B, C (B, L, G, N) with G dividing H; D (H,);
    initial_state (B, H, P, N). Returns y (B, L, H, P) in x's dtype and the final state (B, H, P, N).
    """
    heads, groups = x.shape[2], B.shape[2]
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        x_, dt_, A_, B_, C_ = (tensor.to(wide) for tensor in (x, dt, A, B, C))
        if initial_state is None:
            state = x_.new_zeros(x.shape[0], heads, x.shape[3], B.shape[3])
        else:
            state = initial_state.to(wide)
        outputs = []
        for start in range(0, x.shape[1], SSD_CHUNK):
            part = slice(start, start + SSD_CHUNK)
            y, state = _ssd_chunk(state, x_[:, part], dt_[:, part], A_, B_[:, part], C_[:, part], heads // groups)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        if D is not None:
            y = torch.addcmul(y, x_, D.to(wide).unsqueeze(-1))
    return y.to(x.dtype), state


def _ssd_chunk(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, heads_per_group: int
) -> tuple[Tensor, Tensor]:
    """One chunk: what its inputs give each other, what the state gives them, and the state they leave."""
    log_decay = _cumulative_log_decay(dt, A)  # (B, H, Q), from the chunk's start up to and with frame q
    inputs = (x * dt.unsqueeze(-1)).transpose(1, 2)  # (B, H, Q, P)
    B_heads = B.transpose(1, 2).repeat_interleave(heads_per_group, dim=1)  # (B, H, Q, N)
    C_heads = C.transpose(1, 2).repeat_interleave(heads_per_group, dim=1)
    scores = torch.matmul(C.transpose(1, 2), B.permute(0, 2, 3, 1))  # (B, G, Q, Q)
    scores = scores.repeat_interleave(heads_per_group, dim=1)
    within = torch.matmul(scores * _segment_decay(log_decay, x.dtype), inputs)
    carried = torch.matmul(C_heads, state.transpose(2, 3)) * log_decay.exp().to(x.dtype).unsqueeze(-1)
    to_end = (log_decay[..., -1:] - log_decay).exp().to(x.dtype)  # (B, H, Q)
    added = torch.matmul((inputs * to_end.unsqueeze(-1)).transpose(2, 3), B_heads)  # (B, H, P, N)
    state = torch.addcmul(added, state, log_decay[..., -1].exp().to(x.dtype)[..., None, None])
    return (within + carried).transpose(1, 2), state


def _cumulative_log_decay(dt: Tensor, A: Tensor) -> Tensor:
    """Sums of dt A along the chunk, dt (B, Q, H), A (H,) -> (B, H, Q).

    In float64 where the device has it: neighbouring sums are subtracted from each other, and with strong decay a
    float32 sum leaves too few digits in the difference.
    """
    precise = torch.float32 if dt.device.type == "mps" else torch.float64
    return (dt.to(precise) * A.to(precise)).cumsum(1).transpose(1, 2)


def _segment_decay(log_decay: Tensor, dtype: torch.dtype) -> Tensor:
    """exp of the log decay from frame s to frame q, 0 for s > q: (B, H, Q) -> (B, H, Q, Q).

    Masked before the exponential: exp of a positive difference overflows and its gradient would be inf * 0.
    """
    difference = log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)
    future = torch.ones(difference.shape[-2:], dtype=torch.bool, device=difference.device).triu(1)
    return difference.clamp(max=0.0).to(dtype).masked_fill(future, -torch.inf).exp()
