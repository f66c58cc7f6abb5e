"""Depthwise causal convolution and SiLU in Triton.

A program computes a tile of frames and channels of one row. It loads the frames once for each tap that sees them; the
cache serves all but the first of these loads. Backward recomputes what stood before SiLU, for a frame and the k-1 after
it, so that programs share no sums but those of the gradients of weight and bias, which torch adds up.

Shape letters as in `interface`; in a tile t frames, counted from the tile's first one, and e channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.engine.inputs import ConvInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.triton.launch import contiguous, launch, require, rows

FORWARD = {"FRAMES": 16, "CHANNELS": 128, "num_warps": 4}
BACKWARD = {"FRAMES": 32, "CHANNELS": 64, "num_warps": 4}


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution; see `interface.causal_conv`. Differentiable once."""
    require("causal convolution", inputs, "x")
    inputs = cast(inputs, torch.float32, "weight", "bias", "initial_state")
    return _conv(cast(inputs, torch.int32, "seq_idx"))


def _forward(inputs: ConvInputs) -> Tensor:
    y = _allocate(inputs)
    batch, length, channels = y.shape
    x, rest, sizes = _arguments(inputs)
    tiles, blocks = triton.cdiv(length, FORWARD["FRAMES"]), triton.cdiv(channels, FORWARD["CHANNELS"])
    launch(_forward_kernel, batch * tiles * blocks, x, x, *rest, y, *sizes, **FORWARD)
    return y


def _allocate(inputs: ConvInputs) -> Tensor:
    return torch.empty_like(inputs.x, memory_format=torch.contiguous_format)


def _backward(inputs: ConvInputs, dy: Tensor) -> tuple[Tensor, ...]:
    dx, dweight, dbias, dinitial = gradients = empty_gradients(inputs)
    batch, length, channels = dx.shape
    taps = inputs.weight.shape[1]
    x, rest, sizes = _arguments(inputs)
    dy = rows(dy)
    # Frames before the first get a gradient too, if only to be written nowhere.
    tiles, blocks = triton.cdiv(length + taps - 1, BACKWARD["FRAMES"]), triton.cdiv(channels, BACKWARD["CHANNELS"])
    sums = dweight.new_empty(batch * tiles, taps + 1, channels)
    results = dx, None if inputs.initial_state is None else dinitial, sums
    strides = dy.stride()[:2]
    launch(_backward_kernel, batch * tiles * blocks, x, x, *rest, dy, *strides, *results, *sizes, **BACKWARD)
    sums = sums.sum(0)
    dweight.copy_(sums[:taps].t())
    if inputs.bias is not None:
        dbias.copy_(sums[taps])
    return gradients


def _arguments(inputs: ConvInputs) -> tuple[Tensor, tuple, tuple]:
    """Returns x, and the arguments of both kernels that follow it: its strides and the other inputs; the sizes."""
    x = rows(inputs.x)
    tensors = contiguous(inputs.weight, inputs.bias, inputs.initial_state, inputs.seq_idx)
    return x, (*x.stride()[:2], *tensors), (*x.shape[1:], inputs.weight.shape[1], inputs.silu)


