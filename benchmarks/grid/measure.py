"""Measurements of one pass of a module: CPU time, peak memory, bytes kept for backward, a sample of results.

The process is a fresh one with one thread; its parent watches its memory (benchmarks/grid/cells.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.grid.memory import peak_memory

FINE_READINGS, LONGEST_WAIT = 10, 0.1  # of a clock that is not counting in ticks; seconds
SAMPLE = 48  # values of each tensor
SAMPLED = ("in_proj.weight", "conv1d.weight", "A_log", "D", "out_proj.weight")


class Pass:
    """Forward and backward of one module on fixed inputs, the gradients of all parameters and of the input included."""

    def __init__(self, module: nn.Module, batch: int, length: int, d_model: int) -> None:
        draw = torch.Generator().manual_seed(1)
        self.module = module
        self.x = torch.randn(batch, length, d_model, generator=draw).requires_grad_()
        self.gradient = torch.randn(batch, length, d_model, generator=draw)

    def clear(self) -> None:
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None

    def forward(self) -> Tensor:
        output = self.module(self.x)
        return output[0] if isinstance(output, tuple) else output

    def __call__(self) -> Tensor:
        self.clear()
        y = self.forward()
        y.backward(self.gradient)
        return y.detach()

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the last pass by the parameter's name; `x` is the input's."""
        named = {name: parameter.grad for name, parameter in self.module.named_parameters()}
        return {"x": self.x.grad, **named}


class Meter:
    """Times passes: a first one may take no more than `limit` CPU seconds, repeats together some `budget` seconds."""

    def __init__(self, limit: float, budget: float) -> None:
        self.limit, self.budget = limit, budget

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """The system ends this process by SIGPROF once the block has used more CPU time than a pass may.

        Not for a block that is timed: while this timer runs, Linux counts CPU time in ticks of some milliseconds.
        """
        signal.setitimer(signal.ITIMER_PROF, self.limit)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            _await_fine_clock()

    def times(self, body: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> dict[str, Any]:
        """Seconds of 3 to 15 calls of `body`, of one where that takes four times the budget."""
        times: list[float] = []
        while len(times) < 15:
            start = clock()
            body()
            times.append(clock() - start)
            if times[0] > 4 * self.budget or (len(times) >= 3 and sum(times) > self.budget):
                break
        return spread(times)

    def peak_memory(self, body: Callable[[], Any]) -> int:
        """Bytes by which the resident memory of this process rises at most while `body` runs, within the limit."""
        give_back()
        with self.limited():
            return peak_memory(body)


def _await_fine_clock() -> None:
    """Returns when CPU time is no longer counted in ticks, which Linux stops at the first tick without a timer."""
    fine, end = 0, time.monotonic() + LONGEST_WAIT
    while fine < FINE_READINGS and time.monotonic() < end:
        fine = fine + 1 if time.process_time() != time.process_time() else 0


def spread(times: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times), "repeats": len(times)}


def give_back() -> None:
    """Returns freed memory to the system, which the allocator would keep for the next pass."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def kept_for_backward(one: Pass) -> int:
    """Bytes of the storages that autograd holds between forward and backward, parameters and the input left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [one.x, *one.module.parameters()]}
    held: weakref.WeakSet[_Held] = weakref.WeakSet()  # what no gradient needs is gone by the end of forward

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor)
        held.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        y = one.forward()
    storages = [holder.tensor.untyped_storage() for holder in held]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.data_ptr() not in own}
    del y
    return sum(sizes.values())


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def sample(one: Pass, y: Tensor) -> dict[str, Any]:
    """Some values of the output and of gradients with the maximum of each, to hold against another system's.

    None in the place of what has values that are not finite.
    """
    gradients = one.gradients()
    tensors = {"y": y, "x": gradients["x"], **{name: gradients[name] for name in SAMPLED}}
    result = {}
    for name, tensor in tensors.items():
        if tensor is None:  # a mixer without a scan does not use A
            continue
        flat = tensor.reshape(-1)
        index = torch.linspace(0, len(flat) - 1, min(SAMPLE, len(flat))).long()
        finite = bool(flat.isfinite().all())
        result[name] = {"values": flat[index].tolist(), "largest": flat.abs().max().item()} if finite else None
    return result


def relative_error(got: Tensor, truth: Tensor) -> float | None:
    """The largest difference relative to the largest true value; None where a value is not finite."""
    if not got.isfinite().all():
        return None
    return ((got.double() - truth.double()).abs().max() / truth.double().abs().max()).item()
