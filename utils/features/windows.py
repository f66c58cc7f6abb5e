"""Long recordings as windows, so that what is held does not grow with their length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.features.audio import read_blocks


class Window(NamedTuple):
    """A piece of an array, and where it starts there."""

    start: int
    values: np.ndarray


def middle(values: np.ndarray, length: int | None) -> np.ndarray:
    """The middle `length` samples or frames of an array; all of it if it is shorter, or for None."""
    if length is None:
        return values
    start = max(len(values) - length, 0) // 2
    return values[start : start + length]


def read_windows(path: str | Path, sample_rate: int, length: int, hop: int, grid: int = 1) -> Iterator[Window]:
    """Reads an audio file of any rate as windows of samples (S,) at `sample_rate` Hz; `cut_windows` says how.

    At most two windows and what is decoded at once are held. Errors as `load_audio`, at the latest with the last one.
    """
    yield from cut_windows(read_blocks(path, sample_rate), length, hop, grid)


def live_windows(blocks: Iterable[np.ndarray], length: int, hop: int) -> Iterator[Window]:
    """As `cut_windows`, but each window is given as soon as it is complete.

    So only the last one is shorter, of what remains; where `cut_windows` gives a window of full length, both are equal.
    """
    overlap, start, held = length - hop, 0, np.empty(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= length:
            yield Window(start, held[:length])
            start, held = start + hop, held[hop:]
    if len(held) > (overlap if start else 0):
        yield Window(start, held)


def cut_windows(blocks: Iterable[np.ndarray], length: int, hop: int, grid: int = 1) -> Iterator[Window]:
    """Cuts a sequence, in blocks (s, ...), into windows of `length` that start `hop` apart.

    What remains beyond the last window but one is shared: the last two are equally long and overlap as all do, so that
    none is shorter than `length - hop / 2`, but for a sequence that is one window altogether. All start at multiples of
    `grid`, which divides `hop`; the last keeps up to `grid - 1` values more.
    """
    overlap, start, held = length - hop, 0, None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        while (len(held) - overlap) // grid * grid > 2 * hop:
            yield Window(start, held[:length])
            start, held = start + hop, held[hop:]
    steps = (len(held) - overlap) // grid
    if steps * grid > hop:
        half = (steps + 1) // 2 * grid
        yield Window(start, held[: half + overlap])
        start, held = start + half, held[half:]
    yield Window(start, held)
