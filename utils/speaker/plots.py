"""Pictures of an evaluation of speaker recognition: DET curves, score histograms, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.plots import COLORS, new_figure, percent, save_figure, tidy
from utils.speaker.metrics import normal_deviate

_DET_TICKS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
_DET_FLOOR = 1e-4  # below it, lists of the usual size have single trials
MOST_CONFUSED = 30


def draw_det(path: Path, curves: Mapping[str, tuple[NDArray, NDArray, float]], title: str) -> None:
    """Detection error trade-off on normal-deviate axes (Martin et al. 1997), with the EER of each curve marked.

    `curves`: label -> (false alarm rates (k,), miss rates (k,), EER), all fractions.
    """
    high = min(0.99, max(0.5, 1.5 * max(rate for _, _, rate in curves.values())))
    low = max(_DET_FLOOR, 0.7 * _least_shown(curves, high))
    figure = new_figure(6.4, 7.3)
    axes = figure.subplots()
    for color, (label, (fpr, fnr, rate)) in zip(COLORS, curves.items(), strict=False):
        axes.plot(normal_deviate(fpr, low), normal_deviate(fnr, low), color=color, linewidth=1.6)
        mark = normal_deviate([rate], low)
        # The legend shows line and mark together, so the mark has the label.
        style = {"color": color, "markersize": 6, "markeredgecolor": "white", "clip_on": False, "zorder": 3}
        axes.plot(mark, mark, "o-", label=f"{label}: EER {percent(rate)}", **style)
    limits = normal_deviate([low, high], low)
    axes.plot(limits, limits, color="#999999", linewidth=0.8, linestyle=":")
    ticks = [tick for tick in _DET_TICKS if low <= tick <= high]
    for set_ticks, set_limits in ((axes.set_xticks, axes.set_xlim), (axes.set_yticks, axes.set_ylim)):
        set_ticks(normal_deviate(ticks, low), [f"{100 * tick:g}" for tick in ticks])
        set_limits(*limits)
    tidy(axes)
    axes.set_aspect("equal")
    axes.set_xlabel("false acceptance rate (%)")
    axes.set_ylabel("false rejection rate (%)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save_figure(figure, path)


def _least_shown(curves: Mapping[str, tuple[NDArray, NDArray, float]], high: float) -> float:
    """The least rate above 0 of the points at which both rates are at most `high`; a tenth of `high` if there is none.

    A system without errors has no such point.
    """
    shown = [high / 10]
    for fpr, fnr, _ in curves.values():
        inside = (fpr <= high) & (fnr <= high)
        shown += [float(rates[inside & (rates > 0)].min(initial=high / 10)) for rates in (fpr, fnr)]
    return min(shown)


def draw_scores(path: Path, scores: NDArray, targets: NDArray, thresholds: Mapping[str, float], title: str) -> None:
    """Histograms (densities) of target and non-target scores (n,), with named thresholds as lines."""
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    edges = np.linspace(scores.min(), scores.max() + 1e-9, 61)
    groups = (("different speakers", scores[~targets], COLORS[1]), ("same speaker", scores[targets], COLORS[0]))
    for name, values, color in groups:
        label = f"{name} ({len(values):,} trials)"
        axes.hist(values, edges, density=True, histtype="stepfilled", color=color, alpha=0.35, label=label)
        axes.hist(values, edges, density=True, histtype="step", color=color, linewidth=1.2)
    for style, (name, threshold) in zip(("-", "--", ":"), thresholds.items(), strict=False):
        axes.axvline(threshold, color="black", linewidth=1.1, linestyle=style, label=f"{name}: {threshold:.3f}")
    tidy(axes)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_xlabel("score (cosine of two embeddings)")
    axes.set_ylabel("density of trials (per unit of score)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save_figure(figure, path)


def most_confused(counts: NDArray[np.int64], keep: int = MOST_CONFUSED) -> NDArray[np.int64]:
    """The `keep` speakers of a confusion matrix (s, s) with most errors, as speaker or as named, in their order."""
    errors = counts - np.diag(np.diag(counts))
    involved = errors.sum(axis=0) + errors.sum(axis=1)
    return np.sort(np.argsort(-involved, kind="stable")[:keep])


def draw_confusions(path: Path, parts: Mapping[str, tuple[Sequence[str], NDArray[np.int64]]], title: str) -> None:
    """Confusion matrices side by side, rows (the true speaker) as shares of that speaker's recordings.

    `parts`: heading -> (names (s), counts (s, s)). With more than 30 speakers only the most confused are shown.
    """
    shown = {heading: most_confused(counts) for heading, (_, counts) in parts.items()}
    size = 2.2 + 0.22 * max(12, *(len(kept) for kept in shown.values()))
    figure = new_figure(1.2 + size * len(parts), size + 0.4, layout="compressed")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (heading, (names, counts)) in zip(panels, parts.items(), strict=True):
        kept = shown[heading]
        shares = counts[np.ix_(kept, kept)] / np.maximum(counts.sum(axis=1)[kept, None], 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        labels = [names[place] for place in kept]
        axes.set_xticks(range(len(kept)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(kept)), labels, fontsize=7)
        axes.set_xlabel("speaker named")
        axes.set_ylabel("speaker")
        limited = f"\n(the {len(kept)} most confused of {len(names)} speakers)" if len(kept) < len(names) else ""
        axes.set_title(heading + limited, fontsize=10)
        for row, column in zip(*np.nonzero(shares), strict=True):
            color, count = "white" if shares[row, column] > 0.5 else "black", counts[kept[row], kept[column]]
            axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, ax=panels, shrink=0.8, label="share of the speaker's recordings")
    figure.suptitle(title)
    save_figure(figure, path)
