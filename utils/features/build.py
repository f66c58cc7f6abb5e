"""Construction of a feature store: recordings to Arrow shards in parallel; an interrupted run loses little.

A shard is written under OUT/.staging and renamed into place; a record in OUT/.staging then says what it was made from,
and a rerun keeps every shard whose record still matches. The assignment of utterances to shards depends on the corpus
alone, so the files are equal for any number of processes. meta.json is written last.

`Dataset.map(num_proc=...)` is not used for the parallel part: its files depend on the number of processes, a killed
worker costs everything that is not a finished file, and its forked workers outlive a killed run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
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
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from utils.cli import progress
from utils.corpus.layouts import Utterance
from utils.errors import TooMuchBadData, UserError
from utils.features.extract import Shard, make_shard
from utils.features.recipe import MelRecipe, require_same
from utils.features.recordings import read_stamps, restamp, stamps_of, write_stamps
from utils.features.store import FORMAT, UNFINISHED, FeatureStore, kind_of, read_meta
from utils.files import read_json, remove_leftovers, shown, write_json, write_text
from utils.locks import only_writer
from utils.text.frontend import VERSION
from utils.text.vocabulary import VOCABULARIES

UTTERANCES_PER_SHARD = 128
MAX_SHARDS = 64  # per split, so that a store of all of LibriSpeech stays below the usual limit of open files


def build(
    utterances: Sequence[Utterance],
    raw: str | Path,
    out: str | Path,
    recipe: MelRecipe,
    num_proc: int = 1,
    max_bad: float = 0.01,
    units: str = "char",
    kind: str = "mel",
) -> tuple[FeatureStore, bool]:
    """Makes those features of `utterances` that `out` does not hold yet.

    Args:
        utterances: whole splits, as `read_corpus` returns them, with paths relative to `raw`.
        num_proc: number of worker processes; the result does not depend on it.
        max_bad: tolerated share of unusable recordings; above it, no split is marked complete.
        units: symbols of the transcripts' tokens, "char" or "phoneme".
        kind: what is stored of a recording, "mel" or "audio".

    Returns:
        The store, and whether anything was made.

    Raises:
        UserError: `out` holds features of another recipe, kind, of other units or of other files, no recording is
            usable, or phonemes are requested and espeak-ng is missing.
        TooMuchBadData: more than `max_bad` of the recordings are unusable.
    """
    raw, out = Path(raw), Path(out)
    with _locked(out):
        text = {"units": units, "version": VERSION}
        new = {"format": FORMAT, "raw": str(raw), "recipe": recipe.hash, "text": text, "splits": {}}
        meta = read_meta(out) or (new if kind == "mel" else {**new, "store": kind})
        _refuse_other_text(meta["text"], text, out)
        if kind_of(meta) != kind:
            raise UserError(f"{out} was made with --store {kind_of(meta)}, not {kind}: choose another --out")
        shards = _plan(utterances, raw, out, recipe, meta)
        if shards:
            records = _make_shards(shards, num_proc)
            _refuse_bad(shards, records, out, meta, max_bad)
            _complete(shards, records, out, recipe, meta)
        return FeatureStore.open(out), bool(shards)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the folder's lock: one process at a time makes features in it."""
    try:
        with only_writer(out):
            remove_leftovers(out / UNFINISHED)
            yield
    except (OSError, MemoryError) as error:
        raise UserError(f"making the features in {out} failed: {str(error) or 'memory ran out'}") from error


