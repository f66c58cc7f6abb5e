"""Pictures of evaluations and of training runs, as PNG files.

python -m utils.plots runs/mamba2 runs/xvector --out curves.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils import cli
from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from utils.features.recipe import MelRecipe

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DET_TICKS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
_DET_FLOOR = 1e-4  # an axis that ends lower would show single trials of lists of the usual size
MOST_CONFUSED = 30
_MOST_SYMBOLS = 60  # names of more tokens would cover each other


def _figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """A figure of so many inches, without pyplot: no display, no global state, nothing to close."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout=layout)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _tidy(axes: Axes) -> None:
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def percent(rate: float) -> str:
    """A fraction for people: `5.32 %`."""
    return f"{100 * rate:.2f} %"


def draw_det(path: Path, curves: Mapping[str, tuple[NDArray, NDArray, float]], title: str) -> None:
    """Detection error trade-off on normal-deviate axes (Martin et al. 1997), with the EER of each curve marked.

    `curves`: label -> (false alarm rates (K,), miss rates (K,), EER), all fractions.
    """
    from utils.evaluation.metrics import normal_deviate

    high = min(0.99, max(0.5, 1.5 * max(rate for _, _, rate in curves.values())))
    low = max(_DET_FLOOR, 0.7 * _least_shown(curves, high))
    figure = _figure(6.4, 7.3)
    axes = figure.subplots()
    for colour, (label, (fpr, fnr, rate)) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(normal_deviate(fpr, low), normal_deviate(fnr, low), color=colour, linewidth=1.6)
        mark = normal_deviate([rate], low)
        # The key shows line and mark together, so the mark carries the label.
        style = {"color": colour, "markersize": 6, "markeredgecolor": "white", "clip_on": False, "zorder": 3}
        axes.plot(mark, mark, "o-", label=f"{label}: EER {percent(rate)}", **style)
    limits = normal_deviate([low, high], low)
    axes.plot(limits, limits, color="#999999", linewidth=0.8, linestyle=":")
    ticks = [tick for tick in _DET_TICKS if low <= tick <= high]
    for set_ticks, set_limits in ((axes.set_xticks, axes.set_xlim), (axes.set_yticks, axes.set_ylim)):
        set_ticks(normal_deviate(ticks, low), [f"{100 * tick:g}" for tick in ticks])
        set_limits(*limits)
    _tidy(axes)
    axes.set_aspect("equal")
    axes.set_xlabel("false acceptance rate (%)")
    axes.set_ylabel("false rejection rate (%)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    _save(figure, path)


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
    """Histograms (densities) of target and non-target scores (N,), with named thresholds as lines."""
    figure = _figure(7.2, 4.4)
    axes = figure.subplots()
    edges = np.linspace(scores.min(), scores.max() + 1e-9, 61)
    groups = (("different speakers", scores[~targets], COLOURS[1]), ("same speaker", scores[targets], COLOURS[0]))
    for name, values, colour in groups:
        label = f"{name} ({len(values):,} trials)"
        axes.hist(values, edges, density=True, histtype="stepfilled", color=colour, alpha=0.35, label=label)
        axes.hist(values, edges, density=True, histtype="step", color=colour, linewidth=1.2)
    for style, (name, threshold) in zip(("-", "--", ":"), thresholds.items(), strict=False):
        axes.axvline(threshold, color="black", linewidth=1.1, linestyle=style, label=f"{name}: {threshold:.3f}")
    _tidy(axes)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_xlabel("score (cosine of two embeddings)")
    axes.set_ylabel("density of trials (per unit of score)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    _save(figure, path)


def most_confused(counts: NDArray[np.int64], keep: int = MOST_CONFUSED) -> NDArray[np.int64]:
    """The `keep` speakers of a confusion matrix (S, S) with most errors, as speaker or as named, in their order."""
    errors = counts - np.diag(np.diag(counts))
    involved = errors.sum(axis=0) + errors.sum(axis=1)
    return np.sort(np.argsort(-involved, kind="stable")[:keep])


def draw_confusions(path: Path, parts: Mapping[str, tuple[Sequence[str], NDArray[np.int64]]], title: str) -> None:
    """Confusion matrices side by side, rows (the true speaker) as shares of that speaker's recordings.

    `parts`: heading -> (names (S), counts (S, S)). With more than 30 speakers only the most confused are shown.
    """
    shown = {heading: most_confused(counts) for heading, (_, counts) in parts.items()}
    size = 2.2 + 0.22 * max(12, *(len(kept) for kept in shown.values()))
    figure = _figure(1.2 + size * len(parts), size + 0.4, layout="compressed")
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
        _write_counts(axes, counts[np.ix_(kept, kept)], shares)
    figure.colorbar(image, ax=panels, shrink=0.8, label="share of the speaker's recordings")
    figure.suptitle(title)
    _save(figure, path)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=6, color=colour)


def draw_speech(
    path: Path,
    mel: NDArray,
    alignment: NDArray | None,
    symbols: Sequence[str],
    recipe: MelRecipe,
    title: str,
    recording: NDArray | None = None,
) -> None:
    """A log-mel spectrogram (T, M) and its alignment (T, N) on one time axis; `recording` (U, M) is drawn above it.

    `symbols` (N) name the alignment's tokens, from the bottom up.
    """
    shown = {"synthesis": mel} if recording is None else {"recording": recording, "synthesis": mel}
    longest = recipe.seconds(max(len(frames) for frames in shown.values()))
    heights = [2.2] * len(shown) + ([] if alignment is None else [min(8.0, 1.2 + 0.11 * alignment.shape[1])])
    figure = _figure(min(16.0, max(6.4, 1.8 + 1.5 * longest)), 0.7 + sum(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    limits = {"vmin": min(frames.min() for frames in shown.values()), "vmax": max(f.max() for f in shown.values())}
    for axes, (name, frames) in zip(panels, shown.items(), strict=False):
        image = _draw_frames(axes, frames, recipe.seconds(len(frames)), cmap="magma", **limits)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("mel channel")
    figure.colorbar(image, ax=panels[: len(shown)], label="natural log", pad=0.01)
    if alignment is not None:
        _draw_frames(panels[-1], alignment, recipe.seconds(len(alignment)), cmap="Blues", vmin=0, vmax=1)
        panels[-1].set_title("alignment", fontsize=10)
        panels[-1].set_ylabel("token")
        if len(symbols) <= _MOST_SYMBOLS:
            panels[-1].set_yticks(np.arange(len(symbols)) + 0.5, symbols, fontsize=6, parse_math=False)
    panels[-1].set_xlim(0, longest)
    panels[-1].set_xlabel("time (s)")
    figure.suptitle(title, parse_math=False)  # the title may be a text that speaks of dollars
    _save(figure, path)


def _draw_frames(axes: Axes, frames: NDArray, seconds: float, **colours: Any) -> Any:
    """Frames (T, K) as an image over `seconds`, channel 0 at the bottom."""
    values, extent = np.asarray(frames, dtype=np.float32).T, (0, seconds, 0, frames.shape[1])
    return axes.imshow(values, extent=extent, origin="lower", aspect="auto", interpolation="nearest", **colours)


def draw_durations(path: Path, true: NDArray, predicted: NDArray, title: str) -> None:
    """Predicted against true lengths (N,) of utterances in s, with the line on which they are equal."""
    figure = _figure(5.2, 5.4)
    axes = figure.subplots()
    limit = 1.05 * max(float(np.max(true)), float(np.max(predicted)))
    axes.plot([0, limit], [0, limit], color="#999999", linewidth=0.8, linestyle=":")
    axes.plot(true, predicted, "o", color=COLOURS[0], markersize=4, alpha=0.7)
    _tidy(axes)
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal", title=title)
    axes.set_xlabel("length of the recording (s)")
    axes.set_ylabel("length of the synthesis (s)")
    _save(figure, path)


# Quantity of a log line -> its axis label.
_CURVES = {"loss": "training loss (nats)", "lr": "learning rate", "valid_eer": "validation EER (%)"}


def draw_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Loss, learning rate and validation EER over the steps; `runs`: name -> lines of its log."""
    figure = _figure(12.6, 4.2)
    panels = figure.subplots(1, len(_CURVES))
    for axes, (key, label) in zip(panels, _CURVES.items(), strict=True):
        for number, lines in enumerate(runs.values()):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            steps, values = np.array(points).reshape(-1, 2).T
            values = 100 * values if key == "valid_eer" else values
            axes.plot(
                steps, values, color=COLOURS[number % len(COLOURS)], marker="o" if key == "valid_eer" else None, ms=4
            )
        _tidy(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_title(label.partition(" (")[0])
    panels[-1].set_ylim(bottom=0)
    lines = panels[0].get_lines()
    figure.legend(lines, list(runs), loc="outside lower center", ncols=min(4, len(runs)), frameon=False)
    _save(figure, path)


def build_parser() -> cli.Parser:
    """The flags of `python -m utils.plots`."""
    parser = cli.Parser(prog="python -m utils.plots", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train_tacomamba.py")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="picture to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, draws, returns the exit code."""
    return cli.run(_plot_runs, build_parser().parse_args(argv))


def _plot_runs(args: argparse.Namespace) -> None:
    from utils.training.runlog import read_log

    logs = {str(run): read_log(run) for run in args.runs}
    empty = [name for name, lines in logs.items() if not lines]
    if empty:
        raise cli.UserError(f"no log lines in {', '.join(empty)}; give run folders with a log.jsonl")
    draw_curves(args.out, logs)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
