"""Common parts of the subcommands of test.py."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils import cli
from utils.errors import UserError
from utils.files import json_text
from utils.locks import LOCK, only_writer
from utils.plots import FORMATS

REPORT, CONFIG = "report.json", "config.yaml"
RECORDINGS, ANSWERS = "recordings.txt", "identification.txt"
UTTERANCES, COMPARISON = "utterances.jsonl", "comparison.html"
PARTS_OF_REPORTS = (RECORDINGS, ANSWERS, UTTERANCES, COMPARISON)  # left by an interrupted report

Problems = Callable[[argparse.Namespace], list[str]]


def add_command(
    commands: Any,
    name: str,
    body: Any,
    description: str,
    problems: Problems = lambda args: [],
    model: bool = True,
    shipped: bool = False,
) -> cli.Parser:
    """Adds a subcommand, with flags of a model, that sets two functions of the arguments.

    `check` exits with the sentences of `problems`, if there are any; `body` runs the subcommand. With `shipped` the
    model is by default the one that the repository ships.
    """
    parser = commands.add_parser(name, help=description.partition("\n")[0], description=description)
    parser.set_defaults(body=body, check=lambda args: parser.report(problems(args)))
    if model:
        parser.add_config()
        group = parser.add_argument_group("model")
        help = "checkpoint file, run folder, or packed model"
        help += " (default: the one in pretrained/)" if shipped else ""
        group.add_argument("--checkpoint", type=Path, required=not shipped, metavar="PATH", help=help)
        cli.add_device_arguments(group)
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False, help="print the result as JSON")
    return parser


def counted(number: int, noun: str) -> str:
    """A number and its noun, which takes an s unless there is one: "1 speaker", "2 speakers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_json(content: Any) -> None:
    """Prints plain values as indented JSON."""
    print(json_text(content, sys.stdout.encoding or "utf-8"))


def add_report_arguments(parser: cli.Parser) -> None:
    """Adds the flags of commands that evaluate and write a report."""
    group = add_report_folder(parser)
    help = "format of the pictures"
    group.add_argument("--format", choices=tuple(FORMATS), default="png", help=help)
    help = "bootstrap samples for an interval"
    group.add_argument("--bootstrap", type=cli.positive_int, default=1000, metavar="N", help=help)
    group.add_argument("--seed", type=cli.non_negative_int, default=0, metavar="N", help="seed of the bootstrap")


def add_report_folder(parser: cli.Parser) -> argparse._ArgumentGroup:
    """Adds the flag of the folder that a report is written to, in a group, which is returned."""
    group = parser.add_argument_group("report")
    help = "folder for the report and its pictures"
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=help)
    return group


@contextlib.contextmanager
def report_folder(out: Path) -> Iterator[None]:
    """Creates the folder of a report, for this process alone; `UserError` if a report cannot be written there."""
    with only_writer(out):
        names = {path.name for path in out.iterdir()} - {LOCK}
        if names and not names.intersection((REPORT, *PARTS_OF_REPORTS)):
            raise UserError(f"{out} contains other files and no {REPORT}: choose a new or empty folder for --out")
        yield


def show_report(args: argparse.Namespace, report: dict[str, Any], table: str) -> None:
    """Prints warnings to stderr, and the report as a table or, with --json, as JSON."""
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print_json(report)
    else:
        print(f"{report['title']}\n\n{table}\n\nreport: {args.out}")
