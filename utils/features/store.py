"""Features on disk: log-mel frames or samples, and tokens, in memory-mapped Arrow shards, with their recipe.

A store is a folder:

    meta.json             format, raw root, recipe, text front end, and per split its shards, counts, bad files; written
                          last, so a folder without it is incomplete
    recipe.json           the `MelRecipe`
    vocabulary.json       symbol table, if there are transcripts
    features/*.arrow      Arrow streams as Hugging Face `datasets` writes them (`Dataset.from_file` reads them), one row
                          per utterance: the columns of `Row`, `mel` (flat float16, frames x n_mels), `tokens` (int32);
                          if meta.json says so, `audio` (int16 at the recipe's rate, full scale 32,768) for `mel`
    recordings.txt        the recordings as they were (utils/features/recordings.py)
    bad_files.txt         unusable recordings, with the reason
    config.yaml           arguments of the last preprocess.py that made features
    speaker_embeddings/   one embedding of each recording (biometric data), if train_tacomamba.py --voice embedding made
                          them
    protocols/NAME/       splits and trial lists (utils/speaker/protocol.py)
    .staging/             unfinished shards, and records of finished ones until their split is complete
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from utils.corpus.layouts import AUDIO_SUFFIXES, Utterance
from utils.errors import UserError
from utils.features.recipe import MelRecipe
from utils.files import read_json
from utils.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from utils.features.mel import MelExtractor

FORMAT = 2
UNFINISHED = ".staging"
STATISTICS_UTTERANCES = 2000
MIN_STD = 1e-3
KINDS = {"mel": "float16", "audio": "int16"}  # what a store can hold, and the type of its values
FULL_SCALE = 32_768  # of int16, as decoders take it, so that samples of 16 bits are stored as they are


@dataclass(frozen=True, slots=True)
class Row(Utterance):
    """A stored utterance: `seconds` and `frames` are the lengths of its audio and of its mel."""

    seconds: float
    frames: int


COLUMNS = tuple(field.name for field in fields(Row))


class FeatureStore:
    """Read access to preprocessed utterances, ordered by id.

    Opening reads the rows; frames stay on disk and are paged in when they are accessed. A store can be sent to other
    processes, which open it again.
    """

    def __init__(self, directory: Path, meta: dict[str, Any], recipe: MelRecipe, vocabulary: Vocabulary | None) -> None:
        self.directory = directory
        self.meta = meta
        self.kind = kind_of(meta)
        self.recipe = recipe
        self.vocabulary = vocabulary
        self.rows: list[Row] = []
        self._blocks: list[_Block] = []
        places: list[tuple[int, int]] = []
        for batch in _batches(directory, meta):
            columns = [batch.column(name).to_pylist() for name in COLUMNS]
            self.rows.extend(Row(*values) for values in zip(*columns, strict=True))
            places.extend((len(self._blocks), row) for row in range(batch.num_rows))
            self._blocks.append(_Block(batch, self.kind))
        order = sorted(range(len(self.rows)), key=lambda place: self.rows[place].utterance)
        self.rows = [self.rows[place] for place in order]
        self._places = [places[place] for place in order]
        self.index = {row.utterance: place for place, row in enumerate(self.rows)}
        expected = sum(split["utterances"] for split in meta["splits"].values())
        if not len(self.index) == len(self.rows) == expected:
            raise UserError(f"{directory} is damaged: {len(self.rows)} utterances where meta.json says {expected}")

    @classmethod
    def open(cls, directory: str | Path) -> FeatureStore:
        """Opens a complete store; `UserError` if it is missing, incomplete or damaged."""
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"there are no features in {directory}: make them by preprocess.py")
        meta = read_meta(directory)
        if meta is None and _holds_audio(directory):
            raise UserError(f"{directory} looks like raw audio, not like features: make those by preprocess.py")
        if meta is None:
            raise UserError(f"the features in {directory} are incomplete: run the same preprocess.py command again")
        recipe = MelRecipe.from_dict(read_json(directory / "recipe.json"))
        if recipe.hash != meta["recipe"]:
            raise UserError(
                f"{directory}/recipe.json ({recipe.hash}) is not the recipe of meta.json ({meta['recipe']})"
            )
        table = directory / "vocabulary.json"
        vocabulary = Vocabulary.from_dict(read_json(table)) if table.exists() else None
        return cls(directory, meta, recipe, vocabulary)

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore.open, (self.directory,)

    def mel(self, i: int, start: int = 0, frames: int | None = None) -> np.ndarray:
        """Reads log-mel frames (T, n_mels) float32 of row `i`, from frame `start`, at most `frames` of them.

        Only the pages that hold these frames are read. A store of audio computes them.
        """
        if self.kind == "audio":
            return self._computed(i, start, self.rows[i].frames if frames is None else start + frames)
        n_mels, flat = self.recipe.n_mels, self._values(i)
        stop = None if frames is None else (start + frames) * n_mels
        return flat[start * n_mels : stop].astype(np.float32).reshape(-1, n_mels)

    def audio(self, i: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """Reads samples (S,) float32 of row `i` of a store of audio, from `start`, at most `samples` of them."""
        stop = None if samples is None else start + samples
        return self._values(i)[start:stop].astype(np.float32) / np.float32(FULL_SCALE)

    def extract(self, samples: np.ndarray) -> np.ndarray:
        """Computes log-mel frames (T, n_mels) float32 of samples (S,) at the recipe's rate, on one thread."""
        from utils.features.mel import one_thread

        with one_thread():
            return self._extractor(samples)

    @functools.cached_property
    def _extractor(self) -> MelExtractor:
        from utils.features.mel import MelExtractor

        return MelExtractor(self.recipe)

    def _computed(self, i: int, start: int, stop: int) -> np.ndarray:
        """Frames from `start` to `stop` of row `i` of audio; without padding they depend on their samples alone."""
        if self.recipe.padding != "none":
            return self.extract(self.audio(i))[start:stop]
        frames = min(stop, self.rows[i].frames) - start
        return self.extract(self.audio(i, start * self.recipe.hop_length, self.recipe.samples(frames)))

    def _values(self, i: int) -> np.ndarray:
        """A view of the values that are stored of row `i`."""
        block, row = self._places[i]
        return self._blocks[block].values(row)

    def tokens(self, i: int) -> np.ndarray:
        """Reads the tokens (N,) int32 of the transcript of row `i`, from BOS to EOS; empty if it has none."""
        block, row = self._places[i]
        return self._blocks[block].tokens(row).copy()

    def statistics(
        self, items: Sequence[int], seed: int, prepare: Callable[[np.ndarray], np.ndarray] = lambda mel: mel
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes mean and standard deviation of each mel channel over `items` (at most 2000, drawn by `seed`).

        `prepare` changes each mel (T, n_mels) first. Utterances with NaN or infinite values are left out; training
        skips and logs steps that meet them.

        Returns:
            Mean and deviation, each (n_mels,) float32.
        """
        if len(items) > STATISTICS_UTTERANCES:
            chosen = np.random.default_rng([seed, 4]).choice(len(items), STATISTICS_UTTERANCES, replace=False)
            items = [items[position] for position in sorted(chosen)]
        count, total, squares = 0, 0.0, 0.0
        for item in items:
            mel = self.mel(item)
            if not np.isfinite(mel).all():
                continue
            mel = prepare(mel).astype(np.float64)
            count, total, squares = count + len(mel), total + mel.sum(0), squares + np.square(mel).sum(0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, MIN_STD**2))
        return mean.astype(np.float32), std.astype(np.float32)

    def listed(self, utterances: Sequence[str], what: str) -> list[int]:
        """Finds the rows of listed utterances; `UserError`, naming the `what` list, if one is not stored."""
        missing = [utterance for utterance in utterances if utterance not in self.index]
        if missing:
            raise UserError(f"utterance {missing[0]} of the {what} list is not in {self.directory}")
        return [self.index[utterance] for utterance in utterances]

    def with_a_frame_a_token(self, items: Sequence[int]) -> list[int]:
        """Selects the rows of `items` that have at least one frame for each token, so that they can be aligned."""
        return [item for item in items if len(self.tokens(item)) <= self.rows[item].frames]


class _Block:
    """Views of the two list columns of a record batch in the mapped file."""

    def __init__(self, batch: pa.RecordBatch, kind: str) -> None:
        values, tokens = batch.column(kind), batch.column("tokens")
        self._values, self._offsets = values.values.to_numpy(), values.offsets.to_numpy()
        self._tokens, self._token_offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()

    def values(self, row: int) -> np.ndarray:
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def tokens(self, row: int) -> np.ndarray:
        return self._tokens[self._token_offsets[row] : self._token_offsets[row + 1]]


def read_meta(directory: Path) -> dict[str, Any] | None:
    """Reads the completion record of a store, None if there is none; `UserError` if it is of another format."""
    path = directory / "meta.json"
    if not path.exists():
        return None
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a feature store of format {FORMAT}, so another version made it: delete {directory} and run "
            "preprocess.py again"
        )
    return meta


def _holds_audio(directory: Path) -> bool:
    """Whether there is a recording among the first files below a folder."""
    return any(path.suffix.lower() in AUDIO_SUFFIXES for path in itertools.islice(directory.rglob("*"), 10_000))


def kind_of(meta: dict[str, Any]) -> str:
    """What a store holds, a key of `KINDS`."""
    return meta.get("store", "mel")


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Samples (S,) as int16; those of a recording that exceeds full scale are scaled down to it."""
    peak = max(1.0, float(np.abs(samples).max()))
    return np.rint(samples * (FULL_SCALE / peak)).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def shard_paths(directory: Path, meta: dict[str, Any]) -> list[Path]:
    """Paths of the Arrow files of a store."""
    return [directory / "features" / name for split in meta["splits"].values() for name in split["shards"]]


def _batches(directory: Path, meta: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    for path in shard_paths(directory, meta):
        try:
            with pa.memory_map(str(path)) as mapped:
                yield from pa.ipc.open_stream(mapped)
        except (OSError, pa.ArrowInvalid) as error:
            advice = f"delete {directory} and run preprocess.py again"
            raise UserError(f"{path} is missing or damaged ({error}): {advice}") from error
