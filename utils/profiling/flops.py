"""FLOPs of an operator: those of torch's own counter, and formulas for what it does not know.

A multiplication and an addition are two. Operations on single elements do not count, as in torch's counter; those of
the scans do, which are their whole work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from models.engine.inputs import ConvInputs, ScanInputs, SSDInputs
from models.engine.operators import KINDS, inputs_of
from models.engine.ssd_chunks import CHUNK

aten = torch.ops.aten


def flops_of(func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> int:
    """FLOPs of a call of an operator with its result; 0 for operators without a formula."""
    name = func._schema.name
    if (kind := KINDS.get(name.removesuffix("_backward"))) is not None:
        return ENGINE[kind](inputs_of(func, args), name.endswith("_backward"))
    if own := OTHERS.get(func._overloadpacket):
        return own(*args)
    counter = flop_registry.get(func._overloadpacket)
    return 0 if counter is None else int(counter(*args, **kwargs, out_val=result))


def _conv(inputs: ConvInputs, is_backward: bool) -> int:
    """A product and a sum for each tap; backward computes them again for SiLU, and for the two gradients."""
    forward = 2 * inputs.x.numel() * inputs.weight.shape[1]
    return forward * (2 + inputs.silu) if is_backward else forward


def _scan(inputs: ScanInputs, is_backward: bool) -> int:
    """A state's exponent, decay and input take 5 operations, its share of y 2; backward does the former again.

    Its own are then 16: the gradient of the state 4, of B 2, C 2, x 2, of the step 4, and of A 2.
    """
    return inputs.u.numel() * inputs.A.shape[1] * (5 + 16 if is_backward else 7)


def _ssd(inputs: SSDInputs, is_backward: bool) -> int:
    """Products of a frame with the frames of its chunk and with the states; backward has three and two of each."""
    batch, length, heads, channels = inputs.x.shape
    groups, states = inputs.B.shape[2:]
    chunk = min(CHUNK, length)
    scores, mixing, carried = groups * chunk * states, heads * chunk * channels, 2 * heads * channels * states
    per_frame = 3 * scores + 2 * mixing + 2 * carried if is_backward else scores + mixing + carried
    return 2 * batch * length * per_frame


ENGINE: dict[type, Callable[[Any, bool], int]] = {ConvInputs: _conv, ScanInputs: _scan, SSDInputs: _ssd}


def _lstm(x: Any, w_x: Any, w_h: Any, *_: Any) -> int:
    return 2 * math.prod(x.shape[:2]) * (w_x.numel() + w_h.numel())


OTHERS: dict[Any, Callable[..., int]] = {
    aten.mkldnn_rnn_layer: _lstm,
    aten.mkldnn_rnn_layer_backward: lambda *args: 2 * _lstm(*args),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_: sdpa_flop_count(q.shape, k.shape, v.shape),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_: sdpa_backward_flop_count(
        g.shape, q.shape, k.shape, v.shape
    ),
}