def _refuse_other_text(there: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Raises `UserError` unless the tokens that exist are of the requested kind."""
    if there["units"] != asked["units"]:
        kinds = f"{there['units']}, not {asked['units']}"
        raise UserError(f"the tokens in {out} are of --units {kinds}: choose another --out")
    if there != asked:
        raise UserError(
            f"the tokens in {out} were made by version {there['version']} of the text front end, and this is version "
            f"{asked['version']}: choose another --out, or delete {out}"
        )


def _plan(utterances: Sequence[Utterance], raw: Path, out: Path, recipe: MelRecipe, meta: dict) -> list[Shard]:
    """Plans the shards of all incomplete splits; raises `UserError` if they do not fit the features that exist."""
    if meta["splits"]:
        require_same(MelRecipe.from_dict(read_json(out / "recipe.json")), recipe, str(out), "the requested features")
    shards: list[Shard] = []
    stamps = read_stamps(out)
    in_order = sorted(utterances, key=lambda utterance: (utterance.split, utterance.utterance))
    for split, group in itertools.groupby(in_order, key=lambda utterance: utterance.split):
        members = tuple(group)
        done = meta["splits"].get(split)
        if done is None:
            shards.extend(_shards_of(split, members, raw, out, recipe, meta))
            continue
        known = {utterance.path: stamps[utterance.path] for utterance in members if utterance.path in stamps}
        now, changed = restamp(raw, known)
        if changed or done["source"] != _key(members, raw, recipe, meta):
            which = f" ({len(changed)} changed, the first is {changed[0]})" if changed else ""
            raise UserError(
                f"split {split} in {out} was made from other recordings or transcripts than {raw} now holds{which}: "
                f"choose another --out, or delete {out}"
            )
        if now != known:
            write_stamps(out, stamps := stamps | now)  # the next run need not read these recordings again
    if shards and meta["splits"]:
        _refuse_mixture(shards, raw, out, meta)
    return shards


def _shards_of(
    split: str, members: tuple[Utterance, ...], raw: Path, out: Path, recipe: MelRecipe, meta: dict[str, Any]
) -> Iterator[Shard]:
    count = min(-(-len(members) // UTTERANCES_PER_SHARD), MAX_SHARDS)
    for number in range(count):
        part = members[number * len(members) // count : (number + 1) * len(members) // count]
        name = f"{split}-{number:05d}-of-{count:05d}.arrow"
        key = _key(part, raw, recipe, meta)
        yield Shard(name, split, part, key, raw, out, recipe, meta["text"]["units"], kind_of(meta))


def _key(utterances: Iterable[Utterance], raw: Path, recipe: MelRecipe, meta: dict[str, Any]) -> str:
    """Hashes everything that determines a shard's bytes; sizes stand for the contents, which are stamped apart."""
    table = VOCABULARIES[meta["text"]["units"]].to_dict()
    kind = [meta["store"]] if "store" in meta else []
    digest = hashlib.sha256(json.dumps([FORMAT, recipe.to_dict(), meta["text"], table, *kind]).encode())
    for utterance in utterances:
        try:
            size = os.stat(raw / utterance.path).st_size
        except OSError:
            size = -1
        digest.update(json.dumps([*dataclasses.astuple(utterance), size]).encode())
    return digest.hexdigest()


def _refuse_mixture(shards: Sequence[Shard], raw: Path, out: Path, meta: dict) -> None:
    """Raises `UserError` for a second raw root (a store's paths are relative to one) or a repeated utterance."""
    if Path(meta["raw"]).resolve() != raw.resolve():
        raise UserError(f"{out} was made from {meta['raw']}, not {raw}: give the same --raw, or another --out")
    there = FeatureStore.open(out).index
    twice = next((u.utterance for shard in shards for u in shard.utterances if u.utterance in there), None)
    if twice is not None:
        raise UserError(f"utterance {twice} of split {shards[0].split} is already in {out}, in another split")


def _make_shards(shards: Sequence[Shard], num_proc: int) -> list[dict[str, Any]]:
    """Makes the shards that no earlier run finished; returns the records of all, in order."""
    _sweep(shards)
    records = {shard.name: record for shard in shards if (record := _kept_record(shard))}
    missing = [shard for shard in shards if shard.name not in records]
    total, left = (sum(len(shard.utterances) for shard in some) for some in (shards, missing))
    if min(num_proc, len(missing)) > 1:
        made = _make_in_workers(missing, num_proc)
    else:
        made = ((shard, make_shard(shard, stopped=lambda: False)) for shard in missing)
    with progress(total=total, initial=total - left, unit="utt", desc="features") as bar:
        for shard, record in made:
            records[shard.name] = record
            bar.update(len(shard.utterances))
    return [records[shard.name] for shard in shards]


def _kept_record(shard: Shard) -> dict[str, Any] | None:
    """The record of a shard that an earlier run finished; one with bad files is made again, as they may be fixed."""
    try:
        record = read_json(shard.record_path)
    except UserError:
        return None
    if not shard.path.exists() or record["key"] != shard.key or record["bad"] or "recordings" not in record:
        return None
    _, changed = restamp(shard.raw, stamps_of(record["recordings"]))
    return None if changed else record


def _sweep(shards: Sequence[Shard]) -> None:
    """Removes files of these splits that unfinished runs over other recordings left behind."""
    names = {shard.name for shard in shards}
    for split, folder in itertools.product({shard.split for shard in shards}, ("features", UNFINISHED)):
        for path in (shards[0].out / folder).glob(f"{split}-?????-of-?????.arrow*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name.removesuffix(".json") not in names:
                path.unlink()


def _make_in_workers(shards: Sequence[Shard], num_proc: int) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """Yields shards as they are finished; on an exception the workers stop at their next recording."""
    context = multiprocessing.get_context("spawn")  # forking a process with threads (torch, Arrow) can hang
    stop = context.RawValue("b", 0)  # an Event has a lock, which a worker that is killed would hold forever
    workers = min(num_proc, len(shards))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(stop,)) as pool:
        try:
            futures = {pool.submit(_work, shard): shard for shard in shards}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed or ran out of memory; the finished shards are kept: "
                "run the same command again, perhaps with a smaller --num-proc"
            ) from error
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


