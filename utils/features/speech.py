"""How much speech a recording holds, by levels in bands of frequency; nothing is trained.

Syllables make many bands rise and fall again within a second, whatever the gain. Hum, tones and steady noise do not,
nor does noise whose level changes once. So a band's floor is its level after morphological opening, the highest level
that it keeps for `_LASTING`, and a frame is speech where its `_BEST` bands exceed their floors by `RISE` on average.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HOP = 0.020  # s between frames of twice that: two periods of 50 Hz, so that hum does not flutter
_EDGES = (200, 400, 700, 1100, 1700, 2500, 3400)  # Hz; above hum and offsets, within a telephone's band
_QUANTUM = 1e-9  # power added to each band: -90 dB of full scale, where 16 bits end
_RANGE = 1e-5  # and relative to the loudest: how far the end of a click can fall
_LASTING = 0.8  # s; half of it at the borders of a recording: less than a speaker needs to be enrolled
_BEST = 3  # noise may hide the rest
_MOST = 15.0  # dB that a band counts at most: one alone, as of a tone, is not enough
RISE = 6.0  # dB; white and pink noise reach 5.5 once in 15 minutes
STAYS = 3.0  # dB that speech rises from one rise above `RISE` to the next
_CLICK = 9  # frames of the median that drops what is shorter than 0.1 s
_PAUSE = 0.3  # s between rises that count as speech
_BREATH = 0.8  # s of silence within speech
_AROUND = 0.16  # s of speech before and after what rises
_SILENCE = 0.5  # s without speech that stay in `Spoken`, at the borders of a recording
_AUDIBLE = 1e-4  # of the loudest sample: 80 dB, more than microphones and rooms leave between noise and speech
_LEAST = 0.1  # s that must remain


class Spoken(NamedTuple):
    """Seconds of speech, short pauses included, and the samples (s,) without long ones; all of them without speech."""

    seconds: float
    samples: NDArray[np.float32]


def spoken(samples: NDArray[np.float32], sample_rate: int) -> Spoken:
    """What is spoken in samples (S,) at 8000 Hz or more; of a long pause, `_AROUND` s stay at each end.

    Other sounds that come and go several times a second in many bands, such as music, count as speech.
    """
    rise = rises(samples, sample_rate)
    steps = speech_steps(rise)
    if not steps.any():
        return Spoken(0.0, samples)
    kept = np.ones(len(steps), dtype=bool)
    for start, end in runs(~steps):
        kept[start:end] = end - start <= _SILENCE / HOP
    return Spoken(_seconds(rise), audible(samples, sample_rate, kept))


def audible(
    samples: NDArray[np.float32], sample_rate: int, kept: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Samples (S,) without digital silence, which is like nothing that models hear in training.

    Of the steps `kept` (s,) alone, if given, whose last one reaches to the end. All of them if next to nothing remains.
    """
    step = round(HOP * sample_rate)
    starts = np.arange(0, max(1, len(samples) - step + 1), step)  # what is less than a step belongs to the last one
    peaks = np.maximum.reduceat(np.abs(samples), starts)
    heard = peaks > _AUDIBLE * peaks.max()
    if kept is not None:
        heard &= np.pad(kept, (0, max(0, len(starts) - len(kept))), mode="edge")[: len(starts)]
    if heard.all() or heard.sum() * HOP < _LEAST:
        return samples
    return samples[np.repeat(heard, np.diff(starts, append=len(samples)))]


def _seconds(rise: NDArray[np.float32]) -> float:
    gaps = np.diff(found := np.flatnonzero(rise > RISE))
    return HOP * float(len(found[:1]) + np.where(gaps <= _PAUSE / HOP, gaps, 1).sum())


def speech_steps(rise: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether there is speech at each step of `HOP` s, (T + 1,), by the rises (T,) of frames of two steps.

    Speech reaches from one rise above `RISE` as far as they stay above `STAYS`, and over short pauses.
    """
    rise = np.pad(rise, (1, 0))  # of its two steps, the second has the rise of a frame
    speech = np.zeros(len(rise), dtype=bool)
    for start, end in runs(rise > STAYS):
        speech[start:end] = (rise[start:end] > RISE).any()
    for start, end in runs(~speech):
        if start and end < len(speech) and end - start <= round(_BREATH / HOP):
            speech[start:end] = True
    reach = round(_AROUND / HOP)
    return np.convolve(speech, np.ones(2 * reach + 1))[reach : reach + len(speech)] > 0.5


def runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Starts and ends of the runs of True in (n,): (r, 2)."""
    return np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)


def rises(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """How far the bands exceed their floors, in dB: (T,), frames of 2 `HOP` s that start `HOP` s apart."""
    frame, hop = round(2 * HOP * sample_rate), round(HOP * sample_rate)
    if len(samples) < frame:
        return np.empty(0, np.float32)
    peak = np.abs(samples).max()
    if peak > 1:  # files of floats may exceed full scale by so much that powers overflow
        samples = samples / peak
    levels = _median(_levels(samples, frame, hop, sample_rate), 3)
    width = 2 * round(_LASTING / HOP / 2) + 1
    floor = _highest(-_highest(-levels, width), width)
    best = np.sort(levels - floor, axis=0)[-_BEST:]
    return _median(np.minimum(best, _MOST).mean(axis=0), _CLICK)


def _levels(samples: NDArray[np.float32], frame: int, hop: int, sample_rate: int) -> NDArray[np.float32]:
    """Levels (bands, T) in dB of Hann-windowed frames."""
    window = np.hanning(frame).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop]
    frames = frames * window - frames.mean(axis=1, keepdims=True) * window
    edges = np.ceil(np.array(_EDGES) * frame / sample_rate).astype(int)
    spectrum = np.fft.rfft(frames, axis=1)[:, : edges[-1]]
    power = np.add.reduceat(spectrum.real**2 + spectrum.imag**2, edges[:-1], axis=1).T
    power *= 2 / (frame * np.square(window).sum())
    return 10 * np.log10(power + max(_QUANTUM, _RANGE * power.max()))


def _around(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The `width` (odd) values around each of (..., T): (..., T, width); beyond the ends, the last one."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(width // 2, width // 2)], mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)


def _median(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.sort(_around(values, width), axis=-1)[..., width // 2]


def _highest(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return _around(values, width).max(axis=-1)
