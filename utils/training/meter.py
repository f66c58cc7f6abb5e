"""How fast a run is, what it waits for, and how long it will take."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")
MIB = 2**20


class Meter:
    """Counts steps, frames and time since the last reading; the estimate of the end rests on all steps so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._all_steps, self._begin = 0, time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Leaves out what was done since the last reading."""
        self._steps = self._frames = 0
        self._waited = 0.0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each is there counts as waiting for the loader."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def add(self, frames: float) -> None:
        """Counts one step of so many frames over all ranks."""
        self._steps, self._frames, self._all_steps = self._steps + 1, self._frames + frames, self._all_steps + 1

    def read(self, steps_left: int) -> dict[str, float]:
        """Figures since the last reading, of this process unless said; then begins anew.

        `frames_per_s` of wall time over all ranks, `cpu_s_per_step`, `wait_share` (the part of the wall time in which
        the step waited for the loader), `memory_mib` (highest so far: resident, or the GPU's where there is one) and
        `eta_s`, seconds until `steps_left` more steps are done.
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


def _peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
