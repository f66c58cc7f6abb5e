"""Pictures of profiles: saved bytes by layer, the timeline of a step, what fits, and the mixers against length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.plots import COLORS, add_legend, new_figure, tidy
from utils.profiling.fits import MIB, Fits
from utils.profiling.layers import PHASES, Layer
from utils.profiling.lengths import Curves
from utils.profiling.step import Profile
from utils.profiling.storages import PURPOSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from utils.profiling.report import Report

GIB = 2**30
SHADES = (*COLORS[:6], "#999999", "#F0E442")  # of PURPOSES
NARROWEST = 0.02  # of the width: narrower layers have no name


@dataclass(frozen=True)
class Bar:
    """A layer in an icicle: its level, and its place as shares of the model's saved bytes."""

    layer: Layer
    level: int
    start: float
    width: float

    @property
    def label(self) -> str:
        """The last part of the name, where there is room for it."""
        name = self.layer.name.rpartition(".")[2] or self.layer.kind
        return name if self.width > max(NARROWEST, 0.008 * len(name)) else ""

    @property
    def color(self) -> str:
        """By the part of the model that it belongs to, so that levels can be told apart."""
        return "#dddddd" if not self.level else COLORS[sum(map(ord, self.layer.kind)) % 6]


def icicle(layers: list[Layer]) -> list[Bar]:
    """A bar for each layer that has saved bytes, below that of its parent."""
    whole = max(1, layers[0].saved_bytes)
    found: list[Bar] = []

    def place(layer: Layer, level: int, start: int) -> None:
        found.append(Bar(layer, level, start / whole, layer.saved_bytes / whole))
        for child in _children(layers, layer):
            if child.saved_bytes:
                place(child, level + 1, start)
                start += child.saved_bytes

    place(layers[0], 0, 0)
    return found


def _children(layers: list[Layer], parent: Layer) -> Iterator[Layer]:
    return (layer for layer in layers[1:] if layer.name.rpartition(".")[0] == parent.name)


def profile_figure(report: Report) -> Figure:
    """A row for each profile: icicle, timeline, and what fits if it was asked."""
    columns = 2 if report.fits is None else 4
    figure = new_figure(6.5 * columns / 1.4, 3.6 * len(report.profiles) + 0.6)
    grid = figure.subplots(len(report.profiles), columns, squeeze=False)
    for number, (profile, axes) in enumerate(zip(report.profiles, grid, strict=True)):
        draw_icicle(axes[0], profile, report.labels[number])
        draw_timeline(axes[1], profile)
        if report.fits is not None:
            draw_limits(axes[2:], profile, report.fits[number])
    add_legend(figure, *grid[0, 1].get_legend_handles_labels(), ncols=len(PURPOSES))
    return figure


def draw_icicle(axes: Axes, profile: Profile, label: str) -> None:
    """Saved bytes by layer; the width of a bar is its share."""
    for bar in icicle(profile.layers):
        axes.barh(bar.level, bar.width, left=bar.start, height=1, color=bar.color, edgecolor="white", linewidth=0.5)
        if bar.width > 0.018 * len(bar.label):
            place = bar.start + bar.width / 2, bar.level
            axes.text(*place, bar.label, ha="center", va="center", fontsize=6, parse_math=False)
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the saved bytes")
    title = f"{label}: {profile.layers[0].saved_bytes / MIB:,.1f} MiB saved for backward"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.spines[:].set_visible(False)


def draw_timeline(axes: Axes, profile: Profile) -> None:
    """Live bytes of each purpose over the operators of a step."""
    moments = profile.timeline
    steps = [moment.operator for moment in moments]
    stacks = [[moment.parts[number] / MIB for moment in moments] for number in range(len(PURPOSES))]
    axes.stackplot(steps, stacks, labels=PURPOSES, colors=SHADES, linewidth=0)
    for phase in PHASES[1:]:
        start = next((moment.operator for moment in moments if moment.phase == phase), None)
        if start is not None:
            axes.axvline(start, color="black", linewidth=0.6, linestyle=":")
            axes.annotate(phase, (start, 1), xycoords=("data", "axes fraction"), fontsize=8, va="top")
    axes.set_title(f"peak {profile.peak.total / MIB:,.1f} MiB, {profile.peak.phase}", fontsize=10)
    axes.set_xlabel("operators of a step")
    axes.set_ylabel("MiB")
    axes.margins(x=0)
    tidy(axes)


def draw_limits(axes: Any, profile: Profile, fits: Fits) -> None:
    """The dry runs against batch and length, and the memory that tensors may take."""
    seconds = [(profile.case.recipe.seconds(frames), size) for frames, size in fits.length.runs]
    for one, runs, unit, largest in (
        (axes[0], fits.batch.runs, "samples in a step", f"{fits.batch.largest:,} samples"),
        (axes[1], seconds, "seconds of a sample", f"{fits.seconds:,.1f} s"),
    ):
        runs = sorted(runs)
        one.plot([x for x, _ in runs], [size / GIB for _, size in runs], marker="o", color=COLORS[0])
        one.axhline((fits.memory - fits.reserved) / GIB, color=COLORS[1], linestyle="--")
        one.set_title(f"fits: {largest}", fontsize=10)
        one.set_xlabel(unit)
        one.set_ylabel("GiB")
        one.set_xlim(left=0)
        one.set_ylim(bottom=0)
        tidy(one)


def mixers_figure(curves: Curves) -> Figure:
    """Memory and FLOPs of a step with each mixer against the length of a recording."""
    figure = new_figure(9, 4)
    memory, flops = figure.subplots(1, 2)
    for color, (mixer, points) in zip(COLORS, curves.items(), strict=False):
        seconds = [point[0] for point in points]
        memory.plot(seconds, [point[1] / GIB for point in points], marker="o", color=color, label=mixer)
        flops.plot(seconds, [point[2] / 1e12 for point in points], marker="o", color=color)
    for axes, unit in ((memory, "GiB at the peak of a step"), (flops, "TFLOPs of a step")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("seconds of a recording")
        axes.set_ylabel(unit)
        tidy(axes)
    add_legend(figure, ncols=len(curves))
    return figure
