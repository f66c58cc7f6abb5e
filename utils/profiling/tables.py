"""Profiles as text and CSV: layers, folded where they repeat, the parts of the peak, what fits."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from utils.profiling.fits import MIB, Fits
from utils.profiling.layers import PHASES, Layer
from utils.profiling.step import Profile
from utils.profiling.storages import PURPOSES

GIGA = 1e9
SUMMED = ("calls", "parameters", "output_bytes", "saved_bytes", "forward_flops", "backward_flops")


@dataclass(frozen=True)
class Row:
    """One layer, or consecutive ones that are built alike: their name, such as `0-3`, their number, and their sums."""

    level: int
    name: str
    kind: str
    count: int
    sums: dict[str, int]
    temporary_bytes: int


def folded(layers: list[Layer]) -> list[Row]:
    """A row for each layer, but one for all consecutive layers of the same classes and numbers of parameters."""
    children: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers[1:]:
        children[layer.name.rpartition(".")[0]].append(layer)
    return list(_rows([layers[0]], children, 0))


def _rows(alike: list[Layer], children: dict[str, list[Layer]], level: int) -> Iterator[Row]:
    first = alike[0]
    names = (layer.name.rpartition(".")[2] for layer in (first, alike[-1]))
    name = "-".join(dict.fromkeys(names))
    sums = {field: sum(getattr(layer, field) for layer in alike) for field in SUMMED}
    yield Row(level, name, first.kind, len(alike), sums, max(layer.temporary_bytes for layer in alike))
    # Layers built alike have the same children, which are side by side here: (position, layer).
    positions = list(zip(*(children[layer.name] for layer in alike), strict=True))
    group: list[Layer] = []
    for here in positions:
        may_join = here[0].name.rpartition(".")[2].isdigit()
        if group and not (may_join and _form(group[0], children) == _form(here[0], children)):
            yield from _rows(group, children, level + 1)
            group = []
        group += here
        if not may_join:
            yield from _rows(group, children, level + 1)
            group = []
    if group:
        yield from _rows(group, children, level + 1)


def _form(layer: Layer, children: dict[str, list[Layer]]) -> tuple:
    """What layers that are built alike share."""
    inner = tuple((part.name.rpartition(".")[2], _form(part, children)) for part in children[layer.name])
    return layer.kind, layer.parameters, inner


def layer_table(layers: list[Layer], depth: int | None = None) -> str:
    """`layer_rows` as text."""
    return aligned(layer_rows(layers, depth), left=2)


def layer_rows(layers: list[Layer], depth: int | None = None) -> list[tuple[str, ...]]:
    """A table of the rows, its heads first: names indented by their level, without modules deeper than `depth`."""
    lines = [("layer", "kind", "parameters", "output MiB", "saved MiB", "share", "temporary MiB", "GFLOPs", "backward")]
    for row in folded(layers):
        if depth is not None and row.level > depth:
            continue
        name = "  " * row.level + (row.name or "(model)") + (f" ({row.count} x)" if row.count > 1 else "")
        sums = row.sums
        share = sums["saved_bytes"] / max(1, layers[0].saved_bytes)
        sizes = [f"{size / MIB:,.2f}" for size in (sums["output_bytes"], sums["saved_bytes"])]
        flops = [f"{sums[field] / GIGA:,.2f}" for field in ("forward_flops", "backward_flops")]
        cells = (*sizes, f"{100 * share:.1f} %", f"{row.temporary_bytes / MIB:,.2f}", *flops)
        lines.append((name, row.kind, f"{sums['parameters']:,}", *cells))
    return lines


def peak_table(profiles: Sequence[Profile], labels: Sequence[str]) -> str:
    """What the bytes at the peak are for, in MiB, and where it stands: a column for each profile."""
    lines = [("at the peak", *labels)]
    for number, purpose in enumerate(PURPOSES):
        lines.append((purpose, *(_mib(profile.peak.parts[number]) for profile in profiles)))
    lines.append(("margin", *(_mib(profile.predicted - profile.peak.total) for profile in profiles)))
    lines.append(("predicted", *(_mib(profile.predicted) for profile in profiles)))
    lines.append(("phase", *(profile.peak.phase for profile in profiles)))
    lines.append(("layer", *(profile.peak.layer or "(model)" for profile in profiles)))
    for phase in PHASES:
        lines.append((f"{phase} peak", *(_mib(profile.phase_peaks[phase]) for profile in profiles)))
    lines.append(("between steps", *(_mib(profile.resident) for profile in profiles)))
    for name, field in (("forward", "forward_flops"), ("backward", "backward_flops")):
        sums = (getattr(profile.layers[0], field) for profile in profiles)
        lines.append((f"{name} GFLOPs", *(f"{flops / GIGA:,.2f}" for flops in sums)))
    return aligned(lines, left=1)


def fits_text(fits: Fits) -> str:
    """What fits, in two sentences, and what is not for tensors."""
    batch, length = fits.batch, fits.length
    memory = f"{fits.memory / 2**30:,.2f} GiB, of which {_mib(fits.reserved)} are not for tensors"
    unchecked = f" ({length.unchecked})" if length.unchecked else ""
    return (
        f"In {memory}: batches of {batch.largest:,} at this length ({_mib(batch.bytes)}), and recordings of "
        f"{fits.seconds:,.1f} s, {length.largest:,} frames, at this batch ({_mib(length.bytes)}){unchecked}."
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.2f} MiB"


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width, the first `left` ones aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def layer_csv(profiles: Sequence[Profile], labels: Sequence[str]) -> str:
    """Every layer of every profile as CSV, under the names of `Layer`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Layer)]
    writer.writerow(["profile", *names])
    for label, profile in zip(labels, profiles, strict=True):
        writer.writerows([label, *(getattr(layer, name) for name in names)] for layer in profile.layers)
    return text.getvalue()
