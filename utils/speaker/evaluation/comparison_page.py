"""A comparison as one HTML file that needs nothing else: no server, no scripts, no other files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from utils.pages import add, add_picture, add_table, new_page, page_text
from utils.plots import COLORS, percent
from utils.speaker.evaluation.comparison import Curves, signed
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.plots import det_figure, differences_figure

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --dim: #555; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --dim: #aaa; }
  img, .mark { filter: invert(0.93) hue-rotate(180deg); }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 1rem 0.25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th, td { min-width: 6.5rem; overflow-wrap: anywhere; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
.rate { white-space: nowrap; }
small { display: block; color: var(--dim); }
img { display: block; max-width: 100%; height: auto; }
.mark { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; margin-right: 0.4em; }
"""


def comparison_page(report: dict[str, Any], curves: Curves) -> str:
    """The text of the file; `report` and `curves` are those of `compare`, the report with a title."""
    page, body = new_page(report["title"], _STYLE)
    counts = f"{report['targets']:,} target and {report['nontargets']:,} non-target trials"
    sentence = "Intervals hold 95 % of the draws of the speakers, which are the same for all systems."
    add(body, "p", f"{counts} of {report['trial_speakers']} speakers. {report['interval_reason'] or sentence}")
    for warning in report["warnings"]:
        add(body, "p", f"Warning: {warning}.")
    for section in (_systems, _flags, _rates, _differences):
        section(body, report)
    _add_curves(body, report, curves)
    return page_text(page)


def _systems(body: Element, report: dict[str, Any]) -> None:
    add(body, "h2", "Systems")
    heads = ("system", "model", "parameters", "steps", "CPU time of training", "memory of training")
    rows = []
    for place, (folders, facts) in enumerate(zip(report["systems"], report["facts"], strict=True)):
        units = {"parameters": "", "steps": "", "cpu_s": " s", "memory_mib": " MiB"}
        numbers = ["-" if facts[name] is None else f"{facts[name]:,.0f}{unit}" for name, unit in units.items()]
        name = _name(report, place)
        add(name, "small", ", ".join(folders))
        rows.append([name, facts["model"] or "-", *numbers])
    add_table(body, heads, rows)
    note = "CPU time (mean of the seeds) and highest memory are of the first process of a training, not of its loaders."
    add(body, "small", note)


def _flags(body: Element, report: dict[str, Any]) -> None:
    add(body, "h2", "Flags that differ")
    rows = [[flag, *map(_values, values)] for flag, values in report["flags"].items()]
    if rows:
        add_table(body, ["flag", *_names(report)], rows)
    else:
        add(body, "p", "No recorded flag differs.")


def _values(values: Sequence[Any] | None) -> str:
    """The values of a flag, or a dash where none is recorded."""
    words = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values or ("-",))
    return ", ".join(words)


def _rates(body: Element, report: dict[str, Any]) -> None:
    add(body, "h2", "Equal error rates")
    add_table(body, ["condition", *_names(report)], _with_intervals(report, "eer", percent))


def _differences(body: Element, report: dict[str, Any]) -> None:
    add(body, "h2", "Paired differences")
    add(body, "p", "EER of a system minus that of the first, bold if the interval excludes 0; below 0 is better.")
    later = [f"{place}: {label}" for place, label in enumerate(report["labels"], 1)][1:]
    add_picture(body, differences_figure(report["rows"], later), "Differences of EERs, as in the table below")
    add_table(body, ["condition", *_names(report)[1:]], _with_intervals(report, "difference", signed))


def _with_intervals(report: dict[str, Any], key: str, show: Callable[[float], str]) -> list[list[str | Element]]:
    """Rows of names and rates above their intervals; differences whose interval excludes 0 are bold."""
    rows = []
    for name, values in report["rows"].items():
        rows.append([name])
        for rate, interval in zip(values[key], values[f"{key}_ci"], strict=True):
            is_certain = key == "difference" and interval and interval[0] * interval[1] > 0
            cell = Element("div", {"class": "rate"})
            add(cell, "strong" if is_certain else "span", show(rate))
            add(cell, "small", " to ".join(map(show, interval)) if interval else "-")
            rows[-1].append(cell)
    return rows


def _add_curves(body: Element, report: dict[str, Any], curves: Curves) -> None:
    if not curves:
        return
    add(body, "h2", "Detection error trade-off")
    note = "Each seed of a system has a curve, and the first has a mark at its EER; the EERs named are means."
    add(body, "p", f"{note} Systems of which only the rates are published have no curve.")
    for row, systems in curves.items():
        rates = map(percent, report["rows"][row]["eer"])
        labels = (f"{place}: {label}: EER" for place, label in enumerate(report["labels"], 1))
        named = {f"{label} {rate}": seeds for label, rate, seeds in zip(labels, rates, systems, strict=True)}
        part = SubElement(body, "details", {"open": "open"} if row == CLEAN else {})
        add(part, "summary", row)
        add_picture(part, det_figure(named, row), f"DET curves, {row}: {'; '.join(named)}")


def _names(report: dict[str, Any]) -> list[Element]:
    return [_name(report, place) for place in range(len(report["labels"]))]


def _name(report: dict[str, Any], place: int) -> Element:
    """Number and label of a system after a mark in its color."""
    cell = Element("div")
    SubElement(cell, "span", {"class": "mark", "style": f"background: {COLORS[place % len(COLORS)]}"})
    add(cell, "span", f"{place + 1}: {report['labels'][place]}")
    return cell
