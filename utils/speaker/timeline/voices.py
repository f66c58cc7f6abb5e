"""The voices of a recording: how many there are, what each is like, and which of them is heard in each frame.

Embeddings of windows are clustered by normalized cuts (Shi and Malik 2000; von Luxburg 2007) and the clusters' means
compared with all windows again, by the most probable sequence of voices in which each change costs a penalty. The
number of voices is the largest at which no two of them would be taken for the same person.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.features.speech import HOP
from utils.speaker.embeddings import unit
from utils.speaker.timeline.listening import FRAME, STEPS, WINDOW, Frames

MOST_VOICES = 10  # that are told apart without being told their number
_CLUSTERED = 1_500  # windows that are clustered, evenly spread: their affinities take 18 MB
_SPOKEN = 0.6  # share of speech in a window that describes a voice
_SCALE = 15.0  # log odds per cosine
_CHANGE = 6.0  # log odds against a change of voice from one frame to the next
_ROUNDS = 3  # of comparing windows with means, and of new means
_LEAST = 2.0  # s of speech that a voice must have if their number is not given


class Voice(NamedTuple):
    """A unit-normalized embedding (d,) and the seconds of speech that it is of."""

    embedding: NDArray[np.float32]
    seconds: float


IsSame = Callable[[tuple[Voice, Voice]], bool]
"""Whether two voices are one person's."""


def find_voices(frames: Frames, number: int | None, is_same: IsSame) -> tuple[list[Voice], NDArray[np.int64]]:
    """The voices of a recording with speech, and which of them is heard in each frame, (t,).

    There are `number` of them (less in a recording that is too short), or as many as are not the same.
    """
    clear = _clear(frames)
    if number is not None:
        return _voices(frames, clear, number, least=0.0)
    best = _voices(frames, clear, 1, _LEAST)
    for count in range(2, MOST_VOICES + 1):
        found = _voices(frames, clear, count, _LEAST)
        if any(map(is_same, itertools.combinations(found[0], 2))):
            break
        best = found
    return best


def _clear(frames: Frames) -> NDArray[np.int64]:
    """Places among the embedded frames of those with speech in most of their windows; of all if there are none."""
    half = round(WINDOW / HOP / 2)
    speech = np.concatenate([[0], np.cumsum(frames.speech)])
    middles = frames.places * STEPS + STEPS // 2
    first, last = ((middles + shift).clip(0, len(frames.speech)) for shift in (-half, half))
    is_clear = speech[last] - speech[first] > _SPOKEN * 2 * half
    return np.flatnonzero(is_clear if is_clear.any() else np.ones_like(is_clear))


def _voices(
    frames: Frames, clear: NDArray[np.int64], number: int, least: float
) -> tuple[list[Voice], NDArray[np.int64]]:
    """Clusters the windows, and follows the voices through the recording; those of less than `least` s are dropped."""
    chosen = frames.embeddings[clear[:: -(-len(clear) // _CLUSTERED)]]
    labels = _cluster(chosen, min(number, len(chosen)))
    means = unit(np.stack([chosen[labels == label].sum(axis=0) for label in np.unique(labels)]))
    spoken = frames.spoken
    for _ in range(_ROUNDS):
        path = _follow(frames, spoken, means)
        heard = [clear[path[frames.places[clear]] == voice] for voice in range(len(means))]
        longest = max(map(len, heard))
        heard = [places for places in heard if len(places) == longest or FRAME * len(places) > least]
        means = unit(np.stack([frames.embeddings[places].sum(axis=0) for places in heard]))
    voices = [Voice(mean, FRAME * len(places)) for mean, places in zip(means, heard, strict=True)]
    return voices, _follow(frames, spoken, means)


def _cluster(vectors: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Labels (n,) of vectors (n, d) in clusters."""
    if number in (1, len(vectors)):
        return np.arange(len(vectors)) % number
    from sklearn.cluster import SpectralClustering

    affinity = ((1 + vectors.astype(np.float64) @ vectors.T) / 2).clip(0, 1)
    return SpectralClustering(number, affinity="precomputed", random_state=0).fit_predict(affinity)


def _follow(frames: Frames, spoken: NDArray[np.float64], means: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most probable sequence of voices (t,): frames count by their share of speech (Viterbi 1967)."""
    scores = np.zeros((len(spoken), len(means)))
    scores[frames.places] = _SCALE * (frames.embeddings @ means.T) * spoken[frames.places, None]
    total = np.zeros(len(means))
    before = np.empty(scores.shape, dtype=np.int64)
    for frame, score in enumerate(scores):
        best = total.argmax()
        stays = total >= total[best] - _CHANGE
        before[frame] = np.where(stays, np.arange(len(means)), best)
        total = np.where(stays, total, total[best] - _CHANGE) + score
    path = np.empty(len(spoken), dtype=np.int64)
    path[-1] = total.argmax()
    for frame in range(len(path) - 1, 0, -1):
        path[frame - 1] = before[frame, path[frame]]
    return path
