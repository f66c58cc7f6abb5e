"""The engine in plain operations: no custom operator and no Python loop over frames, for exporters and other tools.

`torch.export` with a dynamic length and ONNX-like exporters see an ordinary graph. The price is memory: the selective
scan keeps tensors of (b, l, d, n), SSD of (b, l, h, q). Differentiable by autograd, any number of times; everything is
computed in the states' dtype, at least float32. Shape letters as in `interface`; c chunks, q frames of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine import reference
from models.engine.inputs import ConvInputs, Inputs, ScanInputs, SSDInputs, cast
from models.engine.reference import state_dtype, step_size, without_autocast

CHUNK = 64
DOUBLINGS = 16
LONGEST = 2**DOUBLINGS  # frames that a selective scan takes


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution: its definition loops over taps only. See `interface.causal_conv`."""
    return reference.causal_conv(*inputs)


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba; see `interface.selective_scan`. Raises ValueError for more than LONGEST frames.

    By doubling (Hillis and Steele 1986): where h_t sums the last k inputs, adding the decayed h_{t-k} makes it the last
    2k. The decay over k frames comes from the sum of their steps, not from a product of decays, whose errors add up.
    """
    u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus = _widened(inputs)
    with without_autocast(u.device.type):
        delta = step_size(dt, dt_bias, dt_softplus)
        state = (delta * u).unsqueeze(-1) * B.unsqueeze(2)  # (b, l, d, n)
        frame = torch.arange(u.shape[1], device=u.device)
        for k in _doublings(u.shape[1]):
            known = (frame >= k)[:, None]
            same = known if seq_idx is None else known & (seq_idx == seq_idx.roll(k, 1)).unsqueeze(-1)
            decay = torch.exp(delta.unsqueeze(-1) * A)
            state = state + torch.where(same.unsqueeze(-1), decay * state.roll(k, 1), 0.0)
            delta = delta + torch.where(known, delta.roll(k, 1), 0.0)  # now the sum of the last 2k steps
        if initial_state is not None:
            carried = torch.exp(delta.unsqueeze(-1) * A) * initial_state.unsqueeze(1)
            if seq_idx is not None:
                carried = carried * (seq_idx == seq_idx[:, :1])[..., None, None]
            state = state + carried
        y = torch.matmul(state, C.unsqueeze(-1)).squeeze(-1)
        if D is not None:
            y = y + u * D
        if z is not None:
            y = y * F.silu(z)
    return y.to(inputs.u.dtype), state[:, -1]


def _widened(inputs: Inputs) -> Inputs:
    """Converts all tensors but seq_idx to the states' dtype."""
    return cast(inputs, state_dtype(inputs[0].dtype), *inputs._fields[:-2])


def _doublings(length: int | torch.SymInt) -> list[int]:
    """Lists 1, 2, 4, ... below the length, or below its bound, at most LONGEST, if a graph must serve every length."""
    if isinstance(length, int):
        if length > LONGEST:
            raise ValueError(f"the decomposed selective scan takes at most {LONGEST} frames, not {length}")
        return [2**i for i in range((length - 1).bit_length())]
    torch._check(length <= LONGEST, lambda: f"the decomposed selective scan takes at most {LONGEST} frames")
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imported by then: length is symbolic

    return [2**i for i in range(DOUBLINGS) if not statically_known_true(length <= 2**i)]


