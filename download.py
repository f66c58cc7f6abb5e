"""Downloads and verifies a public speech corpus, or synthesizes a demo corpus locally.

python download.py --dataset demo                                  # 64 synthetic voices, without internet
python download.py --dataset demo-voice                            # one synthetic voice, for text to mel
python download.py --dataset mini-librispeech                      # 0.46 GB of real speech
python download.py --dataset librispeech --split dev-clean test-clean
python download.py --dataset ljspeech

An interrupted download resumes where it stopped; what is complete is not done again.
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
from utils.corpus.catalog import ARCHIVES, DATASETS, DEFAULT_SPLITS, SYNTHETIC_SPLITS, splits
from utils.corpus.voices import VOICES

NUM_PROC = min(cores(), 8)
DEMO_DEFAULTS = {"voices": 64, "utterances_per_voice": 20, "seed": 0, "num_proc": NUM_PROC, "overwrite": False}
DEMO_VOICE_DEFAULTS = {"utterances_per_voice": 240, "seed": 0, "num_proc": NUM_PROC, "overwrite": False}
TRANSFER_DEFAULTS = {"base_url": None, "keep_archive": False, "attempts": 8, "retry_wait": 1.0, "timeout": 60.0}


def build_parser() -> Parser:
    """Builds the parser of this script's flags."""
    parser = Parser(prog="download.py", description=__doc__)
    parser.add_config()
    parser.add_argument("--dataset", choices=DATASETS, required=True, help="corpus to download or synthesize")
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="S",
        help="splits of the corpus (default: "
        + "; ".join(f"{name}: {' '.join(parts)}" for name, parts in DEFAULT_SPLITS.items())
        + ")",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data/raw"), help="folder of all corpora; this one is written to ROOT/DATASET"
    )

    demo = parser.add_argument_group("demo corpora")
    add = functools.partial(_add, demo, DEMO_DEFAULTS)
    add("--voices", f"number of speakers of demo, at most {len(VOICES)}", type=positive_int, metavar="N")
    number = DEMO_VOICE_DEFAULTS["utterances_per_voice"]
    add("--utterances-per-voice", f"number per speaker; demo-voice: {number}", type=positive_int, metavar="N")
    add("--seed", "seed of the sentences and the recording conditions", type=non_negative_int, metavar="N")
    add("--num-proc", "number of processes; the output does not depend on it", type=positive_int, metavar="N")
    add("--overwrite", "replace a demo corpus of other settings", action=argparse.BooleanOptionalAction)

    transfer = parser.add_argument_group("download of public corpora")
    add = functools.partial(_add, transfer, TRANSFER_DEFAULTS)
    add("--base-url", "download archive NAME from URL/NAME", "--mirror", metavar="URL")
    add("--keep-archive", "keep the archive after it is unpacked", action=argparse.BooleanOptionalAction)
    add("--attempts", "number of consecutive failures after which to give up", type=positive_int, metavar="N")
    add("--retry-wait", "seconds to wait after a failure, doubled after each", type=positive_float, metavar="S")
    add("--timeout", "seconds without any byte after which an attempt fails", type=positive_float, metavar="S")
    return parser


def _add(group: argparse._ArgumentGroup, defaults: dict[str, Any], flag: str, text: str, *names: str, **kwargs: Any):
    """Adds a flag of one kind of corpus; it is None unless given, so that the other kind can refuse it."""
    default = defaults[flag.removeprefix("--").replace("-", "_")]
    group.add_argument(flag, *names, help=f"{text} (default: {_shown(default)})", **kwargs)


def _shown(default: Any) -> str:
    if default is None:
        return "the official servers"
    return "no" if default is False else f"{default:g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, makes the corpus, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report(find_problems(args))
    args.split = list(dict.fromkeys(args.split or DEFAULT_SPLITS[args.dataset]))
    for name, default in _defaults_of(args.dataset).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    for name in _foreign(args.dataset):
        delattr(args, name)  # the saved configuration holds only flags that apply
    return run({"demo": make_demo, "demo-voice": make_demo_voice}.get(args.dataset, download), args)


def _defaults_of(dataset: str) -> dict[str, Any]:
    """Defaults of the flags that apply to a dataset."""
    return {"demo": DEMO_DEFAULTS, "demo-voice": DEMO_VOICE_DEFAULTS}.get(dataset, TRANSFER_DEFAULTS)


def _foreign(dataset: str) -> list[str]:
    """Names of the flags that do not apply to it."""
    return [name for name in (*DEMO_DEFAULTS, *TRANSFER_DEFAULTS) if name not in _defaults_of(dataset)]


def find_problems(args: argparse.Namespace) -> list[str]:
    """Finds contradictory and impossible flags; returns a sentence for each."""
    problems = [
        f"{args.dataset} has no split {split!r}; it has {', '.join(splits(args.dataset))}"
        for split in args.split or ()
        if split not in splits(args.dataset)
    ]
    given = [name for name in _foreign(args.dataset) if getattr(args, name) is not None]
    problems += [
        f"--{name.replace('_', '-')} contradicts --dataset {args.dataset}: {_reason(args.dataset, name)}"
        for name in given
    ]
    if args.dataset == "demo":
        if (args.voices or 0) > len(VOICES):
            problems.append(f"--voices {args.voices}: there are only {len(VOICES)} distinct voices")
        if args.utterances_per_voice == 1:
            problems.append("--utterances-per-voice 1: each of the two chapters needs an utterance")
    if args.root.exists() and not args.root.is_dir():
        problems.append(f"--root {args.root} is not a folder")
    return problems


def _reason(dataset: str, flag: str) -> str:
    """Reason why a flag does not apply to a dataset."""
    if dataset not in SYNTHETIC_SPLITS:
        return "the flag is for the demo corpora"
    return "it is not downloaded" if flag in TRANSFER_DEFAULTS else "it has one voice"


def make_demo(args: argparse.Namespace) -> None:
    """Makes the demo corpus, and saves the flags beside it."""
    from utils.corpus.demo import Settings, build_demo

    build_demo(args.root, Settings(args.voices, args.utterances_per_voice, args.seed), args.num_proc, args.overwrite)
    save_config(args.root / args.dataset / "download.yaml", args)


def make_demo_voice(args: argparse.Namespace) -> None:
    """Makes the one-voice demo corpus, and saves the flags beside it."""
    from utils.corpus.demo_voice import Settings, build_demo_voice

    build_demo_voice(args.root, Settings(args.utterances_per_voice, args.seed), args.num_proc, args.overwrite)
    save_config(args.root / args.dataset / "download.yaml", args)


def download(args: argparse.Namespace) -> None:
    """Downloads the requested splits, and saves the flags beside them."""
    from utils.corpus.transfer import Patience, obtain

    archives = [ARCHIVES[args.dataset, split] for split in args.split]
    if args.base_url:
        address = args.base_url.rstrip("/")
        archives = [dataclasses.replace(archive, urls=(f"{address}/{archive.name}",)) for archive in archives]
    obtain(archives, args.root, Patience(args.attempts, args.retry_wait, args.timeout), args.keep_archive)
    save_config(args.root / args.dataset / "download.yaml", args)


if __name__ == "__main__":
    sys.exit(main())
