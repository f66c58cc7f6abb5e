"""Mamba's selective scan in torch operations: chunked, one saved state per chunk, all else recomputed in backward.

Other scans in plain torch keep tensors of (B, L, D, N) for backward. This one saves its inputs and a state every CHUNK
frames, so that at N = CHUNK training costs one more tensor of (B, L, D), and works in buffers that stay in the cache.
Shape letters: B batch, L length, D channels, N state size; inside a block: T frames of a chunk, R rows, E channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine.reference import needs_gradient, sequence_starts, state_dtype

CHUNK = 16
# State elements of one frame of a block: enough to hide the cost of calling an operation, and not above torch's grain
# of 32768, so that the operations of one frame open no parallel region.
BLOCK = 32768
GOLDEN = (math.sqrt(5) - 1) / 2
PERIOD = 4181  # a Fibonacci number: multiples of the golden ratio close evenly after it


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
    """Selective scan of Mamba (Gu and Dao 2023, equations 2a, 2b); see `interface.selective_scan`.

    Differentiable once: the backward pass is an operator of its own and has no derivative.
    """
    wide = state_dtype(u.dtype)
    D, dt_bias, initial_state = (None if v is None else v.to(wide) for v in (D, dt_bias, initial_state))
    starts = None if seq_idx is None else sequence_starts(seq_idx)
    inputs = _Inputs(u, dt.to(wide), A.to(wide), B, C, D, z, dt_bias, initial_state, starts, dt_softplus)
    y, state, _ = _scan(*inputs, needs_gradient(*inputs[:-1]))
    return y, state


class _Inputs(NamedTuple):
    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None
    starts: Tensor | None
    dt_softplus: bool

    def checkpoints(self, flat: Tensor) -> Tensor:
        """The saved states as (chunks, B, N, D)."""
        return flat.view(-1, self.u.shape[0], self.A.shape[1], self.u.shape[2])


def _forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    starts: Tensor | None,
    dt_softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, D), the final state (B, D, N), and with `keep` that at each chunk's start, flat."""
    inputs = _Inputs(u, dt, A, B, C, D, z, dt_bias, initial_state, starts, dt_softplus)
    y, final_state, saved = _empty_results(*inputs, keep)
    checkpoints = inputs.checkpoints(saved)
    with torch.autocast(u.device.type, enabled=False):
        for block in _blocks(inputs):
            block.begin()
            for index, chunk in enumerate(_chunks(u.shape[1])):
                if keep:
                    checkpoints[index, block.rows, :, block.channels] = block.state[0]
                block.load(chunk)
                block.advance()
                gate = block.gate()
                out = block.readout() if gate is None else block.readout() * F.silu(gate)
                y[block.rows, chunk, block.channels] = out.transpose(0, 1)
                block.state[0].copy_(block.state[block.frames])
            final_state[block.rows, block.channels] = block.state[0].transpose(1, 2)
    return y, final_state, saved


def _empty_results(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    starts: Tensor | None,
    dt_softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    states = A.shape[1]
    chunks = (length + CHUNK - 1) // CHUNK if keep else 0
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        A.new_empty(batch, channels, states),
        A.new_empty(chunks * batch * states * channels),  # flat: a dimension that may be 1 is a special case to export
    )


