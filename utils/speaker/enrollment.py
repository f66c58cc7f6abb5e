"""Enrolled speakers in one file, and who of them is speaking.

A store is a safetensors file: `embeddings` (S, D), one unit-normalized mean per speaker, and JSON metadata that says
whose they are, from how many recordings and seconds, since when, and by which model. Embeddings of different models
cannot be compared, so a store belongs to the model that began it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import atomic_write
from utils.speaker.identification import enrollment_mean

UNKNOWN = "unknown"
"""The answer when no enrolled speaker reaches the threshold; nobody can be enrolled under it."""

MIN_SPEECH_SECONDS = 0.5
_FORMAT = "tacomamba-enrollment-1"
_FRAME_SECONDS, _HOP_SECONDS = 0.025, 0.010
_RANGE_DB = 35.0  # speech spans about 30 dB from its vowels to its weak consonants
_FLOOR_DBFS = -60.0  # quieter than any usable recording; keeps the noise of an empty one from counting as speech


def speech_seconds(waveform: NDArray[np.float32], sample_rate: int) -> float:
    """Seconds of a waveform (S,), full scale 1, that may hold speech, by energy.

    Counts the 25 ms frames, 10 ms apart, whose level lies within 35 dB of the loud ones (the 95th percentile) and above
    -60 dB of full scale. Energy alone cannot tell speech from music or loud noise: it only finds recordings that are
    empty, or nearly so.
    """
    frame, hop = round(_FRAME_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    if len(waveform) < frame:
        return 0.0
    power = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    starts = np.arange(0, len(waveform) - frame + 1, hop)
    level = 10 * np.log10(np.maximum((power[starts + frame] - power[starts]) / frame, 1e-12))
    counted = level >= max(np.percentile(level, 95) - _RANGE_DB, _FLOOR_DBFS)
    return float(counted.sum() * hop / sample_rate)


def require_speech(path: str | Path, waveform: NDArray[np.float32], sample_rate: int) -> float:
    """Seconds of speech in a recording; `UserError` if they are too few to know anybody by."""
    seconds = speech_seconds(waveform, sample_rate)
    if seconds < MIN_SPEECH_SECONDS:
        raise UserError(f"{path} holds {seconds:.2f} s of speech; at least {MIN_SPEECH_SECONDS} s are needed")
    return seconds


@dataclass(frozen=True)
class Enrollment:
    """What a speaker's embedding was made of: number of recordings, their seconds in all, and the day (UTC)."""

    name: str
    count: int
    seconds: float
    date: str


