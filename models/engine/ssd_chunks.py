"""The parts of `models.engine.ssd`: decays, blocks of rows and heads, and forward and backward of one chunk.

Shape letters as in `interface`, and c chunks; inside a chunk r rows, e heads of one group and t frames. In a pair
(i, j) of its frames, i reads what j adds to the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine import plan
from models.engine.reference import state_dtype

CHUNK = 64
BLOCK = 2**18  # bytes of a buffer on one CPU thread: enough to be worth a call, and several fit in the cache
LOG2_E = math.log2(math.e)
STRONGEST_STEP = -256.0  # log2 of a decay that leaves nothing of a state in any dtype
SMALLEST_EXPONENT = -120.0  # smaller powers of two are nearly float32's subnormal numbers, which are slow to compute


class Decay(NamedTuple):
    """Steps and decays of every frame, (b, h, l), and of every chunk of CHUNK frames, (b, h, c)."""

    step: Tensor  # delta
    coarse: Tensor  # log2 of the decay from the chunk's start to the frame, the frame included: its exact part ...
    fine: Tensor  # ... and the small rest
    from_start: Tensor  # that decay; 0 after a reset
    to_end: Tensor  # decay from the frame to the chunk's end; 0 before a reset
    kept: Tensor  # decay over the chunk is kept + change; kept is 1 where the decay is slow, else 0
    change: Tensor


def decays(step: Tensor, A: Tensor, seq_idx: Tensor | None) -> Decay:
    """Computes all decays; step (b, l, h), A (h,), seq_idx (b, l) or None."""
    length = step.shape[1]
    step = into_chunks(step.transpose(1, 2).contiguous())
    coarse, fine = _log_decay(step, A)
    from_start = coarse + fine
    to_end = (coarse[..., -1:] - coarse).add_(fine[..., -1:] - fine)
    kept, change = _split_decay(from_start[..., -1] / LOG2_E)
    from_start, to_end = (power.clamp_(min=SMALLEST_EXPONENT).exp2_() for power in (from_start, to_end))
    if seq_idx is not None:
        padding = seq_idx[:, -1:].expand(-1, -length % CHUNK)
        sequence = torch.cat((seq_idx, padding), dim=1).unflatten(1, (-1, CHUNK)).unsqueeze(1)  # (b, 1, c, CHUNK)
        last = sequence[..., -1:]
        carried = torch.cat((seq_idx[:, None, :1, None], last[:, :, :-1]), dim=2)
        from_start.mul_(sequence == carried)
        to_end.mul_(sequence == last)
        same = (last == carried).squeeze(-1)
        kept.mul_(same), change.mul_(same)
    fields = (field.flatten(2)[..., :length] for field in (step, coarse, fine, from_start, to_end))
    return Decay(*fields, kept, change)


def into_chunks(frames: Tensor) -> Tensor:
    """Cuts (b, h, l) into (b, h, c, CHUNK), with zeros at the end."""
    return F.pad(frames, (0, -frames.shape[-1] % CHUNK)).unflatten(-1, (-1, CHUNK))


def _log_decay(step: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the log2 decay along chunks, as an exact and a small part; step (b, h, c, CHUNK), A (h,).

    A difference of two sums loses the digits that both share, and far into a chunk of strong decay those are most of
    float32's. So each summand is split: `coarse` is a multiple of a unit so large that float32 holds every sum and
    difference of CHUNK of them exactly, `fine` is what remains. Adding 1.5 CHUNK times the largest summand and taking
    it away again rounds to such a unit, of which no sum then has more than 2^24.
    """
    log_decay = (step * (A * LOG2_E)[:, None, None]).clamp_(min=STRONGEST_STEP)
    rounder = log_decay.abs().amax(-1, keepdim=True).mul_(1.5 * CHUNK)
    coarse = (log_decay + rounder).sub_(rounder)
    return coarse.cumsum(-1), log_decay.sub_(coarse).cumsum(-1)


