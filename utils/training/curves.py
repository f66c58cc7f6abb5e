"""Draws the training curves of one or several runs into a PNG file.

python -m utils.training.curves runs/mamba2 runs/xvector --out curves.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from utils import cli
from utils.errors import UserError
from utils.plots import COLORS, new_figure, save_figure, tidy
from utils.training.runlog import read_log


def draw_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draws loss, learning rate and the validation score over the steps; `runs`: name -> lines of its log."""
    names = (name for lines in runs.values() for line in lines for name in line if name.startswith("valid_"))
    quantities = {"loss": "training loss (nats)", "lr": "learning rate"} | dict.fromkeys(islice(names, 1), "validation")
    figure = new_figure(12.6, 4.2)
    panels = figure.subplots(1, len(quantities))
    for axes, (key, label) in zip(panels, quantities.items(), strict=True):
        marker = "o" if label == "validation" else None
        for number, lines in enumerate(runs.values()):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            steps, values = np.array(points).reshape(-1, 2).T
            axes.plot(steps, values, color=COLORS[number % len(COLORS)], marker=marker, ms=4)
        tidy(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.set_ylabel(key if marker else label)
        axes.set_title(label.partition(" (")[0])
        if marker:
            axes.set_ylim(bottom=0)
    lines = panels[0].get_lines()
    figure.legend(lines, list(runs), loc="outside lower center", ncols=min(4, len(runs)), frameon=False)
    save_figure(figure, path)


def build_parser() -> cli.Parser:
    """The flags of `python -m utils.training.curves`."""
    parser = cli.Parser(prog="python -m utils.training.curves", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train_tacomamba.py")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="picture to write")
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
