"""Mamba's selective scan in Triton: states in registers, one saved every SAVE frames, the rest recomputed in backward.

A program owns a block of channels of one row and walks through its frames, a few at a time: a tile. The states of a
tile are a tensor (t, ni, di, dl, nl) of frames, states n = nl NI + ni and channels e = di DL + dl. In Triton's layout
the last dimensions lie in different threads, and the first in registers of one: so the recurrence over t is a chain of
FMAs in registers, sums over states cross nl threads, and those over channels dl.

Backward takes the saved states from the last to the first. From each it walks SAVE frames forward, noting the state
before each tile, and then walks them backward. Sums over channels, of the gradients of B and C, and over rows are left
to torch. Where rows and channels are too few to fill a GPU, a row is cut into segments: a first pass computes what each
adds to the state (in backward, to the state's gradient) at its end, and each program of the second starts from those
before it.

Shape letters as in `interface`; in a tile t frames, e channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.engine import Unsupported
from models.engine.inputs import ScanInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.triton.launch import as_rows, cdiv, contiguous, launch, next_power_of_2

SAVE = 64  # frames
MOST_STATES = 256
BUSY = 1024  # warps that fill a large GPU with the registers that they need
SHORTEST = 4 * SAVE  # frames of a segment


class Tile(NamedTuple):
    """What a thread has of a tile, and how many warps a program has."""

    frames: int
    states: int
    channels: int
    warps: int


# By the most states for which the registers suffice. The more states and channels a thread has, the fewer threads the
# sums over them cross. One warp has no barriers; for many states there are more, so that a block keeps its width.
FORWARD = {32: Tile(8, 4, 1, 4), 64: Tile(8, 8, 1, 4), 256: Tile(8, 8, 1, 8)}
BACKWARD = {16: Tile(4, 4, 2, 1), 32: Tile(4, 4, 2, 2), 64: Tile(2, 8, 2, 2), 256: Tile(2, 8, 1, 8)}


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba; see `interface.selective_scan`. Differentiable once."""
    if inputs.A.shape[1] > MOST_STATES:
        raise Unsupported(f"the Triton selective scan has at most {MOST_STATES} states, not {inputs.A.shape[1]}")
    inputs = cast(inputs, torch.float32, "A", "D", "dt_bias", "initial_state")
    return _scan(cast(inputs, torch.int32, "seq_idx"))


class _Plan(NamedTuple):
    """How kernels cut a problem into programs."""

    blocks: int  # of channels
    segments: int  # of a row
    span: int  # frames of a segment
    options: dict[str, Any]  # of the launch


