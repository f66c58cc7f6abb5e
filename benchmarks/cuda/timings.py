"""The process that times cells, one after another: `python -m benchmarks.cuda.timings JSON`.

JSON has the cells, the device, seconds for all and for the repeats of a figure, and the file to append one JSON line a
cell to. A cell begins with the line "begun", so that the next process knows which one has ended this one.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.operations import Work, difference, make, obstacle
from benchmarks.cuda.plan import Cell
from utils import cli
from utils.device import pick_device

MOST, FEWEST = 30, 3  # repeats
LONG_S = 2.0  # a computation that takes longer is not repeated
CACHE_BYTES = 256 * 2**20  # more than any GPU's cache, written before each repeat so that inputs come from memory
COPIED_BYTES = 2**30


class Clock:
    """Times computations on a device: by events on CUDA, else by the time of day; `budget_s` for all repeats."""

    def __init__(self, device: torch.device, budget_s: float) -> None:
        self.device, self.budget_s, self.is_cuda = device, budget_s, device.type == "cuda"
        self._cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device) if self.is_cuda else None

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def once(self, body: Callable[[], Any]) -> float:
        """Milliseconds of one call by the time of day."""
        start = time.perf_counter()
        body()
        self.synchronize()
        return 1000 * (time.perf_counter() - start)

    def __call__(self, body: Callable[[], Any]) -> dict[str, Any]:
        """Milliseconds of `body`: median, least and most, and how many repeats; the first two calls do not count."""
        self.once(body)
        about_s = self.once(body) / 1000
        repeats = 1 if about_s > LONG_S else max(FEWEST, min(MOST, round(self.budget_s / max(about_s, 1e-6))))
        times = self._by_events(body, repeats) if self.is_cuda else [self.once(body) for _ in range(repeats)]
        return {"median": statistics.median(times), "min": min(times), "max": max(times), "repeats": repeats}

    def _by_events(self, body: Callable[[], Any], repeats: int) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in pairs:
            self._cache.zero_()
            start.record()
            body()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def peak_mib(self, body: Callable[[], Any]) -> float | None:
        """MiB that `body` needs beyond what is allocated when it begins; None on a CPU."""
        if not self.is_cuda:
            return None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        body()
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def bandwidth(self) -> float:
        """Bytes a second that a copy within the device reads and writes."""
        source = torch.randn((COPIED_BYTES if self.is_cuda else CACHE_BYTES // 8) // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / (self(lambda: target.copy_(source))["median"] / 1000)


def measure(cell: Cell, clock: Clock, bandwidth: float) -> dict[str, Any]:
    """Figures of a cell: milliseconds and their ratio to the floor, MiB, with and without backward."""
    work: Work = make(cell, clock.device)
    figures: dict[str, Any] = {}
    for name, body, size in (
        ("forward", torch.no_grad()(work.forward), work.bytes_forward),
        ("both", work.backward, work.bytes_both),
    ):
        figures[name] = {**clock(body), "mib": clock.peak_mib(body)}
        figures[name]["floors"] = figures[name]["median"] / (1000 * size / bandwidth)
    return figures


def run(cells: Iterable[Cell], device: torch.device, seconds: float, budget_s: float, file: Path) -> None:
    """Times cells until `seconds` are over; appends to `file` and prints a row of each."""
    end, clock = time.monotonic() + seconds, Clock(device, budget_s)
    about = {"device": describe(device), "bandwidth": clock.bandwidth(), "versions": versions()}
    _append(file, about)
    print(f"{about['device']}, {about['versions']}: a copy moves {about['bandwidth'] / 1e9:.0f} GB/s")
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}", flush=True)
    differences: dict[tuple[str, str, str], float | None] = {}
    obstacles: dict[tuple[str, str], str | None] = {}
    for cell in cells:
        if time.monotonic() > end:
            print("the time is up: the cells that follow are not measured")
            return
        if _is_skipped(cell, device.type, obstacles):
            continue
        _append(file, {"cell": asdict(cell), "status": "begun"})
        record = {"cell": asdict(cell), **_attempt(cell, clock, about["bandwidth"], differences)}
        _append(file, record)
        print(row(record), flush=True)
        gc.collect()
        if clock.is_cuda:
            torch.cuda.empty_cache()


def _is_skipped(cell: Cell, device: str, obstacles: dict[tuple[str, str], str | None]) -> bool:
    """Whether a system cannot compute this here, at any shape; says so the first time."""
    kind = cell.what, cell.system
    if kind not in obstacles:
        obstacles[kind] = obstacle(*kind, device)
        if obstacles[kind]:
            print(f"{cell.what} by {cell.system} is skipped: {obstacles[kind]}", flush=True)
    return obstacles[kind] is not None


def _attempt(cell: Cell, clock: Clock, bandwidth: float, differences: dict) -> dict[str, Any]:
    """A cell's status and figures; memory that is too small and kernels that refuse a shape are results too."""
    kind = cell.what, cell.system, cell.dtype
    try:
        if kind not in differences:
            differences[kind] = difference(cell, clock.device)
        return {"status": "ok", **measure(cell, clock, bandwidth), "difference": differences[kind]}
    except torch.cuda.OutOfMemoryError:
        return {"status": "failed", "why": "out of memory"}
    except Exception as error:  # whatever a kernel raises, the other cells can be measured
        with contextlib.suppress(RuntimeError):
            clock.synchronize()  # raises again if the device is lost; the next cell then ends this process
        return {"status": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _append(file: Path, record: dict[str, Any]) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def describe(device: torch.device) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def versions() -> str:
    """Versions of what computes, as far as it is installed."""
    found = [f"torch {torch.__version__}"]
    for name in ("triton", "mamba-ssm", "causal-conv1d", "fla-core"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


HEADS = ["what", "system", "d_model", "L", "dtype", "forward, ms", "x floor", "MiB"]
HEADS += ["with backward, ms", "x floor", "MiB", "difference"]


def row(record: dict[str, Any]) -> str:
    """A row of the table."""
    cell = record["cell"]
    values = [str(cell[name]) for name in ("what", "system", "d_model", "length", "dtype")]
    if record["status"] != "ok":
        return f"| {' | '.join([*values, record['status'] + ': ' + record['why']])} |"
    for name in ("forward", "both"):
        one = record[name]
        values.append(f"{one['median']:.3g} ({one['min']:.3g} to {one['max']:.3g})")
        values.append("–" if cell["what"].endswith("block") else f"{one['floors']:.1f}")
        values.append("–" if one["mib"] is None else f"{one['mib']:.0f}")
    values.append("–" if record["difference"] is None else f"{record['difference']:.0e}")
    return f"| {' | '.join(values)} |"


def main(words: list[str]) -> int:
    """Times the cells of the order in the first word."""
    return cli.run(_run, argparse.Namespace(**json.loads(words[0])))


def _run(order: argparse.Namespace) -> None:
    cells = [Cell(**cell) for cell in order.cells]
    run(cells, pick_device(order.device), order.seconds, order.budget_s, Path(order.file))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
