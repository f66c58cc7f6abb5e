"""What CUDA kernels keep for backward and allocate: ours as they do, those of mamba-ssm and causal-conv1d by formula.

The operators of `models.engine.triton` run on fake tensors without their kernels; only the check for a GPU before them
is left out. Neither of the other packages runs on tensors without data. Stand-ins take the place of their functions
while a step is predicted: they return tensors of the same shapes, and save and allocate what the Python code around the
kernels of mamba-ssm 2.3 and causal-conv1d 1.6 does. `models.engine.mamba_ssm`, which calls them, is the real one.
Nothing here was measured on a GPU, and the FLOPs of stand-ins do not count.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from models.engine import interface, mamba_ssm
from models.engine.inputs import Operations
from models.engine.triton import conv, selective_scan, ssd
from models.mamba import StateSpaceMixer

BY_FORMULA, WITHOUT_KERNELS = "mamba_ssm by formula", "triton without kernels"  # names of backends
# What a backend of CUDA is predicted with, if not with itself.
PREDICTED_WITH = {"mamba_ssm": BY_FORMULA, "triton": WITHOUT_KERNELS}
Sizes = Callable[[], tuple[Tensor, ...]]

interface.IMPLEMENTATIONS |= {
    BY_FORMULA: interface.IMPLEMENTATIONS["mamba_ssm"],
    WITHOUT_KERNELS: Operations(conv.causal_conv, selective_scan.selective_scan, ssd.ssd),
}


def use(model: nn.Module, backend: str) -> None:
    """Makes the Mamba mixers of a model take what a backend of CUDA is predicted with."""
    for part in model.modules():
        if isinstance(part, StateSpaceMixer):
            part.backend = PREDICTED_WITH[backend]


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Puts the stand-ins where the packages would be imported from."""
    functions = {
        "causal_conv1d": {"causal_conv1d_fn": _causal_conv},
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": _selective_scan},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": _ssd},
    }
    before = {name: sys.modules.get(name) for name in functions}
    for name, content in functions.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Kernel(torch.autograd.Function):
    """Results, tensors to save and buffers of the backward pass from functions; saves and differentiates `tensors`."""

    @staticmethod
    def forward(ctx: Any, results: Sizes, saved: Sizes, work: Sizes, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.work, ctx.count = work, len(tensors)
        found = results()
        ctx.save_for_backward(*tensors, *saved())
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        buffers = ctx.work()
        tensors = ctx.saved_tensors[: ctx.count]
        found = tuple(None if tensor is None else torch.empty_like(tensor) for tensor in tensors)
        del buffers
        return None, None, None, *found


def _causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None, activation: str | None = None
) -> Tensor:
    (y,) = _Kernel.apply(lambda: (torch.empty_like(x),), tuple, tuple, x, weight, bias)
    return y


def _selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, **others: Any
) -> tuple[Tensor, Tensor]:
    """The output before the gate is kept, and two numbers of each state of every 2,048 frames."""
    (batch, channels, length), states = u.shape, A.shape[1]
    chunks = -(-length // mamba_ssm.SCAN_CHUNK)
    before_gate = torch.empty_like(u.detach())

    def results() -> tuple[Tensor, ...]:
        return (torch.empty_like(u) if z is not None else before_gate, A.new_empty(batch, channels, states))

    def saved() -> tuple[Tensor, ...]:
        return A.new_empty(batch, channels, chunks, 2 * states), before_gate

    def work() -> tuple[Tensor, ...]:  # the gradients of B and C are summed in float32
        return B.new_empty(B.shape, dtype=torch.float32), C.new_empty(C.shape, dtype=torch.float32)

    return _Kernel.apply(results, saved, work, u, delta, A, B, C, D, z, others["delta_bias"])


def _ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None = None, **others: Any
) -> tuple[Tensor, Tensor]:
    """The output and the summed log decays are kept; states and scores of chunks are recomputed."""
    (batch, length, heads, channels), (groups, states) = x.shape, B.shape[2:]
    chunks = -(-length // chunk_size)

    def of_chunks(*shape: int) -> Tensor:
        return A.new_empty(batch, chunks, *shape, dtype=torch.float32)

    def recomputed() -> tuple[Tensor, ...]:
        decays = of_chunks(heads, chunk_size), of_chunks(heads, chunk_size)
        return *decays, of_chunks(heads, channels, states), of_chunks(groups, chunk_size, chunk_size)

    y = torch.empty_like(x.detach())

    def results() -> tuple[Tensor, ...]:
        buffers = recomputed()
        state = A.new_empty(batch, heads, channels, states, dtype=torch.float32)
        del buffers
        return y, state

    def saved() -> tuple[Tensor, ...]:
        return y.detach(), of_chunks(heads, chunk_size)

    def work() -> tuple[Tensor, ...]:
        gradients = of_chunks(heads, channels, states), of_chunks(heads, chunk_size), of_chunks(heads, chunk_size)
        return *recomputed(), *gradients, *(v.new_empty(v.shape, dtype=torch.float32) for v in (B, C))

    return _Kernel.apply(results, saved, work, x, dt, A, B, C, D, others["dt_bias"], others["initial_states"])
