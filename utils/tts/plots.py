"""Pictures of text to mel: spectrograms with alignments, and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.features.recipe import MelRecipe
from utils.plots import COLORS, new_figure, save_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_SYMBOLS = 120  # the names of more tokens would overlap
_TOKEN_HEIGHT = 0.062  # inches: two columns of names, of 7 points each
_HERTZ = (250, 500, 1000, 2000, 4000, 8000)


def draw_speech(
    path: Path,
    mel: NDArray,
    alignment: NDArray | None,
    symbols: Sequence[str],
    recipe: MelRecipe,
    title: str,
    recording: NDArray | None = None,
) -> None:
    """Draws a log-mel spectrogram (t, n_mels) and its alignment (t, n) on one time axis, under `recording` (u, n_mels).

    `symbols` (n) name the tokens of the alignment, from the bottom up.
    """
    shown = {"synthesis": mel} if recording is None else {"recording": recording, "synthesis": mel}
    longest = recipe.seconds(max(len(frames) for frames in shown.values()))
    heights = [2.2] * len(shown)
    if alignment is not None:
        heights.append(1.2 + _TOKEN_HEIGHT * min(alignment.shape[1], _MOST_SYMBOLS))
    figure = new_figure(min(16.0, max(6.4, 1.8 + 1.5 * longest)), 0.7 + sum(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    limits = {"vmin": min(frames.min() for frames in shown.values()), "vmax": max(f.max() for f in shown.values())}
    for axes, (name, frames) in zip(panels, shown.items(), strict=False):
        image = _draw_frames(axes, frames, recipe.seconds(len(frames)), cmap="magma", **limits)
        axes.set_title(name, fontsize=10)
        _label_hertz(axes, recipe)
    figure.colorbar(image, ax=panels[: len(shown)], label="natural log", pad=0.01)
    if alignment is not None:
        _draw_frames(panels[-1], alignment, recipe.seconds(len(alignment)), cmap="Blues", vmin=0, vmax=1)
        panels[-1].set_title("alignment", fontsize=10)
        panels[-1].set_ylabel("token")
        if len(symbols) <= _MOST_SYMBOLS:
            _label_tokens(panels[-1], symbols)
    panels[-1].set_xlim(0, longest)
    panels[-1].set_xlabel("time (s)")
    figure.suptitle(title, parse_math=False)  # a dollar in the title is no formula
    save_figure(figure, path)


def _draw_frames(axes: Axes, frames: NDArray, seconds: float, **colors: Any) -> Any:
    """Frames (t, k) as an image over `seconds`, channel 0 at the bottom."""
    values, extent = np.asarray(frames, dtype=np.float32).T, (0, seconds, 0, frames.shape[1])
    return axes.imshow(values, extent=extent, origin="lower", aspect="auto", interpolation="nearest", **colors)


def _label_hertz(axes: Axes, recipe: MelRecipe) -> None:
    """Labels round frequencies within the recipe's; the middle of channel k is at k + 0.5."""
    ticks = [hertz for hertz in _HERTZ if recipe.f_min <= hertz <= recipe.f_max]
    axes.set_yticks([recipe.channel(hertz) + 0.5 for hertz in ticks], ticks, fontsize=8)
    axes.set_ylim(0, recipe.n_mels)
    axes.set_ylabel("frequency (Hz)")


def _label_tokens(axes: Axes, symbols: Sequence[str]) -> None:
    """Names tokens from the bottom up, every other one in a second column: so twice as many are readable."""
    symbols = ["␣" if symbol == " " else symbol for symbol in symbols]
    for start, is_minor in ((0, False), (1, True)):
        places = np.arange(start, len(symbols), 2) + 0.5
        axes.set_yticks(places, symbols[start::2], minor=is_minor, fontsize=7, parse_math=False)
    axes.tick_params(axis="y", which="minor", length=24, width=0.4)


def draw_durations(path: Path, true: NDArray, predicted: NDArray, title: str) -> None:
    """Draws predicted against true lengths (n,) of utterances in s, with the line of equality."""
    figure = new_figure(5.2, 5.4)
    axes = figure.subplots()
    limit = 1.05 * max(float(np.max(true)), float(np.max(predicted)))
    axes.plot([0, limit], [0, limit], color="#999999", linewidth=0.8, linestyle=":")
    axes.plot(true, predicted, "o", color=COLORS[0], markersize=4, alpha=0.7)
    tidy(axes)
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal", title=title)
    axes.set_xlabel("length of the recording (s)")
    axes.set_ylabel("length of the synthesis (s)")
    save_figure(figure, path)
