"""Speed, waiting time, memory and remaining time of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import torch

MIB = 2**20


class Meter:
    """Counts steps, frames and time since the last reading; the remaining time is estimated from all steps so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._all_steps, self._begin = 0, time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Discards the counts since the last reading."""
        self._steps = self._frames = 0
        self._waited = 0.0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within the block as waiting for the loader."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def add(self, frames: float) -> None:
        """Counts one step, of `frames` frames over all ranks."""
        self._steps, self._frames, self._all_steps = self._steps + 1, self._frames + frames, self._all_steps + 1

    def read(self, steps_left: int) -> dict[str, float]:
        """Metrics of this process since the last reading; then restarts.

        `frames_per_s` of wall time over all ranks, `cpu_s_per_step`, `wait_share` (share of the wall time spent waiting
        for the loader), `memory_mib` (highest so far: of the GPU if there is one, else resident) and `eta_s`, seconds
        until `steps_left` more steps are done.
        """
        now = time.perf_counter()
        wall = now - self._wall
        values = {
            "frames_per_s": self._frames / wall,
            "cpu_s_per_step": (time.process_time() - self._cpu) / self._steps,
            "wait_share": self._waited / wall,
            "memory_mib": _peak_memory(self._device) / MIB,
            "eta_s": (now - self._begin) / self._all_steps * steps_left,
        }
        self.restart()
        return values


class Averages:
    """Means over the steps since the last reading."""

    def __init__(self) -> None:
        self._steps: list[Mapping[str, float]] = []

    def add(self, values: Mapping[str, float]) -> None:
        """Counts one step."""
        self._steps.append(values)

    def read(self) -> dict[str, float]:
        """The mean of each value; then restarts."""
        steps, self._steps = self._steps, []
        return {name: sum(step[name] for step in steps) / len(steps) for name in steps[-1]}


def _peak_memory(device: torch.device) -> int:
    """Highest memory so far in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
