"""Pieces of the tables: numbers as text, and which of the stored cells belong together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.grid.cells import Record, Store
from benchmarks.grid.systems import SYSTEMS, System

MIB = 2**20
TITLES = {"mamba": "Mamba", "mamba2": "Mamba-2"}


def seconds(times: dict[str, Any]) -> str:
    return f"{short(times['median'])} ({short(times['min'])} to {short(times['max'])})"


def short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """Ratio of the cost of `other` to that of `ours`: of medians, then the range."""
    low, high = other["min"] / ours["max"], other["max"] / ours["min"]
    return f"{other['median'] / ours['median']:.2f} ({low:.2f} to {high:.2f})"


def matching(records: list[Record], **wanted: Any) -> list[Record]:
    """Records whose cell has these values."""
    return [record for record in records if all(record["cell"].get(key) == value for key, value in wanted.items())]


def by_system(records: list[Record]) -> dict[str, Record]:
    """Records by the system's name, in the order of SYSTEMS."""
    found = {record["cell"]["system"]: record for record in records}
    return {name: found[name] for name in SYSTEMS if name in found}


def values(records: list[Record], key: str) -> list[Any]:
    return sorted({record["cell"][key] for record in records})


def figures_of(records: Iterable[Record]) -> dict[str, Any]:
    """The results of cells that have some, by system."""
    return {record["cell"]["system"]: record["figures"] for record in records if record["status"] == "ok"}


def worst(errors: dict[str, float | None]) -> tuple[float, str]:
    """The largest error and its tensor; infinite for values that were not finite."""
    return max((float("inf") if error is None else error, name) for name, error in errors.items())


def pairs(store: Store, section: str, key: str) -> list[tuple[System, Record, Record]]:
    """For each system the results at the least and at the greatest value of `key`."""
    records = [record for record in store.records(section) if record["status"] == "ok"]
    found = []
    for name in SYSTEMS:
        mine = sorted(matching(records, system=name), key=lambda record: record["cell"][key])
        if len(mine) >= 2:
            found.append((SYSTEMS[name], mine[0], mine[-1]))
    return found


def title(system: System) -> str:
    return system.title if system.is_peer else f"**{system.title}**"


def time_and_memory(record: Record | None) -> tuple[str, str]:
    if record is None:
        return "–", "–"
    if record["status"] != "ok":
        return f"{record['status']}: {record['why']}" if record["status"] == "failed" else record["why"], "–"
    figures = record["figures"]
    chunk = f", chunk {figures['chunk']}" if figures["chunk"] else ""
    return seconds(figures["cpu_s"]) + chunk, f"{figures['peak'] / MIB:.0f} ({figures['kept'] / MIB:.0f})"
