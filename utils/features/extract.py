"""Extraction of one shard of a feature store: recordings in, an Arrow file out, by one batched `Dataset.map`."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.corpus.layouts import Utterance
from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.recipe import MelRecipe
from utils.features.recordings import stamp
from utils.features.store import KINDS, UNFINISHED, to_pcm
from utils.files import shown, take_owner_and_mode, write_json
from utils.text.frontend import EncodedText, FrontEnd

BATCH = 32  # recordings held in memory at once, and rows of a record batch


@dataclass(frozen=True)
class Shard:
    """One file of a store: the recordings that go into it, and a key over everything that determines its bytes."""

    name: str
    split: str
    utterances: tuple[Utterance, ...]
    key: str
    raw: Path
    out: Path
    recipe: MelRecipe
    units: str
    kind: str

    @property
    def path(self) -> Path:
        """The finished file."""
        return self.out / "features" / self.name

    @property
    def record_path(self) -> Path:
        """JSON record of the finished shard; kept until its split is complete."""
        return self.out / UNFINISHED / f"{self.name}.json"

    @property
    def workplace(self) -> Path:
        """Folder of the unfinished file and of every cache of `datasets`."""
        return self.out / UNFINISHED / self.name


class Stopped(Exception):
    """The run was stopped between two recordings."""


def make_shard(shard: Shard, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Writes the shard's file and its record, and returns the record.

    The record holds `key`, `recordings` (pairs of path and stamp), `utterances`, `frames`, `seconds`, `bad` (pairs of
    path and reason) and `unknown` (symbols missing from the vocabulary, with counts).

    Raises:
        Stopped: `stopped()` became true.
    """
    from utils.features.mel import one_thread

    shutil.rmtree(shard.workplace, ignore_errors=True)
    shard.workplace.mkdir(parents=True)
    shard.path.parent.mkdir(exist_ok=True)
    try:
        staged = shard.workplace / "data.arrow"
        stamps = [(utterance.path, stamp(shard.raw / utterance.path)) for utterance in shard.utterances]
        with one_thread():  # whoever makes the shard, its bytes are the same
            record = {"key": shard.key, "recordings": stamps, **_map(shard, staged, stopped)}
        with open(staged, "rb") as file:
            os.fsync(file.fileno())  # before it takes its place
        take_owner_and_mode(staged, shard.path)
        os.replace(staged, shard.path)
        write_json(shard.record_path, record)
        return record
    finally:
        shutil.rmtree(shard.workplace, ignore_errors=True)


def _map(shard: Shard, staged: Path, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Extracts the shard's recordings into the Arrow file `staged`; returns the record's counts."""
    datasets = _import_datasets(shard.workplace)
    strings = {field.name: datasets.Value("string") for field in dataclasses.fields(Utterance)}
    numbers = {"seconds": datasets.Value("float64"), "frames": datasets.Value("int32")}
    types = {shard.kind: KINDS[shard.kind], "tokens": "int32"}
    lists = {name: datasets.List(datasets.Value(type)) for name, type in types.items()}
    source = datasets.Dataset.from_list(
        [dataclasses.asdict(utterance) for utterance in shard.utterances], features=datasets.Features(strings)
    )
    texts = _encode_texts(shard)
    bad: list[tuple[str, str]] = []
    extracted = source.map(
        functools.partial(_extract, shard, _maker(shard), texts, bad, stopped),
        batched=True,
        batch_size=BATCH,
        remove_columns=source.column_names,  # a batch may return fewer rows than it had
        features=datasets.Features({**strings, **numbers, **lists}),
        cache_file_name=str(staged),
        load_from_cache_file=False,
        new_fingerprint=shard.key[:16],  # written into the file: a hash of these objects would differ between runs
    )
    unknown = sum((texts[name].unknown for name in extracted["utterance"] if name in texts), Counter())
    return {
        "utterances": len(extracted),
        "frames": sum(extracted["frames"]),
        "seconds": sum(extracted["seconds"]),
        "bad": bad,
        "unknown": dict(sorted(unknown.items())),
    }


def _import_datasets(cache: Path) -> Any:
    """Imports Hugging Face `datasets` without network and progress bars, and with its caches in `cache`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets

    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _extract(
    shard: Shard,
    make: Callable[[np.ndarray], np.ndarray],
    texts: Mapping[str, EncodedText],
    bad: list[tuple[str, str]],
    stopped: Callable[[], bool],
    batch: Mapping[str, list[Any]],
) -> dict[str, list[Any]]:
    """Maps a batch of utterances to rows with features; recordings that cannot be used go to `bad` instead."""
    columns: dict[str, list[Any]] = {name: [] for name in (*batch, "seconds", "frames", shard.kind, "tokens")}
    rate = shard.recipe.sample_rate
    for values in zip(*batch.values(), strict=True):
        if stopped():
            raise Stopped
        row = dict(zip(batch, values, strict=True))
        path = shard.raw / row["path"]
        try:
            samples = load_audio(path, rate)
            shard.recipe.require_frame(len(samples))
            stored = make(samples)
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with one file, the others can be used
            bad.append((row["path"], _reason(error, path)))
            continue
        text = texts.get(row["utterance"])
        row |= {"seconds": len(samples) / rate, "frames": shard.recipe.frames(len(samples)), shard.kind: stored}
        row["tokens"] = text.tokens if text else np.empty(0, np.int32)
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _maker(shard: Shard) -> Callable[[np.ndarray], np.ndarray]:
    """The function from samples (S,) float32 to what the shard stores of them."""
    if shard.kind == "audio":
        return to_pcm
    from utils.features.mel import MelExtractor

    extractor = MelExtractor(shard.recipe)
    return lambda samples: extractor(samples).astype(np.float16).ravel()


def _reason(error: Exception, path: Path) -> str:
    """One line without the raw root, which the list need not repeat and which differs between machines."""
    text = shown(error).removeprefix(f"{path} ")
    return " ".join((text if isinstance(error, UserError) else f"{type(error).__name__}: {text}").split())


def _encode_texts(shard: Shard) -> dict[str, EncodedText]:
    """Encodes all transcripts of the shard, by utterance; once, because phonemes cost a process each time."""
    texts = {utterance.utterance: utterance.text for utterance in shard.utterances if utterance.text}
    return dict(zip(texts, FrontEnd.for_units(shard.units).encode(list(texts.values())), strict=True))
