"""What fits into a memory: the largest batch at a length, and the longest recording at a batch, from dry runs.

The peak is affine in the batch, so that two runs give the largest one. In the length it is affine for most mixers and
quadratic where pairs of frames have tensors, so that three runs give the longest. A last run checks each solution: if
it contradicts, as where another moment of the step becomes the highest, it replaces the first of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from utils.profiling.case import Case
from utils.profiling.step import Profile, predict

MIB = 2**20
TRIES = 5
CLOSE = 0.998  # of the budget: a run that is so near below it ends the search
MOST_OPERATORS = 300_000  # of a dry run: a model that loops over frames is not run at lengths that would take minutes

# Bytes on a CUDA device besides the tensors. cuBLAS workspaces were 54 to 75 MiB, and with fp16 109 MiB, on an H100
# (torch 2.11). The context with its kernels is an estimate, as is the share that the caching allocator loses to
# fragments.
CONTEXT, WORKSPACE, WORKSPACE_FP16, FRAGMENTS = 600 * MIB, 75 * MIB, 109 * MIB, 0.02


@dataclass(frozen=True)
class Limit:
    """The largest value that fits, 0 if none does, its bytes, and the dry runs: (value, bytes), the last as a check.

    `unchecked` is the reason why no run checked it.
    """

    largest: int
    bytes: int
    runs: list[tuple[int, int]]
    unchecked: str = ""


@dataclass(frozen=True)
class Fits:
    """What fits into `memory` bytes, of which `reserved` are not for tensors; `longest` is in frames."""

    memory: int
    reserved: int
    batch: Limit
    length: Limit
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def reserved_bytes(case: Case, memory: int) -> int:
    """Bytes of a device's memory that are not for tensors; none of a CPU's, which are taken as those of the tensors."""
    if case.device == "cpu":
        return 0
    workspace = WORKSPACE_FP16 if case.training.amp == "fp16" else WORKSPACE
    return CONTEXT + workspace + round(FRAGMENTS * memory)


def what_fits(case: Case, memory: int) -> Fits:
    """Solves for the batch and for the length."""
    reserved, parts = reserved_bytes(case, memory), case.training.accumulate
    micro = max(2, case.samples // parts)
    batch = _largest(lambda n: predict(case.at(samples=n * parts)), [micro, 2 * micro], memory - reserved)
    frames = sorted({max(4, case.frames // 2), case.frames, 2 * case.frames})
    length = _largest(lambda n: predict(case.at(frames=n)), frames, memory - reserved)
    runs = [(number * parts, size) for number, size in batch.runs]
    batch = Limit(batch.largest * parts, batch.bytes, runs, batch.unchecked)
    return Fits(memory, reserved, batch, length, case.recipe.seconds(length.largest) if length.largest else 0.0)


def _largest(run: Callable[[int], Profile], starts: list[int], budget: int) -> Limit:
    """The largest number whose run is within the budget, by a polynomial through as many runs as there are starts."""
    profiles = [run(number) for number in starts]
    runs = [(number, profile.predicted) for number, profile in zip(starts, profiles, strict=True)]
    operators = [profile.operators for profile in profiles]
    is_loop = operators[-1] > 1.5 * operators[0]
    above = 0
    for _ in range(TRIES):
        # Bytes come in steps, so that a little less may take as much: the second time below them, not at their edge.
        found = root(runs[-len(starts) :], budget if above < 2 else round((1 + CLOSE) / 2 * budget))
        if found < 1 or found in dict(runs):
            break
        if is_loop and operators[-1] * found / starts[-1] > MOST_OPERATORS:
            return Limit(found, budget, runs, "not run, since the model loops over frames and a run would take minutes")
        runs.append((found, run(found).predicted))
        if CLOSE * budget <= runs[-1][1] <= budget:
            break
        above += runs[-1][1] > budget
    fitting = {number: size for number, size in runs if size <= budget}
    largest = max(fitting, default=0)
    return Limit(largest, fitting.get(largest, 0), runs)


def root(points: list[tuple[int, int]], budget: int) -> int:
    """The largest whole number at which the polynomial through two or three points is within the budget.

    Where three points do not bend upward, it is the line through the last two.
    """
    (x0, y0), (x1, y1) = points[-2:]
    slope = (y1 - y0) / (x1 - x0)
    bend = 0.0
    if len(points) == 3:
        x, y = points[0]
        bend = (slope - (y0 - y) / (x0 - x)) / (x1 - x)
    if bend * x1 * x1 < 1e-3 * y1:
        return math.floor(x1 + (budget - y1) / slope)
    # y1 + slope (n - x1) + bend (n - x0) (n - x1) = budget
    b, c = slope - bend * (x0 + x1), y1 - slope * x1 + bend * x0 * x1 - budget
    inside = b * b - 4 * bend * c
    return math.floor((math.sqrt(inside) - b) / (2 * bend)) if inside >= 0 else 0
