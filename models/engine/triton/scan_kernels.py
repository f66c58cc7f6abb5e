"""The kernels of the selective scan in Triton; `selective_scan` describes them, and `scan_tiles` has their parts."""

import triton
import triton.language as tl

from models.engine.triton.scan_tiles import (
    LOG2_E,
    advance,
    by_channel,
    by_state,
    decays,
    load,
    load_gated,
    load_states,
    load_vector,
    place,
    retreat,
    silu,
    state_gradients,
    state_places,
    step_sizes,
    sum_channels,
    sum_states,
    through_segments,
)

NOT_SPECIAL = ["length", "segments", "span"]  # or each kind of length would be compiled for itself


@triton.jit(do_not_specialize=NOT_SPECIAL)
def forward_kernel(
    u, dt, A, B, C, D, z, dt_bias, initial, seq_idx, added, elapsed, y, last, saved,
    length, width, states: tl.constexpr, segments, span, SOFTPLUS: tl.constexpr,
    STATES: tl.constexpr, FRAMES: tl.constexpr, NI: tl.constexpr, DI: tl.constexpr, CHANNELS: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """Computes y, the last state, and the saved ones if there is room for them.

    Without y, computes what each segment adds to the state after it, (b, segments, d, n), and the sum of its steps,
    (b, segments, d); with it, starts from those of the segments - 1 first ones, if there are any.
    """
    NL: tl.constexpr = STATES // NI
    DL: tl.constexpr = CHANNELS // DI
    row, segment, first, stop, block = place(length, width, segments, span, 0, CHANNELS)
    t, n, e = tl.arange(0, FRAMES), tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    d, places, exist = state_places(block, width, states, NL, NI, DI, DL)
    A2 = load_states(A, places, exist) * LOG2_E
    if seq_idx is not None:
        seq_idx += row * length
    if initial is not None:
        initial += row * width * states
    h = load_states(initial, places, exist)
    if (y is not None) and (added is not None):
        h = through_segments(h, added, elapsed, row, segment, segments, False, width, states, A2, d, places, exist)
    bias, skip = load_vector(dt_bias, e, width), load_vector(D, e, width)
    steps = tl.zeros((FRAMES, CHANNELS), tl.float32)

    x = load(u, row, first, t, stop, e, width).to(tl.float32)
    b, c = (
        load(B, row, first, t, stop, n, states).to(tl.float32),
        load(C, row, first, t, stop, n, states).to(tl.float32),
    )
    raw = load(dt, row, first, t, stop, e, width)
    step, decay = step_sizes(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)[:2]
    for i in range(tl.cdiv((stop - first).to(tl.int32), FRAMES)):
        after = first + FRAMES  # loads of the next tile come first, to travel while this one is computed
        next_u, raw = load(u, row, after, t, stop, e, width), load(dt, row, after, t, stop, e, width)
        next_B, next_C = load(B, row, after, t, stop, n, states), load(C, row, after, t, stop, n, states)
        if saved is not None:
            if i % (SAVE // FRAMES) == 0:
                chunk = row * tl.cdiv(length, SAVE) + first // SAVE
                tl.store(saved + chunk * width * states + places, h, mask=exist)
        a = decays(decay, A2, first, t, DI, DL)
        hs, h = advance(a, by_channel(step * x, DI, DL) * by_state(b, NI, NL), h)
        if y is None:
            steps += decay
        else:
            out = sum_states(hs * by_state(c, NI, NL)) + x * skip
            if z is not None:
                out *= silu(load(z, row, first, t, stop, e, width).to(tl.float32))[0]
            inside = (t < (stop - first).to(tl.int32))[:, None] & (e < width)
            offset = (row * length + first) * width + (t[:, None] * width + e)
            tl.store(y + offset, out.to(y.dtype.element_ty), mask=inside)
        # Computed here and not where it is used, since there it would be once for each state.
        step, decay = step_sizes(raw, bias, seq_idx, after, t, stop, e, width, SOFTPLUS)[:2]
        x, b, c, first = next_u.to(tl.float32), next_B.to(tl.float32), next_C.to(tl.float32), after

    if y is None:
        part = (row * segments + segment) * width
        tl.store(added + part * states + places, h, mask=exist)
        tl.store(elapsed + part + e, tl.sum(steps, 0), mask=e < width)
    elif segment == segments - 1:
        tl.store(last + row * width * states + places, h, mask=exist)


@triton.jit(do_not_specialize=NOT_SPECIAL)
def carry_kernel(
    dt, A, C, z, dt_bias, seq_idx, dy, carried, elapsed,
    length, width, states: tl.constexpr, segments, span, SOFTPLUS: tl.constexpr,
    STATES: tl.constexpr, FRAMES: tl.constexpr, NI: tl.constexpr, DI: tl.constexpr, CHANNELS: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """Computes what each segment but a row's first adds to the gradient of the state before it, and sums of steps.

    Their shapes are (b, segments, d, n) and (b, segments, d), the first segment left out.
    """
    NL: tl.constexpr = STATES // NI
    DL: tl.constexpr = CHANNELS // DI
    row, segment, start, stop, block = place(length, width, segments, span, 1, CHANNELS)
    t, n, e = tl.arange(0, FRAMES), tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    d, places, exist = state_places(block, width, states, NL, NI, DI, DL)
    A2 = load_states(A, places, exist) * LOG2_E
    if seq_idx is not None:
        seq_idx += row * length
    bias, steps = load_vector(dt_bias, e, width), tl.zeros((FRAMES, CHANNELS), tl.float32)
    carry = tl.zeros(places.shape, tl.float32)
    tiles = tl.cdiv((stop - start).to(tl.int32), FRAMES)
    for i in range(tiles):
        first = start + (tiles - 1 - i) * FRAMES
        raw = load(dt, row, first, t, stop, e, width)
        decay = step_sizes(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)[1]
        g = load_gated(dy, z, row, first, t, stop, e, width)[0]
        c = load(C, row, first, t, stop, n, states).to(tl.float32)
        a = decays(decay, A2, first, t, DI, DL)
        carry = retreat(a, by_channel(g, DI, DL) * by_state(c, NI, NL), carry)[1]
        steps += decay
    part = (row * segments + segment) * width
    tl.store(carried + part * states + places, carry, mask=exist)
    tl.store(elapsed + part + e, tl.sum(steps, 0), mask=e < width)


@triton.jit
def keep_states(
    u, dt, B, seq_idx, scratch, own, h, A2, bias, row, first, t, stop, count, e, n, width, states,
    SOFTPLUS: tl.constexpr, FRAMES: tl.constexpr, NI: tl.constexpr, NL: tl.constexpr, DI: tl.constexpr,
    DL: tl.constexpr,
):  # fmt: skip
    """Computes the states after `count` tiles, of `h` before the first; stores those before each in the scratch."""
    x = load(u, row, first, t, stop, e, width).to(tl.float32)
    b = load(B, row, first, t, stop, n, states).to(tl.float32)
    raw = load(dt, row, first, t, stop, e, width)
    step, decay = step_sizes(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)[:2]
    for i in range(count):
        after = first + FRAMES
        next_u, raw = load(u, row, after, t, stop, e, width), load(dt, row, after, t, stop, e, width)
        next_B = load(B, row, after, t, stop, n, states)
        tl.store(scratch + i * (NI * NL * DI * DL) + own, h)
        a = decays(decay, A2, first, t, DI, DL)
        h = advance(a, by_channel(step * x, DI, DL) * by_state(b, NI, NL), h)[1]
        step, decay = step_sizes(raw, bias, seq_idx, after, t, stop, e, width, SOFTPLUS)[:2]
        x, b, first = next_u.to(tl.float32), next_B.to(tl.float32), after
    return h


@triton.jit(do_not_specialize=NOT_SPECIAL)
def backward_kernel(
    u, dt, A, B, C, D, z, dt_bias, seq_idx, saved, scratch, dy, dlast, carried, elapsed,
    du, ddt, dA, dB, dC, dD, dz, dbias, dinitial,
    length, width, states: tl.constexpr, segments, span, SOFTPLUS: tl.constexpr,
    STATES: tl.constexpr, FRAMES: tl.constexpr, NI: tl.constexpr, DI: tl.constexpr, CHANNELS: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """Computes all gradients; those of A, D and dt_bias of each segment, those of B and C of each block of channels."""
    NL: tl.constexpr = STATES // NI
    DL: tl.constexpr = CHANNELS // DI
    TILES: tl.constexpr = SAVE // FRAMES
    row, segment, start, stop, block = place(length, width, segments, span, 0, CHANNELS)
    t, n, e = tl.arange(0, FRAMES), tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    d, places, exist = state_places(block, width, states, NL, NI, DI, DL)
    A2 = load_states(A, places, exist) * LOG2_E
    if seq_idx is not None:
        seq_idx += row * length
    if dlast is not None:
        dlast += row * width * states
    carry = load_states(dlast, places, exist)
    if carried is not None:
        count = segments - 1 - segment
        carry = through_segments(
            carry, carried, elapsed, row, count, segments, True, width, states, A2, d, places, exist
        )
    bias, skip = load_vector(dt_bias, e, width), load_vector(D, e, width)
    of_A, of_D = tl.zeros(places.shape, tl.float32), tl.zeros((FRAMES, CHANNELS), tl.float32)
    of_bias = of_D
    scratch += tl.program_id(0).to(tl.int64) * TILES * CHANNELS * STATES
    own = tl.reshape(tl.arange(0, CHANNELS * STATES), (NI, DI, DL, NL))
    of_states = tl.arange(0, NL)[None, None, :] * NI + tl.arange(0, NI)[None, :, None]
    of_block = (row * tl.cdiv(width, CHANNELS) + block) * length * states  # dB and dC are (b, blocks, l, n)

    chunks = tl.cdiv((stop - start).to(tl.int32), SAVE)
    for k in range(chunks):
        base = start + (chunks - 1 - k) * SAVE
        chunk = row * tl.cdiv(length, SAVE) + base // SAVE
        h = load_states(saved + chunk * width * states, places, exist)
        tiles = tl.minimum(TILES, tl.cdiv((stop - base).to(tl.int32), FRAMES))
        h = keep_states(
            u, dt, B, seq_idx, scratch, own, h, A2, bias, row, base, t, stop, tiles - 1, e, n, width, states,
            SOFTPLUS, FRAMES, NI, NL, DI, DL,
        )  # fmt: skip
        tl.debug_barrier()

        first = base + (tiles - 1) * FRAMES
        x = load(u, row, first, t, stop, e, width).to(tl.float32)
        b, c = (
            load(B, row, first, t, stop, n, states).to(tl.float32),
            load(C, row, first, t, stop, n, states).to(tl.float32),
        )
        raw = load(dt, row, first, t, stop, e, width)
        step, decay, slope = step_sizes(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)
        g, through_gate = load_gated(dy, z, row, first, t, stop, e, width)
        for j in range(tiles):
            earlier = first - FRAMES
            limit = tl.where(j < tiles - 1, stop, earlier)  # before the first tile there is nothing to load
            next_u, raw = load(u, row, earlier, t, limit, e, width), load(dt, row, earlier, t, limit, e, width)
            next_B, next_C = load(B, row, earlier, t, limit, n, states), load(C, row, earlier, t, limit, n, states)

            a = decays(decay, A2, first, t, DI, DL)
            hs = advance(a, by_channel(step * x, DI, DL) * by_state(b, NI, NL), h)[0]
            g_tile, c_tile = by_channel(g, DI, DL), by_state(c, NI, NL)
            inside = (t < (stop - first).to(tl.int32))[:, None] & (e < width)
            offset = (row * length + first) * width + (t[:, None] * width + e)
            if z is not None:
                out = sum_states(hs * c_tile) + x * skip
                tl.store(dz + offset, (through_gate * out).to(dz.dtype.element_ty), mask=inside)
            of_C = sum_channels(hs * g_tile)
            dhs, carry = retreat(a, g_tile * c_tile, carry)
            of_x, of_step, of_B, of_A = state_gradients(dhs, hs, h, a, x, step, b, A2, of_A, NI, NL, DI, DL)
            of_step = tl.where(inside, of_step * slope, 0.0)
            of_bias += of_step
            of_D += g * x
            tl.store(ddt + offset, of_step.to(ddt.dtype.element_ty), mask=inside)
            tl.store(du + offset, (of_x * step + g * skip).to(du.dtype.element_ty), mask=inside)
            offset = of_block + first * states + (t[:, None, None] * states + of_states)
            inside = (t < (stop - first).to(tl.int32))[:, None, None] & (of_states < states)
            tl.store(dB + offset, of_B, mask=inside)
            tl.store(dC + offset, of_C, mask=inside)

            if j < tiles - 1:
                h = tl.load(scratch + (tiles - 2 - j) * CHANNELS * STATES + own)
            step, decay, slope = step_sizes(raw, bias, seq_idx, earlier, t, limit, e, width, SOFTPLUS)
            g, through_gate = load_gated(dy, z, row, earlier, t, limit, e, width)
            x, b, c, first = next_u.to(tl.float32), next_B.to(tl.float32), next_C.to(tl.float32), earlier
        tl.debug_barrier()

    part = (row * segments + segment) * width
    tl.store(dA + part * states + places, of_A, mask=exist)
    tl.store(dD + part + e, tl.sum(of_D, 0), mask=e < width)
    tl.store(dbias + part + e, tl.sum(of_bias, 0), mask=e < width)
    if dinitial is not None:
        if segment == 0:
            tl.store(dinitial + row * width * states + places, carry, mask=exist)