@triton.jit
def _place(length, channels, FRAMES: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns the program's row in 64 bits, its tile of frames, how many a row has, and its channels (e,)."""
    blocks, tiles = tl.cdiv(channels, CHANNELS), tl.cdiv(length, FRAMES)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    return (tile // tiles).to(tl.int64), tile % tiles, tiles, block * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _load(x, frame_stride, initial, first, t, length, e, channels, TAPS: tl.constexpr):
    """Loads frames t of a tile, (t, e) float32; those before the row come from the initial state, or are zero."""
    frame, here = first + t, e < channels
    inside = (frame >= 0) & (frame < length)
    value = tl.load(x + t[:, None] * frame_stride + e, mask=inside[:, None] & here, other=0.0).to(tl.float32)
    if initial is not None:
        known, place = (frame < 0) & (frame > -TAPS), (frame[:, None] + (TAPS - 1)) * channels + e
        value += tl.load(initial + place, mask=known[:, None] & here, other=0.0)
    return value


@triton.jit
def _sequence(seq_idx, frame, length):
    """Loads sequence numbers (t,); the frames before the row belong to its first sequence."""
    return tl.load(seq_idx + tl.minimum(tl.maximum(frame, 0), length - 1))


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def _before_silu(x, frame_stride, weight, bias, initial, seq_idx, first, t, length, e, channels, TAPS: tl.constexpr):
    """Convolves frames t of a tile, (t, e)."""
    here = e < channels
    y = tl.zeros((t.shape[0], e.shape[0]), tl.float32)
    if bias is not None:
        y += tl.load(bias + e, mask=here, other=0.0)
    for j in tl.static_range(TAPS):
        seen = t + (j - (TAPS - 1))
        value = _load(x, frame_stride, initial, first, seen, length, e, channels, TAPS)
        if seq_idx is not None:
            same = _sequence(seq_idx, first + seen, length) == _sequence(seq_idx, first + t, length)
            value = tl.where(same[:, None], value, 0.0)
        y += value * tl.load(weight + e * TAPS + j, mask=here, other=0.0)
    return y


@triton.jit
def _forward_kernel(
    x, row_stride, frame_stride, weight, bias, initial, seq_idx, y, length, channels,
    TAPS: tl.constexpr, SILU: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, tile, _, e = _place(length, channels, FRAMES, CHANNELS)
    first, t = tile * FRAMES, tl.arange(0, FRAMES)
    x += row * row_stride + first.to(tl.int64) * frame_stride
    y += (row * length + first) * channels
    if initial is not None:
        initial += row * (TAPS - 1) * channels
    if seq_idx is not None:
        seq_idx += row * length
    value = _before_silu(x, frame_stride, weight, bias, initial, seq_idx, first, t, length, e, channels, TAPS)
    if SILU:
        value *= _sigmoid(value)
    inside = (first + t < length)[:, None] & (e < channels)
    tl.store(y + t[:, None] * channels + e, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    x, row_stride, frame_stride, weight, bias, initial, seq_idx, dy, dy_row_stride, dy_frame_stride, dx, dinitial, sums,
    length, channels, TAPS: tl.constexpr, SILU: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, tile, tiles, e = _place(length + TAPS - 1, channels, FRAMES, CHANNELS)
    first, t, here = tile * FRAMES - (TAPS - 1), tl.arange(0, FRAMES), e < channels
    x += row * row_stride + first.to(tl.int64) * frame_stride
    dy += row * dy_row_stride + first.to(tl.int64) * dy_frame_stride
    dx += (row * length + first) * channels
    sums += (row * tiles + tile) * (TAPS + 1) * channels
    if initial is not None:
        initial += row * (TAPS - 1) * channels
        dinitial += row * (TAPS - 1) * channels
    if seq_idx is not None:
        seq_idx += row * length

    value = tl.zeros((FRAMES, CHANNELS), tl.float32)
    for j in tl.static_range(TAPS):  # frame t is what tap TAPS - 1 - j of frame t + j sees
        later = t + j
        g = _load(dy, dy_frame_stride, None, first, later, length, e, channels, TAPS)
        if SILU:
            z = _before_silu(x, frame_stride, weight, bias, initial, seq_idx, first, later, length, e, channels, TAPS)
            s = _sigmoid(z)
            g *= s * (1 + z * (1 - s))
        if j == 0:
            tl.store(sums + TAPS * channels + e, tl.sum(g, 0), mask=here)
            for k in tl.static_range(TAPS):
                seen = t + (k - (TAPS - 1))
                seen_value = _load(x, frame_stride, initial, first, seen, length, e, channels, TAPS)
                if seq_idx is not None:
                    same = _sequence(seq_idx, first + seen, length) == _sequence(seq_idx, first + t, length)
                    seen_value = tl.where(same[:, None], seen_value, 0.0)
                tl.store(sums + k * channels + e, tl.sum(g * seen_value, 0), mask=here)
        if seq_idx is not None:
            same = _sequence(seq_idx, first + later, length) == _sequence(seq_idx, first + t, length)
            g = tl.where(same[:, None], g, 0.0)
        value += g * tl.load(weight + e * TAPS + (TAPS - 1 - j), mask=here, other=0.0)

    frame, place = (first + t)[:, None], t[:, None] * channels + e
    tl.store(dx + place, value.to(dx.dtype.element_ty), mask=(frame >= 0) & (frame < length) & here)
    if initial is not None:
        tl.store(dinitial + (frame + (TAPS - 1)) * channels + e, value, mask=(frame < 0) & here)


_conv = define("triton_causal_conv", ConvInputs, _forward, _allocate, _backward)
