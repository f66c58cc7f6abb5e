"""A recording as frames: what is speech, and the embedding of the window around each frame.

A recording is read in pieces of half a minute. What is kept of an hour are 15,000 frames: 30 MB with embeddings of 512
numbers, the only part that grows with the recording.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.features.audio import read_blocks
from utils.features.speech import HOP, RISE, STAYS, rises, speech_steps
from utils.features.windows import Window, cut_windows

STEPS = 12  # of `HOP` s in a frame
FRAME = STEPS * HOP
WINDOW = 1.5  # s that an embedding hears: shorter ones tell people apart less, longer ones blur the borders of turns
_PIECE, _MARGIN = 125 * FRAME, 4 * FRAME  # s; the margin holds half a window, and what the measure of speech looks at


@dataclass(frozen=True)
class Frames:
    """What is heard in a recording of `seconds`.

    `speech` (s,): whether there is speech at each step of `HOP` s, and `syllables` (s,): the same without its pauses.
    `places` (n,): the frames, of `FRAME` s, with sounds like speech; `embeddings` (n, d): of windows around them.
    `peaks` (t, 2): least and largest sample of each frame.
    """

    seconds: float
    speech: NDArray[np.bool_]
    syllables: NDArray[np.bool_]
    places: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    peaks: NDArray[np.float32]

    @property
    def spoken(self) -> NDArray[np.float64]:
        """The share of speech in each frame, (t,)."""
        rest = STEPS * len(self.peaks) - len(self.speech)
        return np.pad(self.speech, (0, rest)).reshape(-1, STEPS).mean(axis=1)


def listen(recognizer: Any, path: str | Path) -> Frames:
    """Reads a recording by the features and the model of a `SpeakerRecognizer`; `UserError` if it cannot be read."""
    rate = recognizer.recipe.sample_rate
    step = STEPS * round(HOP * rate)
    piece, margin = (round(seconds / FRAME) * step for seconds in (_PIECE, _MARGIN))
    levels: list[NDArray[np.float32]] = []
    places: list[int] = []
    embeddings = [np.empty((0, recognizer.model.embedding_dim), np.float32)]
    peaks: list[tuple[float, float]] = []
    for window, is_last in _with_last(cut_windows(read_blocks(path, rate), piece + 2 * margin, piece, step)):
        own, samples = _own(window, margin, step, is_last), window.values
        found = rises(samples, rate)
        part = found[(own.start - window.start // step) * STEPS :][: None if is_last else len(own) * STEPS]
        levels.append(part)
        loud = [frame for place, frame in enumerate(own) if (part[place * STEPS :][:STEPS] > STAYS).any()]
        places += loud
        cut = [_around(samples, frame * step + step // 2 - window.start, round(WINDOW * rate)) for frame in loud]
        embeddings.append(recognizer.embed_mels([recognizer.mel_of_samples(path, values) for values in cut]))
        for frame in own:
            values = samples[frame * step - window.start :][:step]
            peaks.append((values.min(), values.max()))
    seconds = (window.start + len(window.values)) / rate
    rise = np.concatenate(levels)
    about = np.array(places, dtype=np.int64), np.concatenate(embeddings), np.array(peaks, dtype=np.float32)
    return Frames(seconds, speech_steps(rise), np.pad(rise > RISE, (1, 0)), *about)


def _with_last(windows: Iterator[Window]) -> Iterator[tuple[Window, bool]]:
    """Windows, each with whether it is the last one."""
    for window, after in itertools.pairwise(itertools.chain(windows, [None])):
        yield window, after is None


def _own(window: Window, margin: int, step: int, is_last: bool) -> range:
    """The frames of a window: its margins, which the neighbors have as well, are theirs."""
    end = window.start + len(window.values)
    first = window.start + margin if window.start else 0
    return range(first // step, -(-end // step) if is_last else (end - margin) // step)


def _around(samples: NDArray[np.float32], center: int, length: int) -> NDArray[np.float32]:
    """`length` samples around one of them, moved to be within."""
    start = max(0, min(center - length // 2, len(samples) - length))
    return samples[start : start + length]
