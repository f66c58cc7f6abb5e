"""Common parts of all pictures: figures without a display, PNG files written at once, colors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """A figure of the given inches, without pyplot: no display, no global state, nothing to close."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout=layout)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG file; the same figure gives the same bytes."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def tidy(axes: Axes) -> None:
    """Draws a light grid and removes the frame at the top and the right."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def percent(rate: float) -> str:
    """Formats a fraction as `5.32 %`."""
    return f"{100 * rate:.2f} %"
