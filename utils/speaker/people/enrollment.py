"""A store of enrolled speakers, and identification among them.

A store is a safetensors file: `embeddings` (r, d), unit-normalized, one per recording, speaker by speaker, and JSON
metadata: the model, and for each speaker the name, the number and the seconds of the recordings, and the day.
Embeddings of different models cannot be compared, so a store belongs to the model that created it.
"""

from __future__ import annotations

import datetime
import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import write_bytes
from utils.speaker.embeddings import enrollment_mean
from utils.speaker.scoring.validation import Recordings

if TYPE_CHECKING:
    from utils.speaker.scoring.scoring import Scoring

UNKNOWN = "unknown"
"""The answer when no enrolled speaker reaches the threshold; a reserved name."""

_KEY, _FORMAT = "enrolment", "tacomamba-enrolment-2"  # spelled as in the first version's files
_OF_MEANS = "tacomamba-enrolment-1"  # has the mean of each speaker alone, which counts as one recording


Known = Literal["refuse", "replace", "add"]


@dataclass(frozen=True)
class Enrollment:
    """Source of a speaker's embedding: number of recordings, their total seconds, and the day (UTC)."""

    name: str
    count: int
    seconds: float
    date: str


@dataclass(frozen=True)
class Identification:
    """The speaker of a recording: `name` is the best match, or "unknown" if its score is below `threshold`.

    `scores` are (name, cosine) from best to worst; `margin` is the lead over the second (None if there is none). `llrs`
    are log-likelihood ratios in the same order, if the model has a calibration.
    """

    name: str
    best: str
    score: float
    margin: float | None
    threshold: float
    scores: list[tuple[str, float]]
    llrs: list[float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `llr` of each candidate is null without a calibration."""
        llrs = self.llrs or [None] * len(self.scores)
        pairs = zip(self.scores, llrs, strict=True)
        scores = [{"name": name, "score": score, "llr": llr} for (name, score), llr in pairs]
        return {**{name: value for name, value in asdict(self).items() if name != "llrs"}, "scores": scores}


_ADVICE = "--add adds to the recordings, --replace replaces them"
_PATIENCE = 30  # s to wait for another process that writes a store


class EnrollmentStore:
    """Speakers enrolled with one model; the module describes the file."""

    def __init__(self, model_hash: str, recipe_hash: str) -> None:
        self.model_hash, self.recipe_hash = model_hash, recipe_hash
        self.speakers: list[Enrollment] = []
        self._recordings: list[NDArray[np.float32]] = []  # (n, d) of each speaker

    @classmethod
    def load(cls, path: str | Path, model_hash: str | None = None) -> EnrollmentStore:
        """Reads a store; `UserError` if it is missing, empty, damaged, or not of the model `model_hash` if given."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file() or not Path(path).stat().st_size:
            raise UserError(f"there is no enrollment store at {path}, or it is empty; enroll a speaker first")
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                is_store = about.get("format") in (_FORMAT, _OF_MEANS)
                store = cls._of(about, file.get_tensor("embeddings")) if is_store else None
        except (SafetensorError, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
            raise UserError(f"{path} is not an enrollment store, or it is damaged: {error}") from error
        if store is None:
            raise UserError(f"{path} is a safetensors file, but not an enrollment store")
        if model_hash not in (None, store.model_hash):
            raise UserError(
                f"the store {path} belongs to model {store.model_hash}, and the checkpoint is model {model_hash}: "
                "their embeddings cannot be compared"
            )
        return store

    @classmethod
    def _of(cls, about: dict[str, Any], embeddings: NDArray[np.float32]) -> EnrollmentStore:
        """The store of a file's content."""
        store = cls(about["model_hash"], about["recipe_hash"])
        store.speakers = [Enrollment(**speaker) for speaker in about["speakers"]]
        rows = about.get("rows", [1] * len(store.speakers))
        if len(rows) != len(store.speakers) or sum(rows) != len(embeddings):
            raise ValueError(f"{len(embeddings)} embeddings where {len(store.speakers)} people have {sum(rows)}")
        store._recordings = np.split(embeddings, np.cumsum(rows)[:-1]) if rows else []
        return store

    @classmethod
    def begin(cls, path: str | Path, model_hash: str, recipe_hash: str) -> EnrollmentStore:
        """The store at `path` to add to; a new one if there is none, or an empty file."""
        path = Path(path)
        if path.exists() and not path.is_file():
            raise UserError(f"the store {path} is not a file")
        if not path.exists() or not path.stat().st_size:
            return cls(model_hash, recipe_hash)
        return cls.load(path, model_hash)

    def save(self, path: str | Path) -> None:
        """Writes the store completely or not at all."""
        from safetensors.numpy import save

        about = {
            "format": _FORMAT,
            "model_hash": self.model_hash,
            "recipe_hash": self.recipe_hash,
            "speakers": [asdict(speaker) for speaker in self.speakers],
            "rows": [len(each) for each in self._recordings],
        }
        nobody = np.empty((0, 0), dtype=np.float32)
        embeddings = np.concatenate(self._recordings) if self._recordings else nobody
        content = save({"embeddings": embeddings}, metadata={_KEY: json.dumps(about)})
        write_bytes(path, content)

    def remove(self, name: str) -> None:
        """Takes a speaker out; `UserError` if there is none of this name."""
        place = self._place(name)
        del self.speakers[place], self._recordings[place]

    def rename(self, name: str, new: str) -> None:
        """Gives a speaker another name; `UserError` if there is none of the old name, or one of the new."""
        place = self._place(name)
        self.check_name(new, advice="choose another name")
        self.speakers[place] = replace(self.speakers[place], name=_composed(new))

    def _place(self, name: str) -> int:
        places = [place for place, speaker in enumerate(self.speakers) if speaker.name == _composed(name)]
        if not places:
            names = ", ".join(speaker.name for speaker in self.speakers)
            raise UserError(f"nobody is enrolled as {name!r}: there is {names or 'nobody at all'}")
        return places[0]

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """Unit-normalized embeddings (s, d) of `speakers`: the means over their recordings."""
        means = [enrollment_mean(each) for each in self._recordings]
        return np.stack(means) if means else np.empty((0, 0), dtype=np.float32)

    def check_name(self, name: str, known: Known = "refuse", advice: str = _ADVICE) -> None:
        """`UserError` for a name that cannot be enrolled, or is enrolled already and to be refused."""
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise UserError(
                f"{name!r} cannot be a speaker's name: it must be printable, without leading or trailing spaces"
            )
        if name == UNKNOWN:
            raise UserError(f"nobody can be enrolled as {UNKNOWN!r}: it is the answer for strangers")
        if known == "refuse" and any(speaker.name == _composed(name) for speaker in self.speakers):
            raise UserError(f"{name!r} is enrolled already: {advice}")

    def enroll(self, name: str, embeddings: NDArray[np.float32], seconds: float, known: Known = "refuse") -> Enrollment:
        """Enrolls a speaker by the embeddings (n, d) of n recordings of `seconds` in total.

        `known` says what to do if the name is enrolled already.
        """
        self.check_name(name, known)
        name, count = _composed(name), len(embeddings)
        place = next((place for place, speaker in enumerate(self.speakers) if speaker.name == name), None)
        if place is not None:
            before, recordings = self.speakers.pop(place), self._recordings.pop(place)
            if known == "add":
                embeddings = np.concatenate([recordings, embeddings])
                count, seconds = count + before.count, seconds + before.seconds
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.speakers.append(Enrollment(name, count, round(seconds, 3), date))
        self._recordings.append(embeddings)
        return self.speakers[-1]

    def require_people(self) -> None:
        """`UserError` if nobody is enrolled."""
        if not self.speakers:
            raise UserError("the store holds nobody: enroll somebody first")

    def identify(
        self, embedding: NDArray[np.float32], threshold: float, scoring: Scoring | None = None, seconds: float = 1.0
    ) -> Identification:
        """Compares a unit-normalized embedding (d,) with all enrolled; equal scores are ranked by name.

        `scoring` gives log-likelihood ratios too, by the `seconds` of the recording and those that each speaker was
        enrolled from.
        """
        self.require_people()
        cosines = self.embeddings.astype(np.float64) @ embedding.astype(np.float64)
        order = sorted(range(len(cosines)), key=lambda place: (-cosines[place], self.speakers[place].name))
        scores = [(self.speakers[place].name, float(cosines[place])) for place in order]
        best, score = scores[0]
        people = Recordings(self.embeddings, np.array([each.seconds for each in self.speakers]))
        llrs = scoring and scoring.llrs(Recordings(embedding[None], np.array([seconds])), people)
        return Identification(
            name=best if score >= threshold else UNKNOWN,
            best=best,
            score=score,
            margin=score - scores[1][1] if len(scores) > 1 else None,
            threshold=threshold,
            scores=scores,
            llrs=None if llrs is None else llrs[0, order].tolist(),
        )


def _composed(name: str) -> str:
    """The one form of a name that can be written in several, as an e with its accent or before it."""
    return unicodedata.normalize("NFC", name)


@contextmanager
def locked_store(path: str | Path, *owner: str) -> Iterator[EnrollmentStore]:
    """Opens a store to change, saves it at the end, and excludes other writers until then.

    With an `owner`, the hashes of a model and of its recipe, a missing store is begun.
    """
    from filelock import FileLock, Timeout

    path = Path(path).resolve()  # or a link to the store would have a lock of its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_PATIENCE):
            store = EnrollmentStore.begin(path, *owner) if owner else EnrollmentStore.load(path)
            yield store
            store.save(path)
    except Timeout as error:
        raise UserError(
            f"the store {path} is being written by another process, or cannot be locked: try again"
        ) from error
    except OSError as error:
        raise UserError(f"the store {path} cannot be written: {error.strerror or error}") from error
