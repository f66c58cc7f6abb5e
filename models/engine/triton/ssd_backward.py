"""Backward kernels of `models.engine.triton.ssd`, given the states before all chunks and their gradients after them.

One kernel that did it all would have more values at hand than a GPU has registers. The first therefore leaves the
gradients of all pairs' products for the second, and both leave sums for the third. In a pair (i, j) of a chunk's
frames, i reads what j adds to the state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.engine.triton.ssd_forward import at, expm1, load_tile, pair_decay, place, store_frames


@triton.jit(do_not_specialize=["length", "chunks"])
def dx_kernel(
    x, B, C, decays, seq_idx, ends, D, dy, dx, dscores, sums, sizes, length, chunks,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dx (b, l, h, p), the gradients of C_i . B_j, (b, h, chunks, Q, Q), and sums, for one chunk of one head.

    The log decay of frame t acts on all pairs j < t <= i. Its gradient is summed over just these, first over j, then
    over i: row sums minus column sums, accumulated, would be small differences of large numbers. CHANNELS and STATES
    are p and n, or the next multiples of BP and BN.
    """
    head, chunk, row = place(tl.program_id(0), sizes.heads, chunks)
    group = head // (sizes.heads // sizes.groups)
    start, frames, q = chunk.to(tl.int64) * Q, length - chunk * Q, tl.arange(0, Q)
    of_chunk = (row * sizes.heads + head) * chunks + chunk
    of_frame, pair = of_chunk * Q + q, q[:, None] * Q + q[None, :]
    after = ends + ((row * chunks + chunk) * sizes.heads + head) * sizes.channels * sizes.states
    scores, products = tl.zeros((Q, Q), tl.float32), tl.zeros((Q, Q), tl.float32)
    for first in range(0, STATES, BN):
        n = first + tl.arange(0, BN)
        C_tile = load_tile(at(C, row, start, group), q, n, C.frame, frames, sizes.states)
        B_tile = load_tile(at(B, row, start, group), q, n, B.frame, frames, sizes.states)
        scores = tl.dot(C_tile, tl.trans(B_tile), scores, input_precision=PRECISION)
    for first in range(0, CHANNELS, BP):
        p = first + tl.arange(0, BP)
        x_tile = load_tile(at(x, row, start, head), q, p, x.frame, frames, sizes.channels)
        dy_tile = load_tile(at(dy, row, start, head), q, p, dy.frame, frames, sizes.channels)
        products = tl.dot(dy_tile, tl.trans(x_tile), products, input_precision=PRECISION)
    tl.store(sums.skip + of_chunk, tl.sum(tl.sum(tl.where(q[:, None] == q[None, :], products, 0.0), 1), 0))
    step = tl.load(decays.step + of_frame)[None, :]
    decay = pair_decay(decays, of_frame, seq_idx, row * length + start, frames, Q)
    mixing = (scores * (decay * step)).to(x.data.dtype.element_ty)
    products *= decay
    tl.store(sums.direct + of_frame, tl.sum(products * scores, 0))
    products *= step
    tl.store(dscores + of_chunk * Q * Q + pair, products.to(dscores.dtype.element_ty))
    products = tl.cumsum(products * scores, 1)
    tl.store(sums.pairs + of_frame, tl.sum(tl.where(q[:, None] > q[None, :], products, 0.0), 0))

    added, weight = tl.zeros((Q,), tl.float32), tl.load(decays.weight + of_frame)[:, None]
    for first_channel in range(0, CHANNELS, BP):
        p = first_channel + tl.arange(0, BP)
        out = tl.zeros((Q, BP), tl.float32)
        for first in range(0, STATES, BN):
            n = first + tl.arange(0, BN)
            B_tile = load_tile(at(B, row, start, group), q, n, B.frame, frames, sizes.states)
            end = load_tile(after, p, n, sizes.states, sizes.channels, sizes.states)
            out = tl.dot(B_tile, tl.trans(end), out, input_precision=PRECISION)
        x_tile = load_tile(at(x, row, start, head), q, p, x.frame, frames, sizes.channels)
        dy_tile = load_tile(at(dy, row, start, head), q, p, dy.frame, frames, sizes.channels)
        added += tl.sum(out * x_tile, 1)
        out = tl.dot(tl.trans(mixing), dy_tile, out * weight, input_precision=PRECISION)
        if D is not None:
            out += dy_tile * tl.load(D + head)
        store_frames(dx, out, row * length + start, head, p, frames, sizes, Q)
    tl.store(sums.added + of_frame, added)


