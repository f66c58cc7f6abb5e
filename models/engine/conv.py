"""Depth-wise causal convolution in torch operations: shifted multiply-adds over blocks that stay in the cache.

On a CPU several times faster than a grouped conv1d. The SiLU that follows it in Mamba is part of the operator, so that
backward recomputes what stood before it. Shape letters: B batch, L length, D channels, K taps, T frames of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine.reference import state_dtype

BLOCK = 32768  # elements of a block: the buffers stay in the cache, and torch opens no parallel region for so few


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """Depth-wise causal convolution; see `interface.causal_conv`. Differentiable once."""
    wide = state_dtype(x.dtype)
    bias = None if bias is None else bias.to(wide)
    return _conv(x, weight.to(wide), bias, initial_state, seq_idx, silu)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for block in _blocks(x, weight, initial_state, seq_idx):
        out = block.convolve(bias)
        y[block.rows, block.frames] = F.silu(out, inplace=True) if silu else out
    return y


def _empty_result(x, weight, bias, initial_state, seq_idx, silu):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial_state; empty for those that are None."""
    dx, dweight, dbias, dinitial = _empty_gradients(dy, x, weight, bias, initial_state, seq_idx, silu)
    dtaps = weight.new_zeros(weight.shape[1], weight.shape[0])
    dbias.zero_()
    before = weight.shape[1] - 1
    for block in _blocks(x, weight, initial_state, seq_idx, backwards=True):
        if block.is_last:
            carry = torch.zeros_like(block.window[:, :before])  # what later frames add to the frames before them
        g = dy[block.rows, block.frames].to(weight.dtype)
        if silu:
            g = torch.ops.aten.silu_backward(g, block.convolve(bias))
        dwindow = block.spread(g, dtaps)
        if bias is not None:
            dbias += g.sum((0, 1))
        dwindow[:, dwindow.shape[1] - before :] += carry
        carry = dwindow[:, :before]
        dx[block.rows, block.frames] = dwindow[:, before:]
        if block.is_first and initial_state is not None:
            dinitial[block.rows] = carry
    return dx, dweight.copy_(dtaps.t()), dbias, dinitial


def _empty_gradients(dy, x, weight, bias, initial_state, seq_idx, silu):
    contiguous = torch.contiguous_format
    dbias, dinitial = (
        weight.new_empty(0) if v is None else torch.empty_like(v, memory_format=contiguous)
        for v in (bias, initial_state)
    )
    return *(torch.empty_like(v, memory_format=contiguous) for v in (x, weight)), dbias, dinitial


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.silu = inputs[-1]


def _differentiate(ctx, dy):
    x, weight, bias, initial_state, seq_idx = ctx.saved_tensors
    dx, dweight, dbias, dinitial = _conv_backward(dy, x, weight, bias, initial_state, seq_idx, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None if initial_state is None else dinitial, None, None


class _Block:
    """Some frames of some rows, with the K - 1 frames before them."""

    def __init__(
        self, x: Tensor, taps: Tensor, initial_state: Tensor | None, seq_idx: Tensor | None, rows: slice, frames: slice
    ) -> None:
        self.rows, self.frames, self.taps = rows, frames, taps
        self.is_first, self.is_last = frames.start == 0, frames.stop == x.shape[1]
        before = len(taps) - 1
        known = min(before, frames.start)
        count = frames.stop - frames.start
        self.window = taps.new_zeros(x[rows].shape[0], before + count, x.shape[2])
        if initial_state is not None and known < before:
            self.window[:, : before - known] = initial_state[rows, frames.start :]
        self.window[:, before - known :] = x[rows, frames.start - known : frames.stop]
        self.same = None if seq_idx is None else _same_sequence(seq_idx[rows], frames, before)

    def part(self, window: Tensor, k: int) -> Tensor:
        """The frames of a window that tap k sees: K - 1 - k before each of the block, (R, T, D)."""
        return window[:, k : k + self.frames.stop - self.frames.start]

    def of_sequence(self, tensor: Tensor, k: int) -> Tensor:
        """`tensor` (R, T, D) with zeros where tap k reaches into another packed sequence."""
        return tensor if self.same is None else tensor * self.same[k]

    def convolve(self, bias: Tensor | None) -> Tensor:
        """(R, T, D)"""
        terms = [self.of_sequence(self.part(self.window, k), k) for k in range(len(self.taps))]
        y = terms[0] * self.taps[0] if bias is None else torch.addcmul(bias, terms[0], self.taps[0])
        for term, tap in zip(terms[1:], self.taps[1:], strict=True):
            y.addcmul_(term, tap)
        return y

    def spread(self, g: Tensor, dtaps: Tensor) -> Tensor:
        """The window's gradient from that of the output, g (R, T, D); adds the taps' gradients to `dtaps` (K, D)."""
        dwindow = torch.zeros_like(self.window)
        for k, tap in enumerate(self.taps):
            g_k = self.of_sequence(g, k)
            dtaps[k] += (g_k * self.part(self.window, k)).sum((0, 1))
            self.part(dwindow, k).addcmul_(g_k, tap)
        return dwindow


def _same_sequence(seq_idx: Tensor, frames: slice, before: int) -> Tensor:
    """1 where the frame that tap k sees is of the same sequence; the initial state is of the first: (K, R, T, 1)."""
    padded = torch.cat([seq_idx[:, :1].expand(-1, before), seq_idx], dim=1)  # frame t stands at t + before
    now = seq_idx[:, frames]
    return torch.stack([padded[:, frames.start + k : frames.stop + k] == now for k in range(before + 1)]).unsqueeze(-1)


def _blocks(
    x: Tensor, weight: Tensor, initial_state: Tensor | None, seq_idx: Tensor | None, backwards: bool = False
) -> Iterator[_Block]:
    """Cuts the batch into blocks of at most BLOCK elements; the frames of a row in order, or the last first."""
    taps = weight.t().contiguous()
    rows, length, channels = x.shape
    size = min(length, max(1, BLOCK // channels))
    height = max(1, BLOCK // (size * channels))
    starts = range(0, length, size)
    for row in range(0, rows, height):
        for start in reversed(starts) if backwards else starts:
            area = slice(row, min(row + height, rows)), slice(start, min(start + size, length))
            yield _Block(x, taps, initial_state, seq_idx, *area)


_conv = torch.library.custom_op("tacomamba::causal_conv", _forward, mutates_args=())
_conv_backward = torch.library.custom_op("tacomamba::causal_conv_backward", _backward, mutates_args=())
_conv.register_fake(_empty_result)
_conv_backward.register_fake(_empty_gradients)
_conv.register_autograd(_differentiate, setup_context=_setup_context)
