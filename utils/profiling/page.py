"""Profiles as one HTML file that needs nothing else: no server, no scripts, no other files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement

from utils.pages import add, add_picture, add_table, new_page, page_text
from utils.plots import add_legend, new_figure
from utils.profiling.fits import MIB, Fits
from utils.profiling.pictures import draw_limits, draw_timeline, icicle, mixers_figure
from utils.profiling.step import Profile
from utils.profiling.storages import PURPOSES
from utils.profiling.tables import fits_text, layer_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from utils.profiling.report import Report

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --line: #444; } img { filter: invert(0.93) hue-rotate(180deg); } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h3 { font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.8rem 0.15rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: pre; }
th:first-child, td:first-child { text-align: left; }
img, svg { display: block; width: 100%; height: auto; }
svg rect { stroke: Canvas; } svg text { font: 11px system-ui, sans-serif; pointer-events: none; }
"""
_WIDTH, _HEIGHT = 1200, 24  # of an icicle, and of a level


def page(report: Report) -> str:
    """The text of the file."""
    root, body = new_page("Memory of a training step: " + ", ".join(report.labels), _STYLE)
    _peaks(body, report)
    for number, (label, profile) in enumerate(zip(report.labels, report.profiles, strict=True)):
        add(body, "h2", label)
        shown_sizes = (f"{name.replace('_', ' ')} {value}" for name, value in profile.case.shown().items())
        add(body, "p", ", ".join(shown_sizes))
        _icicle(body, profile)
        add(body, "h3", "Over a step")
        add_picture(body, _figure(9, 3.5, 1, lambda axes, one=profile: draw_timeline(axes[0], one)), "live bytes")
        if report.fits is not None:
            _limits(body, profile, report.fits[number])
        _layers(body, profile)
    if report.mixers is not None:
        add(body, "h2", "The mixers against length")
        add_picture(body, mixers_figure(report.mixers), "memory and FLOPs of each mixer against length")
    return page_text(root)


def _peaks(body: Element, report: Report) -> None:
    """A table of the parts of each peak, and of what was measured."""
    lines = []
    for number, purpose in enumerate(PURPOSES):
        lines.append([purpose, *(_mib(profile.peak.parts[number]) for profile in report.profiles)])
    lines.append(["margin", *(_mib(profile.predicted - profile.peak.total) for profile in report.profiles)])
    lines.append(["predicted", *(_mib(profile.predicted) for profile in report.profiles)])
    if report.measured is not None:
        lines.append(["measured", *map(_mib, report.measured)])
        errors = (p.predicted / m - 1 for p, m in zip(report.profiles, report.measured, strict=True))
        lines.append(["error", *(f"{100 * error:+.2f} %" for error in errors)])
    places = (f"{profile.peak.phase}, {profile.peak.layer or 'around the model'}" for profile in report.profiles)
    lines.append(["where it stands", *places])
    add_table(body, ["MiB at the peak", *report.labels], lines)


def _icicle(body: Element, profile: Profile) -> None:
    """Saved bytes by layer as bars below their parents; each says its numbers where a pointer rests."""
    add(body, "h3", f"Saved for backward, by layer: {_mib(profile.layers[0].saved_bytes)} MiB")
    bars = icicle(profile.layers)
    height = _HEIGHT * (1 + max(bar.level for bar in bars))
    picture = SubElement(body, "svg", {"viewBox": f"0 0 {_WIDTH} {height}", "role": "img", "class": "icicle"})
    for bar in bars:
        x, y, width = bar.start * _WIDTH, bar.level * _HEIGHT, bar.width * _WIDTH
        box = {"x": f"{x:.2f}", "y": str(y), "width": f"{width:.2f}", "height": str(_HEIGHT), "fill": bar.color}
        rectangle = SubElement(picture, "rect", box)
        layer = bar.layer
        sizes = f"{_mib(layer.saved_bytes)} MiB saved, {_mib(layer.own_saved_bytes)} MiB of them by itself"
        add(rectangle, "title", f"{layer.name or '(model)'} ({layer.kind}): {sizes}, {100 * bar.width:.1f} %")
        if bar.label:
            place = {"x": f"{x + width / 2:.2f}", "y": str(y + 16), "text-anchor": "middle", "fill": "black"}
            SubElement(picture, "text", place).text = bar.label


def _limits(body: Element, profile: Profile, fits: Fits) -> None:
    add(body, "h3", "What fits")
    add(body, "p", fits_text(fits))
    add_picture(body, _figure(9, 3.2, 2, lambda axes: draw_limits(axes, profile, fits)), "memory of batch and length")


def _layers(body: Element, profile: Profile) -> None:
    part = SubElement(body, "details")
    add(part, "summary", "All layers")
    heads, *rows = layer_rows(profile.layers)
    add_table(part, heads, rows)


def _mib(size: int) -> str:
    return f"{size / MIB:,.2f}"


def _figure(width: float, height: float, columns: int, draw: Callable[[Sequence], None]) -> Figure:
    figure = new_figure(width, height)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    draw(axes)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        add_legend(figure, handles, labels, ncols=len(labels), fontsize=8)
    return figure
