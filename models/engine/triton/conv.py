"""Depthwise causal convolution and SiLU in Triton.

A program computes tiles of frames and channels of one row. For each it loads the frames once for each tap that sees
them; the cache serves all but the first of these loads. Backward recomputes what stood before SiLU, for a frame and the
k-1 after it, so that programs share no sums but those of the gradients of weight and bias, which torch adds up.

Shape letters as in `interface`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.engine import Unsupported
from models.engine.inputs import ConvInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.triton.launch import cdiv, contiguous, launch, rows

FORWARD = {"FRAMES": 16, "CHANNELS": 128, "num_warps": 4}
BACKWARD = {"FRAMES": 16, "CHANNELS": 64, "TILES": 4, "num_warps": 4}
MOST_TAPS = 8  # their loops are unrolled, in backward a loop in a loop


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution; see `interface.causal_conv`. Differentiable once."""
    if inputs.weight.shape[1] > MOST_TAPS:
        raise Unsupported(f"the Triton causal convolution has at most {MOST_TAPS} taps, not {inputs.weight.shape[1]}")
    inputs = cast(inputs, torch.float32, "weight", "bias", "initial_state")
    return _conv(cast(inputs, torch.int32, "seq_idx"))


def _forward(inputs: ConvInputs) -> Tensor:
    y = _allocate(inputs)
    batch, length, channels = y.shape
    x, rest, sizes = _arguments(inputs)
    tiles, blocks = cdiv(length, FORWARD["FRAMES"]), cdiv(channels, FORWARD["CHANNELS"])
    launch("conv_kernels.forward_kernel", batch * tiles * blocks, x, x, *rest, y, *sizes, **FORWARD)
    return y


def _allocate(inputs: ConvInputs) -> Tensor:
    return torch.empty_like(inputs.x, memory_format=torch.contiguous_format)


def _backward(inputs: ConvInputs, dy: Tensor) -> tuple[Tensor, ...]:
    dx, dweight, dbias, dinitial = gradients = empty_gradients(inputs)
    batch, length, channels = dx.shape
    taps = inputs.weight.shape[1]
    x, rest, sizes = _arguments(inputs)
    dy = rows(dy)
    # The frames before the first have a gradient as well.
    parts = cdiv(length + taps - 1, BACKWARD["FRAMES"] * BACKWARD["TILES"])
    sums = dweight.new_empty(batch * parts, taps + 1, channels)
    results = dx, None if inputs.initial_state is None else dinitial, sums
    programs = batch * parts * cdiv(channels, BACKWARD["CHANNELS"])
    launch("conv_kernels.backward_kernel", programs, x, x, *rest, dy, *dy.stride()[:2], *results, *sizes, **BACKWARD)
    sums = sums.sum(0)
    dweight.copy_(sums[:taps].t())
    if inputs.bias is not None:
        dbias.copy_(sums[taps])
    return gradients


def _arguments(inputs: ConvInputs) -> tuple[Tensor, tuple, tuple]:
    """Returns x, and the arguments of both kernels that follow it: its strides and the other inputs; the sizes."""
    x = rows(inputs.x)
    tensors = contiguous(inputs.weight.t(), inputs.bias, inputs.initial_state, inputs.seq_idx)
    return x, (*x.stride()[:2], *tensors), (*x.shape[1:], inputs.weight.shape[1], inputs.silu)


_conv = define("triton_causal_conv", ConvInputs, _forward, _allocate, _backward, work=None)
