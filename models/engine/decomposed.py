"""The engine in plain operations: no custom operator and no Python loop over frames, for exporters and other tools.

`torch.export` with a dynamic length and ONNX-like exporters see an ordinary graph. The price is memory: the selective
scan keeps tensors of (B, L, D, N), SSD of (B, L, H, CHUNK). Differentiable by autograd, any number of times; everything
is computed in the states' dtype, at least float32. Arguments and results as in `models.engine`.
Shape letters: B batch, L length, D channels, N state size, H heads, P channels of a head, G groups, Q chunk length.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine.reference import state_dtype, step_size

CHUNK = 64
DOUBLINGS = 16
LONGEST = 2**DOUBLINGS  # frames that a selective scan takes


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """Depth-wise causal convolution; see `interface.causal_conv`."""
    wide, length, before = state_dtype(x.dtype), x.shape[1], weight.shape[1] - 1
    window = F.pad(x, (0, 0, before, 0)) if initial_state is None else torch.cat((initial_state.to(x.dtype), x), dim=1)
    sequence = None if seq_idx is None else torch.cat((seq_idx[:, :1].expand(-1, before), seq_idx), dim=1)
    with _without_autocast(x.device.type):
        y = torch.zeros((), dtype=wide, device=x.device) if bias is None else bias.to(wide)
        for k, tap in enumerate(weight.to(wide).unbind(1)):
            term = window[:, k : k + length].to(wide) * tap
            if sequence is not None:
                term = term * (sequence[:, k : k + length] == seq_idx).unsqueeze(-1)
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
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba; see `interface.selective_scan`. ValueError for more than LONGEST frames.

    By doublings (Hillis and Steele 1986): when h_t sums the last k inputs, adding the decayed h_{t-k} makes it the last
    2k. The decay over k frames comes from the sum of their steps, not from a product of decays, whose errors add up.
    """
    wide = state_dtype(u.dtype)
    with _without_autocast(u.device.type):
        u_, dt, A, B, C = (tensor.to(wide) for tensor in (u, dt, A, B, C))
        delta = step_size(dt, None if dt_bias is None else dt_bias.to(wide), dt_softplus)
        state = (delta * u_).unsqueeze(-1) * B.unsqueeze(2)  # (B, L, D, N)
        frame = torch.arange(u.shape[1], device=u.device)
        for k in _doublings(u.shape[1]):
            known = (frame >= k)[:, None]
            if seq_idx is not None:
                known = known & (seq_idx == seq_idx.roll(k, 1)).unsqueeze(-1)
            decay = torch.exp(delta.unsqueeze(-1) * A)
            state = state + torch.where(known.unsqueeze(-1), decay * state.roll(k, 1), 0.0)
            delta = delta + torch.where(
                (frame >= k)[:, None], delta.roll(k, 1), 0.0
            )  # now the sum of the last 2k steps
        if initial_state is not None:
            carried = torch.exp(delta.unsqueeze(-1) * A) * initial_state.to(wide).unsqueeze(1)
            if seq_idx is not None:
                carried = carried * (seq_idx == seq_idx[:, :1])[..., None, None]
            state = state + carried
        y = torch.matmul(state, C.unsqueeze(-1)).squeeze(-1)
        if D is not None:
            y = y + u_ * D.to(wide)
        if z is not None:
            y = y * F.silu(z.to(wide))
    return y.to(u.dtype), state[:, -1]


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """Autocast off, where it is on: an exported graph keeps the very context as an operator of its own."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _doublings(length: int | torch.SymInt) -> list[int]:
    """1, 2, 4, ... below the length, or below LONGEST where the graph must serve every length."""
    if isinstance(length, int):
        if length > LONGEST:
            raise ValueError(f"the decomposed selective scan takes at most {LONGEST} frames, not {length}")
        return [2**i for i in range((length - 1).bit_length())]
    torch._check(length <= LONGEST, lambda: f"the decomposed selective scan takes at most {LONGEST} frames")
    return [2**i for i in range(DOUBLINGS)]


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
    """State-space duality of Mamba-2 by listing 1 of Dao and Gu 2024; see `interface.ssd`.

    Every chunk starts from zeros; one matrix product over the chunks then gives the states between them. That product
    makes the memory of L / Q chunks grow with (L / Q)^2, little for lengths of speech. An empty chunk before the first
    frame stands for the initial state, and so there are never fewer than two: to export code for one or more, torch
    would have to know which.
    """
    wide, heads, groups = state_dtype(x.dtype), x.shape[2], B.shape[2]
    with _without_autocast(x.device.type):
        x_, dt, A, B, C = (tensor.to(wide) for tensor in (x, dt, A, B, C))
        delta = step_size(dt, None if dt_bias is None else dt_bias.to(wide), dt_softplus)
        log_decay = _into_chunks(delta * A).permute(0, 3, 1, 2)  # (B, H, chunks, Q)
        inputs, B_, C_ = (
            _into_chunks(tensor).permute(0, 3, 1, 2, 4)  # (B, H, chunks, Q, P or N)
            for tensor in (
                x_ * delta.unsqueeze(-1),
                B.repeat_interleave(heads // groups, dim=2),
                C.repeat_interleave(heads // groups, dim=2),
            )
        )
        within, from_start, to_end, between = _decays(log_decay, seq_idx)
        states = torch.matmul((inputs * to_end.unsqueeze(-1)).transpose(3, 4), B_)  # (B, H, chunks, P, N), added
        if initial_state is not None:
            first = torch.arange(states.shape[2], device=x.device) == 0
            states = states + initial_state.to(wide).unsqueeze(2) * first[:, None, None]
        states = torch.einsum("bhzc,bhcpn->bhzpn", between, states)  # after every chunk
        y = torch.matmul(torch.matmul(C_, B_.transpose(3, 4)) * within, inputs)
        y = y + torch.matmul(C_, states.roll(1, 2).transpose(3, 4)) * from_start.unsqueeze(-1)
        frames = torch.arange(CHUNK, CHUNK + x.shape[1], device=x.device)  # an end of a slice would have to be proven
        y = y.permute(0, 2, 3, 1, 4).flatten(1, 2).index_select(1, frames)
        if D is not None:
            y = y + x_ * D.to(wide).unsqueeze(-1)
    return y.to(x.dtype), states[:, :, -1]


def _into_chunks(frames: Tensor) -> Tensor:
    """(B, L, ...) -> (B, chunks, Q, ...): a chunk of zeros, then the frames with zeros at the end."""
    length = frames.shape[1]
    missing = (length + CHUNK - 1) // CHUNK * CHUNK - length
    padded = F.pad(frames, (0, 0) * (frames.dim() - 2) + (CHUNK, missing))
    return padded.unfold(1, CHUNK, CHUNK).movedim(-1, 2)


def _decays(log_decay: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decays inside and between the c chunks, 0 where another sequence begins on the way.

    log_decay (B, H, c, Q) -> frame to frame (B, H, c, Q, Q), start to frame and frame to end (B, H, c, Q), end to end
    (B, H, c, c).
    """
    within = _segment_sums(log_decay).exp()
    from_start = log_decay.cumsum(-1).exp()
    to_end = within[..., -1, :]
    between = _segment_sums(log_decay.sum(-1)).exp()
    if seq_idx is None:
        return within, from_start, to_end, between
    numbers = _into_chunks(seq_idx + 1 - seq_idx[:, :1]).unsqueeze(1)  # (B, 1, c, Q) from 1, padding 0
    last = numbers.amax(-1).clamp(min=1)  # (B, 1, c); that of the initial state is the first frame's
    return (
        within * (numbers.unsqueeze(-1) == numbers.unsqueeze(-2)),
        from_start * (numbers == last.roll(1, 2).unsqueeze(-1)),
        to_end * (numbers == last.unsqueeze(-1)),
        between * (last.unsqueeze(-1) == last.unsqueeze(-2)),
    )


def _segment_sums(values: Tensor) -> Tensor:
    """Sums of values s+1 .. l at [l, s], -inf above the diagonal: (..., Q) -> (..., Q, Q).

    Summed for each s anew, not subtracted from each other: that would lose digits to strong decay. Masked before the
    exponential that follows, whose gradient would otherwise be inf * 0.
    """
    size = values.shape[-1]
    place = torch.arange(size, device=values.device)
    later, same = place[:, None] > place, place[:, None] == place
    summands = torch.where(later, values.unsqueeze(-1), 0.0)
    return summands.cumsum(-2).masked_fill(~(later | same), -torch.inf)
