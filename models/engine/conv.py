"""Depthwise causal convolution in torch operations: shifted multiply-adds over blocks, as large as `plan` says.

On a CPU several times faster than a grouped conv1d. The SiLU that follows it in Mamba is part of the operator, so that
backward recomputes its input. Beside their results, forward has up to four buffers of a block and backward up to seven.
Shape letters as in `interface`; r rows and t frames of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine import plan
from models.engine.inputs import ConvInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.reference import state_dtype

BLOCK = 32768  # elements of a block on a CPU: they stay in the cache, and torch opens no parallel region for so few


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution; see `interface.causal_conv`. Differentiable once."""
    return _conv(cast(inputs, state_dtype(inputs.x.dtype), "weight", "bias"))


def _forward(inputs: ConvInputs) -> Tensor:
    y = _allocate(inputs)
    for block in _blocks(inputs):
        out = block.convolve()
        y[block.rows, block.frames] = F.silu(out, inplace=True) if inputs.silu else out
    return y


def _allocate(inputs: ConvInputs) -> Tensor:
    return torch.empty_like(inputs.x, memory_format=torch.contiguous_format)


def _backward(inputs: ConvInputs, dy: Tensor) -> tuple[Tensor, ...]:
    dx, dweight, dbias, dinitial = empty_gradients(inputs)
    dtaps = torch.zeros_like(inputs.weight.t(), memory_format=torch.contiguous_format)
    dbias.zero_()
    before = len(dtaps) - 1
    for block in _blocks(inputs, backwards=True):
        if block.is_last:
            carry = torch.zeros_like(block.window[:, :before])  # what later frames add to the frames before them
        g = dy[block.rows, block.frames].to(dtaps.dtype)
        if inputs.silu:
            g = torch.ops.aten.silu_backward(g, block.convolve())
        dwindow = block.spread(g, dtaps)
        if inputs.bias is not None:
            dbias += g.sum((0, 1))
        dwindow[:, dwindow.shape[1] - before :] += carry
        carry = dwindow[:, :before]
        dx[block.rows, block.frames] = dwindow[:, before:]
        if block.is_first and inputs.initial_state is not None:
            dinitial[block.rows] = carry
    return dx, dweight.copy_(dtaps.t()), dbias, dinitial


class _Block:
    """Some frames of some rows, with the k-1 frames before them."""

    def __init__(self, inputs: ConvInputs, taps: Tensor, rows: slice, frames: slice) -> None:
        x, initial_state, seq_idx = inputs.x, inputs.initial_state, inputs.seq_idx
        self.rows, self.frames, self.taps, self.bias = rows, frames, taps, inputs.bias
        self.is_first, self.is_last = frames.start == 0, frames.stop == x.shape[1]
        before = len(taps) - 1
        known = min(before, frames.start)
        count = frames.stop - frames.start
        self.window = taps.new_zeros(x[rows].shape[0], before + count, x.shape[2])
        if initial_state is not None and known < before:
            self.window[:, : before - known] = initial_state[rows, frames.start :]
        self.window[:, before - known :] = x[rows, frames.start - known : frames.stop]
        self.same = None if seq_idx is None else _same_sequence(seq_idx[rows], frames, before)

    def part(self, window: Tensor, j: int) -> Tensor:
        """Selects the frames of a window that tap j sees, k-1-j before each of the block: (r, t, d)."""
        return window[:, j : j + self.frames.stop - self.frames.start]

    def of_sequence(self, tensor: Tensor, j: int) -> Tensor:
        """Replaces (r, t, d) by zeros where tap j reaches into another packed sequence."""
        return tensor if self.same is None else tensor * self.same[j]

    def convolve(self) -> Tensor:
        """Computes the output before the activation, (r, t, d)."""
        terms = (self.of_sequence(self.part(self.window, j), j) for j in range(len(self.taps)))
        first = next(terms)
        y = first * self.taps[0] if self.bias is None else torch.addcmul(self.bias, first, self.taps[0])
        for term, tap in zip(terms, self.taps[1:], strict=True):
            y.addcmul_(term, tap)
        return y

    def spread(self, g: Tensor, dtaps: Tensor) -> Tensor:
        """Computes the window's gradient from that of the output, g (r, t, d); adds the taps' to `dtaps` (k, d)."""
        dwindow = torch.zeros_like(self.window)
        for j, tap in enumerate(self.taps):
            g_j = self.of_sequence(g, j)
            dtaps[j] += (g_j * self.part(self.window, j)).sum((0, 1))
            self.part(dwindow, j).addcmul_(g_j, tap)
        return dwindow


def _same_sequence(seq_idx: Tensor, frames: slice, before: int) -> Tensor:
    """Marks where tap j sees the same sequence, the initial state counting as the first: (k, r, t, 1)."""
    padded = torch.cat([seq_idx[:, :1].expand(-1, before), seq_idx], dim=1)  # frame t is at index t + before
    now = seq_idx[:, frames]
    return torch.stack([padded[:, frames.start + j : frames.stop + j] == now for j in range(before + 1)]).unsqueeze(-1)


def _blocks(inputs: ConvInputs, backwards: bool = False) -> Iterator[_Block]:
    """Cuts the batch into blocks; the frames of a row in order, or the last first."""
    taps = inputs.weight.t().contiguous()
    rows, length, channels = inputs.x.shape
    elements = _block_size(inputs.x.device.type)
    size = min(length, max(1, elements // channels))
    height = max(1, elements // (size * channels))
    starts = range(0, length, size)
    for row in range(0, rows, height):
        for start in reversed(starts) if backwards else starts:
            yield _Block(inputs, taps, slice(row, min(row + height, rows)), slice(start, min(start + size, length)))


def _block_size(device: str) -> int:
    """The most elements of a block on a type of device."""
    return BLOCK if plan.by_cache(device) else plan.IN_MEMORY


def _work(inputs: ConvInputs, is_backward: bool, device: str) -> int:
    """Bytes of a block's window, terms and output, and of their gradients, fitted to what it was."""
    element = inputs.weight.element_size() * min(_block_size(device), inputs.x.numel())
    return round((5.6 if is_backward else 3.4) * element)


_conv = define("causal_conv", ConvInputs, _forward, _allocate, _backward, work=_work)