_stop: Any = None


def _start_worker(stop: Any) -> None:
    """Sets up a worker, which leaves Ctrl-C to the main process and does not outlive it."""
    import tqdm

    global _stop
    _stop = stop
    tqdm.tqdm.set_lock(threading.RLock())  # by default a semaphore, which a killed worker would leave behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _work(shard: Shard) -> dict[str, Any]:
    return make_shard(shard, stopped=lambda: bool(_stop.value))


def _refuse_bad(shards: Sequence[Shard], records: Sequence[dict], out: Path, meta: dict, max_bad: float) -> None:
    """Writes bad_files.txt; raises if all recordings are bad, or too many."""
    bad = [pair for record in records for pair in record["bad"]]
    earlier = [pair for split in meta["splits"].values() for pair in split["bad"]]
    lines = (f"{shown(path)}\t{reason}\n" for path, reason in sorted([*earlier, *bad]))
    write_text(out / "bad_files.txt", "".join(lines))
    total = sum(len(shard.utterances) for shard in shards)
    if bad and len(bad) == total:
        raise UserError(f"none of the {total} recordings is usable; the first: {': '.join(bad[0])}")
    if len(bad) > max_bad * total:
        raise TooMuchBadData(
            f"{len(bad)} of {total} recordings ({len(bad) / total:.1%}) are unusable, more than --max-bad {max_bad} "
            f"allows; {out}/bad_files.txt lists them, the first: {': '.join(bad[0])}"
        )


def _complete(shards: Sequence[Shard], records: Sequence[dict], out: Path, recipe: MelRecipe, meta: dict) -> None:
    """Writes the files of the whole store, meta.json last, and removes the shards' records."""
    for split, group in itertools.groupby(zip(shards, records, strict=True), key=lambda pair: pair[0].split):
        made = list(group)
        members = [utterance for shard, _ in made for utterance in shard.utterances]
        meta["splits"][split] = {
            "source": _key(members, shards[0].raw, recipe, meta),
            **{key: sum(record[key] for _, record in made) for key in ("utterances", "frames", "seconds")},
            "shards": [shard.name for shard, _ in made],
            "bad": [pair for _, record in made for pair in record["bad"]],
            "unknown": dict(sum((Counter(record["unknown"]) for _, record in made), Counter())),
        }
    meta["splits"] = dict(sorted(meta["splits"].items()))
    write_json(out / "recipe.json", recipe.to_dict())
    if any(utterance.text for shard in shards for utterance in shard.utterances):
        write_json(out / "vocabulary.json", VOCABULARIES[meta["text"]["units"]].to_dict())
    write_stamps(out, read_stamps(out) | stamps_of(pair for record in records for pair in record["recordings"]))
    write_json(out / "meta.json", meta)
    for shard in shards:
        shard.record_path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # records of another unfinished split keep the folder
        (out / UNFINISHED).rmdir()
