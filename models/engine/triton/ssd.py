"""Mamba-2's state-space duality (SSD) in Triton: matrix products inside chunks, a recurrence between them.

Forward: `decays_kernel` computes steps and decays, `carry_kernel` walks over the chunks and leaves the state before
each, `outputs_kernel` works on all chunks at once. Nothing but the inputs is saved. Backward runs the first two again,
then the second backward in time, which leaves the gradients of the states after all chunks, and three kernels that work
on all chunks at once. The mathematics is that of `models.engine.ssd`, after Dao and Gu 2024, "Transformers are SSMs",
section 6.

Shape letters as in `interface`. Q is the frames of a chunk, BP and BN the channels and states of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.engine import Unsupported
from models.engine.inputs import SSDInputs, cast
from models.engine.operators import define, empty_gradients
from models.engine.triton.launch import cdiv, contiguous, launch, rows
from models.engine.triton.ssd_layouts import Decays, Frames, Sizes, Sums

LARGEST = 256  # states, and channels of a head
HEADS = 16  # of a tile of steps
PROGRAMS = 512  # about so many sum over the heads of a group, if need be each over a share of them
# With these, and the tiles of `_Call`, no kernel runs out of registers on compute capability 8.0 or 9.0.
CARRY = {"num_warps": 4, "num_stages": 3}
OUTPUTS = {"num_warps": 4, "num_stages": 2}
DX = {"num_warps": 4, "num_stages": 1}
DBC = {"num_warps": 8, "num_stages": 1}


def ssd(inputs: SSDInputs) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2; see `interface.ssd`. Matrix products run in x's dtype. Differentiable once."""
    channels, states = inputs.x.shape[3], inputs.B.shape[3]
    if max(channels, states) > LARGEST:
        raise Unsupported(f"the Triton SSD holds {LARGEST} states and channels a head, not {states} and {channels}")
    inputs = cast(inputs, torch.float32, "A", "D", "dt_bias", "initial_state")
    return _ssd(cast(cast(inputs, inputs.x.dtype, "B", "C"), torch.int32, "seq_idx"))


