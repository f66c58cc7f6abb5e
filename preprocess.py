"""Turns a speech corpus into log-mel features and tokens, and makes its splits and trial lists.

    python preprocess.py --dataset demo
    python preprocess.py --dataset librispeech --split dev-clean test-clean --num-proc 8
    python preprocess.py --dataset librispeech --raw CORPUS --out data/processed/mine --heldout-speakers 10
    python preprocess.py --dataset librispeech --raw CORPUS --out data/processed/mine --protocol fold1 \\
        --heldout-speakers fold1_speakers.txt
    python preprocess.py --dataset ljspeech --raw LJSpeech-1.1
    python preprocess.py --dataset ljspeech --raw LJSpeech-1.1 --out data/processed/lj_phone --units phoneme

--dataset names the layout: any folder in LibriSpeech layout (SPEAKER/CHAPTER/*.flac) or LJSpeech layout (metadata.csv,
wavs/) can be given as --raw. Running it again does only what is missing: an interrupted run is continued, another
split is added if a new --protocol goes with it, and another --protocol alone makes only new splits and trials.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import Parser, cores, fraction, non_negative_int, positive_int, run, save_config
from utils.corpus.catalog import DATASETS, LAYOUT
from utils.corpus.layouts import Utterance, read_corpus
from utils.errors import UserError
from utils.features.recipe import DEFAULT_RECIPE, RECIPES
from utils.files import read_json
from utils.lists import DEFAULT_PROTOCOL

if TYPE_CHECKING:
    from utils.features.store import FeatureStore


def build_parser() -> Parser:
    """The flags of this script."""
    parser = Parser(prog="preprocess.py", description=__doc__)
    parser.add_config()
    group = parser.add_argument_group("corpus")
    group.add_argument("--dataset", choices=DATASETS, required=True, help="the corpus, and with it the folder layout")
    group.add_argument("--split", nargs="+", metavar="NAME", help="splits to read (default: all that are there)")
    group.add_argument("--raw", type=Path, metavar="DIR", help="where the corpus lies (default: data/raw/DATASET)")
    group.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: data/processed/DATASET)")
    group = parser.add_argument_group("features")
    group.add_argument(
        "--task",
        choices=sorted(DEFAULT_RECIPE),
        help="what the features are for; tts needs transcripts (default: tts for ljspeech, else speaker)",
    )
    group.add_argument("--recipe", choices=sorted(RECIPES), help="the mel recipe (default: the task's)")
    group.add_argument(
        "--units",
        choices=("char", "phoneme"),
        help="what the tokens of --task tts stand for; phonemes need espeak-ng, requirements-demo.txt (default: char)",
    )
    group.add_argument("--max-bad", type=fraction, default=0.01, help="share of unusable recordings to put up with")
    group.add_argument("--num-proc", type=positive_int, default=cores(), help="processes; the result is the same")
    group = parser.add_argument_group("splits and trials")
    group.add_argument(
        "--protocol", type=_plain_name, default=DEFAULT_PROTOCOL, metavar="NAME", help="name of the splits"
    )
    group.add_argument(
        "--heldout-speakers",
        type=_count_or_file,
        metavar="FILE|N",
        help="speakers for verification alone: a file with one a line, or how many (default: a fifth of those with "
        "two recordings)",
    )
    group.add_argument(
        "--valid-speakers",
        type=non_negative_int,
        metavar="N",
        help="validation speakers (default: a tenth, if 30 are left for training)",
    )
    group.add_argument("--max-trials", type=positive_int, default=20_000, help="cap on target trials, and on others")
    group.add_argument("--seed", "--protocol-seed", type=non_negative_int, default=0, help="seed of splits and trials")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, preprocesses, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    layout = LAYOUT[args.dataset]
    args.task = args.task or ("tts" if layout == "ljspeech" else "speaker")
    args.recipe = args.recipe or DEFAULT_RECIPE[args.task]
    args.raw = args.raw or Path("data/raw") / args.dataset
    args.out = args.out or Path("data/processed") / args.dataset
    if args.task == "tts":
        given = {"--heldout-speakers": args.heldout_speakers, "--valid-speakers": args.valid_speakers}
        parser.report([f"{flag} needs --task speaker" for flag, value in given.items() if value is not None])
        args.units = args.units or "char"
    elif args.units is not None:
        parser.report(["--units needs --task tts"])
    return run(preprocess, args)


def preprocess(args: argparse.Namespace) -> None:
    """Features first, then splits and trials; everything that can be refused is refused before the work."""
    utterances = read_corpus(args.raw, LAYOUT[args.dataset], args.split)
    if args.task == "tts":
        _require_texts(utterances)
    _require_own_folder(args.out)
    if args.units == "phoneme":
        from utils.text.phonemes import require_phonemes

        require_phonemes()
    request = _request(args, utterances)
    made_before = _is_made(args.out / "protocols" / args.protocol, request)
    if _protocol_is_asked_for(args) and not (args.out / "meta.json").exists():
        _rehearse_protocol(args, utterances, request)

    from utils.features.build import build

    recipe, units = RECIPES[args.recipe], args.units or "char"
    store, is_new = build(utterances, args.raw, args.out, recipe, args.num_proc, args.max_bad, units)
    if is_new:
        save_config(args.out / "config.yaml", args)
    reason = None if made_before else _make_protocol(args, store, request)
    if not is_new and made_before:
        print(f"{args.out} is complete, and so is its protocol {args.protocol}: nothing to do")
    _summarize(args, store, reason)


def _require_texts(utterances: Sequence[Utterance]) -> None:
    silent = [utterance for utterance in utterances if not utterance.text]
    if silent:
        splits = ", ".join(sorted({utterance.split for utterance in silent}))
        raise UserError(
            f"{len(silent)} of {len(utterances)} recordings have no transcript (in {splits}; {silent[0].path} is one), "
            "and --task tts needs them all: choose the splits with --split, or --task speaker"
        )


def _require_own_folder(out: Path) -> None:
    ours = (".lock", "meta.json")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in ours):
        raise UserError(f"{out} holds other files: choose a new or empty folder for --out")


def _request(args: argparse.Namespace, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """All that a protocol follows from, kept with it to tell whether it is the one asked for."""
    from utils.lists import read_speakers

    meta = args.out / "meta.json"
    splits = {utterance.split for utterance in utterances} | (
        set(read_json(meta)["splits"]) if meta.exists() else set()
    )
    request = {"task": args.task, "seed": args.seed, "splits": sorted(splits)}
    if args.task == "tts":
        return request
    heldout = args.heldout_speakers
    return {
        **request,
        "heldout": read_speakers(heldout) if isinstance(heldout, Path) else heldout,
        "valid": args.valid_speakers,
        "max_trials": args.max_trials,
    }


def _is_made(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the protocol is there; splits are made once, so one that differs is refused."""
    if not (folder / "protocol.json").exists():
        return False
    made = read_json(folder / "protocol.json").get("request", {})
    differing = [name for name in request if made.get(name) != request[name]]
    if differing:
        changes = "; ".join(f"{name} {made.get(name)} then, {request[name]} now" for name in differing)
        raise UserError(f"protocol {folder.name} exists with other settings ({changes}): give another --protocol NAME")
    return True


