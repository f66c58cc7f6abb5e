"""Forward kernels of `models.engine.triton.ssd`: decays of all frames, states between chunks, outputs inside chunks.

The three run one after another. Sums over time never leave a program, so their order is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
STRONGEST_STEP = tl.constexpr(-256.0)  # log2 of a decay that leaves nothing of a state


@triton.jit
def place(program, heads, chunks):
    """Returns the head, the chunk and, in 64 bits, the row of a program; neighbors share a chunk."""
    return program % heads, program // heads % chunks, (program // heads // chunks).to(tl.int64)


@triton.jit
def at(frames, row, frame, head):
    """Points to a row and a frame, both in 64 bits, and a head of `Frames`."""
    return frames.data + (row * frames.row + frame * frames.frame + head.to(tl.int64) * frames.head)


@triton.jit
def load_tile(data, i, j, stride, rows, columns):
    """Loads data[i, j]; zeros from `rows` and `columns` on."""
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    return tl.load(data + (i[:, None] * stride + j[None, :]), mask=inside, other=0.0)


@triton.jit
def store_frames(data, tile, frame, head, p, frames, sizes, Q: tl.constexpr):
    """Stores a tile (Q, channels p) of a head from `frame` of contiguous (b l, h, p) on."""
    q, stride = tl.arange(0, Q), sizes.heads * sizes.channels
    inside = (q < frames)[:, None] & (p < sizes.channels)[None, :]
    data += frame * stride + head * sizes.channels
    tl.store(data + (q[:, None] * stride + p[None, :]), tile.to(data.dtype.element_ty), mask=inside)


@triton.jit
def softplus(x):
    """log(1 + exp(x)); where exp(x) loses digits when 1 is added, the quotient makes up for them."""
    power = tl.exp(tl.minimum(x, 20.0))
    near = 1.0 + power
    lost = tl.where(near == 1.0, 1.0, near - 1.0)
    return tl.where(x > 20.0, x, tl.where(near == 1.0, power, tl.log(near) * (power / lost)))


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(x > -0.25, series, tl.exp(x) - 1)


@triton.jit
def pair_decay(decays, of_frame, seq_idx, first, frames, Q: tl.constexpr):
    """Decay from frame j (columns) to frame i (rows) of a chunk; 0 where i does not read what j adds to the state."""
    q = tl.arange(0, Q)
    meet = q[:, None] >= q[None, :]
    if seq_idx is not None:
        number = tl.load(seq_idx + first + tl.minimum(q, frames - 1))
        meet &= number[:, None] == number[None, :]
    coarse, fine = tl.load(decays.coarse + of_frame), tl.load(decays.fine + of_frame)
    log_decay = (coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :])
    return tl.exp2(tl.where(meet, log_decay, float("-inf")))


@triton.jit(do_not_specialize=["dt_row", "dt_frame", "length", "chunks"])
def decays_kernel(
    dt, dt_row, dt_frame, A, dt_bias, seq_idx, decays, length, chunks, heads,
    SOFTPLUS: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Fills `decays` for one chunk and HEADS heads; dt (b, l, h)."""
    head_block, chunk, row = place(tl.program_id(0), tl.cdiv(heads, HEADS), chunks)
    h, q = head_block * HEADS + tl.arange(0, HEADS), tl.arange(0, Q)
    start, frames, exists = chunk.to(tl.int64) * Q, length - chunk * Q, h < heads
    step = load_tile(dt + row * dt_row + start * dt_frame, q, h, dt_frame, frames, heads).to(tl.float32)
    if dt_bias is not None:
        step += tl.load(dt_bias + h, mask=exists, other=0.0)[None, :]
    if SOFTPLUS:
        step = softplus(step)
    step = tl.where((q < frames)[:, None], step, 0.0)

    # A difference of two sums loses the digits that both share. So each summand is split into a multiple of a unit
    # so large that float32 holds the sums and differences of Q of them exactly, and a small rest: see ssd_chunks.
    log_decay = tl.maximum(step * (tl.load(A + h, mask=exists, other=0.0) * LOG2_E)[None, :], STRONGEST_STEP)
    rounder = tl.max(tl.abs(log_decay), 0)[None, :] * (1.5 * Q)
    exact = (log_decay + rounder) - rounder
    rest = log_decay - exact
    coarse, fine = tl.cumsum(exact, 0), tl.cumsum(rest, 0)
    last_coarse, last_fine = tl.sum(exact, 0), tl.sum(rest, 0)
    from_start = tl.exp2(coarse + fine)
    to_end = tl.exp2((last_coarse[None, :] - coarse) + (last_fine[None, :] - fine))

    # A decay near 1 has lost digits of its logarithm; state + expm1(logarithm) state has not.
    total = (last_coarse + last_fine) / LOG2_E
    slow = total > -0.25
    kept, change = tl.where(slow, 1.0, 0.0), tl.where(slow, expm1(total), tl.exp(total))
    if seq_idx is not None:
        seq_idx += row * length + start
        here = tl.load(seq_idx + tl.minimum(q, frames - 1))
        before, last = tl.load(seq_idx - tl.minimum(chunk, 1)), tl.load(seq_idx + (tl.minimum(Q, frames) - 1))
        from_start = tl.where((here == before)[:, None], from_start, 0.0)
        to_end = tl.where((here == last)[:, None], to_end, 0.0)
        kept, change = tl.where(before == last, kept, 0.0), tl.where(before == last, change, 0.0)

    of_chunk = (row * heads + h) * chunks + chunk
    of_frame = q[:, None] + (of_chunk * Q)[None, :]
    tl.store(decays.step + of_frame, step, mask=exists[None, :])
    tl.store(decays.coarse + of_frame, coarse, mask=exists[None, :])
    tl.store(decays.fine + of_frame, fine, mask=exists[None, :])
    tl.store(decays.from_start + of_frame, from_start, mask=exists[None, :])
    tl.store(decays.to_end + of_frame, to_end, mask=exists[None, :])
    tl.store(decays.weight + of_frame, to_end * step, mask=exists[None, :])
    tl.store(decays.kept + of_chunk, kept, mask=exists)
    tl.store(decays.change + of_chunk, change, mask=exists)


