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
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import Parser, cores, non_negative_int, peek, positive_float, positive_int, run, save_config
from utils.corpus.catalog import ARCHIVES, DATASETS, DEFAULT_SPLITS, SYNTHETIC_SPLITS, splits
from utils.corpus.voices import VOICES
from utils.files import escape_in_streams


def build_parser(argv: Sequence[str] | None = None) -> Parser:
    """Builds the parser of the flags of the dataset that `argv` names, or of all flags if it names none."""
    dataset = peek(argv, "--dataset", "", DATASETS)
    parser = Parser(prog="download.py", description=__doc__)
    parser.add_config()
    parser.add_argument("--dataset", choices=DATASETS, required=True, help="corpus to download or synthesize")
    usual = "; ".join(f"{name}: {' '.join(parts)}" for name, parts in DEFAULT_SPLITS.items())
    choices = splits(dataset) if dataset else None
    text = f"splits of the corpus (default: {usual})"
    parser.add_argument("--split", nargs="+", metavar="S", choices=choices, help=text)
    text = "folder of all corpora; this one is written to ROOT/DATASET"
    parser.add_argument("--root", type=_folder, metavar="DIR", default=Path("data/raw"), help=text)
    if not dataset or dataset in SYNTHETIC_SPLITS:
        _add_demo_arguments(parser, dataset)
    if dataset not in SYNTHETIC_SPLITS:
        _add_transfer_arguments(parser)
    if dataset:
        others = (flag.lstrip("-").replace("-", "_") for flag in build_parser([])._option_string_actions)
        parser.elsewhere = dict.fromkeys(others, f"other corpora than --dataset {dataset}")
    return parser


def _add_demo_arguments(parser: Parser, dataset: str) -> None:
    add = parser.add_argument_group("demo corpora").add_argument
    if dataset != "demo-voice":
        text = f"number of speakers of demo, at most {len(VOICES)}"
        add("--voices", type=_voices, default=64, metavar="N", help=text)
    kind, usual = (positive_int, 240) if dataset == "demo-voice" else (_of_two_chapters, 20)
    text = "utterances per speaker; 240 by default for demo-voice"
    add("--utterances-per-voice", type=kind, default=usual, metavar="N", help=text)
    text = "seed of the sentences and the recording conditions"
    add("--seed", type=non_negative_int, default=0, metavar="N", help=text)
    text = "number of processes; the output does not depend on it"
    add("--num-proc", type=positive_int, default=min(cores(), 8), metavar="N", help=text)
    text = "replace a demo corpus of other settings"
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help=text)


def _add_transfer_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("download of public corpora").add_argument
    text = "download archive NAME from URL/NAME (default: the official servers)"
    add("--base-url", "--mirror", type=_address, metavar="URL", help=text)
    text = "keep the archive after it is unpacked"
    add("--keep-archive", action=argparse.BooleanOptionalAction, default=False, help=text)
    text = "number of consecutive failures after which to give up"
    add("--attempts", type=positive_int, default=8, metavar="N", help=text)
    text = "seconds to wait after a failure, doubled after each"
    add("--retry-wait", type=positive_float, default=1.0, metavar="S", help=text)
    text = "seconds without any byte after which an attempt fails"
    add("--timeout", type=positive_float, default=60.0, metavar="S", help=text)


def _folder(text: str) -> Path:
    """argparse type: a folder, which need not exist."""
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def _address(text: str) -> str:
    """argparse type: the address of a server."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} does not begin with http:// or https://")
    return text


def _voices(text: str) -> int:
    """argparse type: a number of voices."""
    if positive_int(text) > len(VOICES):
        raise argparse.ArgumentTypeError(f"there are only {len(VOICES)} distinct voices, not {text}")
    return int(text)


def _of_two_chapters(text: str) -> int:
    """argparse type: a number of utterances in two chapters."""
    if positive_int(text) < 2:
        raise argparse.ArgumentTypeError("each of the two chapters needs an utterance")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, makes the corpus, returns the exit code."""
    escape_in_streams()
    args = build_parser(argv).parse_args(argv)
    args.split = list(dict.fromkeys(args.split or DEFAULT_SPLITS[args.dataset]))
    return run(obtain, args)


def obtain(args: argparse.Namespace) -> None:
    """Makes or downloads the corpus, and saves the flags beside it."""
    if args.dataset == "demo":
        from utils.corpus import demo

        settings = demo.Settings(args.voices, args.utterances_per_voice, args.seed)
        demo.build_demo(args.root, settings, args.num_proc, args.overwrite)
    elif args.dataset == "demo-voice":
        from utils.corpus import demo_voice

        settings = demo_voice.Settings(args.utterances_per_voice, args.seed)
        demo_voice.build_demo_voice(args.root, settings, args.num_proc, args.overwrite)
    else:
        _download(args)
    save_config(args.root / args.dataset / "download.yaml", args)


def _download(args: argparse.Namespace) -> None:
    from utils.corpus import transfer

    archives = [ARCHIVES[args.dataset, split] for split in args.split]
    if args.base_url:
        address = args.base_url.rstrip("/")
        archives = [dataclasses.replace(archive, urls=(f"{address}/{archive.name}",)) for archive in archives]
    patience = transfer.Patience(args.attempts, args.retry_wait, args.timeout)
    transfer.obtain(archives, args.root, patience, args.keep_archive)


if __name__ == "__main__":
    sys.exit(main())
