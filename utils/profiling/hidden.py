"""Bytes that operators take besides the tensors that they are seen to return, by formula.

The engine's operators state theirs. oneDNN, which torch uses on CPUs, reorders what convolutions and LSTMs read; what
it takes beside torch's allocator is not counted. On CUDA, workspaces are part of what `utils.profiling.fits` reserves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.engine.operators import work_bytes

aten = torch.ops.aten
LSTM, LSTM_BACKWARD = aten.mkldnn_rnn_layer.default, aten.mkldnn_rnn_layer_backward.default
CONV, CONV_BACKWARD = aten.convolution.default, aten.convolution_backward.default


def hidden_bytes(func: Any, args: tuple, result: Any, device: str) -> int:
    """The most bytes that an operator has at a time beyond its arguments and results; 0 if no formula is known."""
    if func in (LSTM, LSTM_BACKWARD):
        return _lstm_work(args[0], args[1], args[2], func is LSTM_BACKWARD)
    if func is CONV and device == "cpu":
        return _conv_work(args[0], args[1], result, False)
    if func is CONV_BACKWARD and device == "cpu":
        return _conv_work(args[1], args[2], args[0], True)
    return work_bytes(func, args, device)


def _conv_work(x: Tensor, weight: Tensor, y: Tensor, is_backward: bool) -> int:
    """Reordered inputs, weights and outputs (or their gradients).

    They are within 1 % of what torch 2.13 took in all cases measured but one. Over one channel it is the matrix of all
    windows. Channels that do not fill vectors of 8 are not reordered in float32.
    """
    read = (x, y) if is_backward else (x,)
    copied = sum(0 if tensor.is_contiguous() else tensor.nbytes for tensor in read)
    if weight.shape[:2] == (1, 1):
        return copied + y.nbytes * weight[0].numel() * (2 if is_backward else 1)
    if x.dtype == torch.float32 and weight.shape[0] % 8:
        return copied
    if not is_backward:
        return copied + max(x.nbytes, y.nbytes) + weight.nbytes
    return copied + x.nbytes + y.nbytes + (0 if x.dtype == torch.float32 else round(2.4 * weight.nbytes))


def lstm_workspace(x: Tensor, weight: Tensor) -> int:
    """Bytes of oneDNN's workspace of an LSTM layer in training: x (t, b, i), weight (4 h, h) of the recurrence.

    Gates, and 5 + 6 arrays of states and of their gradients, in x's dtype and float32; fitted to what it was with torch
    2.13, of which it is 100 to 106 % for 1,000 frames or more.
    """
    (length, batch, width), hidden, size = x.shape, weight.shape[1], x.element_size()
    states = (length + 1) * batch * (_padded(max(width, hidden)) * (2 * size + 16) + _padded(hidden) * (3 * size + 8))
    return 4 * length * batch * hidden * size + round(1.03 * states) + 8 * 4096


def _padded(width: int) -> int:
    return -(-width // 16) * 16


def _lstm_work(x: Tensor, w_x: Tensor, w_h: Tensor, is_backward: bool) -> int:
    """Reordered weights, in float32 several times in bfloat16's backward pass, and gates; fitted likewise."""
    weights = (w_x.numel() + w_h.numel()) * x.element_size()
    gates = x.shape[0] * x.shape[1] * w_h.shape[0] * x.element_size()
    if x.dtype == torch.float32:
        return round(1.05 * weights + 1.15 * gates)
    return round(3.1 * weights + 0.55 * gates) if is_backward else round(1.1 * weights + 0.02 * gates)
