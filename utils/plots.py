"""Common parts of all pictures: figures without a display, files written at once, colors."""

from __future__ import annotations

import argparse
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Format of a picture -> what matplotlib leaves out of its metadata, so that the same figure gives the same bytes.
FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
# Fonts that journals accept (Type 3 is often refused), text that stays text, and names of parts without chance.
_STYLE = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "tacomamba"}


def picture_path(text: str) -> Path:
    """argparse type: a file whose name ends in the format of a picture."""
    path = Path(text)
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(f'.{each}' for each in FORMATS)}, not {text!r}")
    return path


def new_figure(width: float, height: float) -> Figure:
    """A figure of the given inches, without pyplot: no display, no global state, nothing to close."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The file of a figure in one of `FORMATS`; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # shown as boxes; the reports have the names
        figure.savefig(buffer, format=kind, metadata=FORMATS[kind])
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that the file's name ends in."""
    content = figure_bytes(figure, path.suffix.lower().removeprefix("."))
    write_bytes(path, content)


def add_legend(figure: Figure, *entries: Any, ncols: int = 1, **style: Any) -> None:
    """Adds a legend below the axes, whose labels are never formulas."""
    style = {"loc": "outside lower center", "fontsize": 9, "frameon": False, **style}
    for text in figure.legend(*entries, ncols=ncols, **style).get_texts():
        text.set_parse_math(False)


def tidy(axes: Axes) -> None:
    """Draws a light grid and removes the frame at the top and the right."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def percent(rate: float) -> str:
    """Formats a fraction as `5.32 %`."""
    return f"{100 * rate:.2f} %"
