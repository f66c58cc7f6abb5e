"""The subcommand of test.py that decides whether two recordings are of the same speaker."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils import cli
from utils.commands import add_command, print_json
from utils.speaker.people.commands import add_threshold, load_recognizer
from utils.speaker.scoring.decision import COST_FALSE_ACCEPT, PRIOR, llr_threshold

_VERIFY = """Decide whether two recordings are of the same speaker.

python test.py verify a.flac b.flac
python test.py verify --prior 0.01 --cost-false-accept 10 a.flac b.flac

The log-likelihood ratio is the natural logarithm of how many times as likely the recordings are if one speaker made
them. The same speaker is the answer if it reaches log(cost of a false accept * (1 - prior) / prior).
"""


def add_commands(commands: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(commands, "verify", _verify, _VERIFY, _problems, shipped=True)
    parser.add_argument("a", type=Path, metavar="A", help="a recording")
    parser.add_argument("b", type=Path, metavar="B", help="another recording")
    help = f"probability that it is the same speaker, before the recordings are heard (default: {PRIOR:g})"
    parser.add_argument("--prior", type=cli.probability, metavar="P", help=help)
    help = f"cost of a false accept, as a multiple of that of a false reject (default: {COST_FALSE_ACCEPT:g})"
    parser.add_argument("--cost-false-accept", type=cli.positive_float, metavar="X", help=help)
    add_threshold(parser, "decide by the log-likelihood ratio")


def _problems(args: argparse.Namespace) -> list[str]:
    point = {"--prior": args.prior, "--cost-false-accept": args.cost_false_accept}
    given = [flag for flag, value in point.items() if value is not None and args.threshold is not None]
    return [f"--threshold and {flag} contradict each other: one is for cosines, the other for ratios" for flag in given]


def _verify(args: argparse.Namespace) -> None:
    from utils.speaker.embeddings import cosine

    recognizer = load_recognizer(args, args.a, args.b)
    if args.threshold is None:
        recognizer.require_calibration()  # refuses before the work
    pair = recognizer.embed_speech([args.a, args.b])
    score, llr = cosine(*pair.embeddings), recognizer.llr(pair)
    if args.threshold is None:
        prior = PRIOR if args.prior is None else args.prior
        cost = COST_FALSE_ACCEPT if args.cost_false_accept is None else args.cost_false_accept
        threshold = llr_threshold(prior, cost)
        point, same = {"prior": prior, "cost_false_accept": cost, "llr_threshold": threshold}, llr >= threshold
        at = f"threshold {threshold:.2f} at a prior of {prior:g} and a cost of {cost:g} for a false accept"
    else:
        point, same = {"threshold": args.threshold}, score >= args.threshold
        at = f"threshold of the cosine {args.threshold:.3f}"
    if args.json:
        answer = {"a": str(args.a), "b": str(args.b), "llr": llr, "score": score, **point, "same": same}
        print_json({**answer, "model_hash": recognizer.model_hash})
    else:
        ratio = "" if llr is None else f"log-likelihood ratio {llr:.2f}, "
        print(f"{'same speaker' if same else 'different speakers'} ({ratio}cosine {score:.3f}; {at})")