@triton.jit(do_not_specialize=["length", "chunks", "first", "direction"])
def carry_kernel(
    values, vectors, weight, kept, change, initial, states, final, sizes, length, chunks, first, direction,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walks over all chunks with BP x BN of the state of one head, from chunk `first` in `direction`, 1 or -1.

    state = decay of the chunk * state + sum over its frames of weight * values vectors^T. `states` (b, chunks, h, p, n)
    receives the state before each chunk, in x's dtype, `final` (b, h, p, n) the one after them all. With x and B, these
    are the states; with dy and C, backward in time and with the decays from the chunk's start, their gradients.
    """
    p_blocks, n_blocks = tl.cdiv(sizes.channels, BP), tl.cdiv(sizes.states, BN)
    block, of_head = tl.program_id(0) % (p_blocks * n_blocks), (tl.program_id(0) // (p_blocks * n_blocks)).to(tl.int64)
    head, row = (of_head % sizes.heads).to(tl.int32), of_head // sizes.heads
    p, n = block // n_blocks * BP + tl.arange(0, BP), block % n_blocks * BN + tl.arange(0, BN)
    q = tl.arange(0, Q)
    x, v = at(values, row, 0, head), at(vectors, row, 0, head // (sizes.heads // sizes.groups))
    inside = (p < sizes.channels)[:, None] & (n < sizes.states)[None, :]
    of_state, size = p[:, None] * sizes.states + n[None, :], sizes.channels * sizes.states
    state = tl.zeros((BP, BN), tl.float32)
    if initial is not None:
        state += tl.load(initial + of_head * size + of_state, mask=inside, other=0.0)
    for index in range(chunks):
        chunk = first + index * direction
        start, frames, of_chunk = chunk.to(tl.int64) * Q, length - chunk * Q, of_head * chunks + chunk
        before = states + ((row * chunks + chunk) * sizes.heads + head) * size
        tl.store(before + of_state, state.to(states.dtype.element_ty), mask=inside)
        x_tile = load_tile(x + start * values.frame, q, p, values.frame, frames, sizes.channels)
        v_tile = load_tile(v + start * vectors.frame, q, n, vectors.frame, frames, sizes.states)
        v_tile = (v_tile * tl.load(weight + of_chunk * Q + q)[:, None]).to(x_tile.dtype)
        state = state * tl.load(kept + of_chunk) + state * tl.load(change + of_chunk)
        state = tl.dot(tl.trans(x_tile), v_tile, state, input_precision=PRECISION)
    tl.store(final + of_head * size + of_state, state, mask=inside)


@triton.jit(do_not_specialize=["length", "chunks"])
def outputs_kernel(
    x, B, C, decays, seq_idx, states, D, y, sizes, length, chunks,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, STATES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y (b, l, h, p) of one chunk and BP channels of a head; STATES is n, or the next multiple of BN."""
    blocks = tl.cdiv(sizes.channels, BP)
    p, q = tl.program_id(0) % blocks * BP + tl.arange(0, BP), tl.arange(0, Q)
    head, chunk, row = place(tl.program_id(0) // blocks, sizes.heads, chunks)
    group = head // (sizes.heads // sizes.groups)
    start, frames = chunk.to(tl.int64) * Q, length - chunk * Q
    of_frame = ((row * sizes.heads + head) * chunks + chunk) * Q + q
    before = states + ((row * chunks + chunk) * sizes.heads + head) * sizes.channels * sizes.states
    scores, out = tl.zeros((Q, Q), tl.float32), tl.zeros((Q, BP), tl.float32)
    for first in range(0, STATES, BN):
        n = first + tl.arange(0, BN)
        C_tile = load_tile(at(C, row, start, group), q, n, C.frame, frames, sizes.states)
        B_tile = load_tile(at(B, row, start, group), q, n, B.frame, frames, sizes.states)
        state = load_tile(before, p, n, sizes.states, sizes.channels, sizes.states)
        scores = tl.dot(C_tile, tl.trans(B_tile), scores, input_precision=PRECISION)
        out = tl.dot(C_tile, tl.trans(state), out, input_precision=PRECISION)
    out *= tl.load(decays.from_start + of_frame)[:, None]
    decay = pair_decay(decays, of_frame, seq_idx, row * length + start, frames, Q)
    mixing = scores * decay * tl.load(decays.step + of_frame)[None, :]
    x_tile = load_tile(at(x, row, start, head), q, p, x.frame, frames, sizes.channels)
    out = tl.dot(mixing.to(x_tile.dtype), x_tile, out, input_precision=PRECISION)
    if D is not None:
        out += x_tile * tl.load(D + head)
    store_frames(y, out, row * length + start, head, p, frames, sizes, Q)
