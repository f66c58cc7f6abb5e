"""Brings a speech corpus: downloads and verifies a public one, or makes the synthetic demo corpus on the spot.

python download.py --dataset demo                                  # 64 synthetic voices, no internet needed
python download.py --dataset mini-librispeech                      # 0.46 GB of real speech
python download.py --dataset librispeech --split dev-clean test-clean
python download.py --dataset ljspeech

An interrupted download goes on where it stopped; what is complete is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.cli import Parser, cores, non_negative_int, positive_float, positive_int, run, save_config
from utils.corpus.catalog import ARCHIVES, DATASETS, DEFAULT_SPLITS, splits
from utils.corpus.voices import VOICES

NUM_PROC = min(cores(), 8)
DEMO_DEFAULTS = {"voices": 64, "utterances_per_voice": 20, "seed": 0, "num_proc": NUM_PROC, "overwrite": False}
TRANSFER_DEFAULTS = {"base_url": None, "keep_archive": False, "attempts": 8, "retry_wait": 1.0, "timeout": 60.0}


def build_parser() -> Parser:
    """The flags of this script."""
    parser = Parser(prog="download.py", description=__doc__)
    parser.add_config()
    parser.add_argument("--dataset", choices=DATASETS, required=True, help="which corpus")
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="S",
        help="its parts (default: "
        + "; ".join(f"{name}: {' '.join(parts)}" for name, parts in DEFAULT_SPLITS.items())
        + ")",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data/raw"), help="folder of all corpora; this one goes into ROOT/DATASET"
    )

    demo = parser.add_argument_group("the demo corpus")
    add = functools.partial(_add, demo, DEMO_DEFAULTS)
    add("--voices", f"speakers, at most {len(VOICES)}", type=positive_int, metavar="N")
    add("--utterances-per-voice", "in two chapters, at least 2", type=positive_int, metavar="N")
    add("--seed", "of the sentences and the recording conditions", type=non_negative_int, metavar="N")
    add("--num-proc", "processes; the bytes do not depend on it", type=positive_int, metavar="N")
    add("--overwrite", "replace a demo corpus of other settings", action=argparse.BooleanOptionalAction)

    transfer = parser.add_argument_group("the transfer of public corpora")
    add = functools.partial(_add, transfer, TRANSFER_DEFAULTS)
    add("--base-url", "take NAME.tar.gz from URL/NAME.tar.gz", "--mirror", metavar="URL")
    add("--keep-archive", "keep the archive once it is unpacked", action=argparse.BooleanOptionalAction)
    add("--attempts", "give up after so many failures in a row", type=positive_int, metavar="N")
    add("--retry-wait", "seconds after a failure, doubled after each", type=positive_float, metavar="S")
    add("--timeout", "seconds that a server may stay silent", type=positive_float, metavar="S")
    return parser


def _add(group: argparse._ArgumentGroup, defaults: dict[str, Any], flag: str, text: str, *names: str, **kwargs: Any):
    """A flag of one kind of corpus; None unless given, so that giving it with the other kind can be refused."""
    default = defaults[flag.removeprefix("--").replace("-", "_")]
    group.add_argument(flag, *names, help=f"{text} (default: {_shown(default)})", **kwargs)


def _shown(default: Any) -> str:
    if default is None:
        return "the official servers"
    return "no" if default is False else f"{default:g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, brings the corpus, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report(find_problems(args))
    args.split = list(dict.fromkeys(args.split or DEFAULT_SPLITS[args.dataset]))
    own, foreign = _defaults_of(args.dataset)
    for name, default in own.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    for name in foreign:
        delattr(args, name)  # what has no meaning here has no place in the saved configuration
    return run(make_demo if args.dataset == "demo" else download, args)


def _defaults_of(dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags that belong to a dataset's kind, and those that do not."""
    return (DEMO_DEFAULTS, TRANSFER_DEFAULTS) if dataset == "demo" else (TRANSFER_DEFAULTS, DEMO_DEFAULTS)


def find_problems(args: argparse.Namespace) -> list[str]:
    """All that is wrong with the flags together."""
    problems = [
        f"{args.dataset} has no split {split!r}; it has {', '.join(splits(args.dataset))}"
        for split in args.split or ()
        if split not in splits(args.dataset)
    ]
    _, foreign = _defaults_of(args.dataset)
    reason = "it is not downloaded" if args.dataset == "demo" else "that flag is for the demo corpus"
    given = [name for name in foreign if getattr(args, name) is not None]
    problems += [f"--{name.replace('_', '-')} contradicts --dataset {args.dataset}: {reason}" for name in given]
    if args.dataset == "demo":
        if (args.voices or 0) > len(VOICES):
            problems.append(f"--voices {args.voices}: there are {len(VOICES)} distinct voices")
        if args.utterances_per_voice == 1:
            problems.append("--utterances-per-voice 1: each of the two chapters needs one")
    if args.root.exists() and not args.root.is_dir():
        problems.append(f"--root {args.root} is not a folder")
    return problems


def make_demo(args: argparse.Namespace) -> None:
    """The demo corpus, and the flags that made it beside it."""
    from utils.corpus.demo import Settings, build_demo

    build_demo(args.root, Settings(args.voices, args.utterances_per_voice, args.seed), args.num_proc, args.overwrite)
    save_config(args.root / args.dataset / "download.yaml", args)


def download(args: argparse.Namespace) -> None:
    """The archives of the asked splits, and the flags beside them."""
    from utils.corpus.transfer import Patience, obtain

    archives = [ARCHIVES[args.dataset, split] for split in args.split]
    if args.base_url:
        address = args.base_url.rstrip("/")
        archives = [dataclasses.replace(archive, urls=(f"{address}/{archive.name}",)) for archive in archives]
    obtain(archives, args.root, Patience(args.attempts, args.retry_wait, args.timeout), args.keep_archive)
    save_config(args.root / args.dataset / "download.yaml", args)


if __name__ == "__main__":
    sys.exit(main())
