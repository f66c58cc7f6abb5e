"""The kernels of the causal convolution in Triton; `models.engine.triton.conv` describes and launches them.

In a tile t frames and e channels. A window is a tuple of tiles, each one frame later.
"""

import triton
import triton.language as tl


@triton.jit
def _place(length, channels, FRAMES: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns the program's row in 64 bits, its part of the frames, how many parts there are, and its channels (e,)."""
    blocks, parts = tl.cdiv(channels, CHANNELS), tl.cdiv(length, FRAMES)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    return (part // parts).to(tl.int64), part % parts, parts, block * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _load(x, frame_stride, first, t, length, e, channels):
    """Loads frames first + t of a row as float32 (t, e), where x points to frame `first`; zeros outside the row."""
    inside = (first + t >= 0) & (first + t < length)
    return tl.load(x + t[:, None] * frame_stride + e, mask=inside[:, None] & (e < channels), other=0.0).to(tl.float32)


@triton.jit
def _window(x, frame_stride, initial, first, t, length, e, channels, TAPS: tl.constexpr, COUNT: tl.constexpr):
    """Loads COUNT tiles from TAPS - 1 frames before t on; frames before the row are of the initial state, or zero."""
    window = ()
    for i in tl.static_range(COUNT):
        seen = t + (i - (TAPS - 1))
        tile = _load(x, frame_stride, first, seen, length, e, channels)
        if initial is not None:
            frame = (first + seen)[:, None]
            known = (frame < 0) & (frame > -TAPS) & (e < channels)
            tile += tl.load(initial + (frame + (TAPS - 1)) * channels + e, mask=known, other=0.0)
        window += (tile,)
    return window


@triton.jit
def _sequences(seq_idx, first, t, length, TAPS: tl.constexpr, COUNT: tl.constexpr):
    """Loads the sequence numbers (t,) of a window; the frames before the row belong to its first sequence."""
    numbers = ()
    for i in tl.static_range(COUNT):
        frame = tl.maximum(first + t + (i - (TAPS - 1)), 0)
        numbers += (tl.load(seq_idx + tl.minimum(frame, length - 1)),)
    return numbers


@triton.jit
def _taps(weight, bias, e, channels, TAPS: tl.constexpr):
    """Loads the weights of the taps, a tuple, and the bias: (e,) each."""
    taps = ()
    for k in tl.static_range(TAPS):
        taps += (tl.load(weight + k * channels + e, mask=e < channels, other=0.0),)
    shift = tl.zeros(e.shape, tl.float32)
    if bias is not None:
        shift += tl.load(bias + e, mask=e < channels, other=0.0)
    return taps, shift


@triton.jit
def _of_sequence(tile, numbers, i: tl.constexpr, j: tl.constexpr):
    """Replaces a tile (t, e) by zeros where the frames of tiles i and j of a window are of different sequences."""
    if numbers is not None:
        tile = tl.where((numbers[i] == numbers[j])[:, None], tile, 0.0)
    return tile


@triton.jit
def _convolve(window, numbers, taps, bias, j: tl.constexpr, TAPS: tl.constexpr):
    """Computes the output (t, e), before the activation, at the frames of tile j + TAPS - 1 of a window."""
    y = bias + tl.zeros(window[0].shape, tl.float32)
    for k in tl.static_range(TAPS):
        y += taps[k] * _of_sequence(window[j + k], numbers, j + k, j + TAPS - 1)
    return y


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp2(x * -1.4426950408889634))


@triton.jit(do_not_specialize=["length"])  # or each kind of length would be compiled for itself
def forward_kernel(
    x, row_stride, frame_stride, weight, bias, initial, seq_idx, y, length, channels,
    TAPS: tl.constexpr, SILU: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, part, _, e = _place(length, channels, FRAMES, CHANNELS)
    first, t = part * FRAMES, tl.arange(0, FRAMES)
    x += row * row_stride + first.to(tl.int64) * frame_stride
    y += (row * length + first) * channels
    if initial is not None:
        initial += row * (TAPS - 1) * channels
    numbers = None
    if seq_idx is not None:
        numbers = _sequences(seq_idx + row * length, first, t, length, TAPS, TAPS)
    taps, bias = _taps(weight, bias, e, channels, TAPS)
    window = _window(x, frame_stride, initial, first, t, length, e, channels, TAPS, TAPS)
    value = _convolve(window, numbers, taps, bias, 0, TAPS)
    if SILU:
        value *= _sigmoid(value)
    inside = (first + t < length)[:, None] & (e < channels)
    tl.store(y + t[:, None] * channels + e, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length"])
def backward_kernel(
    x, row_stride, frame_stride, weight, bias, initial, seq_idx, dy, dy_row_stride, dy_frame_stride, dx, dinitial, sums,
    length, channels, TAPS: tl.constexpr, SILU: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    row, part, parts, e = _place(length + TAPS - 1, channels, FRAMES * TILES, CHANNELS)
    first, t, here = part * (FRAMES * TILES) - (TAPS - 1), tl.arange(0, FRAMES), e < channels
    x += row * row_stride + first.to(tl.int64) * frame_stride
    dy += row * dy_row_stride + first.to(tl.int64) * dy_frame_stride
    dx += (row * length + first) * channels
    sums += (row * parts + part) * (TAPS + 1) * channels
    if initial is not None:
        initial += row * (TAPS - 1) * channels
        dinitial += row * (TAPS - 1) * channels
    numbers = None
    taps, bias = _taps(weight, bias, e, channels, TAPS)
    of_bias = tl.zeros((FRAMES, CHANNELS), tl.float32)
    of_taps = ()
    for _ in tl.static_range(TAPS):
        of_taps += (of_bias,)

    for _ in range(TILES):
        window = _window(x, frame_stride, initial, first, t, length, e, channels, TAPS, 2 * TAPS - 1)
        if seq_idx is not None:
            numbers = _sequences(seq_idx + row * length, first, t, length, TAPS, 2 * TAPS - 1)
        value = tl.zeros((FRAMES, CHANNELS), tl.float32)
        for j in tl.static_range(TAPS):  # tap TAPS - 1 - j of frame t + j sees frame t
            g = _load(dy, dy_frame_stride, first, t + j, length, e, channels)
            if SILU:
                before = _convolve(window, numbers, taps, bias, j, TAPS)
                s = _sigmoid(before)
                g *= s * (1 + before * (1 - s))
            if j == 0:
                of_bias += g
                added = ()
                for k in tl.static_range(TAPS):
                    added += (of_taps[k] + g * _of_sequence(window[k], numbers, k, TAPS - 1),)
                of_taps = added
            value += taps[TAPS - 1 - j] * _of_sequence(g, numbers, TAPS - 1 + j, TAPS - 1)

        frame, place = (first + t)[:, None], t[:, None] * channels + e
        tl.store(dx + place, value.to(dx.dtype.element_ty), mask=(frame >= 0) & (frame < length) & here)
        if initial is not None:
            tl.store(dinitial + (frame + (TAPS - 1)) * channels + e, value, mask=(frame < 0) & here)
        first += FRAMES
        x += FRAMES * frame_stride
        dy += FRAMES * dy_frame_stride
        dx += FRAMES * channels

    for k in tl.static_range(TAPS):
        tl.store(sums + k * channels + e, tl.sum(of_taps[k], 0), mask=here)
    tl.store(sums + TAPS * channels + e, tl.sum(of_bias, 0), mask=here)
