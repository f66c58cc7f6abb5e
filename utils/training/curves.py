"""Draws the training curves of one or several runs into a picture.

python -m utils.training.curves runs/mamba2 runs/xvector --out curves.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import cli
from utils.errors import UserError
from utils.plots import COLORS, add_legend, new_figure, picture_path, save_figure, tidy
from utils.training.runlog import cpu_time, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draws loss, learning rate and the validation score over the steps; `runs`: name -> lines of its log.

    A star marks the best validation, whose checkpoint is best.pt. Above the panels is the CPU time of each run.
    """
    scores = (name for lines in runs.values() for line in lines for name in line if name.startswith("valid_"))
    quantities = {"loss": "training loss (nats)", "lr": "learning rate", **{name: name for name in islice(scores, 1)}}
    figure = new_figure(12.6, 4.4 + 0.3 * len(runs))
    panels = figure.subplots(1, len(quantities))
    for axes, (key, name) in zip(panels, quantities.items(), strict=True):
        is_score = key == name
        for number, lines in enumerate(runs.values()):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            steps, values = np.array(points).reshape(-1, 2).T
            color = COLORS[number % len(COLORS)]
            axes.plot(steps, values, color=color, marker="o" if is_score else None, ms=4)
            if is_score and len(points):
                best = int(values.argmin())
                label = f"best checkpoint: {values[best]:.3g} at step {steps[best]:.0f}"
                axes.plot(*points[best], "*", color=color, ms=14, mec="white", zorder=3, label=label)
        tidy(axes)
        axes.set_xlim(left=0)
        _add_cpu_axes(axes, list(runs.values()))
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        if is_score:
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=8, frameon=False)
    add_legend(figure, panels[0].get_lines(), list(runs), ncols=min(4, len(runs)), fontsize=10)
    save_figure(figure, path)


def _add_cpu_axes(axes: Axes, runs: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Adds the CPU time in minutes above the axes, a scale in the color of each run."""
    from matplotlib.ticker import MaxNLocator

    for number, lines in enumerate(runs):
        steps, seconds = cpu_time(lines)
        ticks = MaxNLocator(max(1, round(6 * steps[-1] / axes.get_xlim()[1]))).tick_values(0, seconds[-1] / 60)
        minutes = ticks[(ticks >= 0) & (60 * ticks <= seconds[-1])]
        above = axes.secondary_xaxis(1 + 0.09 * number)
        above.set_xticks(np.interp(60 * minutes, seconds, steps), [f"{tick:g}" for tick in minutes])
        above.tick_params(labelsize=8, colors=COLORS[number % len(COLORS)])
        above.spines["top"].set_visible(False)
    above.set_xlabel("CPU time (min)", fontsize=8)


def build_parser() -> cli.Parser:
    """The flags of `python -m utils.training.curves`."""
    parser = cli.Parser(prog="python -m utils.training.curves", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train_tacomamba.py")
    help = "picture to write: a .png, .pdf or .svg file"
    parser.add_argument("--out", type=picture_path, default=Path("curves.png"), metavar="FILE", help=help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, draws, returns the exit code."""
    return cli.run(_plot_runs, build_parser().parse_args(argv))


def _plot_runs(args: argparse.Namespace) -> None:
    logs = {str(run): read_log(run) for run in args.runs}
    empty = [name for name, lines in logs.items() if not lines]
    if empty:
        raise UserError(f"no log lines in {', '.join(empty)}; give run folders with a log.jsonl")
    draw_curves(args.out, logs)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