def _forward(inputs: SSDInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    call, (y, final, saved) = _Call(inputs), _allocate(inputs, keep)
    decays = call.decays()
    states = call.walk(call.x, call.B, decays, decays.weight, call.initial, final)
    launch(
        "ssd_forward.outputs_kernel", call.programs * call.p_blocks, y, call.x, call.B, call.C, decays, call.seq_idx,
        states, call.D, y, call.sizes, call.length, call.chunks, STATES=call.n_blocks * call.BN, **call.tiles,
        **OUTPUTS,
    )  # fmt: skip
    return y, final, saved


def _allocate(inputs: SSDInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    x = inputs.x
    final = x.new_empty(x.shape[0], *x.shape[2:], inputs.B.shape[3], dtype=torch.float32)
    return x.new_empty(x.shape), final, x.new_empty(0)


def _backward(inputs: SSDInputs, dy: Tensor, dstate: Tensor | None, saved: Tensor) -> tuple[Tensor, ...]:
    call, gradients = _Call(inputs), SSDInputs(*empty_gradients(inputs))
    dx, dB, dC, dy = gradients.x, gradients.B, gradients.C, Frames.of(rows(dy))
    carry = [call.empty(*call.of_states) for _ in range(2)]  # the last state again, and the gradient of the first
    decays = call.decays()
    starts = call.walk(call.x, call.B, decays, decays.weight, call.initial, carry[0])
    ends = call.walk(dy, call.C, decays, decays.from_start, *contiguous(dstate), carry[1], backward=True)
    sums, dscores = call.sums(), dx.new_empty(*call.of_chunks, call.Q, call.Q)
    channels = call.p_blocks * call.BP
    launch(
        "ssd_backward.dx_kernel", call.programs, dx, call.x, call.B, call.C, decays, call.seq_idx, ends, call.D, dy, dx,
        dscores, sums, call.sizes, call.length, call.chunks, CHANNELS=channels, STATES=call.n_blocks * call.BN,
        **call.tiles, **DX,
    )  # fmt: skip
    programs, share, shares = call.shares()
    parts = [call.empty(v.shape[0], shares, *v.shape[1:]) if shares > 1 else v for v in (dB, dC)]
    launch(
        "ssd_backward.dBC_kernel", programs, dx, call.x, call.B, call.C, decays, starts, ends, dy, dscores, *parts,
        sums, call.sizes, call.length, call.chunks, share, CHANNELS=channels, **call.tiles, **DBC,
    )  # fmt: skip
    if shares > 1:
        dB.copy_(parts[0].sum(1)), dC.copy_(parts[1].sum(1))
    launch(
        "ssd_backward.dstep_kernel", call.head_programs, dx, call.A, decays, sums, gradients.dt, call.length,
        call.chunks, call.sizes.heads, call.n_blocks, inputs.dt_softplus, call.Q, HEADS,
    )  # fmt: skip
    dA, dD, dt_bias = (v.sum((0, 2)) for v in (sums.dA, sums.skip, sums.dt_bias))
    for name, result in {"A": dA, "D": dD, "dt_bias": dt_bias, "initial_state": carry[1]}.items():
        if getattr(inputs, name) is not None:
            getattr(gradients, name).copy_(result)
    return gradients[:-2]


class _Call:
    """The inputs in the layouts that kernels expect, how they are cut, and the launches that both passes have.

    The tiles are of 64 frames, channels or states; of 32 in float32, whose products hold three times as many values in
    registers, and for sizes up to 32.
    """

    def __init__(self, inputs: SSDInputs) -> None:
        self.tensor, B, C = (rows(v) for v in (inputs.x, inputs.B, inputs.C))
        self.x, self.B, self.C = (Frames.of(v) for v in (self.tensor, B, C))
        self.dt, self.softplus = rows(inputs.dt), inputs.dt_softplus
        self.A, self.D, self.dt_bias, self.initial, self.seq_idx = contiguous(inputs.A, *inputs[5:9])
        batch, self.length, heads, channels = self.tensor.shape
        self.sizes = Sizes(heads, B.shape[2], channels, B.shape[3])
        single = self.tensor.dtype == torch.float32
        exact = single and torch.get_float32_matmul_precision() == "highest"
        self.Q = 32 if single else 64
        self.BP, self.BN = (32 if single or size <= 32 else 64 for size in self.sizes[2:])
        self.tiles = {"Q": self.Q, "BP": self.BP, "BN": self.BN, "PRECISION": "tf32x3" if exact else "tf32"}
        self.p_blocks, self.n_blocks = cdiv(channels, self.BP), cdiv(B.shape[3], self.BN)
        self.chunks = cdiv(self.length, self.Q)
        self.of_chunks = batch, heads, self.chunks
        self.of_states = batch, heads, channels, B.shape[3]
        self.programs = batch * heads * self.chunks
        self.head_programs = batch * self.chunks * cdiv(heads, HEADS)

    def empty(self, *shape: int) -> Tensor:
        return self.tensor.new_empty(shape, dtype=torch.float32)

    def decays(self) -> Decays:
        """Computes all decays."""
        frames = (self.empty(*self.of_chunks, self.Q) for _ in range(6))
        decays = Decays(*frames, self.empty(*self.of_chunks), self.empty(*self.of_chunks))
        launch(
            "ssd_forward.decays_kernel", self.head_programs, self.tensor, self.dt, *self.dt.stride()[:2], self.A,
            self.dt_bias, self.seq_idx, decays, self.length, self.chunks, self.sizes.heads, self.softplus, self.Q,
            HEADS,
        )  # fmt: skip
        return decays

    def walk(
        self,
        values: Frames,
        vectors: Frames,
        decays: Decays,
        weight: Tensor,
        initial: Tensor | None,
        final: Tensor,
        backward: bool = False,
    ) -> Tensor:
        """Returns the states (b, chunks, h, p, n) that `carry_kernel` comes from, in x's dtype, and fills `final`."""
        batch, *size = self.of_states
        states = self.tensor.new_empty(batch, self.chunks, *size)
        first, direction = (self.chunks - 1, -1) if backward else (0, 1)
        launch(
            "ssd_forward.carry_kernel", batch * self.sizes.heads * self.p_blocks * self.n_blocks, self.tensor, values,
            vectors, weight, decays.kept, decays.change, initial, states, final, self.sizes, self.length, self.chunks,
            first, direction, **self.tiles, **CARRY,
        )  # fmt: skip
        return states

    def sums(self) -> Sums:
        frames = (self.empty(*self.of_chunks, self.Q) for _ in range(3))
        chunks = (self.empty(*self.of_chunks) for _ in range(3))
        blocks = self.empty(*self.of_chunks, self.n_blocks, self.Q), self.empty(*self.of_chunks, self.n_blocks)
        return Sums(*frames, *blocks, *chunks)

    def shares(self) -> tuple[int, int, int]:
        """Returns the number of programs that sum over heads, of heads that each takes, and of programs for a group."""
        heads = self.sizes.heads // self.sizes.groups
        programs = self.programs // heads * self.n_blocks
        share = cdiv(heads, max(1, min(heads, PROGRAMS // max(1, programs))))
        return programs * cdiv(heads, share), share, cdiv(heads, share)


_ssd = define("triton_ssd", SSDInputs, _forward, _allocate, _backward, work=None)
