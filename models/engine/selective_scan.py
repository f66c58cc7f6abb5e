"""Mamba's selective scan in torch operations: chunked, one saved state per chunk, all else recomputed in backward.

Other scans in plain torch keep tensors of (b, l, d, n) for backward. This one saves its inputs and a state every CHUNK
frames, so that at n = CHUNK training costs one more tensor of (b, l, d), and works in buffers of one block, two in
forward and three in backward, as large as `plan` says. Where a block has room for many chunks, their recurrences run
side by side: once from zeros, which gives the states between chunks (`_carry`), and once from those.
Shape letters as in `interface`; inside a block: t frames of a chunk, s chunks, r rows, e channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine import plan
from models.engine.inputs import AXES, ScanInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.reference import sequence_starts, state_dtype

CHUNK = 16
# State elements that a turn of the recurrence advances on a CPU: enough to hide the cost of calling an operation, and
# not above torch's grain of 32768, so that it opens no parallel region.
BLOCK = 32768
FEWEST = 4  # chunks side by side for which running a recurrence twice pays, on a CPU too
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
            y_of_block = y[block.rows, :, block.channels]
            state = block.new_state(block.inputs.initial_state)
            for span in block.spans:
                block.load(span)
                block.enter(state)
                if keep:
                    block.saved(checkpoints).copy_(block.state[0])
                block.advance()
                gate = block.gate()
                out = block.readout() if gate is None else block.readout() * F.silu(gate)
                block.part(y_of_block).copy_(out)
                state.copy_(block.state[-1][-1])
            final_state[block.rows, block.channels] = state.transpose(1, 2)
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
            dy_of_block, of_block = dy[block.rows, :, block.channels], gradients.of(block)
            carry = block.new_state(None if dstate is None else dstate[block.rows, block.channels])  # after the span
            dA = torch.zeros_like(block.A)
            for span in reversed(block.spans):
                block.load(span)
                block.state[0].copy_(block.saved(checkpoints))
                block.advance()
                gradients.span(block, dy_of_block, carry, dA, of_block)
            of_block.A.add_(dA.t())
            if inputs.initial_state is not None:
                of_block.initial_state.copy_(carry.transpose(1, 2))
    return gradients.finish()


class _Span(NamedTuple):
    """Chunks of the same length that are worked on at once."""

    index: int  # of the first
    chunks: int
    frames: slice


class _Block:
    """Rows and channels that are scanned together: buffers of one span, time first and channels last."""

    def __init__(self, inputs: ScanInputs, starts: Tensor | None, rows: slice, channels: slice, chunks: int) -> None:
        self.inputs, self.rows, self.channels = _cut(inputs, rows, channels), rows, channels
        self.starts = None if starts is None else starts[rows]
        self.height, length, _ = self.inputs.u.shape
        self.spans = _spans(length, chunks)
        self.A = self.inputs.A.t().contiguous()  # (n, e)
        self.A_log2 = self.A * math.log2(math.e)
        self.sizes = 0, 0
        self.dither = _dither(length, self.A)

    def _fit(self, frames: int, chunks: int) -> None:
        """Makes the buffers of spans of this size, and the views of each frame: making one of these costs 1 us."""
        if (frames, chunks) != self.sizes:
            self.sizes = frames, chunks
            self.decays = self.states = self.decay = self.state = None  # frees the memory of the old ones first
            shape = (chunks, self.height, *self.A.shape)
            self.decays, self.states = self.A.new_empty(frames, *shape), self.A.new_empty(frames + 1, *shape)
            self.decay, self.state = self.decays.unbind(), self.states.unbind()

    def new_state(self, value: Tensor | None) -> Tensor:
        """Copies a state, or the gradient of one, (r, e, n), as (r, n, e); zeros if there is none."""
        state = self.A.new_zeros(self.height, *self.A.shape)
        return state if value is None else state.copy_(value.transpose(1, 2))

    def saved(self, checkpoints: Tensor) -> Tensor:
        """Views the saved states at the starts of the span's chunks, (s, r, n, e)."""
        first = self.span.index
        return checkpoints[first : first + self.span.chunks, self.rows, :, self.channels]

    def load(self, span: _Span) -> None:
        """Loads the span's frames into the buffers: step sizes, decays, and what drives the states."""
        inputs, self.span = self.inputs, span
        self._fit((span.frames.stop - span.frames.start) // span.chunks, span.chunks)
        self.u = self.take(inputs.u)
        self.delta = self.take(inputs.dt)
        if inputs.dt_bias is not None:
            self.delta.add_(inputs.dt_bias)
        if inputs.dt_softplus:
            self.delta = F.softplus(self.delta)
        self.B, self.C = (self.part(v).to(self.A.dtype).contiguous() for v in (inputs.B, inputs.C))
        dither = self.part(self.dither) * (self.delta != 0)  # a step of 0 must keep the state to the last bit
        torch.addcmul(dither.unsqueeze(3), self.delta.unsqueeze(3), self.A_log2, out=self.decays).exp2_()
        if self.starts is not None:
            self.resets = self.part(self.starts).unsqueeze(-1)  # (t, s, r, 1, 1)
            self.decays.masked_fill_(self.resets, 0.0)
        self.x = self.delta * self.u
        torch.mul(self.x.unsqueeze(3), self.B.unsqueeze(-1), out=self.states[1:])

    def part(self, tensor: Tensor) -> Tensor:
        """Views the span of the block's part of a tensor, (r, l, c), as (t, s, r, c)."""
        frames = tensor[:, self.span.frames]
        return frames.view(frames.shape[0], self.span.chunks, -1, frames.shape[2]).permute(2, 1, 0, 3)

    def take(self, tensor: Tensor) -> Tensor:
        """Copies the span of the block's part of a tensor, (r, l, e), as (t, s, r, e) in the state's dtype."""
        return self.part(tensor).to(self.A.dtype, copy=True, memory_format=torch.contiguous_format)

    def enter(self, first: Tensor) -> None:
        """Sets `state[0]`, the states at the starts of all chunks, from that of the first (r, n, e)."""
        self.state[0][0] = first
        if self.span.chunks > 1:
            ends = self.state[0][1:]  # first those of chunks that start from zeros
            ends.copy_(self.state[1][:-1])
            for driven, decay in zip(self.state[2:], self.decay[1:], strict=True):
                torch.addcmul(driven[:-1], decay[:-1], ends, out=ends)
            _carry(self.state[0], self._log_decays()[:-1])

    def leave(self, gradients: tuple[Tensor, ...], last: Tensor) -> Tensor:
        """Returns the gradients of the states after all chunks, (s, r, n, e), from that of the last.

        `gradients`, each (s, r, n, e), are those of the states of every frame through their own outputs.
        """
        if self.span.chunks == 1:
            return last
        after = torch.empty_like(gradients[0])
        after[-1], starts = last, after[:-1]
        starts.copy_(gradients[-1][1:])
        for gradient, decay in zip(gradients[-2::-1], self.decay[:0:-1], strict=True):
            torch.addcmul(gradient[1:], decay[1:], starts, out=starts)
        starts.mul_(self.decay[0][1:])
        _carry(after, self._log_decays()[1:], backwards=True)
        return after

    def _log_decays(self) -> Tensor:
        """Computes the base-2 logarithm of the decay over every chunk, (s, r, n, e)."""
        logs = self.delta.sum(0).unsqueeze(2) * self.A_log2
        return logs if self.starts is None else logs.masked_fill_(self.resets.any(0), -math.inf)

    def advance(self) -> None:
        """Runs the recurrence over the loaded frames, from `state[0]`."""
        for t, decay in enumerate(self.decay):
            self.state[t + 1].addcmul_(decay, self.state[t])

    def readout(self) -> Tensor:
        """Computes y before the gate, (t, s, r, e)."""
        y = torch.matmul(self.C.unsqueeze(3), self.states[1:]).squeeze(3)
        D = self.inputs.D
        return y if D is None else y.addcmul_(self.u, D)

    def gate(self) -> Tensor | None:
        """Copies the span's z, (t, s, r, e)."""
        return None if self.inputs.z is None else self.take(self.inputs.z)


def _carry(states: Tensor, logs: Tensor, backwards: bool = False) -> None:
    """Adds to each of `states` (s, r, n, e) the decayed ones before it, or after it; `logs` are of the decays between.

    By doubling (Hillis and Steele 1986): where each sums the last k, adding the one k places away makes that 2k. The
    decay over k chunks comes from the sum of their logarithms, not from a product of decays, whose errors add up.
    """
    k = 1
    while k < len(states):
        to, away = (states[:-k], states[k:]) if backwards else (states[k:], states[:-k])
        to.copy_(torch.addcmul(to, logs.exp2(), away))
        logs = logs[:-k] + logs[k:]
        k *= 2


class _Gradients:
    """The gradients of all inputs, filled span by span from the last to the first."""

    def __init__(self, inputs: ScanInputs) -> None:
        self.results = empty_gradients(inputs)
        present = (None if v is None else gradient for v, gradient in zip(inputs[:-2], self.results, strict=True))
        B, C = (inputs.A.new_zeros(v.shape) for v in (inputs.B, inputs.C))
        self.totals = ScanInputs(*present)._replace(B=B, C=C)
        for total in (self.totals.A, self.totals.D, self.totals.dt_bias):  # sums over blocks, as those of B and C
            if total is not None:
                total.zero_()
        self.states: Tensor | None = None  # a buffer: fresh memory from the system costs more than its use

    def of(self, block: _Block) -> ScanInputs:
        """Views the gradients of the block's inputs."""
        return _cut(self.totals, block.rows, block.channels)

    def finish(self) -> tuple[Tensor, ...]:
        """Returns the gradients in the order of `ScanInputs`."""
        du, ddt, dA, dB, dC, *others = self.results
        return du, ddt, dA, dB.copy_(self.totals.B), dC.copy_(self.totals.C), *others

    def span(self, block: _Block, dy: Tensor, carry: Tensor, dA: Tensor, gradients: ScanInputs) -> None:
        """Processes one span: turns `carry`, the gradient of the state after it, into that of the state before it.

        dy is the block's, (r, l, e); dA (n, e) is added to, and `gradients` are filled for the span's frames.
        """
        inputs, before, after = block.inputs, block.states[:-1], block.states[1:]
        dy = block.take(dy)
        gate = block.gate()
        if gate is not None:
            block.part(gradients.z).copy_(torch.ops.aten.silu_backward(block.readout().mul_(dy), gate))
            dy.mul_(F.silu(gate))
        if self.states is None or self.states.shape != block.decays.shape:
            self.states = torch.empty_like(block.decays)
        g = self.states  # gradients of the states (t, s, r, n, e)
        torch.mul(dy.unsqueeze(3), block.C.unsqueeze(-1), out=g)
        step = g.unbind()
        step[-1].add_(block.leave(step, carry))
        for t in range(len(step) - 1, 0, -1):
            step[t - 1].addcmul_(block.decay[t], step[t])
        torch.mul(block.decay[0][0], step[0][0], out=carry)
        block.part(gradients.C).add_(torch.matmul(dy.unsqueeze(3), after.transpose(3, 4)).squeeze(3))
        block.part(gradients.B).add_(torch.matmul(block.x.unsqueeze(3), g.transpose(3, 4)).squeeze(3))
        dx = torch.matmul(block.B.unsqueeze(3), g).squeeze(3)
        through_decay = g.mul_(before).mul_(block.decays)  # gradients of delta A (t, s, r, n, e)
        ddelta = torch.mul(through_decay, block.A, out=block.decays).sum(3).addcmul_(dx, block.u)
        dA += through_decay.mul_(block.delta.unsqueeze(3)).sum((0, 1, 2))
        if inputs.dt_softplus:
            ddelta.mul_(-torch.expm1(-block.delta))  # softplus' = sigmoid = 1 - exp(-softplus)
        if inputs.dt_bias is not None:
            gradients.dt_bias.add_(ddelta.sum((0, 1, 2)))
        du = dx.mul_(block.delta)
        if inputs.D is not None:
            du.addcmul_(dy, inputs.D)
            gradients.D.add_((dy * block.u).sum((0, 1, 2)))
        block.part(gradients.dt).copy_(ddelta)
        block.part(gradients.u).copy_(du)


def _cut(values: ScanInputs, rows: slice, channels: slice) -> ScanInputs:
    """Views the part of all tensors that belongs to some rows and channels."""
    places = {"b": rows, "d": channels}
    parts = {
        name: value[tuple(places.get(axis, slice(None)) for axis in axes)]
        for name, axes in AXES[ScanInputs].items()
        if (value := getattr(values, name)) is not None
    }
    return values._replace(**parts)


def _dither(length: int, like: Tensor) -> Tensor:
    """Offsets, (1, l, 1), of the base-2 exponents of the decays that keep their rounding errors from adding up.

    A decay near 1 is rounded to a multiple of eps / 2, the same way each time where steps are alike, which costs two
    digits over thousands of frames. Offsets that fill one rounding interval evenly (multiples of the golden ratio,
    modulo 1) make the errors cancel instead.
    """
    place = torch.arange(length, device=like.device).remainder(PERIOD).to(torch.float32)
    offset = torch.frac(place * GOLDEN) - 0.5
    return (offset * (torch.finfo(like.dtype).eps / 2 / math.log(2))).to(like.dtype)[None, :, None]


def _spans(length: int, chunks: int) -> list[_Span]:
    """Cuts the frames into spans of at most so many whole chunks; what is left is a chunk by itself."""
    whole = length // CHUNK
    spans = [
        _Span(first, last - first, slice(first * CHUNK, last * CHUNK))
        for first in range(0, whole, chunks)
        for last in [min(first + chunks, whole)]
    ]
    return spans if length == whole * CHUNK else [*spans, _Span(whole, 1, slice(whole * CHUNK, length))]


def _block_size(inputs: ScanInputs, device: str) -> tuple[int, int, int]:
    """Rows and channels of a block on a type of device, and the most chunks of a span."""
    (rows, _, channels), states = inputs.u.shape, inputs.A.shape[1]
    elements = BLOCK if plan.by_cache(device) else plan.IN_MEMORY // CHUNK
    width = min(channels, max(1, elements // states))
    height = min(rows, max(1, elements // (states * width)))
    chunks = elements // (states * width * height)
    return height, width, chunks if chunks >= FEWEST else 1


def _blocks(inputs: ScanInputs) -> Iterator[_Block]:
    """Cuts the batch into blocks of rows and channels, and the frames of each into spans."""
    rows, _, channels = inputs.u.shape
    starts = None if inputs.seq_idx is None else sequence_starts(inputs.seq_idx).unsqueeze(-1)
    height, width, chunks = _block_size(inputs, inputs.u.device.type)
    for row in range(0, rows, height):
        for channel in range(0, channels, width):
            area = slice(row, min(row + height, rows)), slice(channel, min(channel + width, channels))
            yield _Block(inputs, starts, *area, chunks)


def _work(inputs: ScanInputs, is_backward: bool, device: str) -> int:
    """Bytes of the decays and states of a block, and of the one before it; the rest is fitted to what it was."""
    (rows, length, channels), states, size = inputs.u.shape, inputs.A.shape[1], inputs.A.element_size()
    height, width, chunks = _block_size(inputs, device)
    chunks = max(1, min(chunks, length // CHUNK))
    blocks = 1 if (height, width) == (rows, channels) else 2
    others = (24 if is_backward else 6) + 4 * (chunks > 1)
    work = size * height * width * states * chunks * (blocks * (2 * CHUNK + 1) + others)
    is_wider = is_backward and inputs.B.dtype != inputs.A.dtype  # sums of the gradients of B and C
    return work + 2 * size * inputs.B.numel() * is_wider


_scan = define("selective_scan", ScanInputs, _forward, _allocate, _backward, work=_work)
