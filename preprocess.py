"""Turns a speech corpus into log-mel features and tokens, and draws its splits and trial lists.

    python preprocess.py --dataset demo
    python preprocess.py --dataset librispeech --split dev-clean test-clean --num-proc 8
    python preprocess.py --dataset ljspeech --units phoneme --out data/processed/ljspeech_phoneme
    python preprocess.py --layout librispeech --raw CORPUS --out data/processed/mine --heldout-speakers 10
    python preprocess.py --layout librispeech --raw CORPUS --out data/processed/mine_audio --store audio
    python preprocess.py --layout voxceleb --raw VoxCeleb1 --out data/processed/voxceleb --protocol fold1 \\
        --heldout-speakers fold1_speakers.txt

--dataset names a corpus that download.py provides. --layout reads a folder of your own: librispeech is
SPEAKER/CHAPTER/*.flac, voxceleb is SPEAKER/VIDEO/*.wav, and ljspeech is metadata.csv beside wavs/. A rerun does only
what is missing: it resumes an interrupted run, adds another split if a new --protocol goes with it, and with another
--protocol alone draws only new splits and trials.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from argparse import BooleanOptionalAction
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import Parser, cores, flag_name, fraction, non_negative_int, positive_int, run, save_config
from utils.corpus.catalog import DATASETS
from utils.corpus.layouts import LAYOUTS, NoSpeech, Utterance, ignored_files, read_corpus
from utils.errors import UserError
from utils.features.recipe import DEFAULT_RECIPE, RECIPES
from utils.files import escape_in_streams, read_json, shown
from utils.lists import DEFAULT_PROTOCOL, MAX_TRIALS
from utils.locks import LOCK

if TYPE_CHECKING:
    from utils.features.store import FeatureStore, Row
    from utils.speaker.protocol import Protocol

_EMPTY = {  # counts of a protocol that a user may not expect to be zero
    "valid_targets": "validation trials of one speaker: the last checkpoint will count as the best",
    "valid_nontargets": "validation trials of two speakers: the last checkpoint will count as the best",
    "targets": "trials of one held-out speaker: test.py evaluate needs other lists",
    "nontargets": "trials of two held-out speakers: test.py evaluate needs other lists",
    "utterance_test": "test of identification by utterance",
    "chapter_test": "test of identification by chapter",
}


def build_parser() -> Parser:
    """Builds the parser of this script's flags."""
    parser = Parser(prog="preprocess.py", description=__doc__)
    parser.add_config()
    _add_corpus_arguments(parser)
    _add_feature_arguments(parser)
    _add_protocol_arguments(parser)
    return parser


def _add_corpus_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("corpus").add_argument
    add("--dataset", choices=DATASETS, help="corpus that download.py provides; this or --layout is required")
    add("--layout", choices=LAYOUTS, help="folder layout of a corpus of your own; needs --raw and --out")
    add("--split", nargs="+", metavar="NAME", help="splits to read (default: all)")
    add("--raw", type=Path, metavar="DIR", help="folder of the corpus (default: data/raw/DATASET)")
    add("--out", type=Path, metavar="DIR", help="folder to write (default: data/processed/DATASET)")


def _add_feature_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("features").add_argument
    task = "task that the features are for; tts needs transcripts (default: tts for LJSpeech's layout, else speaker)"
    add("--task", choices=sorted(DEFAULT_RECIPE), help=task)
    store = "what to store: mels, or samples, which training can degrade and makes mels of as it goes"
    add("--store", choices=("mel", "audio"), default="mel", help=store)
    add("--recipe", choices=sorted(RECIPES), help="mel recipe (default: the task's)")
    units = "symbols of the tokens of --task tts; phonemes need espeak-ng, requirements-demo.txt (default: char)"
    add("--units", choices=("char", "phoneme"), help=units)
    add("--max-bad", type=fraction, default=0.01, help="share of unusable recordings to tolerate")
    add("--num-proc", type=positive_int, default=cores(), help="worker processes; the output does not depend on it")