def _backward(
    dy: Tensor,
    dstate: Tensor | None,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    starts: Tensor | None,
    dt_softplus: bool,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, B, C, D, z, dt_bias and initial_state; empty for those that are None."""
    inputs = _Inputs(u, dt, A, B, C, D, z, dt_bias, initial_state, starts, dt_softplus)
    gradients, checkpoints = _Gradients(inputs), inputs.checkpoints(saved)
    with torch.autocast(u.device.type, enabled=False):
        for block in _blocks(inputs):
            carry = torch.zeros_like(block.state[0])  # the gradient of the state after the chunk
            if dstate is not None:
                carry.copy_(dstate[block.rows, block.channels].transpose(1, 2))
            dA = torch.zeros_like(block.A)
            for index, chunk in reversed(list(enumerate(_chunks(u.shape[1])))):
                block.state[0].copy_(checkpoints[index, block.rows, :, block.channels])
                block.load(chunk)
                block.advance()
                gradients.chunk(block, chunk, dy, carry, dA)
            gradients.A[block.channels] += dA.t()
            if initial_state is not None:
                gradients.initial_state[block.rows, block.channels] = carry.transpose(1, 2)
    return gradients.finish()


def _empty_gradients(dy, dstate, u, dt, A, B, C, D, z, dt_bias, initial_state, starts, dt_softplus, saved):
    contiguous = torch.contiguous_format
    optional = (
        A.new_empty(0) if v is None else torch.empty_like(v, memory_format=contiguous)
        for v in (D, z, dt_bias, initial_state)
    )
    return *(torch.empty_like(v, memory_format=contiguous) for v in (u, dt, A, B, C)), *optional


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.dt_softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dstate, _):
    *tensors, saved = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    gradients = _scan_backward(dy, dstate, *tensors, ctx.dt_softplus, saved)
    present = [None if v is None else g for v, g in zip(tensors[:9], gradients, strict=True)]
    return *present, None, None, None


class _Block:
    """Rows and channels that are scanned together: buffers of one chunk, time first and channels last."""

    def __init__(self, inputs: _Inputs, rows: slice, channels: slice) -> None:
        self.inputs, self.rows, self.channels = inputs, rows, channels
        self.A = inputs.A[channels].t().contiguous()  # (N, E)
        self.A_log2 = self.A * math.log2(math.e)
        shape = (inputs.u[rows].shape[0], *self.A.shape)
        self.decays, self.states = self.A.new_empty(CHUNK, *shape), self.A.new_empty(CHUNK + 1, *shape)
        self.decay, self.state = self.decays.unbind(), self.states.unbind()  # views made once: making one costs 1 us
        self.dither = _dither(inputs.u.shape[1], self.A)

    def begin(self) -> None:
        """Sets the state before the first frame."""
        if self.inputs.initial_state is None:
            self.state[0].zero_()
        else:
            self.state[0].copy_(self.inputs.initial_state[self.rows, self.channels].transpose(1, 2))

    def load(self, chunk: slice) -> None:
        """Brings the chunk's frames into the buffers: step sizes, decays, and what drives the states."""
        inputs, self.chunk, self.frames = self.inputs, chunk, chunk.stop - chunk.start
        self.u = self.take(inputs.u)
        self.delta = self.take(inputs.dt)
        if inputs.dt_bias is not None:
            self.delta.add_(inputs.dt_bias[self.channels])
        if inputs.dt_softplus:
            self.delta = F.softplus(self.delta)
        self.B, self.C = (
            v[self.rows, chunk].transpose(0, 1).to(self.A.dtype).contiguous() for v in (inputs.B, inputs.C)
        )
        dither = self.dither[chunk] * (self.delta != 0)  # a step of 0 must keep the state to the last bit
        decays = self.decays[: self.frames]
        torch.addcmul(dither.unsqueeze(2), self.delta.unsqueeze(2), self.A_log2, out=decays).exp2_()
        if inputs.starts is not None:
            decays.masked_fill_(inputs.starts[self.rows, chunk].t()[:, :, None, None], 0.0)
        self.x = self.delta * self.u
        torch.mul(self.x.unsqueeze(2), self.B.unsqueeze(-1), out=self.states[1 : self.frames + 1])

    def take(self, tensor: Tensor) -> Tensor:
        """The chunk of a (B, L, D) tensor as (T, R, E), in the state's dtype."""
        part = tensor[self.rows, self.chunk, self.channels].transpose(0, 1)
        return part.to(self.A.dtype, copy=True, memory_format=torch.contiguous_format)

    def advance(self) -> None:
        """Runs the recurrence over the loaded frames, from `state[0]`."""
        for t in range(self.frames):
            self.state[t + 1].addcmul_(self.decay[t], self.state[t])

    def readout(self) -> Tensor:
        """y before the gate, (T, R, E)."""
        y = torch.matmul(self.C.unsqueeze(2), self.states[1 : self.frames + 1]).squeeze(2)
        D = self.inputs.D
        return y if D is None else y.addcmul_(self.u, D[self.channels])

    def gate(self) -> Tensor | None:
        """The chunk's z, (T, R, E)."""
        return None if self.inputs.z is None else self.take(self.inputs.z)


class _Gradients:
    """The gradients of all inputs, filled chunk by chunk from the last to the first."""

    def __init__(self, inputs: _Inputs) -> None:
        contiguous = torch.contiguous_format
        self.inputs = inputs
        self.u, self.dt = (torch.empty_like(v, memory_format=contiguous) for v in (inputs.u, inputs.dt))
        self.B, self.C = (inputs.A.new_zeros(v.shape) for v in (inputs.B, inputs.C))  # sums over blocks of channels
        self.A = torch.zeros_like(inputs.A)
        self.D, self.z, self.dt_bias, self.initial_state = (
            inputs.A.new_empty(0) if v is None else torch.zeros_like(v, memory_format=contiguous)
            for v in (inputs.D, inputs.z, inputs.dt_bias, inputs.initial_state)
        )
        self.states: Tensor | None = None  # a buffer: memory fresh from the system costs more than what is done with it

    def finish(self) -> tuple[Tensor, ...]:
        B, C = self.B.to(self.inputs.B.dtype), self.C.to(self.inputs.C.dtype)
        return self.u, self.dt, self.A, B, C, self.D, self.z, self.dt_bias, self.initial_state

    def chunk(self, block: _Block, chunk: slice, dy: Tensor, carry: Tensor, dA: Tensor) -> None:
        """One chunk: turns `carry`, the gradient of the state after it, into that of the state before it."""
        rows, channels, frames, inputs = block.rows, block.channels, block.frames, self.inputs
        area = rows, chunk, channels
        before, after = block.states[:frames], block.states[1 : frames + 1]
        dy = block.take(dy)
        gate = block.gate()
        if gate is not None:
            self.z[area] = torch.ops.aten.silu_backward(block.readout().mul_(dy), gate).transpose(0, 1)
            dy.mul_(F.silu(gate))
        if self.states is None or self.states.shape[1:] != block.decays.shape[1:]:
            self.states = torch.empty_like(block.decays)
        g = self.states[:frames]  # gradients of the states (T, R, N, E)
        torch.mul(dy.unsqueeze(2), block.C.unsqueeze(-1), out=g)
        step = g.unbind()
        step[-1].add_(carry)
        for t in range(frames - 1, 0, -1):
            step[t - 1].addcmul_(block.decay[t], step[t])
        torch.mul(block.decay[0], step[0], out=carry)
        self.C[rows, chunk] += torch.matmul(dy.unsqueeze(2), after.transpose(2, 3)).squeeze(2).transpose(0, 1)
        self.B[rows, chunk] += torch.matmul(block.x.unsqueeze(2), g.transpose(2, 3)).squeeze(2).transpose(0, 1)
        dx = torch.matmul(block.B.unsqueeze(2), g).squeeze(2)
        through_decay = g.mul_(before).mul_(block.decays[:frames])  # gradients of delta A (T, R, N, E)
        ddelta = torch.mul(through_decay, block.A, out=block.decays[:frames]).sum(2).addcmul_(dx, block.u)
        dA += through_decay.mul_(block.delta.unsqueeze(2)).sum((0, 1))
        if inputs.dt_softplus:
            ddelta.mul_(-torch.expm1(-block.delta))  # softplus' = sigmoid = 1 - exp(-softplus)
        if inputs.dt_bias is not None:
            self.dt_bias[channels] += ddelta.sum((0, 1))
        du = dx.mul_(block.delta)
        if inputs.D is not None:
            du.addcmul_(dy, inputs.D[channels])
            self.D[channels] += (dy * block.u).sum((0, 1))
        self.dt[area], self.u[area] = ddelta.transpose(0, 1), du.transpose(0, 1)


def _dither(length: int, like: Tensor) -> Tensor:
    """What is added to the base-2 exponents of the decays so that their rounding errors do not add up: (L, 1, 1).

    A decay near 1 is rounded to a multiple of eps / 2, the same way each time where steps are alike, which costs two
    digits over thousands of frames. Offsets that fill one rounding interval evenly (multiples of the golden
    ratio, modulo 1) make the errors cancel instead.
    """
    place = torch.arange(length, device=like.device).remainder(PERIOD).to(torch.float32)
    offset = torch.frac(place * GOLDEN) - 0.5
    return (offset * (torch.finfo(like.dtype).eps / 2 / math.log(2))).to(like.dtype)[:, None, None]


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def _blocks(inputs: _Inputs) -> Iterator[_Block]:
    """Cuts the batch into blocks of at most BLOCK state elements a frame."""
    (rows, _, channels), states = inputs.u.shape, inputs.A.shape[1]
    width = min(channels, max(1, BLOCK // states))
    height = max(1, BLOCK // (states * width))
    for row in range(0, rows, height):
        for channel in range(0, channels, width):
            yield _Block(inputs, slice(row, min(row + height, rows)), slice(channel, min(channel + width, channels)))


_scan = torch.library.custom_op("tacomamba::selective_scan", _forward, mutates_args=())
_scan_backward = torch.library.custom_op("tacomamba::selective_scan_backward", _backward, mutates_args=())
_scan.register_fake(_empty_results)
_scan_backward.register_fake(_empty_gradients)
_scan.register_autograd(_differentiate, setup_context=_setup_context)
