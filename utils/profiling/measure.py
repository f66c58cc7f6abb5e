"""Measures the memory of a real training step: by the CPU profiler's record of all allocations, or CUDA's allocator.

Both see the buffers inside torch's operators, but not what other code takes from the system: oneDNN's scratch space,
C++ kernels' own buffers, cuBLAS workspaces, the context of CUDA, or the rounding of malloc.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from utils.device import pick_device
from utils.errors import UserError
from utils.profiling.case import Case
from utils.training.update import Update

STEP = "measured step"
MOST_STEPS = 40  # a gradient scaler skips the first ones until its scale fits


def measure(case: Case) -> int:
    """Peak bytes of a step after the first, of everything that lives then; `UserError` if it cannot run here."""
    torch.manual_seed(0)
    device = pick_device(case.device)
    try:
        return _on_cuda(case, device) if device.type == "cuda" else _on_cpu(case, device)
    except RuntimeError as error:  # what a library, such as oneDNN, has no implementation of, or no memory for
        raise UserError(f"--measure: the step cannot run here: {str(error).splitlines()[0]}") from error


def _on_cpu(case: Case, device: torch.device) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library announces start and stop on standard error
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        update, batches = _start(case, device)
        _second_step(case, update, batches)
        del update, batches
    return _peak(profiler)


def run_steps(case: Case, device: torch.device) -> None:
    """Trains a new model for two steps on a CPU."""
    torch.manual_seed(0)
    _second_step(case, *_start(case, device))


def _start(case: Case, device: torch.device) -> tuple[Update, list[dict[str, Tensor]]]:
    return case.update(case.model(), device), case.batches()


def _second_step(case: Case, update: Update, batches: list[dict[str, Tensor]]) -> None:
    """Runs the first step that is not skipped, and another one."""
    done = 0
    for step in range(MOST_STEPS):
        with torch.profiler.record_function(STEP):
            done += update(batches, range(case.samples), step, 0).problem is None
        if done == 2:
            return
    raise UserError(f"--measure: {MOST_STEPS} steps in a row had a loss or gradient that is not finite")


def _on_cuda(case: Case, device: torch.device) -> int:
    update, batches = _start(case, device)
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    _second_step(case, update, batches)
    torch.cuda.reset_peak_memory_stats(device)
    update(batches, range(case.samples), MOST_STEPS, 0)
    return torch.cuda.max_memory_allocated(device)


def _peak(profiler: torch.profiler.profile) -> int:
    """The largest sum of allocations, from the profiler's beginning on, within the last step."""
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    start = max(event.start_ns() for event in events if event.name() == STEP)
    live = peak = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live) if event.start_ns() >= start else live
    return peak
