"""The arguments of the kernels of `models.engine.triton.ssd` that consist of several."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Frames(NamedTuple):
    """A tensor (b, l, k, m) of contiguous last dimension, k being heads or groups, and its other strides."""

    data: Tensor
    row: int
    frame: int
    head: int

    @classmethod
    def of(cls, tensor: Tensor) -> Frames:
        return cls(tensor, *tensor.stride()[:3])


class Sizes(NamedTuple):
    """Sizes that are constants of a model."""

    heads: int
    groups: int
    channels: int
    states: int


class Decays(NamedTuple):
    """Steps and decays of every frame, (b, h, chunks * Q), and of every chunk, (b, h, chunks); float32."""

    step: Tensor  # delta; 0 beyond the last frame
    coarse: Tensor  # log2 of the decay from the chunk's start to the frame, the frame included: its exact part ...
    fine: Tensor  # ... and the small rest
    from_start: Tensor  # that decay; 0 after a reset
    to_end: Tensor  # decay from the frame to the chunk's end; 0 before a reset
    weight: Tensor  # of x in the state at the chunk's end: to_end * step
    kept: Tensor  # decay over the chunk is kept + change; kept is 1 where the decay is slow, else 0
    change: Tensor


class Sums(NamedTuple):
    """Sums of frames, (b, h, chunks, Q), and of chunks, (b, h, chunks); "blocks" are the blocks of BN states."""

    pairs: Tensor  # over pairs j <= this frame < i: the gradient of the log decay of the frame that follows
    direct: Tensor  # the gradient of delta as a factor of x inside the chunk
    added: Tensor  # x . the gradient of its contribution to the state, before its weight
    carried: Tensor  # (b, h, chunks, blocks, Q): dy . the output of the carried state, before its decay
    state: Tensor  # (b, h, chunks, blocks): the state at a chunk's start . the gradient of the state at its end
    skip: Tensor  # of the chunk, dy . x
    dA: Tensor  # of the chunk
    dt_bias: Tensor  # of the chunk
