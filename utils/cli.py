"""What every script shares: the argument parser, the exit codes, and how errors reach the user."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from models.config import Config, kinds, options, problem_of
from models.engine import BACKENDS
from utils.errors import ExitCode, UserError
from utils.files import write_text

T = TypeVar("T")
N = TypeVar("N", int, float)
C = TypeVar("C", bound=Config)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines and ends each flag's help with its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.default is argparse.SUPPRESS or "%(default)" in text:
            return text
        if action.required or action.default is None:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` with `--config FILE.yaml` for defaults, and all errors reported at once.

    The file's keys are flag names, with dashes or underscores; flags on the command line override it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._problems: list[str] = []
        self.may_change = {"config", "out"}  # flags that a resumed run may give other values
        self.elsewhere: dict[str, str] = {}  # flags that exist in another case, and which case that is

    def add_config(self, ignored: Iterable[str] = ()) -> None:
        """Adds `--config`; call it on the parser, or the subparser, whose flags the file may set.

        The file may also hold the keys `ignored`, flags of another script.
        """
        self._ignored = frozenset(ignored)
        self.add_argument("--config", metavar="FILE", type=Path, help="YAML file that sets defaults of these flags")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, with `--config` applied first and all problems reported together."""
        words = list(sys.argv[1:] if args is None else args)
        self._problems = []
        if "--config" in self._option_string_actions:
            self._apply_config(words)
        if self._subparsers is None:  # a parser of subcommands is handed flags that are theirs
            self._problems += [self._no_flag(flag) for flag in self._unknown_flags(words)]
        result = super().parse_known_args(words, namespace)
        if self._problems:
            self._exit_with(self._problems)
        return result

    def add_options(self, *configs: type[Config]) -> None:
        """Adds a flag for each option of configurations, grouped by the class that defines it."""
        for config in configs:
            for owner in config.__mro__:
                fields = [field for field in options(config) if field.name in vars(owner).get("__annotations__", {})]
                if fields:
                    group = self.add_argument_group(owner.title)
                    for field in fields:
                        _add_option(group, field, *kinds(config)[field.name])
                        self.may_change |= {field.name} if field.metadata["may_change"] else set()

    def read_options(self, args: argparse.Namespace, *configs: type[C], also: Sequence[str] = ()) -> list[C]:
        """The configurations that parsed flags give; exits with all contradictions in them, and the problems `also`."""
        found, problems = [], list(also)
        for config in configs:
            values = {field.name: getattr(args, field.name) for field in options(config)}
            try:
                found.append(config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
            except ValueError as error:
                problems += str(error).split("; ")
            problems += self._of_other_families(config, values)
        self.report(problems)
        return found

    def _of_other_families(self, config: type[Config], values: dict[str, Any]) -> list[str]:
        """A sentence for each flag that was set and that only another family of models reads."""
        return [
            f"{_flag(field.name)} is for --model {field.metadata['family']}, not for --model {values['model']}"
            for field in options(config)
            if field.metadata["family"] not in (None, values.get("model"))
            and values[field.name] != self.get_default(field.name)
        ]

    def report(self, problems: Sequence[str]) -> None:
        """Exits with all `problems` (contradicting flags, say) if there are any."""
        if problems:
            self._exit_with(problems)

    def _unknown_flags(self, words: Sequence[str]) -> list[str]:
        flags = (word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", words))
        return [flag for flag in flags if flag.startswith("--") and flag not in self._option_string_actions]

    def _no_flag(self, flag: str) -> str:
        case = self.elsewhere.get(flag.lstrip("-").replace("-", "_"))
        if case is not None:
            return f"{flag} is for {case}"
        close = difflib.get_close_matches(flag[2:], [known.lstrip("-") for known in self._option_string_actions], n=1)
        return f"there is no flag {flag}" + (f"; did you mean --{close[0]}?" if close else "")

    def _apply_config(self, words: list[str]) -> None:
        path = _config_path(words)
        if path is None:
            return
        actions = {
            name.lstrip("-").replace("-", "_"): action
            for name, action in self._option_string_actions.items()
            if not (action.nargs == 0 and name.startswith("--no-"))  # its positive form takes true and false
        }
        for key, value in self._read_config(path).items():
            dest = str(key).replace("-", "_")
            action = actions.get(dest)
            if action is None and dest in self._ignored:
                continue
            if action is None or action.dest in ("config", "help"):
                self._problems.append(f"{path}: {self._no_flag(_flag(str(key)))}")
                continue
            action.default = self._config_value(action, value)
            action.required = action.required and value is None

    def _read_config(self, path: Path) -> dict[str, Any]:
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            self._problems.append(f"the configuration {path} cannot be read: {error.strerror}")
            return {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self._problems.append(f"the configuration {path} is not YAML: {' '.join(str(error).split())}")
            return {}
        if content is not None and not isinstance(content, dict):
            self._problems.append(f"the configuration {path} must be a list of `flag: value` lines")
            return {}
        return content or {}

    def _config_value(self, action: argparse.Action, value: Any) -> Any:
        """Checks a value of the file exactly as argparse checks a word of the command line."""
        flag = action.option_strings[0]
        if action.nargs == 0:
            if not isinstance(value, bool):
                self._problems.append(f"argument {flag}: expected true or false, not {value!r}")
            return value
        if value is None:
            if action.default is not None:
                self._problems.append(f"argument {flag}: expected a value, not null")
            return action.default
        if action.nargs is not None and action.nargs != "?":
            values = value if isinstance(value, list) else [value]
            if isinstance(action.nargs, int) and len(values) != action.nargs:
                self._problems.append(f"argument {flag}: expected {action.nargs} values, not {value!r}")
            return [self._checked(action, item) for item in values]
        if isinstance(value, (list, dict)):
            self._problems.append(f"argument {flag}: expected one value, not {value!r}")
            return action.default
        return self._checked(action, value)

    def _checked(self, action: argparse.Action, value: Any) -> Any:
        if isinstance(value, bool):
            value = "on" if value else "off"  # YAML reads the words so, and `amp: off` is meant as a word
        result = self._get_value(action, str(value))
        self._check_value(action, result)
        return result

    # argparse stops at the first bad word; these three hooks note it and go on, so that all are shown together.
    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self._problems.append(str(error))
            return arg_string if action.choices is None else next(iter(action.choices))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction):
            return super()._check_value(action, value)
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            self._problems.append(str(error))

    def error(self, message: str) -> NoReturn:
        """Exits with what was noted before and `message`."""
        self._exit_with([*self._problems, message])

    def _exit_with(self, problems: Sequence[str]) -> NoReturn:
        for problem in dict.fromkeys(problems):
            print(f"{self.prog}: error: {problem}", file=sys.stderr)
        print(f"{self.prog} --help shows the flags", file=sys.stderr)
        raise SystemExit(int(ExitCode.BAD_INPUT))


def _config_path(words: Sequence[str]) -> Path | None:
    found = _last_value(words, "--config")
    return None if found is None else Path(found)


def _last_value(words: Sequence[str], flag: str) -> str | None:
    """The last value of a flag among the words, as argparse would take it."""
    found = None
    for position, word in enumerate(words):
        if word == "--":
            break
        if word == flag and position + 1 < len(words):
            found = words[position + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def peek(words: Sequence[str] | None, flag: str, default: str, choices: Container[str]) -> str:
    """The value that a flag will have, looked up before the parser that depends on it is made; `default` if it is bad.

    The command line and the file of `--config` are read; the parser reports what is wrong with them.
    """
    words = sys.argv[1:] if words is None else words
    value = _last_value(words, flag)
    path = _config_path(words)
    if value is None and path is not None:
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            content = None
        value = content.get(flag.lstrip("-")) if isinstance(content, dict) else None
    return value if isinstance(value, str) and value in choices else default


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_option(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: type, count: int) -> None:
    """Adds the flag of an option, with the checks that its configuration makes."""
    metadata = field.metadata
    common = {"default": field.default, "help": metadata["help"].replace("%", "%%")}
    if kind is bool:
        group.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, **common)
        return
    if count > 1:
        common |= {"nargs": count, "default": list(field.default)}
    if metadata["choices"] is not None:
        group.add_argument(_flag(field.name), choices=tuple(metadata["choices"]), **common)
        return

    def checked(text: str) -> Any:
        value = _number(kind, text) if kind in (int, float) else kind(text)
        problem = problem_of(metadata, value)
        if problem:
            raise argparse.ArgumentTypeError(problem)
        return value

    metavar = metadata["metavar"] or {int: "N", float: "X", Path: "FILE"}.get(kind)
    group.add_argument(_flag(field.name), type=checked, metavar=metavar, **common)


def _number(kind: type[N], text: str) -> N:
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}") from error


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = _number(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = _number(int, text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def positive_float(text: str) -> float:
    """argparse type: a number above 0."""
    value = _number(float, text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def fraction(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    value = _number(float, text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return value


def add_device_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the flags of what a model runs on."""
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what computes the Mamba mixers: auto takes the fastest that works on the device, and says which",
    )


def run(body: Callable[[argparse.Namespace], int | None], args: argparse.Namespace, notes: bool = False) -> int:
    """Calls a script's body; a `UserError`, or what the system refuses, becomes one sentence on stderr.

    Warnings of the project's logger are shown on stderr too, with `notes` also what it merely tells.
    """
    try:
        with _logging(logging.INFO if notes else logging.WARNING):
            return int(body(args) or ExitCode.DONE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f"error: {_os_sentence(error)}", file=sys.stderr)
        return int(ExitCode.BAD_INPUT)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


@contextlib.contextmanager
def _logging(shown: int) -> Iterator[None]:
    """Shows what the project's logger says from a level on; under torchrun on one rank."""
    logger, handler = logging.getLogger("tacomamba"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(shown if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _os_sentence(error: OSError) -> str:
    """What the system refused, and for which file: a full disk, a folder without permission."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def progress(iterable: Iterable[T] | None = None, **kwargs: Any) -> Any:
    """A tqdm bar on stderr that is silent when stderr is not a terminal, and on all ranks of torchrun but the first."""
    from tqdm import tqdm

    hidden = True if os.environ.get("RANK", "0") != "0" else None  # None: tqdm looks whether there is a terminal
    return tqdm(iterable, **{"disable": hidden, "dynamic_ncols": True, **kwargs})


def plain_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The resolved arguments as plain YAML values under their flags' names (underscores), without `--config`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return {key: plain(value) for key, value in sorted(vars(args).items()) if key != "config" and not callable(value)}


def save_config(path: Path, args: argparse.Namespace) -> None:
    """Writes the resolved arguments as a YAML file that `--config` accepts."""
    import yaml

    write_text(path, yaml.safe_dump(plain_arguments(args), sort_keys=True, allow_unicode=True))
