"""Mamba's selective scan in torch operations: chunked, one saved state per chunk, all else recomputed in backward.

Other scans in plain torch keep tensors of (b, l, d, n) for backward. This one saves its inputs and a state every CHUNK
frames, so that at n = CHUNK training costs one more tensor of (b, l, d), and works in buffers that stay in the cache.
Shape letters as in `interface`; inside a block: t frames of a chunk, r rows, e channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine.inputs import ScanInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.reference import sequence_starts, state_dtype

CHUNK = 16
# State elements of one frame of a block: enough to hide the cost of calling an operation, and not above torch's grain
# of 32768, so that the operations of one frame open no parallel region.
BLOCK = 32768
GOLDEN = (math.sqrt(5) - 1) / 2
PERIOD = 4181  # a Fibonacci number: multiples of the golden ratio close evenly after it


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba; see `interface.selective_scan`. Differentiable once."""
    return _scan(cast(inputs, state_dtype(inputs.u.dtype), "dt", "A", "D", "dt_bias", "initial_state"))


def _forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Computes y (b, l, d), the final state (b, d, n), and with `keep` that at each chunk's start, flat."""
    y, final_state, saved = _allocate(inputs, keep)
    checkpoints = _checkpoints(inputs, saved)
    with torch.autocast(y.device.type, enabled=False):
        for block in _blocks(inputs):
            block.begin()
            for index, chunk in enumerate(_chunks(y.shape[1])):
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


