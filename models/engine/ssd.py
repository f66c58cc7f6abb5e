"""Mamba-2's state-space duality (SSD) in torch operations: matrix products inside chunks, a recurrence between them.

Forward keeps its inputs and the state at the start of every chunk; backward recomputes the rest chunk by chunk, in
buffers that stay in the cache. After Dao and Gu 2024, "Transformers are SSMs", section 6 and listing 1.
Shape letters: B batch, L length, H heads, P channels of a head, N state size, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.engine.reference import needs_gradient, state_dtype, step_size
from models.engine.ssd_chunks import (
    CHUNK,
    BackwardBuffers,
    Buffers,
    Gradients,
    Sums,
    backward_chunk,
    blocks,
    chunks,
    decays,
    forward_chunk,
    step_gradients,
)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Mamba-2, with one scalar decay per head (Dao and Gu 2024, section 6).

    delta_t = softplus(dt_t + dt_bias) if dt_softplus else dt_t + dt_bias; it must not be negative
    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t^T,   y_t = h_t C_t + D x_t

    x (B, L, H, P), dt (B, L, H), A (H,) negative, B and C (B, L, G, N) with G dividing H, D and dt_bias (H,),
    initial_state (B, H, P, N). seq_idx (B, L), non-decreasing integers: where it changes, a new sequence begins from
    zeros; initial_state belongs to the first of the row.

    Returns y (B, L, H, P) in x's dtype and the state after the last frame (B, H, P, N), at least float32 as all decays
    and states are; matrix products run in x's dtype. Gradients flow from both results to all inputs but seq_idx, once:
    there is no double backward. Raises ValueError for shapes that do not fit together.
    """
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state)
    _check_shapes(*inputs, seq_idx)
    y, final_state, _ = _ssd(*inputs, seq_idx, dt_softplus, needs_gradient(*inputs))
    return y, final_state


