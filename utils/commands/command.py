"""What the subcommands of test.py share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils import cli

Problems = Callable[[argparse.Namespace], list[str]]


def add_command(
    commands: Any, name: str, body: Any, description: str, problems: Problems = lambda args: [], model: bool = True
) -> cli.Parser:
    """A subcommand that runs `body(args)` unless `problems(args)` says what contradicts; with a model's flags."""
    parser = commands.add_parser(name, help=description.partition("\n")[0], description=description)
    parser.set_defaults(body=body, problems=problems)
    if model:
        parser.add_config()
        group = parser.add_argument_group("model")
        group.add_argument("--checkpoint", type=Path, required=True, help="checkpoint file, or run folder")
        cli.add_device_arguments(group)
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False, help="print the result as JSON")
    return parser


def print_json(content: Any) -> None:
    """Prints plain values as indented JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