def _plan(inputs: ScanInputs, tiles: dict[int, Tile]) -> _Plan:
    (batch, length, width), states = inputs.u.shape, next_power_of_2(inputs.A.shape[1])
    tile = next(tile for most, tile in tiles.items() if states <= most)
    own = min(tile.states, states)
    # Just the channels that fill the threads: where some were left, Triton would spread the frames over them.
    block = own * tile.channels * 32 * tile.warps // states
    blocks = cdiv(width, block)
    wanted = max(1, BUSY // (batch * blocks * tile.warps))
    span = max(SHORTEST, SAVE * cdiv(length, SAVE * wanted))
    options = {"STATES": states, "FRAMES": tile.frames, "NI": own, "DI": tile.channels, "CHANNELS": block, "SAVE": SAVE}
    return _Plan(blocks, cdiv(length, span), span, options | {"num_warps": tile.warps})


def _forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Computes y (b, l, d), the final state (b, d, n), and with `keep` that at each chunk's start, flat."""
    y, last, saved = _allocate(inputs, keep)
    batch, length, width = y.shape
    u, dt, z, B, C, A, D, bias, initial, seq_idx = _arguments(inputs)
    plan = _plan(inputs, FORWARD)
    sizes = length, width, A.shape[1]
    added = elapsed = None
    if plan.segments > 1:
        rest = plan.segments - 1
        added, elapsed = A.new_empty(batch, rest, *A.shape), A.new_empty(batch, rest, width)
        given = u, dt, A, B, C, None, None, bias, None, seq_idx, added, elapsed, None, None, None
        _launch("forward_kernel", batch, plan, rest, inputs, *given, *sizes)
    given = u, dt, A, B, C, D, z, bias, initial, seq_idx, added, elapsed, y, last, saved if keep else None
    _launch("forward_kernel", batch, plan, plan.segments, inputs, *given, *sizes)
    return y, last, saved


def _allocate(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    u, A = inputs.u, inputs.A
    batch, length, width = u.shape
    chunks = (length + SAVE - 1) // SAVE if keep else 0
    # Flat, because a dimension that may be 1 is a special case to torch.export.
    return u.new_empty(u.shape), A.new_empty(batch, *A.shape), A.new_empty(chunks * batch * width * A.shape[1])


def _backward(inputs: ScanInputs, dy: Tensor, dstate: Tensor | None, saved: Tensor) -> tuple[Tensor, ...]:
    du, ddt, dA, dB, dC, dD, dz, dbias, dinitial = gradients = empty_gradients(inputs)
    batch, length, width = du.shape
    u, dt, z, B, C, A, D, bias, initial, seq_idx = _arguments(inputs)
    dy, (dstate,) = as_rows(dy), contiguous(dstate)
    plan = _plan(inputs, BACKWARD)
    sizes = length, width, A.shape[1]
    carried = elapsed = None
    if plan.segments > 1:
        rest = plan.segments - 1
        carried, elapsed = A.new_empty(batch, rest, *A.shape), A.new_empty(batch, rest, width)
        given = dt, A, C, z, bias, seq_idx, dy, carried, elapsed
        _launch("carry_kernel", batch, plan, rest, inputs, *given, *sizes)
    tile = plan.options
    programs = batch * plan.segments * plan.blocks
    scratch = A.new_empty(programs, SAVE // tile["FRAMES"], tile["CHANNELS"], tile["STATES"])
    of_B, of_C = (A.new_empty(batch, plan.blocks, length, A.shape[1]) for _ in range(2))
    of_A = A.new_empty(batch * plan.segments, *A.shape)
    of_D, of_bias = (A.new_empty(batch * plan.segments, width) for _ in range(2))
    given = u, dt, A, B, C, D, z, bias, seq_idx, saved, scratch, dy, dstate, carried, elapsed
    results = du, ddt, of_A, of_B, of_C, of_D, dz, of_bias, None if initial is None else dinitial
    _launch("backward_kernel", batch, plan, plan.segments, inputs, *given, *results, *sizes)
    sums = ((dA, A, of_A, 0), (dB, B, of_B, 1), (dC, C, of_C, 1), (dD, D, of_D, 0), (dbias, bias, of_bias, 0))
    for gradient, value, parts, dimension in sums:
        if value is not None:
            gradient.copy_(parts.sum(dimension))
    return gradients


def _arguments(inputs: ScanInputs) -> tuple[Any, ...]:
    """Returns u, dt, z, B, C, A, D, dt_bias, initial_state and seq_idx as the kernels take them."""
    activations = (as_rows(v) for v in (inputs.u, inputs.dt, inputs.z, inputs.B, inputs.C))
    rest = inputs.A, inputs.D, inputs.dt_bias, inputs.initial_state, inputs.seq_idx
    return *activations, *contiguous(*rest)


def _launch(kernel: str, batch: int, plan: _Plan, segments: int, inputs: ScanInputs, *arguments: Any) -> None:
    programs = batch * plan.blocks * segments
    arguments = *arguments, segments, plan.span, inputs.dt_softplus
    launch(f"scan_kernels.{kernel}", programs, inputs.u, *arguments, **plan.options)


_scan = define("triton_selective_scan", ScanInputs, _forward, _allocate, _backward, work=None)