def _allocate(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = inputs.u.shape
    states = inputs.A.shape[1]
    chunks = (length + CHUNK - 1) // CHUNK if keep else 0
    return (
        torch.empty_like(inputs.u, memory_format=torch.contiguous_format),
        inputs.A.new_empty(batch, channels, states),
        # flat, because a dimension that may be 1 is a special case to torch.export
        inputs.A.new_empty(chunks * batch * states * channels),
    )


def _checkpoints(inputs: ScanInputs, saved: Tensor) -> Tensor:
    """Views the saved states as (chunks, b, n, d)."""
    return saved.view(-1, inputs.u.shape[0], inputs.A.shape[1], inputs.u.shape[2])


def _backward(inputs: ScanInputs, dy: Tensor, dstate: Tensor | None, saved: Tensor) -> tuple[Tensor, ...]:
    gradients, checkpoints = _Gradients(inputs), _checkpoints(inputs, saved)
    with torch.autocast(dy.device.type, enabled=False):
        for block in _blocks(inputs):
            carry = torch.zeros_like(block.state[0])  # the gradient of the state after the chunk
            if dstate is not None:
                carry.copy_(dstate[block.rows, block.channels].transpose(1, 2))
            dA = torch.zeros_like(block.A)
            for index, chunk in reversed(list(enumerate(_chunks(dy.shape[1])))):
                block.state[0].copy_(checkpoints[index, block.rows, :, block.channels])
                block.load(chunk)
                block.advance()
                gradients.chunk(block, chunk, dy, carry, dA)
            gradients.A[block.channels] += dA.t()
            if inputs.initial_state is not None:
                gradients.initial_state[block.rows, block.channels] = carry.transpose(1, 2)
    return gradients.finish()


class _Block:
    """Rows and channels that are scanned together: buffers of one chunk, time first and channels last."""

    def __init__(self, inputs: ScanInputs, starts: Tensor | None, rows: slice, channels: slice) -> None:
        self.inputs, self.starts, self.rows, self.channels = inputs, starts, rows, channels
        self.A = inputs.A[channels].t().contiguous()  # (n, e)
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
        """Loads the chunk's frames into the buffers: step sizes, decays, and what drives the states."""
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
        if self.starts is not None:
            decays.masked_fill_(self.starts[self.rows, chunk].t()[:, :, None, None], 0.0)
        self.x = self.delta * self.u
        torch.mul(self.x.unsqueeze(2), self.B.unsqueeze(-1), out=self.states[1 : self.frames + 1])

    def take(self, tensor: Tensor) -> Tensor:
        """Copies the chunk of a (b, l, d) tensor as (t, r, e), in the state's dtype."""
        part = tensor[self.rows, self.chunk, self.channels].transpose(0, 1)
        return part.to(self.A.dtype, copy=True, memory_format=torch.contiguous_format)

    def advance(self) -> None:
        """Runs the recurrence over the loaded frames, from `state[0]`."""
        for t in range(self.frames):
            self.state[t + 1].addcmul_(self.decay[t], self.state[t])

    def readout(self) -> Tensor:
        """Computes y before the gate, (t, r, e)."""
        y = torch.matmul(self.C.unsqueeze(2), self.states[1 : self.frames + 1]).squeeze(2)
        D = self.inputs.D
        return y if D is None else y.addcmul_(self.u, D[self.channels])

    def gate(self) -> Tensor | None:
        """Copies the chunk's z, (t, r, e)."""
        return None if self.inputs.z is None else self.take(self.inputs.z)


class _Gradients:
    """The gradients of all inputs, filled chunk by chunk from the last to the first."""

    def __init__(self, inputs: ScanInputs) -> None:
        self.inputs = inputs
        self.u, self.dt, self.A, _, _, self.D, self.z, self.dt_bias, self.initial_state = empty_gradients(inputs)
        self.B, self.C = (inputs.A.new_zeros(v.shape) for v in (inputs.B, inputs.C))
        for total in (self.A, self.D, self.dt_bias):  # sums over blocks and chunks, as those of B and C
            total.zero_()
        self.states: Tensor | None = None  # a buffer: fresh memory from the system costs more than its use

    def finish(self) -> tuple[Tensor, ...]:
        """Returns the gradients in the order of `ScanInputs`."""
        B, C = self.B.to(self.inputs.B.dtype), self.C.to(self.inputs.C.dtype)
        return self.u, self.dt, self.A, B, C, self.D, self.z, self.dt_bias, self.initial_state

    def chunk(self, block: _Block, chunk: slice, dy: Tensor, carry: Tensor, dA: Tensor) -> None:
        """Processes one chunk: turns `carry`, the gradient of the state after it, into that of the state before it."""
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
        g = self.states[:frames]  # gradients of the states (t, r, n, e)
        torch.mul(dy.unsqueeze(2), block.C.unsqueeze(-1), out=g)
        step = g.unbind()
        step[-1].add_(carry)
        for t in range(frames - 1, 0, -1):
            step[t - 1].addcmul_(block.decay[t], step[t])
        torch.mul(block.decay[0], step[0], out=carry)
        self.C[rows, chunk] += torch.matmul(dy.unsqueeze(2), after.transpose(2, 3)).squeeze(2).transpose(0, 1)
        self.B[rows, chunk] += torch.matmul(block.x.unsqueeze(2), g.transpose(2, 3)).squeeze(2).transpose(0, 1)
        dx = torch.matmul(block.B.unsqueeze(2), g).squeeze(2)
        through_decay = g.mul_(before).mul_(block.decays[:frames])  # gradients of delta A (t, r, n, e)
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
    """Offsets, (l, 1, 1), of the base-2 exponents of the decays that keep their rounding errors from adding up.

    A decay near 1 is rounded to a multiple of eps / 2, the same way each time where steps are alike, which costs two
    digits over thousands of frames. Offsets that fill one rounding interval evenly (multiples of the golden ratio,
    modulo 1) make the errors cancel instead.
    """
    place = torch.arange(length, device=like.device).remainder(PERIOD).to(torch.float32)
    offset = torch.frac(place * GOLDEN) - 0.5
    return (offset * (torch.finfo(like.dtype).eps / 2 / math.log(2))).to(like.dtype)[:, None, None]


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def _blocks(inputs: ScanInputs) -> Iterator[_Block]:
    """Cuts the batch into blocks of at most BLOCK state elements per frame."""
    (rows, _, channels), states = inputs.u.shape, inputs.A.shape[1]
    starts = None if inputs.seq_idx is None else sequence_starts(inputs.seq_idx)
    width = min(channels, max(1, BLOCK // states))
    height = max(1, BLOCK // (states * width))
    for row in range(0, rows, height):
        for channel in range(0, channels, width):
            area = slice(row, min(row + height, rows)), slice(channel, min(channel + width, channels))
            yield _Block(inputs, starts, *area)


def _work(inputs: ScanInputs, is_backward: bool, device: str) -> int:
    """Bytes of the decays and states of a block, and of the one before it; the rest is fitted to what it was."""
    (rows, _, channels), states, size = inputs.u.shape, inputs.A.shape[1], inputs.A.element_size()
    width = min(channels, max(1, BLOCK // states))
    height = min(rows, max(1, BLOCK // (states * width)))
    blocks = 1 if (height, width) == (rows, channels) else 2
    work = size * height * width * states * (blocks * (2 * CHUNK + 1) + (24 if is_backward else 6))
    is_wider = is_backward and inputs.B.dtype != inputs.A.dtype  # sums of the gradients of B and C
    return work + 2 * size * inputs.B.numel() * is_wider


_scan = define("selective_scan", ScanInputs, _forward, _allocate, _backward, work=_work)