def _add_protocol_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("splits and trials").add_argument
    add("--protocol", type=_plain_name, default=DEFAULT_PROTOCOL, metavar="NAME", help="name of the splits")
    heldout = (
        "speakers reserved for verification: a file with one per line, or a number (default: a fifth of those with at "
        "least two recordings)"
    )
    add("--heldout-speakers", type=_count_or_file, metavar="FILE|N", help=heldout)
    valid = (
        "validation speakers: a file with one per line, or a number, 0 for no validation (default: a tenth, if there "
        "are at least 30 to train on, else recordings of training speakers)"
    )
    add("--valid-speakers", type=_count_or_file, metavar="FILE|N", help=valid)
    tests = "set recordings of training speakers aside for tests of identification (default); else all are for training"
    add("--identification-tests", action=BooleanOptionalAction, help=tests)
    trials = f"limit on target trials, and on non-target trials (default: {MAX_TRIALS})"
    add("--max-trials", type=positive_int, metavar="N", help=trials)
    add("--seed", "--protocol-seed", type=non_negative_int, default=0, help="seed of splits and trials")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, preprocesses, returns the exit code."""
    escape_in_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    layout = _layout(args)
    args.task = args.task or (LAYOUTS[layout].task if layout else None)
    parser.report(find_problems(args))
    args.recipe = args.recipe or DEFAULT_RECIPE[args.task]
    args.raw = args.raw or Path("data/raw") / args.dataset
    args.out = args.out or Path("data/processed") / args.dataset
    if args.task == "tts":
        args.units = args.units or "char"
    else:
        args.identification_tests = args.identification_tests is not False
        args.max_trials = args.max_trials or MAX_TRIALS
    return run(preprocess, args)


def _layout(args: argparse.Namespace) -> str | None:
    return args.layout or DATASETS.get(args.dataset)


def find_problems(args: argparse.Namespace) -> list[str]:
    """Finds contradictory and missing flags; returns a sentence for each."""
    problems = []
    if args.dataset and args.layout:
        problems.append("--dataset and --layout contradict each other: a dataset implies its layout")
    elif args.layout:
        problems += [f"--layout needs --{name}" for name in ("raw", "out") if getattr(args, name) is None]
    elif not args.dataset:
        problems.append("no corpus: give --dataset, or --layout with --raw and --out")
    owners = dict.fromkeys(("heldout_speakers", "valid_speakers", "identification_tests", "max_trials"), "speaker")
    owners["units"] = "tts"
    return problems + [
        f"{flag_name(name)} needs --task {task}"
        for name, task in owners.items()
        if getattr(args, name) is not None and args.task not in (None, task)
    ]


def preprocess(args: argparse.Namespace) -> None:
    """Makes the features, then splits and trials; refuses before the work whatever can be refused then."""
    _require_utf8(args.raw, args.out)
    utterances = _read_corpus(args)
    if args.task == "tts":
        _require_texts(utterances)
    _require_own_folder(args.out)
    if args.units == "phoneme":
        from utils.espeak import require_espeak

        require_espeak("phonemes")
    request = _request(args, utterances)
    had_protocol = _protocol_exists(args.out / "protocols" / args.protocol, request)
    if _is_protocol_requested(args) and not (args.out / "meta.json").exists():
        _rehearse_protocol(args, utterances, request)

    from utils.features.build import build

    recipe, units = RECIPES[args.recipe], args.units or "char"
    store, is_new = build(utterances, args.raw, args.out, recipe, args.num_proc, args.max_bad, units, args.store)
    if is_new:
        save_config(args.out / "config.yaml", args)
    reason = None if had_protocol else _make_protocol(args, store, request)
    if not is_new and had_protocol:
        print(f"{args.out} and its protocol {args.protocol} are complete: nothing to do")
    _summarize(args, store, reason, ignored_files(args.raw, _layout(args), utterances))


def _require_utf8(*folders: Path) -> None:
    """Raises `UserError` for a folder whose name the files that describe a store could not hold."""
    for folder in map(Path.resolve, folders):
        if shown(folder) != str(folder):
            raise UserError(f"{shown(folder)} is not a name in UTF-8: rename the folder, or set PYTHONUTF8=1 if it is")


def _read_corpus(args: argparse.Namespace) -> list[Utterance]:
    """Reads the corpus; if download.py would make it, the error for a missing one says how."""
    try:
        return read_corpus(args.raw, _layout(args), args.split)
    except NoSpeech as error:
        if not args.dataset or args.raw.name != args.dataset:
            raise
        words = ["python", "download.py", "--dataset", args.dataset]
        words += ["--split", *args.split] if args.split else []
        words += ["--root", str(args.raw.parent)] if args.raw.parent != Path("data/raw") else []
        raise UserError(f"{error}: run {shlex.join(words)} first") from error


def _require_texts(utterances: Sequence[Utterance]) -> None:
    silent = [utterance for utterance in utterances if not utterance.text]
    if silent:
        splits = ", ".join(sorted({utterance.split for utterance in silent}))
        raise UserError(
            f"{len(silent)} of {len(utterances)} recordings have no transcript (in {splits}; {silent[0].path} is one), "
            "and --task tts needs them all: choose the splits with --split, or --task speaker"
        )


def _require_own_folder(out: Path) -> None:
    from utils.features.store import UNFINISHED

    names = {path.name for path in out.iterdir() if path.suffix != ".tmp"} if out.is_dir() else set()
    if names - {LOCK} and not names & {"meta.json", UNFINISHED}:
        raise UserError(f"{out} holds other files: choose a new or empty folder for --out")


def _request(args: argparse.Namespace, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """Collects everything that determines a protocol; stored with it, to be compared with a later request."""
    from utils.features.store import read_meta
    from utils.lists import read_speakers

    there = read_meta(args.out) or {"splits": ()}
    splits = {utterance.split for utterance in utterances}.union(there["splits"])
    request = {"task": args.task, "seed": args.seed, "splits": sorted(splits)}
    if args.task == "speaker":
        for name, given in (("heldout", args.heldout_speakers), ("valid", args.valid_speakers)):
            request[name] = read_speakers(given) if isinstance(given, Path) else given
        request["max_trials"] = args.max_trials
        if not args.identification_tests:  # requests of earlier versions lack it
            request["identification"] = False
    return request


def _protocol_exists(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the protocol exists; one that was made from another request is refused."""
    if not (folder / "protocol.json").exists():
        return False
    made = read_json(folder / "protocol.json").get("request", {})
    differing = [name for name in request if made.get(name) != request[name]]
    if differing:
        changes = "; ".join(f"{name} {made.get(name)} then, {request[name]} now" for name in differing)
        raise UserError(f"protocol {folder.name} exists with other settings ({changes}): give another --protocol NAME")
    return True


