"""Who spoke when in a recording, with the names of enrolled people where they are heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.features.speech import HOP, runs
from utils.speaker.people.enrollment import UNKNOWN, EnrollmentStore, Identification
from utils.speaker.timeline.listening import STEPS, WINDOW, Frames, listen
from utils.speaker.timeline.segments import Segment
from utils.speaker.timeline.voices import MOST_VOICES, Voice, find_voices

if TYPE_CHECKING:
    from utils.speaker.recognizer import SpeakerRecognizer

_LEAST = 0.5  # s of speech in a recording; less is nobody's
_SHORTEST = 0.2  # s of a segment
_CHANGE = 0.5  # s before and after a change of person that tell whether both speak
_UNBROKEN = 0.8  # share of these with syllables, from which on they do: turns that do not overlap leave a pause
_BOTH = 0.4  # s before and after the change for which they do


@dataclass(frozen=True)
class Person:
    """Somebody who speaks for `seconds`; `identification` is that of the voice in a store, if there is one."""

    name: str
    seconds: float
    identification: Identification | None


@dataclass(frozen=True)
class Timeline:
    """Who spoke when in a recording of `seconds`: segments by their start, people by their first segment.

    Segments of two people overlap where both seem to speak. `peaks` (t, 2): least and largest sample of each frame.
    """

    seconds: float
    segments: list[Segment]
    people: list[Person]
    peaks: NDArray[np.float32]

    @property
    def overlaps(self) -> list[tuple[float, float]]:
        """Start and end in s of the parts in which two people speak."""
        edges = sorted({time for segment in self.segments for time in segment[:2]})
        return [(start, end) for start, end in zip(edges, edges[1:], strict=False) if self._speaking(start) > 1]

    def _speaking(self, time: float) -> int:
        return sum(segment.start <= time < segment.end for segment in self.segments)


def make_timeline(
    recognizer: SpeakerRecognizer,
    path: str | Path,
    store: EnrollmentStore | None = None,
    number: int | None = None,
    threshold: float | None = None,
    same_threshold: float | None = None,
) -> Timeline:
    """The timeline of an audio file.

    Args:
        store: enrolled people; voices of nobody among them are named "speaker 1" and so on.
        number: how many people speak; None to find out.
        threshold: least cosine of a voice and the enrollment whose name it gets (default: that of the recognizer to
            identify a recording as long as a window, because a voice is the mean of such).
        same_threshold: least cosine of two voices that are one person's, where `number` is None (default: that of the
            recognizer to identify a recording as long as the shorter one, with one enrolled if one of the two has a
            name, and otherwise with `MOST_VOICES`: voices of one recording share its channel and its noise).

    Raises:
        UserError: the file cannot be read, or the recognizer has no threshold and none is given.
    """
    for wanted, is_needed in ((threshold, store is not None), (same_threshold, number is None)):
        if is_needed:
            recognizer.identification_threshold(wanted, WINDOW, 1)  # refuses before the work if there is none
    return timeline_of(listen(recognizer, path), recognizer, store, number, threshold, same_threshold)


def timeline_of(
    frames: Frames,
    recognizer: SpeakerRecognizer,
    store: EnrollmentStore | None = None,
    number: int | None = None,
    threshold: float | None = None,
    same_threshold: float | None = None,
) -> Timeline:
    """The timeline of a recording that was listened to; arguments as those of `make_timeline`."""

    def identify(voice: Voice) -> Identification | None:
        if store is None:
            return None
        limit = recognizer.identification_threshold(threshold, WINDOW, len(store.speakers))
        return store.identify(voice.embedding, limit)

    def is_same(pair: tuple[Voice, Voice]) -> bool:
        names = [found.name if (found := identify(voice)) else UNKNOWN for voice in pair]
        if UNKNOWN not in names:
            return names[0] == names[1]
        (first, _), (second, _) = pair
        seconds = min(voice.seconds for voice in pair)
        enrolled = MOST_VOICES if names[0] == names[1] else 1
        return float(first @ second) >= recognizer.identification_threshold(same_threshold, seconds, enrolled)

    if frames.speech.sum() * HOP < _LEAST:
        return Timeline(frames.seconds, [], [], frames.peaks)
    voices, path = find_voices(frames, number, is_same)
    found = [identify(voice) for voice in voices]
    names = _names(found, path[frames.spoken > 0], store)
    segments = _segments(frames, np.array([names.index(name) for name in names])[path], names)
    people = []
    for name in dict.fromkeys(segment.speaker for segment in segments):
        seconds = sum(segment.end - segment.start for segment in segments if segment.speaker == name)
        people.append(Person(name, seconds, found[names.index(name)]))
    return Timeline(frames.seconds, segments, people, frames.peaks)


def _names(found: Sequence[Identification | None], path: NDArray[np.int64], store: EnrollmentStore | None) -> list[str]:
    """The names of voices: of enrolled people, or numbers in the order in which they are heard."""
    taken = {speaker.name for speaker in store.speakers} if store else set()
    numbers = (f"speaker {number}" for number in range(1, len(found) + len(taken) + 1))
    free = (name for name in numbers if name not in taken)
    names = ["" if each is None or each.name == UNKNOWN else each.name for each in found]
    for voice in dict.fromkeys(path.tolist()):
        names[voice] = names[voice] or next(free)
    return names


def _segments(frames: Frames, path: NDArray[np.int64], names: Sequence[str]) -> list[Segment]:
    """Segments of who is heard in each frame (t,); at a change without a pause both people speak."""
    heard = np.repeat(path, STEPS)[: len(frames.speech)]
    speaking = {person: frames.speech & (heard == person) for person in dict.fromkeys(path.tolist())}
    for frame in np.flatnonzero(np.diff(path)) + 1:
        middle = frame * STEPS
        around, both = (slice(max(0, middle - n), middle + n) for n in (round(_CHANGE / HOP), round(_BOTH / HOP)))
        if frames.syllables[around].mean() >= _UNBROKEN:
            for person in path[frame - 1 : frame + 1].tolist():
                speaking[person][both] = True
    found = [
        Segment(round(start * HOP, 3), round(end * HOP, 3), names[person])
        for person, steps in speaking.items()
        for start, end in runs(steps).tolist()
        if end - start >= round(_SHORTEST / HOP)
    ]
    return sorted(found)
