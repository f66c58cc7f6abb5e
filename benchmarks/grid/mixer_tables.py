"""The tables of the mixers: every system at every shape, and ours against the fastest correct peer."""

from __future__ import annotations

from typing import Any

from benchmarks.grid.cells import Record, Store
from benchmarks.grid.markdown import table
from benchmarks.grid.pieces import TITLES, by_system, figures_of, matching, ratio, time_and_memory, title, values, worst
from benchmarks.grid.systems import SYSTEMS, System

WRONG = 1e-3  # relative error of output or a gradient from which a system computes something else
NOTES = """CPU seconds of forward and backward: median (least to most). MiB: the rise of resident memory in the first
pass and, in brackets, the memory that autograd keeps between forward and backward. Error: the largest of the output and
of all gradients, relative to the maximum, against the sequential loop in float64 at batch 2, d_model 64, L 256. Systems
whose error, or whose difference from ours in a sample of a cell, is above 1e-3 are left out of the ratios. Ratios are
of medians, in brackets the range over single passes."""
Errors = dict[str, float]


def mixers(store: Store) -> str:
    """The section of the mixers; empty if there are no cells."""
    records = store.records("mixers")
    errors = check_errors(records)
    parts = []
    for malloc in values(records, "malloc"):
        for mixer in TITLES:
            mine = [record for record in matching(records, malloc=malloc) if _mixer(record) == mixer]
            for d_model in values(mine, "d_model"):
                heading = f"{TITLES[mixer]}, d_model {d_model}, malloc as `{malloc}`:"
                parts += [heading, _grid(matching(mine, d_model=d_model), errors)]
            if mine:
                heading = f"{TITLES[mixer]}, ours against the fastest correct peer, malloc as `{malloc}`:"
                parts += [heading, ratios(mine, errors)]
    return "\n\n".join(["### Mixers", NOTES, *parts]) if parts else ""


def check_errors(records: list[Record]) -> Errors:
    """The largest error of each system that has been checked."""
    found = figures_of(record for record in records if record.get("figures", {}).get("errors"))
    return {name: worst(figures["errors"])[0] for name, figures in found.items()}


def _mixer(record: Record) -> str:
    return SYSTEMS[record["cell"]["system"]].mixer


def _grid(records: list[Record], errors: Errors) -> str:
    lengths = values(records, "length")
    header = ["system", "error", *(text for length in lengths for text in (f"L {length}: s", "MiB"))]
    rows = []
    for name in by_system(records):
        row = [title(SYSTEMS[name]), _error(SYSTEMS[name], errors)]
        for length in lengths:
            row += time_and_memory(by_system(matching(records, length=length)).get(name))
        rows.append(row)
    return table(header, rows)


def _error(system: System, errors: Errors) -> str:
    if system.name not in errors or system.without_scan:
        return "–"
    error = errors[system.name]
    text = "not finite" if error == float("inf") else f"{error:.0e}"
    return text + (", **wrong**" if error > WRONG else "")


def is_right(name: str, figures: dict[str, Any], ours: dict[str, Any] | None, errors: Errors) -> bool:
    """Returns True if a peer has passed its check and its sample of a cell, if it has one, agrees with ours."""
    if errors.get(name, float("inf")) > WRONG:
        return False
    if not figures["sample"] or not ours:
        return True
    return all(_agree(figures["sample"].get(key), expected) for key, expected in ours["sample"].items())


def _agree(got: dict[str, Any] | None, expected: dict[str, Any] | None) -> bool:
    if got is None or expected is None:
        return False
    tolerance = WRONG * expected["largest"]
    return all(abs(a - b) <= tolerance for a, b in zip(got["values"], expected["values"], strict=True))


def fastest_right_peer(figures: dict[str, Any], ours: str, errors: Errors) -> str | None:
    """Among the systems of one shape, the peer with the least median that computes what `ours` computes."""
    right = {
        name: mine["cpu_s"]["median"]
        for name, mine in figures.items()
        if SYSTEMS[name].is_peer and is_right(name, mine, figures.get(ours), errors)
    }
    return min(right, key=right.__getitem__, default=None)


def ratios(records: list[Record], errors: Errors) -> str:
    """Ours against the fastest right peer, shape by shape; `records` of one mixer and one malloc setting."""
    ending = "2" if _mixer(records[0]) == "mamba2" else ""
    header = ["d_model", "L", "backend", "against", "speed", "peak memory", "kept", "time, no scan at all = 1"]
    rows = []
    for d_model in values(records, "d_model"):
        for length in values(records, "length"):
            figures = figures_of(matching(records, d_model=d_model, length=length))
            peer = fastest_right_peer(figures, f"torch{ending}", errors)
            for backend in ("torch", "native"):
                if backend + ending in figures:
                    against = SYSTEMS[peer].title if peer else "–"
                    numbers = _against(figures[backend + ending], figures.get(peer), figures.get(f"no-scan{ending}"))
                    rows.append([str(d_model), str(length), f"`{backend}`", against, *numbers])
    return table(header, rows)


def _against(ours: dict[str, Any], peer: dict[str, Any] | None, floor: dict[str, Any] | None) -> list[str]:
    """Speed, peak memory and memory kept against the peer's, and time against the mixer without a scan."""
    above = f"{ratio(floor['cpu_s'], ours['cpu_s'])} x" if floor else "–"
    if peer is None:
        return ["–", "–", "–", above]
    memory = [f"1/{peer[key] / ours[key]:.1f}" for key in ("peak", "kept")]
    return [f"{ratio(ours['cpu_s'], peer['cpu_s'])} x", *memory, above]