def _protocol_is_asked_for(args: argparse.Namespace) -> bool:
    """Whether features without splits would disappoint; a corpus of one speaker is good for its features too."""
    named = args.protocol != DEFAULT_PROTOCOL or args.heldout_speakers is not None or args.valid_speakers is not None
    return args.task == "speaker" and named


def _rehearse_protocol(args: argparse.Namespace, utterances: Sequence[Utterance], request: dict[str, Any]) -> None:
    """Finds out before hours of work whether there are speakers enough; lengths do not matter for that."""
    from utils.features.store import Row
    from utils.speaker.protocol import make_protocol

    rows = [Row(**asdict(utterance), seconds=1.0, frames=1) for utterance in utterances]
    make_protocol(rows, args.seed, args.protocol, request["heldout"], args.valid_speakers, max_trials=1)


def _make_protocol(args: argparse.Namespace, store: FeatureStore, request: dict[str, Any]) -> str | None:
    """Makes the splits; returns why there can be none, unless they were asked for."""
    from utils.speaker.protocol import make_protocol, write_protocol
    from utils.tts.text_lists import write_text_lists

    folder = args.out / "protocols" / args.protocol
    if args.task == "tts":
        write_text_lists(folder, store.rows, args.seed, request)
        return None
    try:
        protocol = make_protocol(
            store.rows, args.seed, args.protocol, request["heldout"], args.valid_speakers, args.max_trials
        )
    except UserError as error:
        if _protocol_is_asked_for(args):
            raise
        return str(error)
    write_protocol(folder, protocol, store.rows, request)
    return None


def _summarize(args: argparse.Namespace, store: FeatureStore, no_protocol: str | None) -> None:
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
        print(f"bad files  {bad} recordings could not be used: {args.out}/bad_files.txt")
    if unknown:
        print(f"unknown    symbols that the vocabulary lacks: {', '.join(f'{s!r} x {n}' for s, n in unknown.items())}")
    if no_protocol:
        print(f"protocol   none, so that there is nothing to train on: {no_protocol}")
        return
    folder = args.out / "protocols" / args.protocol
    counts = read_json(folder / "protocol.json")["counts"]
    print(f"protocol   {folder}: {', '.join(f'{name} {count}' for name, count in counts.items())}")


def _plain_name(text: str) -> str:
    """argparse type: a name that is safe as a folder's."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain name of letters, digits, dots, dashes")
    return text


def _count_or_file(text: str) -> int | Path:
    """argparse type: a number of speakers, or a file that lists them."""
    if text.isdigit():
        return positive_int(text)
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor a file")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
