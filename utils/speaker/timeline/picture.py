"""The picture of a timeline: the waveform, and below it a lane for each person."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.plots import COLORS, new_figure, save_figure, tidy
from utils.speaker.timeline.diarization import Timeline

_COLUMNS = 1_500  # of the waveform; more than the picture has would only blur


def draw_timeline(path: Path, timeline: Timeline, title: str) -> None:
    """Draws the waveform above one lane a person, on an axis of minutes and seconds; `title` names the recording."""
    names = [person.name for person in timeline.people]
    figure = new_figure(10, 2.4 + 0.35 * len(names))
    above, below = figure.subplots(2, sharex=True, height_ratios=[1.0, 0.3 + 0.35 * len(names)])
    peaks = timeline.peaks
    starts = np.unique(np.linspace(0, len(peaks), _COLUMNS, endpoint=False).astype(int))
    low, high = np.minimum.reduceat(peaks[:, 0], starts), np.maximum.reduceat(peaks[:, 1], starts)
    times = starts * timeline.seconds / len(peaks)
    above.fill_between(times, low, high, color="#666666", linewidth=0.3, step="post")
    above.set_ylabel("amplitude")
    above.set_title(title, parse_math=False)
    for lane, name in enumerate(names):
        spans = [(start, end - start) for start, end, speaker in timeline.segments if speaker == name]
        below.broken_barh(spans, (lane - 0.35, 0.7), color=COLORS[lane % len(COLORS)])
    for start, end in timeline.overlaps:
        below.axvspan(start, end, color="#000000", alpha=0.15, linewidth=0)
    below.set_yticks(range(len(names)), names, parse_math=False)
    below.set_ylim(max(1, len(names)) - 0.5, -0.5)
    below.set_xlim(0, timeline.seconds)
    below.xaxis.set_major_formatter(lambda time, _: f"{int(time) // 60}:{time % 60:02.0f}")
    below.set_xlabel("time (min:s)" + ("; gray: two people at once" if timeline.overlaps else ""))
    tidy(above)
    tidy(below)
    save_figure(figure, path)
