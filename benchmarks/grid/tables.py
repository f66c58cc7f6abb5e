"""Stored cells as the tables of docs/benchmarks.md."""

from __future__ import annotations

import statistics

from benchmarks.grid.cells import Record, Store
from benchmarks.grid.markdown import table
from benchmarks.grid.mixer_tables import check_errors, mixers, ratios
from benchmarks.grid.pieces import (
    MIB,
    TITLES,
    by_system,
    matching,
    pairs,
    ratio,
    seconds,
    time_and_memory,
    title,
    values,
    worst,
)
from benchmarks.grid.plan import CASES, MALLOC_SETTINGS, PLANS
from benchmarks.grid.systems import SYSTEMS

BEGIN, END = "<!-- mixers:begin -->", "<!-- mixers:end -->"


def render(store: Store) -> str:
    """Markdown of all stored cells."""
    sections = (mixers, _errors, _length, _step, _threads, _bf16, _malloc, _end_to_end)
    parts = [text for section in sections if (text := section(store))]
    parts += _conditions([record for section in PLANS for record in store.records(section) if "load" in record])
    return "\n\n".join(parts) or "Nothing has been measured yet."


def replace_between_markers(text: str, tables: str) -> str:
    """Replaces the text between the markers; ValueError if they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no {BEGIN} with an {END} after it")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def _conditions(records: list[Record]) -> list[str]:
    """Machine, software and load that the cells were measured with; nothing where none was."""
    if not records:
        return []
    versions: dict[str, set[str]] = {}
    for record in records:
        source = SYSTEMS[record["cell"]["system"]].source or "ours"
        versions.setdefault(source, set()).add(record["version"].partition(",")[0])
    named = ", ".join(f"{source} {' and '.join(sorted(found))}" for source, found in sorted(versions.items()))
    lines = [f"Command: `{command}`." for command in sorted({record["command"] for record in records})]
    lines += [f"Machine: {machine}." for machine in sorted({record["machine"] for record in records})]
    lines.append(f"Versions (commits of peers, a hash of our sources): {named}.")
    lines.append(f"Load average before a cell {_range(records, 'load')}; cores that were busy with other things")
    lines[-1] += f" while it ran {_range(records, 'others')}; malloc as {_settings(records)}."
    return ["### Conditions", "\n".join(f"- {line}" for line in lines)]


def _range(records: list[Record], key: str) -> str:
    found = sorted(record[key] for record in records)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def _settings(records: list[Record]) -> str:
    """The malloc settings of all sections but that which compares them."""
    settings = {record["cell"]["malloc"] for record in records if record["cell"]["section"] != "malloc"}
    return " and ".join(f"`{setting}`" for setting in sorted(settings)) or "in the table"


def _errors(store: Store) -> str:
    rows = []
    lengths = set()
    for record in by_system(store.records("errors")).values():
        system = SYSTEMS[record["cell"]["system"]]
        lengths.add(record["cell"]["length"])
        found = [_worst(record["figures"]["errors"][case]) for case in CASES] if record["status"] == "ok" else []
        rows.append([TITLES[system.mixer], f"`{system.backend}`", *(found or [record["why"]] * len(CASES))])
    note = (
        "Largest error of the output, the last state and every gradient, relative to the maximum, against the "
        "sequential loop in float64 on the same inputs, and in brackets its tensor. "
        f"L {' and '.join(map(str, sorted(lengths)))}; the cases are those of `benchmarks/grid/cases.py`."
    )
    return "\n\n".join(["### Errors of the scan", note, table(["mixer", "backend", *CASES], rows)]) if rows else ""


def _worst(errors: dict[str, float | None]) -> str:
    error, where = worst(errors)
    return f"{error:.1e} ({where})"


def _length(store: Store) -> str:
    rows = []
    for system, short, long in pairs(store, "length", "length"):
        frames = [record["figures"]["cpu_s"]["median"] / record["cell"]["length"] for record in (short, long)]
        lengths = f"{short['cell']['length']}, {long['cell']['length']}"
        times = f"{1e6 * frames[0]:.1f}, {1e6 * frames[1]:.1f}"
        rows.append([TITLES[system.mixer], system.title, lengths, times, f"{frames[1] / frames[0]:.2f}"])
    header = ["mixer", "system", "L", "CPU µs per frame, forward and backward", "ratio"]
    return f"### Long sequences\n\nBatch 1, d_model 256.\n\n{table(header, rows)}" if rows else ""


def _step(store: Store) -> str:
    rows = []
    for system, short, long in pairs(store, "step", "length"):
        states = {state for record in (short, long) for state in record["figures"]["state"]}
        state = f"{states.pop():,} bytes" if len(states) == 1 else f"changes: {sorted(states)}"
        frames = long["cell"]["length"]
        step, whole = (1e6 * long["figures"][key]["median"] / frames for key in ("step_s", "whole_s"))
        rows.append([TITLES[system.mixer], system.title, state, f"{step:.0f}", f"{whole:.1f}"])
    header = ["mixer", "system", "state", "CPU µs per frame, one by one", "at once"]
    return f"### Streaming\n\nBatch 1, d_model 256, no gradients.\n\n{table(header, rows)}" if rows else ""


def _threads(store: Store) -> str:
    rows = []
    for system, one, two in pairs(store, "threads", "threads"):
        times = [record["figures"]["wall_s"] for record in (one, two)]
        others = ", ".join(f"{record['others']:.2f}" for record in (one, two))
        rows.append([TITLES[system.mixer], system.title, *map(seconds, times), ratio(times[1], times[0]), others])
    header = ["mixer", "system", "one thread, wall s", "two threads, wall s", "ratio", "cores busy with other things"]
    return f"### Two threads\n\nBatch 8, d_model 256, L 1024.\n\n{table(header, rows)}" if rows else ""


def _bf16(store: Store) -> str:
    rows = []
    for system, full, half in pairs(store, "bf16", "bf16"):
        times = [record["figures"]["cpu_s"] for record in (full, half)]
        memory = " ".join(f"{record['figures']['peak'] / MIB:.0f}" for record in (full, half))
        rows.append([TITLES[system.mixer], system.title, *map(seconds, times), ratio(times[1], times[0]), memory])
    if not rows:
        return ""
    cell = store.records("bf16")[0]["cell"]
    note = f"One training step of {cell['n_layers']} layers, d_model 256, batch 8, L 1024: CPU seconds."
    header = ["mixer", "system", "float32", "bfloat16 autocast", "ratio", "peak MiB"]
    return f"### Autocast\n\n{note}\n\n{table(header, rows)}"


def _malloc(store: Store) -> str:
    """The cells of the other malloc settings beside those of the grid."""
    records, grid = store.records("malloc"), store.records("mixers")
    parts = []
    for mixer in TITLES:
        mine = [record for record in records if SYSTEMS[record["cell"]["system"]].mixer == mixer]
        if not mine:
            continue
        shapes = [{key: record["cell"][key] for key in ("d_model", "length", "batch")} for record in mine]
        same = [record for record in grid if any(matching([record], **shape) for shape in shapes)]
        parts += [f"{TITLES[mixer]}:", _by_setting([*mine, *same], list(by_system(mine)))]
        for setting in values(mine, "malloc"):
            heading = f"{TITLES[mixer]}, ours against the fastest correct peer, malloc as `{setting}`:"
            parts += [heading, ratios(matching(mine, malloc=setting), check_errors(grid))]
    note = (
        "Settings of glibc for freed memory. `training`: as `utils/device.py` sets it for training; `default`: "
        "unchanged; `large`: everything is kept, which helps most the systems with the largest tensors. d_model 256."
    )
    return "\n\n".join(["### malloc", note, *parts]) if parts else ""


def _by_setting(records: list[Record], names: list[str]) -> str:
    header = ["system", "L", *(text for key in MALLOC_SETTINGS for text in (f"{key}: s", "MiB"))]
    rows = []
    for length in values(records, "length"):
        for name in names:
            found = {record["cell"]["malloc"]: record for record in matching(records, system=name, length=length)}
            texts = [text for key in MALLOC_SETTINGS for text in time_and_memory(found.get(key))]
            rows.append([title(SYSTEMS[name]), str(length), *texts])
    return table(header, rows)


def _end_to_end(store: Store) -> str:
    rows = []
    for record in store.records("end-to-end"):
        name = SYSTEMS[record["cell"]["system"]].title
        if record["status"] == "ok":
            figures = record["figures"]
            rows.append([name, seconds(figures["cpu_s"]), f"{figures['peak'] / MIB:.0f}"])
        else:
            rows.append([name, record["why"], "–"])
    note = "One training step: Mamba, d_model 512, 3 layers, N 32, batch 8, 2185 frames, AdamW."
    header = ["system", "CPU s", "peak MiB"]
    return f"### The predecessor's configuration\n\n{note}\n\n{table(header, rows)}" if rows else ""