@dataclass(frozen=True)
class Identification:
    """Who is speaking: `name` is the best match, or "unknown" when its score is below `threshold`.

    `scores` are (name, cosine) from best to worst; `margin` is the lead over the second (None if there is none).
    """

    name: str
    best: str
    score: float
    margin: float | None
    threshold: float
    scores: list[tuple[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "scores": [{"name": name, "score": score} for name, score in self.scores]}


class EnrollmentStore:
    """Speakers enrolled with one model; see the module for the file."""

    def __init__(self, model_hash: str, recipe_hash: str) -> None:
        self.model_hash, self.recipe_hash = model_hash, recipe_hash
        self.speakers: list[Enrollment] = []
        self._embeddings: list[NDArray[np.float32]] = []

    @classmethod
    def load(cls, path: str | Path, model_hash: str) -> EnrollmentStore:
        """Reads a store; `UserError` if it is missing, empty, damaged, or made with another model than `model_hash`."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"there is no enrollment store at {path}; enroll somebody first")
        if not Path(path).stat().st_size:
            raise UserError(f"the enrollment store {path} is empty; enroll somebody first")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                about = json.loads(metadata.get("enrollment", metadata.get("enrolment", "{}")))  # the older spelling
                embeddings = file.get_tensor("embeddings") if about.get("format") == _FORMAT else None
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} is not an enrollment store, or it is damaged: {error}") from error
        if embeddings is None:
            raise UserError(f"{path} is a safetensors file, but not an enrollment store")
        if about["model_hash"] != model_hash:
            raise UserError(
                f"the store {path} was made with model {about['model_hash']}, the checkpoint is model {model_hash}; "
                "embeddings of different models cannot be compared"
            )
        store = cls(model_hash, about["recipe_hash"])
        store.speakers = [Enrollment(**speaker) for speaker in about["speakers"]]
        store._embeddings = list(embeddings)
        return store

    @classmethod
    def begin(cls, path: str | Path, model_hash: str, recipe_hash: str) -> EnrollmentStore:
        """The store at `path` to add to; a new one if there is none, or an empty file."""
        path = Path(path)
        if not path.exists() or (path.is_file() and not path.stat().st_size):
            return cls(model_hash, recipe_hash)
        return cls.load(path, model_hash)

    def save(self, path: str | Path) -> None:
        """Writes the store, whole or not at all."""
        from safetensors.numpy import save

        about = {
            "format": _FORMAT,
            "model_hash": self.model_hash,
            "recipe_hash": self.recipe_hash,
            "speakers": [asdict(speaker) for speaker in self.speakers],
        }
        content = save({"embeddings": np.stack(self._embeddings)}, metadata={"enrollment": json.dumps(about)})
        with atomic_write(path) as file:
            file.write(content)

    def check_name(self, name: str, replace: bool) -> None:
        """`UserError` for a name that cannot be enrolled, or that is enrolled and not to be replaced."""
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise UserError(f"{name!r} cannot be a speaker's name: it must be printable, without blanks around it")
        if name == UNKNOWN:
            raise UserError(f"nobody can be enrolled as {UNKNOWN!r}: it is the answer for strangers")
        if not replace and any(speaker.name == name for speaker in self.speakers):
            raise UserError(f"{name!r} is enrolled already; --replace enrolls anew")

    def enroll(self, name: str, embeddings: NDArray[np.float32], seconds: float, replace: bool = False) -> Enrollment:
        """Adds a speaker, known from embeddings (n, D) of n recordings of `seconds` in all."""
        self.check_name(name, replace)
        kept = [place for place, speaker in enumerate(self.speakers) if speaker.name != name]
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        added = Enrollment(name, len(embeddings), round(seconds, 3), date)
        self.speakers = [*(self.speakers[place] for place in kept), added]
        self._embeddings = [*(self._embeddings[place] for place in kept), enrollment_mean(embeddings)]
        return added

    def identify(self, embedding: NDArray[np.float32], threshold: float) -> Identification:
        """Compares a unit-normalized embedding (D,) with everybody; equal scores are ranked by name."""
        cosines = np.stack(self._embeddings).astype(np.float64) @ embedding.astype(np.float64)
        pairs = zip((speaker.name for speaker in self.speakers), cosines.tolist(), strict=True)
        scores = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
        best, score = scores[0]
        return Identification(
            name=best if score >= threshold else UNKNOWN,
            best=best,
            score=score,
            margin=score - scores[1][1] if len(scores) > 1 else None,
            threshold=threshold,
            scores=scores,
        )


@contextmanager
def locked_store(path: str | Path, model_hash: str, recipe_hash: str) -> Iterator[EnrollmentStore]:
    """A store to change, new if there is none; saved at the end, with other writers kept out meanwhile."""
    from filelock import FileLock

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            store = EnrollmentStore.begin(path, model_hash, recipe_hash)
            yield store
            store.save(path)
    except OSError as error:
        raise UserError(f"the store {path} cannot be written: {error.strerror or error}") from error


def write_embeddings(path: str | Path, names: Sequence[str], embeddings: NDArray[np.float32], model_hash: str) -> None:
    """Writes a safetensors file: `embeddings` (n, D), metadata `names` (a JSON list) and `model_hash`."""
    from safetensors.numpy import save

    content = save({"embeddings": embeddings}, metadata={"names": json.dumps(list(names)), "model_hash": model_hash})
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"the embeddings cannot be written to {path}: {error.strerror or error}") from error