def _check_shapes(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx) -> None:
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    if heads % groups:
        raise ValueError(f"The number of groups of B and C, {groups}, must divide the number of heads of x, {heads}.")
    expected = {
        "dt": (dt, (batch, length, heads)),
        "A": (A, (heads,)),
        "B": (B, (batch, length, groups, states)),
        "C": (C, (batch, length, groups, states)),
        "D": (D, (heads,)),
        "dt_bias": (dt_bias, (heads,)),
        "initial_state": (initial_state, (batch, heads, channels, states)),
        "seq_idx": (seq_idx, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"With x {tuple(x.shape)}, {name} must have the shape {shape}, not {tuple(tensor.shape)}.")


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ssd`, and if asked the state at the start of every chunk, (chunks, B, H, P, N) in x's dtype, flattened."""
    y, final_state, saved = _empty_results(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, keep_states)
    states = saved.view(-1, *final_state.shape)
    final_state.zero_() if initial_state is None else final_state.copy_(initial_state)
    with torch.autocast(x.device.type, enabled=False):
        x, B, C, D = _for_products(x, B, C, D)
        decay = decays(_step(x, dt, dt_bias, dt_softplus), A.to(final_state.dtype), seq_idx)
        buffers = {}
        for block in blocks(x, B):
            state = block.state(final_state)
            D_of_block = None if D is None else D[block.heads]
            outputs = block.frames(y).split(CHUNK, 1)
            for index, chunk in enumerate(chunks(block, x, B, C, decay, seq_idx)):
                start = block.state(states[index]).copy_(state) if keep_states else state.to(x.dtype)
                if chunk.x.shape not in buffers:
                    buffers[chunk.x.shape] = Buffers(chunk)
                forward_chunk(chunk, D_of_block, state, start, outputs[index], buffers[chunk.x.shape])
    return y, final_state, saved


def _empty_results(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus, keep_states):
    batch, length, heads, channels = x.shape
    shape = batch, heads, channels, B.shape[3]
    # Flat, because a dimension that may be 1 is a special case to torch.export.
    size = (length + CHUNK - 1) // CHUNK * batch * heads * channels * B.shape[3]
    saved = x.new_empty(size if keep_states else 0)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=state_dtype(x.dtype)), saved


def _backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    saved: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_bias and initial_state; empty for those that are None."""
    inputs = x, dt, A, B, C, D, dt_bias, initial_state
    wide = A.new_empty(0, dtype=state_dtype(x.dtype))
    states = saved.view(-1, x.shape[0], *x.shape[2:], B.shape[3])
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dB, dC, dstate = wide.new_zeros(B.shape), wide.new_zeros(C.shape), wide.new_zeros(states.shape[1:])
    if dfinal_state is not None:
        dstate.copy_(dfinal_state)
    with torch.autocast(x.device.type, enabled=False):
        x, B, C, D = _for_products(x, B, C, D)
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        step = _step(x, dt, dt_bias, dt_softplus)
        decay = decays(step, A.to(wide.dtype), seq_idx)
        sums = Sums(*(wide.new_empty(decay.step.shape) for _ in range(5)), wide.new_empty(decay.change.shape))
        buffers = {}
        for block in blocks(x, B):
            D_of_block = None if D is None else D[block.heads]
            gradients = Gradients.of_chunks(block, dy, dx, dB, dC, sums)
            parts = zip(chunks(block, x, B, C, decay, seq_idx), states.unbind(), gradients, strict=True)
            for chunk, start, gradient in reversed(list(parts)):
                if chunk.x.shape not in buffers:
                    buffers[chunk.x.shape] = BackwardBuffers(chunk)
                around = block.state(start), block.state(dstate)
                backward_chunk(chunk, D_of_block, *around, gradient, buffers[chunk.x.shape])
        ddt, dA = step_gradients(decay, sums, A.to(wide.dtype))
        if dt_softplus:
            ddt = ddt * -torch.expm1(-step)  # the derivative of softplus: sigmoid(dt) = 1 - exp(-softplus(dt))
    gradients = dx, ddt, dA, dB, dC, sums.skip.sum((0, 2)), ddt.sum((0, 1)), dstate
    return tuple(
        x.new_empty(0) if value is None else gradient.to(value.dtype).contiguous()
        for value, gradient in zip(inputs, gradients, strict=True)
    )


def _empty_gradients(dy, dfinal_state, states, x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus):
    return tuple(
        x.new_empty(0) if value is None else torch.empty_like(value, memory_format=torch.contiguous_format)
        for value in (x, dt, A, B, C, D, dt_bias, initial_state)
    )


def _for_products(x: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, B and C in one dtype with a contiguous last dimension, as matrix products want them; D (H, 1)."""
    x, B, C = (value if value.stride(-1) == 1 else value.contiguous() for value in (x, B.to(x.dtype), C.to(x.dtype)))
    return x, B, C, None if D is None else D.to(state_dtype(x.dtype)).unsqueeze(-1)


def _step(x: Tensor, dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    wide = state_dtype(x.dtype)
    return step_size(dt.to(wide), None if dt_bias is None else dt_bias.to(wide), dt_softplus)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.dt_softplus, _ = inputs
    states = output[2]
    ctx.save_for_backward(states, *tensors)
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dfinal_state, _):
    states, *inputs, seq_idx = ctx.saved_tensors
    if dy is None:
        dy = inputs[0].new_zeros(()).expand_as(inputs[0])
    gradients = _ssd_backward(dy, dfinal_state, states, *inputs, seq_idx, ctx.dt_softplus)
    gradients = (None if value is None else gradient for value, gradient in zip(inputs, gradients, strict=True))
    return *gradients, None, None, None


_ssd = torch.library.custom_op("tacomamba::ssd", _forward, mutates_args=())
_ssd_backward = torch.library.custom_op("tacomamba::ssd_backward", _backward, mutates_args=())
_ssd.register_fake(_empty_results)
_ssd_backward.register_fake(_empty_gradients)
_ssd.register_autograd(_differentiate, setup_context=_setup_context)
