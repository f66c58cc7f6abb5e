"""Intelligibility by a speech recognizer: transcripts of audio, and how they differ from what should be said.

The recognizer is a local model folder of faster-whisper; nothing is downloaded. It errs on true speech too: its
rates mean something only beside those of copy-synthesis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.cli import cores
from utils.errors import UserError
from utils.text.normalize import normalize

SAMPLE_RATE = 16_000
_FILES = ("model.bin", "config.json", "tokenizer.json")
_MATCH, _SUBSTITUTION, _DELETION, _INSERTION = range(4)


class Transcriber:
    """A Whisper model (Radford et al., 2022) in a folder of faster-whisper's format."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls, folder: str | Path) -> Transcriber:
        """Loads a model folder on the CPU; `UserError` if it is not one, or if faster-whisper is not installed."""
        folder = Path(folder)
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:  # faster-whisper would look for them on the network
            raise UserError(f"--asr {folder} is not a folder of a faster-whisper model: {', '.join(missing)} missing")
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UserError("--asr needs the package faster-whisper: pip install -r requirements-eval.txt") from error
        try:
            model = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=cores(), local_files_only=True
            )
        except (RuntimeError, ValueError) as error:  # ctranslate2's, for a file that is not its own
            raise UserError(f"the model in {folder} cannot be loaded: {' '.join(str(error).split())}") from error
        return cls(model)

    def __call__(self, samples: ArrayLike, rate: int) -> str:
        """What is said in samples (S,) at `rate` Hz, "" if nothing is. Greedy, so that it is the same every time.

        Audio beyond 30 s, Whisper's window, is cut where its time stamps say that a sentence ends; without them it
        is cut within words. Nothing else is shared between windows, so that no error is carried on.
        """
        segments, _ = self._model.transcribe(
            _resampled(samples, rate),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


def _resampled(samples: ArrayLike, rate: int) -> NDArray[np.float32]:
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if rate == SAMPLE_RATE:
        return samples
    import torch

    from utils.features.mel import import_torchaudio

    return import_torchaudio().functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy()


def comparable(text: str) -> str:
    """Text as it is compared: normalized (numbers as words), without punctuation; words of a-z, 0-9 and apostrophes."""
    words = re.sub(r"[^a-z0-9']+", " ", normalize(text)).split()
    return " ".join(word for word in (word.strip("'") for word in words) if word)


class ErrorCounts(NamedTuple):
    """Edits that turn a reference of `length` units into the hypothesis; those of utterances add field by field."""

    substitutions: int
    insertions: int
    deletions: int
    length: int

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions

    @classmethod
    def total(cls, parts: Iterable[ErrorCounts]) -> ErrorCounts:
        """The counts of all `parts` together."""
        return cls(*(sum(values) for values in zip(*parts, strict=True)))


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Fewest edits (Levenshtein, 1966) from one sequence of words or characters to another.

    Of equally short ways the one is counted that, read from the end, takes a match or substitution before a deletion,
    and a deletion before an insertion. Row by row in numpy: memory is a byte for each pair of units.
    """
    ids: dict[str, int] = {}
    first, second = (
        np.array([ids.setdefault(unit, len(ids)) for unit in units], dtype=np.int64)
        for units in (reference, hypothesis)
    )
    edits = _trace(_edits(first, second))
    counts = np.bincount(edits, minlength=4)
    return ErrorCounts(
        substitutions=int(counts[_SUBSTITUTION]),
        insertions=int(counts[_INSERTION]),
        deletions=int(counts[_DELETION]),
        length=len(first),
    )


def _edits(reference: NDArray[np.int64], hypothesis: NDArray[np.int64]) -> NDArray[np.int8]:
    """The last edit (N + 1, M + 1) of the best way between every two beginnings; (0, 0) has none."""
    places = np.arange(len(hypothesis) + 1)
    edits = np.empty((len(reference) + 1, len(places)), dtype=np.int8)
    edits[0] = _INSERTION
    above = places
    for row, unit in enumerate(reference, start=1):
        differs = unit != hypothesis
        diagonal, deletion = above[:-1] + differs, above + 1
        least = deletion.copy()
        np.minimum(least[1:], diagonal, out=least[1:])
        # An insertion costs 1 more than the cell to the left: a running minimum of the costs less their places.
        least = np.minimum.accumulate(least - places) + places
        edits[row] = np.where(least == deletion, _DELETION, _INSERTION)
        edits[row, 1:][least[1:] == diagonal] = _MATCH
        edits[row, 1:][(least[1:] == diagonal) & differs] = _SUBSTITUTION
        above = least
    return edits


def _trace(edits: NDArray[np.int8]) -> list[int]:
    row, column = edits.shape[0] - 1, edits.shape[1] - 1
    found = []
    while row or column:
        edit = int(edits[row, column])
        found.append(edit)
        row, column = row - (edit != _INSERTION), column - (edit != _DELETION)
    return found


class Transcript(NamedTuple):
    """What a recognizer heard, and its errors by character (blanks between words count) and by word."""

    text: str
    characters: ErrorCounts
    words: ErrorCounts


def judge(reference: str, heard: str) -> Transcript:
    """Counts the errors of what was heard against the text that was to be said, both as `comparable` has them."""
    wanted, got = comparable(reference), comparable(heard)
    return Transcript(heard, count_errors(wanted, got), count_errors(wanted.split(), got.split()))
