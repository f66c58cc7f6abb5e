"""Intelligibility by a speech recognizer: transcripts of audio, and their errors against the text.

The recognizer is a local model folder of faster-whisper; nothing is downloaded. It makes errors on recordings too, so
its rates are to be compared with those of copy-synthesis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.cli import cores
from utils.errors import UserError
from utils.text.normalize import normalize

SAMPLE_RATE = 16_000
_FILES = ("model.bin", "config.json", "tokenizer.json")


class Transcriber:
    """A Whisper model (Radford et al. 2022) in the format of faster-whisper."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def load(cls, folder: str | Path) -> Transcriber:
        """Loads a model folder on the CPU; `UserError` if it is not one, or if a package is missing."""
        folder = Path(folder)
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:  # faster-whisper would try to download them
            raise UserError(f"--asr {folder} is not a model folder of faster-whisper: {', '.join(missing)} missing")
        _jiwer()  # a missing package is reported before the first synthesis
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UserError("--asr needs the package faster-whisper: pip install -r requirements-eval.txt") from error
        try:
            model = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=cores(), local_files_only=True
            )
        except (RuntimeError, ValueError) as error:  # of ctranslate2, for a file of another format
            raise UserError(f"the model in {folder} cannot be loaded: {' '.join(str(error).split())}") from error
        return cls(model)

    def __call__(self, samples: ArrayLike, rate: int) -> str:
        """Transcribes samples (n,) at `rate` Hz by greedy search, which is deterministic; "" if there is no speech.

        Audio beyond 30 s, Whisper's window, is cut at the ends of sentences, by Whisper's timestamps. Windows do not
        share their text, so that no error carries over.
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
    """The text in the form that is compared: normalized (numbers as words), as words of a-z, 0-9 and apostrophes."""
    words = re.sub(r"[^a-z0-9']+", " ", normalize(text)).split()
    return " ".join(word for word in (word.strip("'") for word in words) if word)


class ErrorCounts(NamedTuple):
    """Edits that turn a reference of `length` units into the hypothesis; those of utterances add up by field."""

    substitutions: int
    insertions: int
    deletions: int
    length: int

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions

    @classmethod
    def of(cls, output: Any) -> ErrorCounts:
        """The counts of a `jiwer.WordOutput` or `jiwer.CharacterOutput`."""
        length = output.hits + output.substitutions + output.deletions
        return cls(output.substitutions, output.insertions, output.deletions, length)

    @classmethod
    def total(cls, parts: Iterable[ErrorCounts]) -> ErrorCounts:
        """The counts of all `parts` together."""
        return cls(*(sum(values) for values in zip(*parts, strict=True)))


def _jiwer() -> ModuleType:
    try:
        import jiwer
    except ImportError as error:
        raise UserError("error rates need the package jiwer: pip install -r requirements-eval.txt") from error
    return jiwer


class Transcript(NamedTuple):
    """The transcript of an utterance, and its errors by character (blanks between words included) and by word."""

    text: str
    characters: ErrorCounts
    words: ErrorCounts


def judge(reference: str, transcript: str) -> Transcript:
    """Counts the errors of a transcript against the text that was to be spoken, both by `comparable`.

    The counts are those of the shortest edit (Levenshtein 1966) by jiwer; `UserError` if it is not installed.
    """
    jiwer, wanted, got = _jiwer(), comparable(reference), comparable(transcript)
    characters, words = jiwer.process_characters(wanted, got), jiwer.process_words(wanted, got)
    return Transcript(transcript, ErrorCounts.of(characters), ErrorCounts.of(words))
