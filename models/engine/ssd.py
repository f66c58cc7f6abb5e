"""Mamba-2's state-space duality (SSD) in torch operations: matrix products inside chunks, a recurrence between them.

Forward keeps its inputs and the state at the start of every chunk; backward recomputes the rest chunk by chunk, in
buffers that stay in the cache. After Dao and Gu 2024, "Transformers are SSMs", section 6 and listing 1.
Shape letters as in `interface`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.engine.inputs import SSDInputs
from models.engine.operators import define, empty_gradients
from models.engine.reference import state_dtype, step_size
from models.engine.ssd_chunks import (
    CHUNK,
    BackwardBuffers,
    Buffers,
    Gradients,
    Sums,
    backward_chunk,
    block_size,
    blocks,
    chunks,
    decays,
    forward_chunk,
    step_gradients,
)


def ssd(inputs: SSDInputs) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2; see `interface.ssd`. Matrix products run in x's dtype. Differentiable once."""
    return _ssd(inputs)


def _forward(inputs: SSDInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `ssd`, and with `keep` the state at each chunk's start, (chunks, b, h, p, n) in x's dtype, flat."""
    y, final_state, saved = _allocate(inputs, keep)
    states = saved.view(-1, *final_state.shape)
    final_state.zero_() if inputs.initial_state is None else final_state.copy_(inputs.initial_state)
    with torch.autocast(y.device.type, enabled=False):
        x, B, C, D = _for_products(inputs)
        decay = decays(_step(inputs), inputs.A.to(final_state.dtype), inputs.seq_idx)
        buffers = {}
        for block in blocks(x, B):
            state = block.state(final_state)
            D_of_block = None if D is None else D[block.heads]
            outputs = block.frames(y).split(CHUNK, 1)
            for index, chunk in enumerate(chunks(block, x, B, C, decay, inputs.seq_idx)):
                start = block.state(states[index]).copy_(state) if keep else state.to(x.dtype)
                if chunk.x.shape not in buffers:
                    buffers[chunk.x.shape] = Buffers(chunk)
                forward_chunk(chunk, D_of_block, state, start, outputs[index], buffers[chunk.x.shape])
    return y, final_state, saved


def _allocate(inputs: SSDInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    x = inputs.x
    batch, length, heads, channels = x.shape
    states = inputs.B.shape[3]
    # Flat, because a dimension that may be 1 is a special case to torch.export.
    size = (length + CHUNK - 1) // CHUNK * batch * heads * channels * states
    final_state = x.new_empty(batch, heads, channels, states, dtype=state_dtype(x.dtype))
    return x.new_empty(x.shape), final_state, x.new_empty(size if keep else 0)


def _backward(inputs: SSDInputs, dy: Tensor, dstate: Tensor | None, saved: Tensor) -> tuple[Tensor, ...]:
    gradients = empty_gradients(inputs)
    wide, device = state_dtype(dy.dtype), dy.device.type
    states = saved.view(-1, inputs.x.shape[0], *inputs.x.shape[2:], inputs.B.shape[3])
    dB, dC = (torch.zeros(v.shape, dtype=wide, device=v.device) for v in (inputs.B, inputs.C))
    dcarry = states.new_zeros(states.shape[1:], dtype=wide)
    if dstate is not None:
        dcarry.copy_(dstate)
    with torch.autocast(device, enabled=False):
        x, B, C, D = _for_products(inputs)
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        step, A = _step(inputs), inputs.A.to(wide)
        decay = decays(step, A, inputs.seq_idx)
        sums = Sums(*(dcarry.new_empty(decay.step.shape) for _ in range(5)), torch.empty_like(decay.change))
        buffers = {}
        for block in blocks(x, B):
            D_of_block = None if D is None else D[block.heads]
            slices = Gradients.of_chunks(block, dy, gradients[0], dB, dC, sums)
            parts = zip(chunks(block, x, B, C, decay, inputs.seq_idx), states.unbind(), slices, strict=True)
            for chunk, start, part in reversed(list(parts)):
                if chunk.x.shape not in buffers:
                    buffers[chunk.x.shape] = BackwardBuffers(chunk)
                around = block.state(start), block.state(dcarry)
                backward_chunk(chunk, D_of_block, *around, part, buffers[chunk.x.shape])
        ddt, dA = step_gradients(decay, sums, A)
        if inputs.dt_softplus:
            ddt = ddt * -torch.expm1(-step)  # the derivative of softplus: sigmoid(dt) = 1 - exp(-softplus(dt))
    results = ddt, dA, dB, dC, sums.skip.sum((0, 2)), ddt.sum((0, 1)), dcarry
    for value, gradient, result in zip(inputs[1:-2], gradients[1:], results, strict=True):
        if value is not None:
            gradient.copy_(result)
    return gradients


def _for_products(inputs: SSDInputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Converts x, B and C to one dtype and a contiguous last dimension, as matrix products want them; D (h, 1)."""
    dtype, D = inputs.x.dtype, inputs.D
    x, B, C = (v if v.stride(-1) == 1 else v.contiguous() for v in (inputs.x, inputs.B.to(dtype), inputs.C.to(dtype)))
    return x, B, C, None if D is None else D.to(state_dtype(dtype)).unsqueeze(-1)


def _step(inputs: SSDInputs) -> Tensor:
    wide, bias = state_dtype(inputs.x.dtype), inputs.dt_bias
    return step_size(inputs.dt.to(wide), None if bias is None else bias.to(wide), inputs.dt_softplus)


def _work(inputs: SSDInputs, is_backward: bool, device: str) -> int:
    """Bytes of the decays of all frames, of a block's buffers and of wide gradients; fitted to what it was,
    of which it is 95 to 160 %."""
    (batch, length, heads, channels), (groups, states) = inputs.x.shape, inputs.B.shape[2:]
    rows, heads_of_block = block_size(inputs.x, inputs.B, device)
    wide = state_dtype(inputs.x.dtype).itemsize
    frames = wide * batch * heads * (length + -length % CHUNK) * (22 if is_backward else 7)
    gradients = wide * batch * (2 * length * groups * states + heads * channels * states) * is_backward
    partial = length % CHUNK if length > CHUNK else 0  # the last chunk has buffers of its own
    copies = inputs.x.dtype != state_dtype(inputs.x.dtype)  # in x's dtype, beside the wide buffers
    buffers = 0
    for t in (min(CHUNK, length), partial):
        pairs, outputs, states_of = t * t, t * channels, channels * states
        if is_backward:
            of_head = (5 + copies) * (pairs + outputs) + 3 * t * states + (1 + copies) * states_of
        else:
            of_head = (2 + copies) * pairs + 4 * outputs + (1 + copies) * states_of
        buffers += wide * rows * (heads_of_block * of_head + 2 * pairs)
    return frames + gradients + buffers


_ssd = define("ssd", SSDInputs, _forward, _allocate, _backward, work=_work)