@triton.jit(do_not_specialize=["length", "chunks", "share"])
def dBC_kernel(
    x, B, C, decays, starts, ends, dy, dscores, dB, dC, sums, sizes, length, chunks, share,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dB and dC (b, shares, l, g, n) of one chunk and BN states, summed over `share` heads of a group.

    And, of each of these heads, what the states at both ends of the chunk contribute to `sums`.
    """
    blocks, heads = tl.cdiv(sizes.states, BN), sizes.heads // sizes.groups
    shares = tl.cdiv(heads, share)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks % shares
    group, chunk, row = place(tl.program_id(0) // (blocks * shares), sizes.groups, chunks)
    start, frames, q = chunk.to(tl.int64) * Q, length - chunk * Q, tl.arange(0, Q)
    n, pair = block * BN + tl.arange(0, BN), q[:, None] * Q + q[None, :]
    scores = tl.zeros((Q, Q), tl.float32)
    dB_tile, dC_tile = tl.zeros((Q, BN), tl.float32), tl.zeros((Q, BN), tl.float32)
    for of_group in range(part * share, tl.minimum((part + 1) * share, heads)):
        head = group * heads + of_group
        of_chunk = (row * sizes.heads + head) * chunks + chunk
        of_frame, of_block = of_chunk * Q + q, of_chunk * blocks + block
        of_state = ((row * chunks + chunk) * sizes.heads + head) * sizes.channels * sizes.states
        scores += tl.load(dscores + of_chunk * Q * Q + pair).to(tl.float32)
        read, both = tl.zeros((Q, BN), tl.float32), 0.0
        for first in range(0, CHANNELS, BP):
            p = first + tl.arange(0, BP)
            dy_tile = load_tile(at(dy, row, start, head), q, p, dy.frame, frames, sizes.channels)
            before = load_tile(starts + of_state, p, n, sizes.states, sizes.channels, sizes.states)
            after = load_tile(ends + of_state, p, n, sizes.states, sizes.channels, sizes.states)
            read = tl.dot(dy_tile, before, read, input_precision=PRECISION)
            both += tl.sum(tl.sum(before.to(tl.float32) * after.to(tl.float32), 1), 0)
        C_tile = load_tile(at(C, row, start, group), q, n, C.frame, frames, sizes.states)
        tl.store(sums.carried + of_block * Q + q, tl.sum(read * C_tile, 1))
        tl.store(sums.state + of_block, both)
        dC_tile += read * tl.load(decays.from_start + of_frame)[:, None]
        added = tl.zeros((Q, BN), tl.float32)
        for first in range(0, CHANNELS, BP):
            p = first + tl.arange(0, BP)
            x_tile = load_tile(at(x, row, start, head), q, p, x.frame, frames, sizes.channels)
            after = load_tile(ends + of_state, p, n, sizes.states, sizes.channels, sizes.states)
            added = tl.dot(x_tile, after, added, input_precision=PRECISION)
        dB_tile += added * tl.load(decays.weight + of_frame)[:, None]
    C_tile = load_tile(at(C, row, start, group), q, n, C.frame, frames, sizes.states)
    B_tile = load_tile(at(B, row, start, group), q, n, B.frame, frames, sizes.states)
    rounded = scores.to(B_tile.dtype)
    dB_tile = tl.dot(tl.trans(rounded), C_tile, dB_tile, input_precision=PRECISION)
    dC_tile = tl.dot(rounded, B_tile, dC_tile, input_precision=PRECISION)
    stride = sizes.groups * sizes.states
    first = ((row * shares + part) * length + start) * stride + group * sizes.states
    tile, inside = q[:, None] * stride + n[None, :], (q < frames)[:, None] & (n < sizes.states)[None, :]
    tl.store(dB + first + tile, dB_tile.to(dB.dtype.element_ty), mask=inside)
    tl.store(dC + first + tile, dC_tile.to(dC.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "chunks"])
def dstep_kernel(
    A, decays, sums, ddt, length, chunks, heads, blocks,
    SOFTPLUS: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Writes ddt (b, l, h) of one chunk and HEADS heads, and what it contributes to the gradients of A and dt_bias.

    A frame's log decay weakens the pairs around it, the carried state for the frames from it on, what the frames before
    it add to the chunk's last state, and the carried state in that.
    """
    head_block, chunk, row = place(tl.program_id(0), tl.cdiv(heads, HEADS), chunks)
    h, q = head_block * HEADS + tl.arange(0, HEADS), tl.arange(0, Q)
    start, frames, exists = chunk.to(tl.int64) * Q, length - chunk * Q, h < heads
    of_chunk = (row * heads + h) * chunks + chunk
    of_frame = q[:, None] + (of_chunk * Q)[None, :]
    inside = (q < frames)[:, None] & exists[None, :]
    carried, both = tl.zeros((Q, HEADS), tl.float32), tl.zeros((HEADS,), tl.float32)
    for block in range(blocks):
        of_block = of_chunk * blocks + block
        carried += tl.load(sums.carried + (of_block * Q)[None, :] + q[:, None], mask=inside, other=0.0)
        both += tl.load(sums.state + of_block, mask=exists, other=0.0)
    carried *= tl.load(decays.from_start + of_frame, mask=inside, other=0.0)
    kept = tl.load(decays.kept + of_chunk, mask=exists, other=0.0)
    both *= kept + tl.load(decays.change + of_chunk, mask=exists, other=0.0)
    earlier = inside & (q > 0)[:, None]
    before = tl.load(sums.added + of_frame - 1, mask=earlier, other=0.0)
    before *= tl.load(decays.weight + of_frame - 1, mask=earlier, other=0.0)
    pairs = tl.load(sums.pairs + of_frame - 1, mask=earlier, other=0.0)
    dlog_decay = tl.cumsum(carried, 0, reverse=True) + (tl.cumsum(before, 0) + pairs) + both[None, :]

    dstep = dlog_decay * tl.load(A + h, mask=exists, other=0.0)[None, :]
    dstep += tl.load(sums.direct + of_frame, mask=inside, other=0.0)
    added = tl.load(sums.added + of_frame, mask=inside, other=0.0)
    dstep += added * tl.load(decays.to_end + of_frame, mask=inside, other=0.0)
    step = tl.load(decays.step + of_frame, mask=inside, other=0.0)
    if SOFTPLUS:
        dstep *= -expm1(-step)  # the derivative of softplus: sigmoid(dt) = 1 - exp(-softplus(dt))
    dstep = tl.where(inside, dstep, 0.0)
    ddt += (row * length + start) * heads
    tl.store(ddt + (q[:, None] * heads + h[None, :]), dstep.to(ddt.dtype.element_ty), mask=inside)
    tl.store(sums.dA + of_chunk, tl.sum(dlog_decay * step, 0), mask=exists)
    tl.store(sums.dt_bias + of_chunk, tl.sum(dstep, 0), mask=exists)
