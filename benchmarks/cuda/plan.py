"""What gpu_mixers.py times, the most important first; no torch, so that what starts the processes is light."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WHATS = ("ssd", "scan", "conv", "attention", "mamba2 block", "mamba block", "attention block")
D_MODELS, LENGTHS, DTYPES = (512, 1024), (2048, 512, 16_384, 8192), ("bf16", "fp32")


@dataclass(frozen=True)
class Cell:
    """One thing to time, by one system, at one shape."""

    what: str
    system: str
    batch: int
    d_model: int
    length: int
    dtype: str


def systems_of(what: str) -> tuple[str, ...]:
    """The systems that compute something, the most important first."""
    if what.startswith("attention"):
        return ("sdpa",)
    return ("triton", "torch", "fla", "mamba_ssm") if what == "ssd" else ("triton", "torch", "mamba_ssm")


def plan(
    systems: Sequence[str], batch: int, d_models: Sequence[int], lengths: Sequence[int], dtypes: Sequence[str]
) -> Iterator[Cell]:
    """All cells: those of the first shape, then of the shapes that differ from it in one way, in two, in all."""
    shapes = itertools.product(*map(enumerate, (d_models, lengths, dtypes)))
    for (_, d_model), (_, length), (_, dtype) in sorted(shapes, key=_distance):
        for what in WHATS:
            for system in (name for name in systems_of(what) if name in systems):
                yield Cell(what, system, batch, d_model, length, dtype)


def _distance(shape: tuple[tuple[int, Any], ...]) -> tuple[int, int]:
    """In how many ways a shape differs from the first one, and by how many places."""
    places = [place for place, _ in shape]
    return sum(place > 0 for place in places), sum(places)