def _is_protocol_requested(args: argparse.Namespace) -> bool:
    """Whether a failure to make the protocol is an error; features alone, as of one speaker, are useful too."""
    named = args.protocol != DEFAULT_PROTOCOL or args.heldout_speakers is not None or args.valid_speakers is not None
    return args.task == "speaker" and named


def _rehearse_protocol(args: argparse.Namespace, utterances: Sequence[Utterance], request: dict[str, Any]) -> None:
    """Raises before hours of work if there are too few speakers; the lengths of recordings do not matter for that."""
    from utils.features.store import Row

    rows = [Row(**asdict(utterance), seconds=1.0, frames=1) for utterance in utterances]
    _draw_protocol(args, rows, {**request, "max_trials": 1})


def _draw_protocol(args: argparse.Namespace, rows: Sequence[Row], request: dict[str, Any]) -> Protocol:
    from utils.speaker.protocol import make_protocol

    settings = (request[name] for name in ("heldout", "valid", "max_trials"))
    return make_protocol(rows, args.seed, args.protocol, *settings, args.identification_tests)


def _make_protocol(args: argparse.Namespace, store: FeatureStore, request: dict[str, Any]) -> str | None:
    """Makes the splits; if there can be none and none were requested, returns the reason."""
    from utils.speaker.protocol import write_protocol
    from utils.tts.text_lists import write_text_lists

    folder = args.out / "protocols" / args.protocol
    if args.task == "tts":
        write_text_lists(folder, store.rows, args.seed, request)
        return None
    try:
        write_protocol(folder, _draw_protocol(args, store.rows, request), store.rows, request)
    except UserError as error:
        if _is_protocol_requested(args):
            raise
        return str(error)
    return None


def _summarize(args: argparse.Namespace, store: FeatureStore, no_protocol: str | None, ignored: Sequence[str]) -> None:
    from utils.features.store import shard_paths

    shards = shard_paths(args.out, store.meta)
    megabytes = sum(path.stat().st_size for path in shards) / 1e6
    hours = sum(row.seconds for row in store.rows) / 3600
    splits = store.meta["splits"].values()
    bad = sum(len(split["bad"]) for split in splits)
    unknown = sum((Counter(split["unknown"]) for split in splits), Counter())
    print(
        f"features   {args.out}: {len(store)} utterances, {hours:.2f} h, {len({row.speaker for row in store.rows})} "
        f"speakers; {megabytes:.1f} MB in {len(shards)} shards; recipe {args.recipe} ({store.recipe.hash})"
    )
    if bad:
        print(f"bad files  {bad} recordings are unusable; {args.out}/bad_files.txt lists them")
    if ignored:
        suffixes = Counter(Path(path).suffix.lower() or "no suffix" for path in ignored)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
        print(f"ignored    {len(ignored)} files ({kinds}), the first: {shown(ignored[0])}")
    if unknown:
        print(f"unknown    not in the vocabulary: {', '.join(f'{s!r} x {n}' for s, n in unknown.items())}")
    if no_protocol:
        print(f"protocol   none, so there is nothing to train on: {no_protocol}")
        return
    folder = args.out / "protocols" / args.protocol
    counts = read_json(folder / "protocol.json")["counts"]
    print(f"protocol   {folder}: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    for name, what in _EMPTY.items():
        if counts.get(name) == 0 and (args.identification_tests or not name.endswith("_test")):
            print(f"warning: no {what}", file=sys.stderr)


def _plain_name(text: str) -> str:
    """argparse type: a name that is safe for a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain name of letters, digits, _ and, later, . and -")
    return text


def _count_or_file(text: str) -> int | Path:
    """argparse type: a number of speakers, or a file that lists speakers."""
    if text.isdigit():
        return non_negative_int(text)
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor a file")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
