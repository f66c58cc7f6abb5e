"""Pictures of speaker verification: DET curves, score histograms, differences of systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.plots import COLORS, add_legend, new_figure, percent, save_figure, tidy
from utils.speaker.evaluation.det import LEAST_ERRORS, Det
from utils.speaker.evaluation.metrics import normal_deviate, rates_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DET_TICKS = (0.1, 0.01, 0.001, 1e-4, 1e-5, 0.4, 0.02, 0.2, 0.05, 0.005, 5e-4, 5e-5, 0.002, 2e-4, 0.6, 0.8, 0.9, 0.98)
_TICK_GAP = 0.065  # of an axis, which is as wide as the longest label


def det_figure(curves: Mapping[str, Sequence[Det]], title: str) -> Figure:
    """Detection error trade-off on normal-deviate axes (Martin et al. 1997), with the EER of each curve marked.

    `curves`: label -> curves of one color, of which the first has the mark and the band; may be none.
    """
    everything = [curve for group in curves.values() for curve in group]
    high = min(0.99, max(0.5, 1.5 * max(curve.eer for curve in everything)))
    reached = [rate for curve in everything for rate in (*curve.least, curve.eer) if rate > 0]
    low = 0.8 * min(*reached, high / 5)
    figure = new_figure(6.4, 7.0 + 0.2 * len(curves))
    axes = figure.subplots()
    for number, (label, group) in enumerate(curves.items()):
        if group:
            _draw_det(axes, label, group, COLORS[number % len(COLORS)], low)
    limits = normal_deviate([low, high], low)
    axes.plot(limits, limits, color="#999999", linewidth=0.8, linestyle=":")
    ticks = det_ticks(low, high)
    for set_ticks, set_limits in ((axes.set_xticks, axes.set_xlim), (axes.set_yticks, axes.set_ylim)):
        set_ticks(normal_deviate(ticks, low), [f"{100 * tick:g}" for tick in ticks])
        set_limits(*limits)
    tidy(axes)
    axes.set_aspect("equal")
    axes.set_xlabel("false acceptance rate (%)")
    axes.set_ylabel("false rejection rate (%)")
    axes.set_title(title, parse_math=False)
    band = "; band: 95 % of draws of the speakers" if any(curve.band is not None for curve in everything) else ""
    add_legend(figure, title=f"curves end at {LEAST_ERRORS} errors{band}", title_fontsize=8)
    return figure


def _draw_det(axes: Axes, label: str, group: Sequence[Det], color: str, low: float) -> None:
    first = group[0]
    for curve in group:
        width = 1.6 if curve is first else 0.8
        axes.plot(normal_deviate(curve.fpr, low), normal_deviate(curve.fnr, low), color=color, linewidth=width)
    if first.band is not None:
        lower, upper = first.band
        axes.fill(*np.hstack([lower, upper[:, ::-1]]), color=color, alpha=0.15, linewidth=0)
    mark = normal_deviate([first.eer], low)
    # The legend shows line and mark together, so the mark has the label.
    style = {"color": color, "markersize": 6, "markeredgecolor": "white", "clip_on": False, "zorder": 3}
    axes.plot(mark, mark, "o-", label=label, **style)


def det_ticks(low: float, high: float) -> list[float]:
    """Rates from `low` to `high` to label on an axis, so far apart that no labels collide; round ones come first."""
    first, last = normal_deviate([low, high], low)
    kept: dict[float, float] = {}
    for tick in _DET_TICKS:
        (place,) = (normal_deviate([tick], low) - first) / (last - first)
        if low <= tick <= high and all(abs(place - other) >= _TICK_GAP for other in kept.values()):
            kept[tick] = place
    return sorted(kept)


def draw_scores(path: Path, scores: NDArray, targets: NDArray, thresholds: Mapping[str, float], title: str) -> None:
    """Histograms (densities) of target and non-target scores (n,), with named thresholds as lines."""
    figure = new_figure(7.2, 4.8)
    axes = figure.subplots()
    edges = np.linspace(scores.min(), scores.max() + 1e-9, 61)
    groups = (("different speakers", scores[~targets], COLORS[1]), ("same speaker", scores[targets], COLORS[0]))
    for name, values, color in groups:
        label = f"{name} ({len(values):,} trials)"
        axes.hist(values, edges, density=True, histtype="stepfilled", color=color, alpha=0.35, label=label)
        axes.hist(values, edges, density=True, histtype="step", color=color, linewidth=1.2)
    for style, (name, score) in zip(("-", "--", ":"), thresholds.items(), strict=False):
        rejected, accepted = rates_at(scores, targets, score)
        rates = f"{percent(rejected)} false rejects, {percent(accepted)} false accepts"
        axes.axvline(score, color="black", linewidth=1.1, linestyle=style, label=f"{name} {score:.3f}: {rates}")
    tidy(axes)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_xlabel("score")
    axes.set_ylabel("density of trials (per unit of score)")
    axes.set_title(title, parse_math=False)
    add_legend(figure)
    save_figure(figure, path)


def differences_figure(rows: Mapping[str, Mapping[str, Sequence]], labels: Sequence[str]) -> Figure:
    """Differences of EERs to the first system, with their intervals, in percentage points.

    `rows`: name -> `difference` and `difference_ci` of each of the later systems, which have the `labels`.
    """
    figure = new_figure(6.0, 1.4 + 0.2 * len(labels) + len(rows) * (0.1 + 0.13 * len(labels)))
    axes = figure.subplots()
    height = 0.7 / len(labels)
    for place, label in enumerate(labels):
        heights = np.arange(len(rows)) + height * (place - (len(labels) - 1) / 2)
        middles = [100 * row["difference"][place] for row in rows.values()]
        color = COLORS[(place + 1) % len(COLORS)]
        axes.plot(middles, heights, "o", color=color, markersize=4, label=label)
        for at, interval in zip(heights, [row["difference_ci"][place] for row in rows.values()], strict=True):
            if interval:
                axes.plot(100 * np.array(interval), [at, at], color=color, linewidth=1.4)
    axes.axvline(0, color="black", linewidth=0.9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    tidy(axes)
    axes.set_xlabel("difference of EERs to system 1 (percentage points)")
    add_legend(figure)
    return figure
