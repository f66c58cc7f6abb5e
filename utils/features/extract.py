"""One shard of a feature store: recordings in, an Arrow file out, by one batched `Dataset.map`."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from utils.corpus.layouts import Utterance
from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.recipe import MelRecipe
from utils.files import write_json
from utils.text.frontend import EncodedText, FrontEnd

BATCH = 32  # recordings held in memory at once, and rows of a record batch


SCHEMA = pa.schema(
    {
        "utterance": pa.string(),
        "path": pa.string(),
        "split": pa.string(),
        "speaker": pa.string(),
        "chapter": pa.string(),
        "sex": pa.string(),
        "text": pa.string(),
        "seconds": pa.float64(),
        "frames": pa.int32(),
        "mel": pa.list_(pa.float16()),
        "tokens": pa.list_(pa.int32()),
    }
)


@dataclass(frozen=True)
class Shard:
    """One file of a store: the recordings that go into it, and a key over all that shapes its bytes."""

    name: str
    split: str
    utterances: tuple[Utterance, ...]
    key: str
    raw: Path
    out: Path
    recipe: MelRecipe
    units: str

    @property
    def path(self) -> Path:
        return self.out / "features" / self.name

    @property
    def record_path(self) -> Path:
        """What is known of the finished shard, as JSON; kept until its split is complete."""
        return self.out / ".staging" / f"{self.name}.json"

    @property
    def workplace(self) -> Path:
        """Where the file grows, with every cache of `datasets`, before it takes its place."""
        return self.out / ".staging" / self.name


class Stopped(Exception):
    """The run was told to stop between two recordings."""


def make_shard(shard: Shard, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Writes the shard's file and its record, and returns the record.

    The record holds `key`, `utterances`, `frames`, `seconds`, `bad` (pairs of path and reason) and `unknown`
    (symbols that the vocabulary lacks, with counts).
    """
    import torch

    shutil.rmtree(shard.workplace, ignore_errors=True)
    shard.workplace.mkdir(parents=True)
    shard.path.parent.mkdir(exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products split over threads round differently: one thread, whoever makes the shard
    try:
        extraction = _Extraction(shard, stopped)
        staged = _map(shard, extraction)
        _sync(staged)
        os.replace(staged, shard.path)
        record = {"key": shard.key, **extraction.record()}
        write_json(shard.record_path, record)
        return record
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(shard.workplace, ignore_errors=True)


def _map(shard: Shard, extraction: _Extraction) -> Path:
    """Runs the extraction over the shard's recordings; the Arrow file that it fills."""
    datasets = _import_datasets(shard.workplace)
    names = [field.name for field in dataclasses.fields(Utterance)]
    source = datasets.Dataset.from_dict(
        {name: [getattr(utterance, name) for utterance in shard.utterances] for name in names},
        features=datasets.Features({name: datasets.Value("string") for name in names}),
    )
    staged = shard.workplace / "data.arrow"
    source.map(
        extraction,
        batched=True,
        batch_size=BATCH,
        remove_columns=names,
        features=datasets.Features.from_arrow_schema(SCHEMA),
        cache_file_name=str(staged),
        load_from_cache_file=False,
        new_fingerprint=shard.key[:16],  # written into the file: a hash of this object would differ between runs
    )
    return staged


def _import_datasets(cache: Path) -> Any:
    """Hugging Face `datasets` without network, without progress bars, and with its caches in `cache`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets

    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


class _Extraction:
    """The mapped function: a batch of recordings to the columns of `SCHEMA`, without those that cannot be used."""

    def __init__(self, shard: Shard, stopped: Callable[[], bool]) -> None:
        from utils.features.mel import MelExtractor

        self._raw = shard.raw
        self._recipe = shard.recipe
        self._extractor = MelExtractor(shard.recipe)
        self._texts = _encode_texts(shard)
        self._stopped = stopped
        self._bad: list[tuple[str, str]] = []
        self._unknown: Counter[str] = Counter()
        self._totals = {"utterances": 0, "frames": 0, "seconds": 0.0}

    def __call__(self, batch: Any) -> pa.Table:
        fields = {name: batch[name] for name in SCHEMA.names[:7]}
        rows = [self._row(dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]
        rows = [row for row in rows if row is not None]
        columns = [_column([row[field.name] for row in rows], field.type) for field in SCHEMA]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def _row(self, known: dict[str, Any]) -> dict[str, Any] | None:
        if self._stopped():
            raise Stopped
        path = self._raw / known["path"]
        try:
            samples = load_audio(path, self._recipe.sample_rate)
            mel = self._extractor(samples)
        except UserError as error:
            # Without the raw root, which the list need not repeat and which differs between machines.
            self._bad.append((known["path"], str(error).removeprefix(f"{path} ")))
            return None
        text = self._texts.get(known["utterance"])
        seconds = len(samples) / self._recipe.sample_rate
        self._unknown += text.unknown if text else Counter()
        self._totals["utterances"] += 1
        self._totals["frames"] += len(mel)
        self._totals["seconds"] += seconds
        return {
            **known,
            "seconds": seconds,
            "frames": len(mel),
            "mel": mel.astype(np.float16).ravel(),
            "tokens": text.tokens if text else np.empty(0, np.int32),
        }

    def record(self) -> dict[str, Any]:
        return {**self._totals, "bad": self._bad, "unknown": dict(sorted(self._unknown.items()))}


def _encode_texts(shard: Shard) -> dict[str, EncodedText]:
    """All transcripts of the shard by utterance: phonemes cost a process, so they are asked for once."""
    spoken = [utterance for utterance in shard.utterances if utterance.text]
    encoded = FrontEnd.for_units(shard.units).encode([utterance.text or "" for utterance in spoken])
    return {utterance.utterance: text for utterance, text in zip(spoken, encoded, strict=True)}


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values, type=kind)
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
    flat = np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, type=kind.value_type))


def _sync(path: Path) -> None:
    """Flushes a file to the disk before it takes its place."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