def _split_decay(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a decay into kept + change, with kept 1 for slow decay and 0 for strong.

    A decay near 1 has lost digits of its logarithm, and a long slow one loses more in every chunk; h + expm1(log) h has
    not. Where little of h remains, on the other hand, that sum would be a small difference of large numbers.
    """
    change, decay = torch.expm1(log_decay), torch.exp(log_decay)
    slow = decay > 0.5
    return slow.to(decay.dtype), torch.where(slow, change, decay)


class Block(NamedTuple):
    """Rows of the batch and heads of one group that are worked on together."""

    rows: slice
    group: int
    heads: slice

    def frames(self, tensor: Tensor) -> Tensor:
        """Selects the block's part of (b, l, h, p): (r, l, e, p)."""
        return tensor[self.rows, :, self.heads]

    def of_group(self, tensor: Tensor) -> Tensor:
        """Selects the block's part of (b, l, g, n): (r, l, n)."""
        return tensor[self.rows, :, self.group]

    def state(self, tensor: Tensor) -> Tensor:
        """Views the block's part of (b, h, p, n) as (r, e p, n)."""
        return tensor[self.rows, self.heads].flatten(1, 2)


def block_size(x: Tensor, B: Tensor, device: str) -> tuple[int, int]:
    """Rows and heads of a block, whose buffers fit in the cache of a CPU; elsewhere all rows, and all of a group."""
    batch, _, heads, channels = x.shape
    groups, states = B.shape[2:]
    if not plan.by_cache(device):
        return batch, heads // groups
    size = BLOCK * torch.get_num_threads() // (CHUNK * max(CHUNK, channels, states) * x.itemsize)
    heads_of_block = min(heads // groups, max(1, size))
    return min(batch, max(1, size // heads_of_block)), heads_of_block


def blocks(x: Tensor, B: Tensor) -> Iterator[Block]:
    """Yields the blocks of a batch: x (b, l, h, p), B (b, l, g, n)."""
    batch, heads, groups = x.shape[0], x.shape[2], B.shape[2]
    heads_of_group = heads // groups
    rows_of_block, heads_of_block = block_size(x, B, x.device.type)
    for row in range(0, batch, rows_of_block):
        rows = slice(row, min(row + rows_of_block, batch))
        for group in range(groups):
            end = (group + 1) * heads_of_group
            for head in range(group * heads_of_group, end, heads_of_block):
                yield Block(rows, group, slice(head, min(head + heads_of_block, end)))


class Chunk(NamedTuple):
    """The inputs of one chunk of a block: slices in the shapes in which they are used."""

    x: Tensor  # (r, t, e, p)
    B: Tensor  # (r, t, n)
    C: Tensor  # (r, t, n)
    apart: Tensor | None  # (r, t, t), with resets: pairs (i, j) of different sequences or with j later than i
    coarse_i: Tensor  # (r, e, t, 1)
    coarse_j: Tensor  # (r, e, 1, t)
    fine_i: Tensor  # (r, e, t, 1)
    fine_j: Tensor  # (r, e, 1, t)
    step_j: Tensor  # (r, e, 1, t)
    from_start: Tensor  # (r, t, e, 1)
    weight: Tensor  # (r, t, e, 1): of x in the state at the chunk's end
    kept: Tensor  # (r, e, 1, 1)
    change: Tensor  # (r, e, 1, 1)


def chunks(block: Block, x: Tensor, B: Tensor, C: Tensor, decay: Decay, seq_idx: Tensor | None) -> list[Chunk]:
    """Lists the chunks of a block in order; x (b, l, h, p), B and C (b, l, g, n), seq_idx (b, l)."""
    x, B, C = block.frames(x), block.of_group(B), block.of_group(C)
    step, coarse, fine, from_start, to_end, kept, change = (field[block.rows, block.heads] for field in decay)
    parts = (
        *(frames.split(CHUNK, 1) for frames in (x, B, C)),
        _apart(None if seq_idx is None else seq_idx[block.rows], change.shape[2]),
        coarse.unsqueeze(3).split(CHUNK, 2),
        coarse.unsqueeze(2).split(CHUNK, 3),
        fine.unsqueeze(3).split(CHUNK, 2),
        fine.unsqueeze(2).split(CHUNK, 3),
        step.unsqueeze(2).split(CHUNK, 3),
        from_start.transpose(1, 2).unsqueeze(3).split(CHUNK, 1),
        (to_end * step).transpose(1, 2).unsqueeze(3).split(CHUNK, 1),
        kept[..., None, None].unbind(2),
        change[..., None, None].unbind(2),
    )
    return [Chunk(*part) for part in zip(*parts, strict=True)]


def _apart(seq_idx: Tensor | None, count: int) -> list[Tensor | None]:
    if seq_idx is None:
        return [None] * count
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=seq_idx.device).triu_(1)
    return [
        later[: sequence.shape[1], : sequence.shape[1]] | (sequence[:, :, None] != sequence[:, None, :])
        for sequence in seq_idx.split(CHUNK, 1)
    ]


class Buffers:
    """Work tensors of a chunk and the views of them that are used; all but `scaled` in the states' dtype.

    The views are made once, since making one takes as long as a small operation.
    """

    def __init__(self, chunk: Chunk) -> None:
        r, t, e, p = chunk.x.shape
        n = chunk.B.shape[-1]
        self.like = chunk.x.new_empty(0, dtype=state_dtype(chunk.x.dtype))
        self.scores = self.like.new_empty(r, t, t)
        self.scores_of_heads = self.scores.unsqueeze(1)
        self.mixing = self.like.new_empty(r, e, t, t)
        self.mixing_by_head = self.mixing.flatten(0, 1)
        self.mixing_diagonal = self.mixing.diagonal(dim1=-2, dim2=-1)
        self.inner_by_head = self.like.new_empty(r * e, t, p)
        self.inner = self.inner_by_head.unflatten(0, (r, e)).transpose(1, 2)
        self.outer = self.like.new_empty(r, t, e, p)
        self.outer_flat = self.outer.flatten(2)
        self.scaled = chunk.x.new_empty(r, t, e, p)
        self.scaled_flat = self.scaled.flatten(2)
        self.scaled_transposed = self.scaled_flat.transpose(1, 2)
        self.state = self.like.new_empty(r, e, p, n)
        self.state_flat = self.state.flatten(1, 2)


class BackwardBuffers(Buffers):
    """The work tensors of forward and those that only backward needs."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(chunk)
        (r, t, e, _), n = chunk.x.shape, chunk.B.shape[-1]
        self.pairs, self.products, self.cumulated = (torch.empty_like(self.mixing) for _ in range(3))
        self.pairs_by_head = self.pairs.flatten(0, 1)
        self.pairs_diagonal = self.pairs.diagonal(dim1=-2, dim2=-1)
        self.dscores = torch.empty_like(self.scores)
        self.through, self.through_C = (self.like.new_empty(r, e, t, n) for _ in range(2))
        self.through_by_head = self.through.flatten(0, 1)
        self.x_outer = torch.empty_like(self.outer)
        self.of_group = self.like.new_empty(r, t, n)


def _by_head(frames: Tensor) -> Tensor:
    """Reorders (r, t, e, p) to (r e, t, p), a view for a single row."""
    return frames.transpose(1, 2).flatten(0, 1)


def _matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Writes the batched matrix product into `out`, whose dtype may be wider."""
    return torch.bmm(a, b, out=out) if out.dtype == a.dtype else out.copy_(torch.bmm(a, b))


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds the batched product a @ b to `total`, whose dtype may be wider."""
    return total.baddbmm_(a, b) if total.dtype == a.dtype else total.add_(torch.bmm(a, b))


def _mask(scores: Tensor, apart: Tensor | None) -> Tensor:
    """Sets scores (r, t, t) to zero where frames do not meet."""
    return scores.tril_() if apart is None else scores.masked_fill_(apart, 0.0)


def _load_scores_and_decay(chunk: Chunk, buffers: Buffers) -> None:
    """Fills `scores` with C_i . B_j, or 0 for frames that do not meet, and `mixing` with the decay from j to i.

    For later j, which do not meet i, the decay is 1: the exponential of a positive number could overflow and make
    gradients of inf * 0.
    """
    _mask(_matmul(chunk.C, chunk.B.transpose(1, 2), buffers.scores), chunk.apart)
    torch.sub(chunk.coarse_i, chunk.coarse_j, out=buffers.mixing).add_(chunk.fine_i).sub_(chunk.fine_j)
    buffers.mixing.clamp_(SMALLEST_EXPONENT, 0.0).exp2_()


def _finish_mixing(chunk: Chunk, D: Tensor | None, buffers: Buffers) -> Tensor:
    """Turns decays and scores into the weights of x_j in y_i inside the chunk, D included: (r e, t, t) in x's dtype."""
    buffers.mixing.mul_(buffers.scores_of_heads).mul_(chunk.step_j)
    if D is not None:
        buffers.mixing_diagonal.add_(D)
    return buffers.mixing_by_head.to(chunk.x.dtype)


def forward_chunk(chunk: Chunk, D: Tensor | None, state: Tensor, start: Tensor, y: Tensor, buffers: Buffers) -> None:
    """Writes y (r, t, e, p) and advances state (r, e p, n); start is the state before, in x's dtype; D (e, 1)."""
    _load_scores_and_decay(chunk, buffers)
    _matmul(_finish_mixing(chunk, D, buffers), _by_head(chunk.x), buffers.inner_by_head)
    _matmul(chunk.C, start.transpose(1, 2), buffers.outer_flat)
    torch.add(buffers.inner, buffers.outer.mul_(chunk.from_start), out=y)

    torch.mul(chunk.x, chunk.weight, out=buffers.scaled)
    _advance(state, chunk, chunk.B, buffers)


def _advance(state: Tensor, chunk: Chunk, vectors: Tensor, buffers: Buffers) -> None:
    """Sets state (r, e p, n) to decay of the chunk * state + `scaled` (r, t, e p) transposed @ vectors (r, t, n)."""
    state_of_heads = state.view_as(buffers.state)
    torch.mul(state_of_heads, chunk.change, out=buffers.state)
    state_of_heads.mul_(chunk.kept)
    state.add_(_add_matmul(buffers.state_flat, buffers.scaled_transposed, vectors))


class Sums(NamedTuple):
    """Sums over pairs, channels or states that backward collects for every frame and head; (b, h, l) but `state`."""

    pairs: Tensor  # over pairs j <= this frame < i: the gradient of the log decay of the frame that follows
    direct: Tensor  # the gradient of delta as a factor of x inside the chunk
    skip: Tensor  # dy . x
    carried: Tensor  # dy . the output of the carried state, before its decay
    added: Tensor  # x . the gradient of its contribution to the state, before its weight
    state: Tensor  # (b, h, c): the state at a chunk's start . the gradient of the state at its end

    def chunks(self, block: Block) -> list[Sums]:
        """Views each chunk's part: (r, e, t), and (r, e) of `state`."""
        *frames, state = (field[block.rows, block.heads] for field in self)
        return [Sums(*part) for part in zip(*(field.split(CHUNK, 2) for field in frames), state.unbind(2), strict=True)]


class Gradients(NamedTuple):
    """Gradients that backward of a chunk reads and writes."""

    dy: Tensor  # (r, t, e, p)
    dx: Tensor  # (r, t, e, p), written
    dB: Tensor  # (r, t, n), added to
    dC: Tensor  # (r, t, n), added to
    sums: Sums  # written

    @staticmethod
    def of_chunks(block: Block, dy: Tensor, dx: Tensor, dB: Tensor, dC: Tensor, sums: Sums) -> list[Gradients]:
        """Slices dy and dx (b, l, h, p), dB and dC (b, l, g, n), and the sums."""
        frames = block.frames(dy), block.frames(dx), block.of_group(dB), block.of_group(dC)
        parts = zip(*(tensor.split(CHUNK, 1) for tensor in frames), sums.chunks(block), strict=True)
        return [Gradients(*part) for part in parts]


def backward_chunk(
    chunk: Chunk, D: Tensor | None, start: Tensor, dstate: Tensor, gradients: Gradients, buffers: BackwardBuffers
) -> None:
    """Fills `gradients` and turns dstate (r, e p, n) at the chunk's end into that at its start; start as in forward."""
    dy_by_head = _by_head(gradients.dy)
    _backward_pairs(chunk, D, dy_by_head, gradients.sums, buffers)
    _backward_carried(chunk, start, dy_by_head, gradients, buffers)
    _backward_added(chunk, dstate, gradients, buffers)

    torch.mul(dstate.view_as(buffers.state), start.view_as(buffers.state), out=buffers.state)
    torch.sum(buffers.state, (-2, -1), out=gradients.sums.state)
    torch.mul(gradients.dy, chunk.from_start, out=buffers.scaled)
    _advance(dstate, chunk, chunk.C, buffers)


def _backward_pairs(chunk: Chunk, D: Tensor | None, dy: Tensor, sums: Sums, buffers: BackwardBuffers) -> None:
    """Differentiates the products inside the chunk: leaves dx in `inner` and the scores' gradient in `dscores`.

    dy is (r e, t, p). The log decay of frame t acts on all pairs j < t <= i. Its gradient is summed over just these,
    first over j, then over i. Row sums minus column sums, accumulated, would be small differences of large numbers.
    """
    pairs, products = buffers.pairs, buffers.products
    _load_scores_and_decay(chunk, buffers)
    _matmul(dy, _by_head(chunk.x).transpose(1, 2), buffers.pairs_by_head)
    sums.skip.copy_(buffers.pairs_diagonal)
    pairs.mul_(buffers.mixing)
    torch.sum(torch.mul(pairs, buffers.scores_of_heads, out=products), -2, out=sums.direct)
    _mask(torch.sum(pairs.mul_(chunk.step_j), 1, out=buffers.dscores), chunk.apart)
    torch.mul(pairs, buffers.scores_of_heads, out=products)
    torch.cumsum(products, -1, out=buffers.cumulated)
    torch.sum(buffers.cumulated.tril_(-1), -2, out=sums.pairs)
    _matmul(_finish_mixing(chunk, D, buffers).transpose(1, 2), dy, buffers.inner_by_head)


def _backward_carried(chunk: Chunk, start: Tensor, dy: Tensor, gradients: Gradients, buffers: BackwardBuffers) -> None:
    """Differentiates the output of the state at the chunk's start, and completes dC; dy (r e, t, p)."""
    _matmul(dy, start.view_as(buffers.state).flatten(0, 1), buffers.through_by_head)
    torch.mul(buffers.through, chunk.C.unsqueeze(1), out=buffers.through_C)
    torch.sum(buffers.through_C, -1, out=gradients.sums.carried)
    torch.sum(buffers.through.mul_(chunk.from_start.transpose(1, 2)), 1, out=buffers.of_group)
    gradients.dC.add_(_add_matmul(buffers.of_group, buffers.dscores.to(chunk.x.dtype), chunk.B))


def _backward_added(chunk: Chunk, dstate: Tensor, gradients: Gradients, buffers: BackwardBuffers) -> None:
    """Differentiates what the frames add to the state at the chunk's end, and completes dx and dB."""
    dstate = dstate.to(chunk.x.dtype)
    _matmul(chunk.B, dstate.transpose(1, 2), buffers.outer_flat)
    torch.mul(chunk.x, buffers.outer, out=buffers.x_outer)
    torch.sum(buffers.x_outer, -1, out=gradients.sums.added.transpose(1, 2))
    torch.add(buffers.inner, buffers.outer.mul_(chunk.weight), out=gradients.dx)
    torch.mul(chunk.x, chunk.weight, out=buffers.scaled)
    _matmul(buffers.scaled_flat, dstate, buffers.of_group)
    dscores = buffers.dscores.to(chunk.x.dtype)
    gradients.dB.add_(_add_matmul(buffers.of_group, dscores.transpose(1, 2), chunk.C))


def step_gradients(decay: Decay, sums: Sums, A: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the gradients of the steps (b, l, h) and of A (h,) from all sums.

    A frame's log decay weakens the pairs around it, the carried state for the frames from it on, what the frames before
    it add to the chunk's last state, and the carried state in that.
    """
    fields = decay.step, decay.from_start, decay.to_end, sums.pairs, sums.direct, sums.carried, sums.added
    step, from_start, to_end, pairs, direct, carried, added = (into_chunks(field) for field in fields)
    from_carried = (from_start * carried).flip(-1).cumsum(-1).flip(-1)
    from_added = F.pad((to_end * step * added).cumsum(-1).add_(pairs)[..., :-1], (1, 0))
    from_state = ((decay.kept + decay.change) * sums.state).unsqueeze(-1)
    dlog_decay = from_carried.add_(from_added).add_(from_state)
    dA = (dlog_decay * step).sum((0, 2, 3))
    dstep = dlog_decay.mul_(A[:, None, None]).add_(direct).addcmul_(to_end, added)
    return dstep.flatten(2)[..., : decay.step.shape[-1]].transpose(1, 2), dA