def ssd(inputs: SSDInputs) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2 by listing 1 of Dao and Gu 2024; see `interface.ssd`.

    Every chunk starts from zeros; one matrix product over the chunks then gives the states between them. That product
    makes the memory of c chunks grow with c^2, which is little for the lengths of speech. An empty chunk before the
    first frame stands for the initial state, so that there are always at least two: to export code for one or more,
    torch would have to know which.
    """
    x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus = _widened(inputs)
    heads_of_group, device, length = x.shape[2] // B.shape[2], x.device, x.shape[1]
    chunk = min(CHUNK, length) if isinstance(length, int) else CHUNK  # of a known length, no more than it has
    with without_autocast(device.type):
        delta = step_size(dt, dt_bias, dt_softplus)
        log_decay = _into_chunks(delta * A, chunk).permute(0, 3, 1, 2)  # (b, h, c, q)
        B, C = (tensor.repeat_interleave(heads_of_group, dim=2) for tensor in (B, C))  # (b, l, h, n)
        driven, B, C = (
            _into_chunks(tensor, chunk).permute(0, 3, 1, 2, 4) for tensor in (x * delta.unsqueeze(-1), B, C)
        )  # (b, h, c, q, p or n)
        within, from_start, to_end, between = _decays(log_decay, seq_idx, chunk)
        states = torch.matmul((driven * to_end.unsqueeze(-1)).transpose(3, 4), B)  # (b, h, c, p, n), added
        if initial_state is not None:
            first = torch.arange(states.shape[2], device=device) == 0
            states = states + initial_state.unsqueeze(2) * first[:, None, None]
        states = torch.einsum("bhzc,bhcpn->bhzpn", between, states)  # after every chunk
        y = torch.matmul(torch.matmul(C, B.transpose(3, 4)) * within, driven)
        y = y + torch.matmul(C, states.roll(1, 2).transpose(3, 4)) * from_start.unsqueeze(-1)
        frames = torch.arange(chunk, chunk + length, device=device)  # of a slice, torch would have to prove the end
        y = y.permute(0, 2, 3, 1, 4).flatten(1, 2).index_select(1, frames)
        if D is not None:
            y = y + x * D.unsqueeze(-1)
    return y.to(inputs.x.dtype), states[:, :, -1]


def _into_chunks(frames: Tensor, chunk: int) -> Tensor:
    """Cuts (b, l, ...) into (b, c, q, ...): a chunk of zeros, then the frames with zeros at the end."""
    length = frames.shape[1]
    missing = (length + chunk - 1) // chunk * chunk - length
    padded = F.pad(frames, (0, 0) * (frames.dim() - 2) + (chunk, missing))
    return padded.unfold(1, chunk, chunk).movedim(-1, 2)


def _decays(log_decay: Tensor, seq_idx: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the decays inside and between chunks, 0 where another sequence begins on the way.

    log_decay (b, h, c, q) -> frame to frame (b, h, c, q, q), start to frame and frame to end (b, h, c, q), end to end
    (b, h, c, c).
    """
    within = _segment_sums(log_decay).exp()
    from_start = log_decay.cumsum(-1).exp()
    to_end = within[..., -1, :]
    between = _segment_sums(log_decay.sum(-1)).exp()
    if seq_idx is None:
        return within, from_start, to_end, between
    numbers = _into_chunks(seq_idx + 1 - seq_idx[:, :1], chunk).unsqueeze(1)  # (b, 1, c, q) from 1, padding 0
    last = numbers.amax(-1).clamp(min=1)  # (b, 1, c); that of the initial state is the first frame's
    return (
        within * (numbers.unsqueeze(-1) == numbers.unsqueeze(-2)),
        from_start * (numbers == last.roll(1, 2).unsqueeze(-1)),
        to_end * (numbers == last.unsqueeze(-1)),
        between * (last.unsqueeze(-1) == last.unsqueeze(-2)),
    )


def _segment_sums(values: Tensor) -> Tensor:
    """Sums values j+1 to i at [i, j], -inf above the diagonal: (..., q) -> (..., q, q).

    Summed anew for each j, not subtracted from each other: that would lose digits to strong decay. Masked before the
    exponential that follows, whose gradient would otherwise be inf * 0.
    """
    size = values.shape[-1]
    place = torch.arange(size, device=values.device)
    later, same = place[:, None] > place, place[:, None] == place
    summands = torch.where(later, values.unsqueeze(-1), 0.0)
    return summands.cumsum(-2).masked_fill(~(later | same), -torch.inf)
