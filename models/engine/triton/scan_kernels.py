"""The kernels of `selective_scan`, which describes them.

Pointers to activations are `launch.Rows`. Frames of a tile are counted from `first`, in 64 bits, which is added to
pointers: what is left for offsets fits in 32. `row` is in 64 bits for the same reason.
"""

import triton
import triton.language as tl

NOT_SPECIAL = ["length", "segments", "span"]  # or each kind of length would be compiled for itself
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
RESET = tl.constexpr(1e30)  # a step so long that its decay is 0: where a packed sequence starts
GOLDEN = tl.constexpr(-1640531527)  # of 2^32, the golden ratio, as a signed number
DITHER = tl.constexpr(2.0**-56 / 0.6931471805599453)  # turns 32 bits into one rounding interval of a decay near 1


@triton.jit
def _place(length, width, segments, span, skipped, CHANNELS: tl.constexpr):
    """Returns the program's row and segment, its first frame and the one after its last, and its block of channels."""
    blocks = tl.cdiv(width, CHANNELS)
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    row, segment = (rest // segments).to(tl.int64), rest % segments
    first = (segment + skipped).to(tl.int64) * span
    return row, segment, first, tl.minimum(first + span, length), block


@triton.jit
def _state_places(block, width, states, NL: tl.constexpr, NI: tl.constexpr, DI: tl.constexpr, DL: tl.constexpr):
    """Returns the channels (1, di, dl, 1) of a block, the places in (d, n) of its states (ni, di, dl, nl), a mask."""
    n = (tl.arange(0, NL)[None, :] * NI + tl.arange(0, NI)[:, None])[:, None, None, :]
    d = (block * (DI * DL) + tl.arange(0, DI)[:, None] * DL + tl.arange(0, DL)[None, :])[None, :, :, None]
    return d, d * states + n, (d < width) & (n < states)


@triton.jit
def _load_states(pointer, places, exist):
    """Loads states (ni, di, dl, nl), zeros if there are none."""
    value = tl.zeros(places.shape, tl.float32)
    if pointer is not None:
        value += tl.load(pointer + places, mask=exist, other=0.0)
    return value


@triton.jit
def _load(x, row, first, t, stop, e, width):
    """Loads frames first + t of an activation's row, (t, e), zeros where they are outside."""
    inside = t < (stop - first).to(tl.int32)
    tile = x.data + row * x.row + first * x.frame
    return tl.load(tile + t[:, None] * x.frame + e, mask=inside[:, None] & (e < width), other=0.0)


@triton.jit
def _load_vector(pointer, e, width):
    """Loads a parameter of the channels, (e,), zeros if there is none."""
    value = tl.zeros(e.shape, tl.float32)
    if pointer is not None:
        value += tl.load(pointer + e, mask=e < width, other=0.0)
    return value


@triton.jit
def _by_channel(x, DI: tl.constexpr, DL: tl.constexpr):
    """Views (t, e) as part of a tile."""
    return tl.reshape(x, (x.shape[0], DI, DL))[:, None, :, :, None]


@triton.jit
def _by_state(x, NI: tl.constexpr, NL: tl.constexpr):
    """Views (t, n) as part of a tile."""
    return tl.permute(tl.reshape(x, (x.shape[0], NL, NI)), (0, 2, 1))[:, :, None, None, :]


@triton.jit
def _sum_states(x):
    """Sums a tile over states, (t, e)."""
    return tl.reshape(tl.sum(tl.sum(x, 1), 3), (x.shape[0], x.shape[2] * x.shape[3]))


@triton.jit
def _sum_channels(x):
    """Sums a tile over channels, (t, ni, nl)."""
    return tl.sum(tl.sum(x, 2), 2)


@triton.jit
def _steps(dt, bias, seq_idx, first, t, stop, e, width, SOFTPLUS: tl.constexpr):
    """Computes the steps (t, e), 0 outside; the same with RESET where a sequence starts; and their derivative by dt.

    softplus(x) = max(x, 0) + log(1 + e^-|x|), whose logarithm is a series in s = e^-|x| / (2 + e^-|x|), at most 1/3:
    small steps must be as exact as large ones, which log(1 + x) of a rounded sum is not.
    """
    inside = (t < (stop - first).to(tl.int32))[:, None] & (e < width)
    step = dt.to(tl.float32) + bias
    slope = tl.full(step.shape, 1.0, tl.float32)
    if SOFTPLUS:
        power = tl.exp2(-tl.abs(step) * LOG2_E)
        slope = tl.where(step > 0, 1.0, power) / (1 + power)
        s = power / (2 + power)
        q = s * s
        series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
        step = tl.maximum(step, 0.0) + 2 * s * series
    step = tl.where(inside, step, 0.0)
    decay = step
    if seq_idx is not None:
        frame = first + t
        known = (frame > 0) & (t < (stop - first).to(tl.int32))
        starts = known & (
            tl.load(seq_idx + frame, mask=known, other=0) != tl.load(seq_idx + frame - 1, mask=known, other=0)
        )
        decay = tl.where(starts[:, None], RESET, step)
    return step, decay, slope


@triton.jit
def _decays(decay, A2, first, t, DI: tl.constexpr, DL: tl.constexpr):
    """Computes the decays of a tile, exp2(step A2) with a dither, from steps (t, e).

    Steps that are alike round decays near 1 in the same way, and over thousands of frames that adds up. Offsets of the
    exponent that fill one rounding interval evenly (multiples of the golden ratio) make the errors cancel instead. A
    step of 0 has none, since it must keep the state to the last bit.
    """
    step = _by_channel(decay, DI, DL)
    offset = ((first + t).to(tl.int32) * GOLDEN).to(tl.float32) * DITHER
    return tl.exp2(step * A2[None] + tl.where(step != 0, offset[:, None, None, None, None], 0.0))


@triton.jit
def _then(a, h, b, g):
    """Composes h -> a h + ... and then b h + g, as pairs of factor and summand."""
    return a * b, b * h + g


@triton.jit
def _delay(a, b, is_set, c, d, is_last):
    """Shifts a sequence by one: its second field becomes the first one of the element before."""
    return c, tl.where(is_last > 0, d, a), is_set * 0 + 1.0


@triton.jit
def _then_backward(p, a, g, q, b, d):
    """Composes g_t = d_t + a_{t+1} g_{t+1}, from the last element on; q is 1 for a single one."""
    factor = q * a
    return factor * p, b, d + factor * g


@triton.jit
def _last(a, b):
    return b


@triton.jit
def _first(a, b):
    return a


@triton.jit
def _advance(a, driven, h):
    """Computes the states of a tile from the one before it, h (ni, di, dl, nl), and returns them with the last."""
    t = tl.arange(0, a.shape[0])[:, None, None, None, None]
    driven += tl.where(t == 0, a * h[None], 0.0)
    _, states = tl.associative_scan((a, driven), 0, _then)
    return states, tl.reduce(states, 0, _last)


@triton.jit
def _retreat(a, g, carry):
    """Computes the gradients of a tile's states from those of its outputs, g, and that of the state after it, `carry`.

    Returns them with the gradient of the state before the tile.
    """
    t = tl.arange(0, a.shape[0])[:, None, None, None, None]
    g += tl.where(t == a.shape[0] - 1, carry[None], 0.0)
    # A scan from the end would cross threads; a flip of registers is free.
    _, _, g = tl.associative_scan((tl.full(a.shape, 1.0, tl.float32), tl.flip(a, 0), tl.flip(g, 0)), 0, _then_backward)
    g = tl.flip(g, 0)
    return g, tl.reduce(a * g, 0, _first)


@triton.jit
def _before(states, h):
    """Returns the state before each frame of a tile; h (ni, di, dl, nl) is that before the first."""
    t, none = tl.arange(0, states.shape[0])[:, None, None, None, None], tl.zeros(states.shape, tl.float32)
    _, before, _ = tl.associative_scan((states, none + tl.where(t == 0, h[None], 0.0), none), 0, _delay)
    return before


@triton.jit
def _silu(z):
    """Returns SiLU of z and its derivative."""
    s = 1 / (1 + tl.exp2(-z * LOG2_E))
    return z * s, s * (1 + z * (1 - s))


@triton.jit
def _gated(dy, z, row, first, t, stop, e, width):
    """Loads the gradient of y as those of the outputs before the gate and of the gate's input per output, (t, e)."""
    g = _load(dy, row, first, t, stop, e, width).to(tl.float32)
    through_gate = g
    if z is not None:
        gate, slope = _silu(_load(z, row, first, t, stop, e, width).to(tl.float32))
        through_gate *= slope
        g *= gate
    return g, through_gate


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
    row, segment, first, stop, block = _place(length, width, segments, span, 0, CHANNELS)
    t, n, e = tl.arange(0, FRAMES), tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    d, places, exist = _state_places(block, width, states, NL, NI, DI, DL)
    A2 = _load_states(A, places, exist) * LOG2_E
    if seq_idx is not None:
        seq_idx += row * length
    if initial is not None:
        initial += row * width * states
    h = _load_states(initial, places, exist)
    if (y is not None) and (added is not None):
        for j in range(segment):
            part = (row * (segments - 1) + j) * width
            h = h * tl.exp2(tl.load(elapsed + part + d, mask=d < width, other=0.0) * A2)
            h += _load_states(added + part * states, places, exist)
    bias, skip = _load_vector(dt_bias, e, width), _load_vector(D, e, width)
    steps = tl.zeros((FRAMES, CHANNELS), tl.float32)

    x = _load(u, row, first, t, stop, e, width).to(tl.float32)
    b, c = (
        _load(B, row, first, t, stop, n, states).to(tl.float32),
        _load(C, row, first, t, stop, n, states).to(tl.float32),
    )
    raw = _load(dt, row, first, t, stop, e, width)
    step, decay = _steps(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)[:2]
    for i in range(tl.cdiv((stop - first).to(tl.int32), FRAMES)):
        after = first + FRAMES  # loads of the next tile come first, to travel while this one is computed
        next_u, raw = _load(u, row, after, t, stop, e, width), _load(dt, row, after, t, stop, e, width)
        next_B, next_C = _load(B, row, after, t, stop, n, states), _load(C, row, after, t, stop, n, states)
        if saved is not None:
            if i % (SAVE // FRAMES) == 0:
                chunk = row * tl.cdiv(length, SAVE) + first // SAVE
                tl.store(saved + chunk * width * states + places, h, mask=exist)
        a = _decays(decay, A2, first, t, DI, DL)
        hs, h = _advance(a, _by_channel(step * x, DI, DL) * _by_state(b, NI, NL), h)
        if y is None:
            steps += decay
        else:
            out = _sum_states(hs * _by_state(c, NI, NL)) + x * skip
            if z is not None:
                out *= _silu(_load(z, row, first, t, stop, e, width).to(tl.float32))[0]
            inside = (t < (stop - first).to(tl.int32))[:, None] & (e < width)
            place = (row * length + first) * width + (t[:, None] * width + e)
            tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)
        # Computed here and not where it is used, since there it would be once for each state.
        step, decay = _steps(raw, bias, seq_idx, after, t, stop, e, width, SOFTPLUS)[:2]
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
    row, segment, start, stop, block = _place(length, width, segments, span, 1, CHANNELS)
    t, n, e = tl.arange(0, FRAMES), tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    d, places, exist = _state_places(block, width, states, NL, NI, DI, DL)
    A2 = _load_states(A, places, exist) * LOG2_E
    if seq_idx is not None:
        seq_idx += row * length
    bias, steps = _load_vector(dt_bias, e, width), tl.zeros((FRAMES, CHANNELS), tl.float32)
    carry = tl.zeros(places.shape, tl.float32)
    tiles = tl.cdiv((stop - start).to(tl.int32), FRAMES)
    for i in range(tiles):
        first = start + (tiles - 1 - i) * FRAMES
        raw = _load(dt, row, first, t, stop, e, width)
        decay = _steps(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)[1]
        g = _gated(dy, z, row, first, t, stop, e, width)[0]
        c = _load(C, row, first, t, stop, n, states).to(tl.float32)
        a = _decays(decay, A2, first, t, DI, DL)
        carry = _retreat(a, _by_channel(g, DI, DL) * _by_state(c, NI, NL), carry)[1]
        steps += decay
    part = (row * segments + segment) * width
    tl.store(carried + part * states + places, carry, mask=exist)
    tl.store(elapsed + part + e, tl.sum(steps, 0), mask=e < width)


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
    row, segment, start, stop, block = _place(length, width, segments, span, 0, CHANNELS)
    t, n, e = tl.arange(0, FRAMES), tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    d, places, exist = _state_places(block, width, states, NL, NI, DI, DL)
    A2 = _load_states(A, places, exist) * LOG2_E
    if seq_idx is not None:
        seq_idx += row * length
    if dlast is not None:
        dlast += row * width * states
    carry = _load_states(dlast, places, exist)
    if carried is not None:
        for j in range(segments - 1 - segment):
            part = (row * (segments - 1) + (segments - 2 - j)) * width
            carry = carry * tl.exp2(tl.load(elapsed + part + d, mask=d < width, other=0.0) * A2)
            carry += _load_states(carried + part * states, places, exist)
    bias, skip = _load_vector(dt_bias, e, width), _load_vector(D, e, width)
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
        h = _load_states(saved + chunk * width * states, places, exist)
        first, tiles = base, tl.minimum(TILES, tl.cdiv((stop - base).to(tl.int32), FRAMES))
        x = _load(u, row, first, t, stop, e, width).to(tl.float32)
        b = _load(B, row, first, t, stop, n, states).to(tl.float32)
        raw = _load(dt, row, first, t, stop, e, width)
        step, decay = _steps(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)[:2]
        for i in range(tiles - 1):
            after = first + FRAMES
            next_u, raw = _load(u, row, after, t, stop, e, width), _load(dt, row, after, t, stop, e, width)
            next_B = _load(B, row, after, t, stop, n, states)
            tl.store(scratch + i * CHANNELS * STATES + own, h)
            a = _decays(decay, A2, first, t, DI, DL)
            h = _advance(a, _by_channel(step * x, DI, DL) * _by_state(b, NI, NL), h)[1]
            step, decay = _steps(raw, bias, seq_idx, after, t, stop, e, width, SOFTPLUS)[:2]
            x, b, first = next_u.to(tl.float32), next_B.to(tl.float32), after
        tl.debug_barrier()

        first = base + (tiles - 1) * FRAMES
        x = _load(u, row, first, t, stop, e, width).to(tl.float32)
        b, c = (
            _load(B, row, first, t, stop, n, states).to(tl.float32),
            _load(C, row, first, t, stop, n, states).to(tl.float32),
        )
        raw = _load(dt, row, first, t, stop, e, width)
        step, decay, slope = _steps(raw, bias, seq_idx, first, t, stop, e, width, SOFTPLUS)
        g, through_gate = _gated(dy, z, row, first, t, stop, e, width)
        for j in range(tiles):
            earlier = first - FRAMES
            limit = tl.where(j < tiles - 1, stop, earlier)  # before the first tile there is nothing to load
            next_u, raw = _load(u, row, earlier, t, limit, e, width), _load(dt, row, earlier, t, limit, e, width)
            next_B, next_C = _load(B, row, earlier, t, limit, n, states), _load(C, row, earlier, t, limit, n, states)

            a = _decays(decay, A2, first, t, DI, DL)
            hs = _advance(a, _by_channel(step * x, DI, DL) * _by_state(b, NI, NL), h)[0]
            g_tile, c_tile = _by_channel(g, DI, DL), _by_state(c, NI, NL)
            inside = (t < (stop - first).to(tl.int32))[:, None] & (e < width)
            place = (row * length + first) * width + (t[:, None] * width + e)
            if z is not None:
                out = _sum_states(hs * c_tile) + x * skip
                tl.store(dz + place, (through_gate * out).to(dz.dtype.element_ty), mask=inside)
            of_C = _sum_channels(hs * g_tile)
            dhs, carry = _retreat(a, g_tile * c_tile, carry)
            of_B = _sum_channels(dhs * _by_channel(step * x, DI, DL))
            of_x = _sum_states(dhs * _by_state(b, NI, NL))
            through_decay = dhs * _before(hs, h) * a
            of_A += tl.sum(through_decay * _by_channel(step, DI, DL), 0)
            of_step = (_sum_states(through_decay * A2[None]) * LN_2 + of_x * x) * slope
            of_step = tl.where(inside, of_step, 0.0)
            of_bias += of_step
            of_D += g * x
            tl.store(ddt + place, of_step.to(ddt.dtype.element_ty), mask=inside)
            tl.store(du + place, (of_x * step + g * skip).to(du.dtype.element_ty), mask=inside)
            place = of_block + first * states + (t[:, None, None] * states + of_states)
            inside = (t < (stop - first).to(tl.int32))[:, None, None] & (of_states < states)
            tl.store(dB + place, of_B, mask=inside)
            tl.store(dC + place, of_C, mask=inside)

            if j < tiles - 1:
                h = tl.load(scratch + (tiles - 2 - j) * CHANNELS * STATES + own)
            step, decay, slope = _steps(raw, bias, seq_idx, earlier, t, limit, e, width, SOFTPLUS)
            g, through_gate = _gated(dy, z, row, earlier, t, limit, e, width)
            x, b, c, first = next_u.to(tl.float32), next_B.to(tl.float32), next_C.to(tl.float32), earlier
        tl.debug_barrier()

    part = (row * segments + segment) * width
    tl.store(dA + part * states + places, of_A, mask=exist)
    tl.store(dD + part + e, tl.sum(of_D, 0), mask=e < width)
    tl.store(dbias + part + e, tl.sum(of_bias, 0), mask=e < width)
    if dinitial is not None:
        if segment == 0:
            tl.store(dinitial + row * width * states + places, carry, mask=exist)
