"""Commands as the documentation shows them, and the parsers that must accept them."""

import argparse
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from root import ROOT

from utils import cli

SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")])
STUDIES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/studies/*.py"))
MODULES = ["utils.demo", "utils.training.curves"]  # those that are run with python -m


def load_script(name: str):
    """A script or module, by its file name or dotted name; a script's own name may be a standard module's (test)."""
    if name in MODULES:
        return importlib.import_module(name)
    specification = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # where a dataclass looks up its own module
    specification.loader.exec_module(module)
    return module


def build_parser(name: str, arguments: Sequence[str] = ()) -> cli.Parser:
    """A new parser of a script or module, which may depend on the arguments that it is for."""
    build = load_script(name).build_parser
    return build(arguments) if inspect.signature(build).parameters else build()


def subparsers(parser: argparse.ArgumentParser) -> dict[str, cli.Parser]:
    """The parsers of the subcommands."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else {}


def lines_of(text: str) -> list[str]:
    """Lines without indentation and comments, continuation lines joined, empty ones left out."""
    lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in re.sub(r"\\\n", " ", text).splitlines())
    return [line for line in lines if line]


def split_command(command: str) -> tuple[str, list[str]]:
    """The script or module that a Python command runs, and the arguments it gets."""
    words = shlex.split(command)
    place = next(place for place, word in enumerate(words) if word in SCRIPTS + STUDIES + MODULES)
    return words[place], words[place + 1 :]


def parse(command: str, folder: Path) -> argparse.Namespace:
    """Parses a Python command as its script does in `folder`, where the lists that it names are made if need be."""
    script, arguments = split_command(command)
    for word in arguments:
        if word.endswith(".txt") and not (folder / word).exists():
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).write_text("")
    return build_parser(script, arguments).parse_args(arguments)
