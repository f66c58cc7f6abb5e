"""Which cells each section consists of, in the order in which they run: all systems of a shape one after another."""

from __future__ import annotations

import random

from benchmarks.grid.cells import Cell
from benchmarks.grid.systems import SYSTEMS

OURS = ("torch", "native", "torch2", "native2")
FAST_PEERS = ("mambapy", "transformers2", "mamba2-minimal", "mamba-ssm-minimal", "mamba-ssm-combined")
CASES = ("usual", "hard", "gaps", "slow", "slow-random")
GRID = ((256, 256), (256, 1024), (512, 256), (512, 1024), (256, 4096), (512, 4096))  # d_model, L
QUICK = ((256, 256), (256, 1024))
NOT_QUICK = ("transformers-mambapy", "mamba-tiny", "mamba-tiny-log", "mamba-ssm-ref")
BATCH = 8
MALLOC_SETTINGS = ("training", "default", "large")  # see benchmarks.grid.child.set_malloc


def plan(sections: list[str], quick: bool, malloc: str) -> list[Cell]:
    """The cells of `sections`; for malloc see benchmarks.grid.child.set_malloc."""
    return [cell for section in sections for cell in PLANS[section](quick, malloc)]


def _mixers(quick: bool, malloc: str) -> list[Cell]:
    """Within a shape the order of the systems is drawn, the same every time; at the first shape they are checked."""
    draw = random.Random(0)
    cells = []
    for d_model, length in QUICK if quick else GRID:
        names = [name for name in draw.sample(list(SYSTEMS), len(SYSTEMS)) if not (quick and name in NOT_QUICK)]
        cells += [_cell("mixers", name, d_model, length, BATCH, malloc) for name in names]
    return cells


def is_checked(cell: Cell) -> bool:
    """Returns True if a cell also holds its system against the reference."""
    return cell["section"] == "mixers" and (cell["d_model"], cell["length"]) == GRID[0]


def _cell(section: str, system: str, d_model: int, length: int, batch: int, malloc: str) -> Cell:
    shape = {"d_model": d_model, "length": length, "batch": batch}
    return {"section": section, "system": system, **shape, "malloc": malloc}


def _errors(quick: bool, malloc: str) -> list[Cell]:
    return [
        {"section": "errors", "system": name, "length": 1024 if quick else 4096, "malloc": malloc}
        for name in ("torch", "native", "torch2")  # native has no scan of its own for Mamba-2
    ]


def _length(quick: bool, malloc: str) -> list[Cell]:
    lengths = (1024, 16_384) if quick else (1024, 65_536)
    names = (*OURS, "no-scan", "no-scan2")  # what the operations around the scan do at that length
    return [_cell("length", name, 256, length, 1, malloc) for name in names for length in lengths]


def _step(quick: bool, malloc: str) -> list[Cell]:
    return [_cell("step", name, 256, length, 1, malloc) for name in OURS for length in (256, 1024)]


def _threads(quick: bool, malloc: str) -> list[Cell]:
    return [
        {**_cell("threads", name, 256, 1024, BATCH, malloc), "threads": threads} for name in OURS for threads in (1, 2)
    ]


def _bf16(quick: bool, malloc: str) -> list[Cell]:
    cells = []
    for name in OURS:
        state = {"d_state": 64 if SYSTEMS[name].mixer == "mamba2" else 16, "n_layers": 4}
        cells += [{**_cell("bf16", name, 256, 1024, BATCH, malloc), **state, "bf16": bf16} for bf16 in (False, True)]
    return cells


def _malloc(quick: bool, malloc: str) -> list[Cell]:
    """The other malloc settings, for ours and the peers that may be the fastest; the grid has this one."""
    names = ("torch", "native", "no-scan", "torch2", "native2", "no-scan2", *FAST_PEERS)
    others = [setting for setting in MALLOC_SETTINGS if setting != malloc]
    shapes = QUICK[1:] if quick else QUICK
    return [
        _cell("malloc", name, d_model, length, BATCH, other)
        for d_model, length in shapes
        for other in others
        for name in names
    ]


def _end_to_end(quick: bool, malloc: str) -> list[Cell]:
    """The configuration at which the predecessor's Mamba took 44 to 99 GB."""
    names = ["torch"] if quick else ["torch", "native"]
    shape = {"d_state": 32, "n_layers": 3, "bf16": False}
    return [{**_cell("end-to-end", name, 512, 2185, 8, malloc), **shape} for name in names]


PLANS = {
    "mixers": _mixers,
    "errors": _errors,
    "length": _length,
    "step": _step,
    "threads": _threads,
    "bf16": _bf16,
    "malloc": _malloc,
    "end-to-end": _end_to_end,
}
