"""Making a feature store: recordings to Arrow shards in parallel, so that an interrupted run loses little.

A shard is written under OUT/.staging and renamed into place; then a record of what it was made from is put beside it,
and a rerun keeps every shard whose record still holds. Which utterance goes into which shard depends on the corpus
alone, so the files are equal for any number of processes. meta.json is written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from utils.cli import progress
from utils.corpus.layouts import Utterance
from utils.errors import TooMuchBadData, UserError
from utils.features.extract import Shard, make_shard
from utils.features.recipe import MelRecipe, require_same
from utils.features.store import FORMAT, FeatureStore, read_meta
from utils.files import read_json, write_json, write_text
from utils.text.frontend import VERSION
from utils.text.vocabulary import VOCABULARIES

UTTERANCES_PER_SHARD = 128
MAX_SHARDS = 64  # per split: a store of all of LibriSpeech opens fewer files than a process usually may


def build(
    utterances: Sequence[Utterance],
    raw: str | Path,
    out: str | Path,
    recipe: MelRecipe,
    num_proc: int = 1,
    max_bad: float = 0.01,
    units: str = "char",
) -> tuple[FeatureStore, bool]:
    """Makes the features of `utterances` in `out`, or the part of them that is not there yet.

    Args:
        utterances: whole splits, as `read_corpus` gives them, with paths relative to `raw`.
        num_proc: worker processes; the result does not depend on it.
        max_bad: share of unusable recordings above which nothing is marked complete.
        units: what the tokens of the transcripts stand for, "char" or "phoneme".

    Returns:
        The store, and whether there was anything to do.

    Raises:
        UserError: `out` holds features of another recipe, of other units or of other files, no recording is usable, or
            espeak-ng is missing where phonemes are asked for.
        TooMuchBadData: more than `max_bad` of the recordings are unusable.
    """
    raw, out = Path(raw), Path(out)
    with _locked(out):
        text = {"units": units, "version": VERSION}
        meta = read_meta(out) or {"format": FORMAT, "raw": str(raw), "recipe": recipe.hash, "text": text, "splits": {}}
        _refuse_other_text(meta["text"], text, out)
        shards = _plan(utterances, raw, out, recipe, meta)
        if shards:
            records = _make_shards(shards, num_proc)
            _refuse_bad(shards, records, out, meta, max_bad)
            _complete(shards, records, out, recipe, meta)
        return FeatureStore.open(out), bool(shards)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One process at a time makes features in a folder."""
    import filelock

    try:
        out.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(out / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(f"another preprocess.py is at work in {out}") from error
    except OSError as error:
        raise UserError(f"making features in {out} failed: {error}") from error


def _refuse_other_text(there: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """A store's tokens are all of one kind."""
    if there["units"] != asked["units"]:
        raise UserError(
            f"the tokens in {out} are of units {there['units']}, and {asked['units']} is asked for: "
            "choose another --out"
        )
    if there != asked:
        raise UserError(
            f"the tokens in {out} were made by version {there['version']} of the text front end, and this is version "
            f"{asked['version']}: choose another --out, or delete {out}"
        )


def _plan(utterances: Sequence[Utterance], raw: Path, out: Path, recipe: MelRecipe, meta: dict) -> list[Shard]:
    """The shards of all splits that are not complete; refuses what does not fit the features that are there."""
    if meta["splits"]:
        require_same(MelRecipe.from_dict(read_json(out / "recipe.json")), recipe, str(out), "the one asked for")
    shards: list[Shard] = []
    in_order = sorted(utterances, key=lambda utterance: (utterance.split, utterance.utterance))
    for split, group in groupby(in_order, key=lambda utterance: utterance.split):
        members = tuple(group)
        done = meta["splits"].get(split)
        if done is None:
            shards.extend(_shards_of(split, members, raw, out, recipe, meta["text"]))
        elif done["source"] != _key(members, raw, recipe, meta["text"]):
            raise UserError(
                f"split {split} in {out} was made from other recordings or transcripts than {raw} holds now: "
                f"choose another --out, or delete {out}"
            )
    if shards and meta["splits"]:
        _refuse_mixture(shards, raw, out, meta)
    return shards


def _shards_of(
    split: str, members: tuple[Utterance, ...], raw: Path, out: Path, recipe: MelRecipe, text: dict[str, Any]
) -> Iterator[Shard]:
    count = min(-(-len(members) // UTTERANCES_PER_SHARD), MAX_SHARDS)
    for number in range(count):
        part = members[number * len(members) // count : (number + 1) * len(members) // count]
        name = f"{split}-{number:05d}-of-{count:05d}.arrow"
        yield Shard(name, split, part, _key(part, raw, recipe, text), raw, out, recipe, text["units"])


def _key(utterances: Iterable[Utterance], raw: Path, recipe: MelRecipe, text: dict[str, Any]) -> str:
    """A hash of everything that a shard's bytes follow from, with file sizes for the recordings' contents."""
    table = VOCABULARIES[text["units"]].to_dict()
    digest = hashlib.sha256(json.dumps([FORMAT, recipe.to_dict(), text, table]).encode())
    for utterance in utterances:
        try:
            size = os.stat(raw / utterance.path).st_size
        except OSError:
            size = -1
        digest.update(json.dumps([*dataclasses.astuple(utterance), size]).encode())
    return digest.hexdigest()


def _refuse_mixture(shards: Sequence[Shard], raw: Path, out: Path, meta: dict) -> None:
    """A store has one raw root, which its paths are relative to, and each utterance once."""
    if Path(meta["raw"]).resolve() != raw.resolve():
        raise UserError(f"{out} was made from {meta['raw']}: give the same --raw, or another --out for {raw}")
    there = FeatureStore.open(out).index
    twice = next((u.utterance for shard in shards for u in shard.utterances if u.utterance in there), None)
    if twice is not None:
        raise UserError(f"utterance {twice} of split {shards[0].split} is in {out} already, in another split")


def _make_shards(shards: Sequence[Shard], num_proc: int) -> list[dict[str, Any]]:
    """Makes the shards that an earlier run did not finish; the records of all, in order."""
    _sweep(shards)
    records = {shard.name: record for shard in shards if (record := _kept_record(shard))}
    missing = [shard for shard in shards if shard.name not in records]
    total = sum(len(shard.utterances) for shard in shards)
    kept = total - sum(len(shard.utterances) for shard in missing)
    made = _make_here(missing) if min(num_proc, len(missing)) <= 1 else _make_in_workers(missing, num_proc)
    with progress(total=total, initial=kept, unit="utt", desc="features") as bar:
        for shard, record in made:
            records[shard.name] = record
            bar.update(len(shard.utterances))
    return [records[shard.name] for shard in shards]


def _kept_record(shard: Shard) -> dict[str, Any] | None:
    """The record of a shard that an earlier run finished; one with bad files is made again, they may be mended."""
    try:
        record = json.loads(shard.record_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if shard.path.exists() and record["key"] == shard.key and not record["bad"] else None


def _sweep(shards: Sequence[Shard]) -> None:
    """Removes what unfinished runs over other files left of these splits."""
    names = {shard.name for shard in shards}
    for split in {shard.split for shard in shards}:
        for folder in ("features", ".staging"):
            for path in (shards[0].out / folder).glob(f"{split}-?????-of-?????.arrow*"):
                if path.name.removesuffix(".json") not in names or path.is_dir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make_here(shards: Sequence[Shard]) -> Iterator[tuple[Shard, dict[str, Any]]]:
    for shard in shards:
        yield shard, make_shard(shard, stopped=lambda: False)


def _make_in_workers(shards: Sequence[Shard], num_proc: int) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """Yields shards as they are finished; an exception here stops the workers at their next recording."""
    context = multiprocessing.get_context("spawn")  # forking a process with threads (torch, Arrow) can hang
    stop = context.Event()
    workers = min(num_proc, len(shards))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(stop,)) as pool:
        try:
            futures = {pool.submit(_work, shard): shard for shard in shards}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (killed, or out of memory); the finished shards are kept: "
                "run the same command again, perhaps with a smaller --num-proc"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_stop: Any = None


def _start_worker(stop: Any) -> None:
    """Workers leave Ctrl-C to the main process, and do not outlive it."""
    import tqdm

    global _stop
    _stop = stop
    tqdm.tqdm.set_lock(threading.RLock())  # its own lock is a semaphore that a killed worker would leave behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _work(shard: Shard) -> dict[str, Any]:
    return make_shard(shard, stopped=_stop.is_set)


def _refuse_bad(shards: Sequence[Shard], records: Sequence[dict], out: Path, meta: dict, max_bad: float) -> None:
    """Lists the bad recordings; raises if they are all or too many."""
    bad = [pair for record in records for pair in record["bad"]]
    earlier = [pair for split in meta["splits"].values() for pair in split["bad"]]
    write_text(out / "bad_files.txt", "".join(f"{path}\t{reason}\n" for path, reason in sorted([*earlier, *bad])))
    total = sum(len(shard.utterances) for shard in shards)
    if bad and len(bad) == total:
        raise UserError(f"none of the {total} recordings can be used; the first: {': '.join(bad[0])}")
    if len(bad) > max_bad * total:
        raise TooMuchBadData(
            f"{len(bad)} of {total} recordings ({len(bad) / total:.1%}) cannot be used, more than --max-bad {max_bad} "
            f"allows; {out}/bad_files.txt lists them, the first: {': '.join(bad[0])}"
        )


def _complete(shards: Sequence[Shard], records: Sequence[dict], out: Path, recipe: MelRecipe, meta: dict) -> None:
    """Writes what belongs to the whole store, meta.json last, and drops the records that it replaces."""
    for split, group in groupby(zip(shards, records, strict=True), key=lambda pair: pair[0].split):
        made = list(group)
        members = [utterance for shard, _ in made for utterance in shard.utterances]
        meta["splits"][split] = {
            "source": _key(members, shards[0].raw, recipe, meta["text"]),
            **{key: sum(record[key] for _, record in made) for key in ("utterances", "frames", "seconds")},
            "shards": [shard.name for shard, _ in made],
            "bad": [pair for _, record in made for pair in record["bad"]],
            "unknown": dict(sum((Counter(record["unknown"]) for _, record in made), Counter())),
        }
    meta["splits"] = dict(sorted(meta["splits"].items()))
    write_json(out / "recipe.json", recipe.to_dict())
    if any(utterance.text for shard in shards for utterance in shard.utterances):
        write_json(out / "vocabulary.json", VOCABULARIES[meta["text"]["units"]].to_dict())
    write_json(out / "meta.json", meta)
    for shard in shards:
        shard.record_path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # records of another unfinished split keep the folder
        (out / ".staging").rmdir()
