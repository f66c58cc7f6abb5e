"""Tiles of the selective scan in Triton: how they are loaded, computed and summed; see `selective_scan`.

Pointers to activations are `launch.Rows`. Frames of a tile are counted from `first`, in 64 bits, which is added to
pointers: what is left for offsets fits in 32. `row` is in 64 bits for the same reason.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
RESET = tl.constexpr(1e30)  # a step so long that its decay is 0: where a packed sequence starts
GOLDEN = tl.constexpr(-1640531527)  # of 2^32, the golden ratio, as a signed number
DITHER = tl.constexpr(2.0**-56 / 0.6931471805599453)  # turns 32 bits into one rounding interval of a decay near 1


@triton.jit
def place(length, width, segments, span, skipped, CHANNELS: tl.constexpr):
    """Returns the program's row and segment, its first frame and the one after its last, and its block of channels."""
    blocks = tl.cdiv(width, CHANNELS)
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    row, segment = (rest // segments).to(tl.int64), rest % segments
    first = (segment + skipped).to(tl.int64) * span
    return row, segment, first, tl.minimum(first + span, length), block


@triton.jit
def state_places(block, width, states, NL: tl.constexpr, NI: tl.constexpr, DI: tl.constexpr, DL: tl.constexpr):
    """Returns the channels (1, di, dl, 1) of a block, the places in (d, n) of its states (ni, di, dl, nl), a mask."""
    n = (tl.arange(0, NL)[None, :] * NI + tl.arange(0, NI)[:, None])[:, None, None, :]
    d = (block * (DI * DL) + tl.arange(0, DI)[:, None] * DL + tl.arange(0, DL)[None, :])[None, :, :, None]
    return d, d * states + n, (d < width) & (n < states)


@triton.jit
def load_states(pointer, places, exist):
    """Loads states (ni, di, dl, nl), zeros if there are none."""
    value = tl.zeros(places.shape, tl.float32)
    if pointer is not None:
        value += tl.load(pointer + places, mask=exist, other=0.0)
    return value


@triton.jit
def through_segments(
    h, added, elapsed, row, count, segments, BACKWARD: tl.constexpr, width, states, A2, d, places, exist
):  # fmt: skip
    """Carries states through a row's `count` first segments, or backward through its last: they decay, each adds."""
    for j in range(count):
        part = (row * (segments - 1) + ((segments - 2 - j) if BACKWARD else j)) * width
        h = h * tl.exp2(tl.load(elapsed + part + d, mask=d < width, other=0.0) * A2)
        h += load_states(added + part * states, places, exist)
    return h


@triton.jit
def load(x, row, first, t, stop, e, width):
    """Loads frames first + t of an activation's row, (t, e), zeros where they are outside."""
    inside = t < (stop - first).to(tl.int32)
    tile = x.data + row * x.row + first * x.frame
    return tl.load(tile + t[:, None] * x.frame + e, mask=inside[:, None] & (e < width), other=0.0)


@triton.jit
def load_vector(pointer, e, width):
    """Loads a parameter of the channels, (e,), zeros if there is none."""
    value = tl.zeros(e.shape, tl.float32)
    if pointer is not None:
        value += tl.load(pointer + e, mask=e < width, other=0.0)
    return value


@triton.jit
def by_channel(x, DI: tl.constexpr, DL: tl.constexpr):
    """Views (t, e) as part of a tile."""
    return tl.reshape(x, (x.shape[0], DI, DL))[:, None, :, :, None]


@triton.jit
def by_state(x, NI: tl.constexpr, NL: tl.constexpr):
    """Views (t, n) as part of a tile."""
    return tl.permute(tl.reshape(x, (x.shape[0], NL, NI)), (0, 2, 1))[:, :, None, None, :]


@triton.jit
def sum_states(x):
    """Sums a tile over states, (t, e)."""
    return tl.reshape(tl.sum(tl.sum(x, 1), 3), (x.shape[0], x.shape[2] * x.shape[3]))


@triton.jit
def sum_channels(x):
    """Sums a tile over channels, (t, ni, nl)."""
    return tl.sum(tl.sum(x, 2), 2)


@triton.jit
def step_sizes(dt, bias, seq_idx, first, t, stop, e, width, SOFTPLUS: tl.constexpr):
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
def decays(decay, A2, first, t, DI: tl.constexpr, DL: tl.constexpr):
    """Computes the decays of a tile, exp2(step A2) with a dither, from steps (t, e).

    Steps that are alike round decays near 1 in the same way, and over thousands of frames that adds up. Offsets of the
    exponent that fill one rounding interval evenly (multiples of the golden ratio) make the errors cancel instead. A
    step of 0 has none, since it must keep the state to the last bit.
    """
    step = by_channel(decay, DI, DL)
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
def advance(a, driven, h):
    """Computes the states of a tile from the one before it, h (ni, di, dl, nl), and returns them with the last."""
    t = tl.arange(0, a.shape[0])[:, None, None, None, None]
    driven += tl.where(t == 0, a * h[None], 0.0)
    _, states = tl.associative_scan((a, driven), 0, _then)
    return states, tl.reduce(states, 0, _last)


@triton.jit
def retreat(a, g, carry):
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
def states_before(states, h):
    """Returns the state before each frame of a tile; h (ni, di, dl, nl) is that before the first."""
    t, none = tl.arange(0, states.shape[0])[:, None, None, None, None], tl.zeros(states.shape, tl.float32)
    _, before, _ = tl.associative_scan((states, none + tl.where(t == 0, h[None], 0.0), none), 0, _delay)
    return before


@triton.jit
def state_gradients(
    dhs, hs, h, a, x, step, b, A2, of_A,
    NI: tl.constexpr, NL: tl.constexpr, DI: tl.constexpr, DL: tl.constexpr,
):  # fmt: skip
    """Computes gradients of what made the states `hs` of a tile, from theirs, `dhs`; h is the state before.

    They are those of the steps times x and of the steps (t, e), that of B (t, ni, nl), and `of_A` with that of A added.
    """
    of_B = sum_channels(dhs * by_channel(step * x, DI, DL))
    of_x = sum_states(dhs * by_state(b, NI, NL))
    through_decay = dhs * states_before(hs, h) * a
    of_A += tl.sum(through_decay * by_channel(step, DI, DL), 0)
    return of_x, sum_states(through_decay * A2[None]) * LN_2 + of_x * x, of_B, of_A


@triton.jit
def silu(z):
    """Returns SiLU of z and its derivative."""
    s = 1 / (1 + tl.exp2(-z * LOG2_E))
    return z * s, s * (1 + z * (1 - s))


@triton.jit
def load_gated(dy, z, row, first, t, stop, e, width):
    """Loads the gradient of y as those of the outputs before the gate and of the gate's input per output, (t, e)."""
    g = load(dy, row, first, t, stop, e, width).to(tl.float32)
    through_gate = g
    if z is not None:
        gate, slope = silu(load(z, row, first, t, stop, e, width).to(tl.float32))
        through_gate *= slope
        g *= gate
    return g, through_gate
