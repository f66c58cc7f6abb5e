"""The argument parser, exit codes and error messages of all scripts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from models.config import Config, kinds, option, options, problem_of
from models.engine import BACKENDS
from utils.errors import ExitCode, UserError
from utils.files import escape_in_streams, write_text
from utils.version import ShowVersion

T = TypeVar("T")
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class DeviceOptions(Config):
    """The device that computes, and the implementation of the Mamba mixers on it."""

    title = "machine"

    device: str = option("auto", "auto, cpu, cuda or mps", may_change=True)
    backend: str = option(
        "auto",
        "implementation of the Mamba mixers: auto selects the fastest that works on the device",
        choices=BACKENDS,
        may_change=True,
    )


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that keeps the docstring's lines and ends each flag's help with its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = action.option_strings and not action.required and action.default not in (None, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if has_default else action.help or ""


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` with `--config FILE.yaml` for defaults, and all errors reported at once.

    The file's keys are flag names, with dashes or underscores; flags on the command line override it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        if self.add_help:
            version = {"action": ShowVersion, "nargs": 0, "default": argparse.SUPPRESS}
            self.add_argument("--version", help="show the version and exit", **version)
        self._problems: list[str] = []
        self.may_change = {"config", "out"}  # flags that a resumed run may give other values
        self.elsewhere: dict[str, str] = {}  # flags of other cases, each with the words that name the case

    def add_config(self, ignored: Iterable[str] = ()) -> None:
        """Adds `--config` to the parser or subparser whose flags the file may set.

        The file may also have the keys `ignored`, which are flags of another script; they set none of this one.
        """
        self._ignored = frozenset(ignored)
        self.add_argument("--config", metavar="FILE", type=Path, help="YAML file that sets defaults of these flags")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, with `--config` applied first and all problems reported together."""
        words = list(sys.argv[1:] if args is None else args)
        self._problems = []
        if "--config" in self._option_string_actions:
            self._apply_config(words)
        if self._subparsers is None:  # a parser of subcommands also sees their flags
            self._problems += [self._no_flag(flag) for flag in self._unknown_flags(words)]
        result = super().parse_known_args(words, namespace)
        if self._problems:
            self._exit_with(self._problems)
        return result

    def add_options(self, *configs: type[Config]) -> None:
        """Adds a flag for each option of configurations, grouped by the class that defines it."""
        groups: dict[str, argparse._ArgumentGroup] = {}
        for config in configs:
            for owner in config.__mro__:
                fields = [field for field in options(config) if field.name in vars(owner).get("__annotations__", {})]
                for field in fields:
                    group = groups.get(owner.title) or self.add_argument_group(owner.title)
                    groups[owner.title] = group
                    _add_option(group, field, *kinds(config)[field.name])
                    self.may_change |= {field.name} if field.metadata["may_change"] else set()

    def read_options(self, args: argparse.Namespace, *configs: type[C], also: Sequence[str] = ()) -> list[C]:
        """Configurations from parsed flags; exits with all contradictions among them and the problems `also`."""
        found, problems = [], list(also)
        for config in configs:
            values = {field.name: getattr(args, field.name) for field in options(config)}
            try:
                found.append(config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
            except ValueError as error:
                problems += [self._with_flags(problem) for problem in str(error).split("; ")]
            problems += self._of_other_families(config, values)
        self.report(problems)
        return found

    def _with_flags(self, sentence: str) -> str:
        """A sentence about an option, which it begins with, as one about its flag."""
        name, _, rest = sentence.partition(" ")
        return f"{flag_name(name)} {rest}" if flag_name(name) in self._option_string_actions else sentence

    def _of_other_families(self, config: type[Config], values: dict[str, Any]) -> list[str]:
        """A sentence for each flag that was set although only another family of models reads it."""
        return [
            f"{flag_name(field.name)} is for --model {field.metadata['family']}, not for --model {values['model']}"
            for field in options(config)
            if field.metadata["family"] not in (None, values.get("model"))
            and values[field.name] != self.get_default(field.name)
        ]

    def report(self, problems: Sequence[str]) -> None:
        """Exits with `problems`, such as contradicting flags, if there are any."""
        if problems:
            self._exit_with(problems)

    def _unknown_flags(self, words: Sequence[str]) -> list[str]:
        flags = (word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", words))
        return [flag for flag in flags if flag.startswith("--") and flag not in self._option_string_actions]

    def _no_flag(self, flag: str) -> str:
        if case := self.elsewhere.get(flag.lstrip("-").replace("-", "_")):
            return f"{flag} is for {case}"
        return f"there is no flag {flag}{_did_you_mean(flag, self._option_string_actions)}"

    def _apply_config(self, words: list[str]) -> None:
        path = _last_value(words, "--config")
        actions = {
            name.lstrip("-").replace("-", "_"): action
            for name, action in self._option_string_actions.items()
            if not (action.nargs == 0 and name.startswith("--no-"))  # its positive form takes true and false
        }
        try:
            content = {} if path is None else _read_config(path)
        except UserError as error:
            self._problems.append(str(error))
            return
        for key, value in content.items():
            dest = str(key).replace("-", "_")
            action = None if dest in self._ignored else actions.get(dest)
            if action is not None and action.dest not in ("config", "help", "version"):
                known = len(self._problems)
                checked = self._config_value(action, value)
                action.default = checked if len(self._problems) == known else action.default
                self._problems[known:] = [f"{path}: {problem}" for problem in self._problems[known:]]
                action.required = action.required and value is None
            elif action is not None or dest not in self._ignored:
                self._problems.append(f"{path}: {self._no_flag(flag_name(str(key)))}")

    def _config_value(self, action: argparse.Action, value: Any) -> Any:
        """Checks a value of the file exactly as argparse checks a word of the command line."""
        many = action.nargs not in (None, "?")
        items = value if many and isinstance(value, list) else [value]
        expected = None
        if value is None:
            expected = None if action.default is None else "a value"
        elif action.nargs == 0:
            expected = None if isinstance(value, bool) else "true or false"
        elif isinstance(action.nargs, int) and len(items) != action.nargs:
            expected = f"{action.nargs} values"
        elif not many and isinstance(value, (list, dict)):
            expected = "one value"
        if expected:
            shown = "null" if value is None else repr(value)
            self._problems.append(f"argument {action.option_strings[0]}: expected {expected}, not {shown}")
            return action.default
        if action.nargs == 0 or value is None:
            return value
        checked = [self._checked(action, item) for item in items]
        return checked if many else checked[0]

    def _checked(self, action: argparse.Action, value: Any) -> Any:
        if isinstance(value, bool):
            value = "on" if value else "off"  # YAML takes these words for booleans, but `amp: off` means the word
        result = self._get_value(action, str(value))
        self._check_value(action, result)
        return result

    # argparse stops at the first bad word; these three hooks collect errors, so that all are shown together.
    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self._problems.append(str(error))
        except OSError as error:  # of a type that looks at a file
            self._problems.append(f"argument {action.option_strings[0]}: {_os_sentence(error)}")
        return arg_string if action.choices is None else next(iter(action.choices))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            self._problems.append(f"{error}{_did_you_mean(str(value), map(str, action.choices))}")
            if isinstance(action, argparse._SubParsersAction):
                self._exit_with(self._problems)

    def error(self, message: str) -> NoReturn:
        """Exits with the problems collected before and `message`."""
        self._exit_with([*self._problems, message])

    def _exit_with(self, problems: Sequence[str]) -> NoReturn:
        for problem in dict.fromkeys(problems):
            print(f"{self.prog}: error: {problem}", file=sys.stderr)
        print(f"{self.prog} --help shows the flags", file=sys.stderr)
        raise SystemExit(int(ExitCode.BAD_INPUT))


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown flag, choice or subcommand: the nearest known one, if one is near."""
    names = {name.lstrip("-"): name for name in known}
    close = difflib.get_close_matches(word.lstrip("-"), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


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


def _read_config(path: str) -> dict[str, Any]:
    """The content of a configuration file; `UserError` if it cannot be read."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a day that is none
        raise UserError(f"the configuration {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"the configuration {path} must consist of `flag: value` lines")
    return content or {}


def peek(words: Sequence[str] | None, flag: str, default: str = "", choices: Container[str] | None = None) -> str:
    """The value that a flag will have, looked up before the parser that depends on it exists; `default` if it is bad.

    It is read from the command line or the file of `--config`; the parser reports what is wrong with them.
    """
    words = sys.argv[1:] if words is None else words
    value, path = _last_value(words, flag), _last_value(words, "--config")
    if value is None and path is not None:
        with contextlib.suppress(UserError):
            value = _read_config(path).get(flag.lstrip("-"))
    return value if isinstance(value, str) and (choices is None or value in choices) else default


def flag_name(option: str) -> str:
    """The flag of an option: `batch_size` is --batch-size."""
    return "--" + option.replace("_", "-")


def _add_option(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: type, count: int) -> None:
    """Adds the flag of an option, with the checks that its configuration makes."""
    metadata = field.metadata
    common = {"default": field.default, "help": metadata["help"].replace("%", "%%")}
    if kind is bool:
        group.add_argument(flag_name(field.name), action=argparse.BooleanOptionalAction, **common)
        return
    if count > 1:
        common |= {"nargs": count, "default": list(field.default)}
    if metadata["choices"] is not None:
        common |= {"choices": tuple(metadata["choices"])}
    else:
        by_kind = {int: "N", float: "S" if field.name.endswith("seconds") else "X", Path: "FILE"}
        metavar = metadata["metavar"] or by_kind.get(kind)
        common |= {"type": _checked_type(kind, metadata), "metavar": metavar}
    group.add_argument(flag_name(field.name), **common)


def _checked_type(kind: Callable[[str], T], metadata: Mapping[str, Any]) -> Callable[[str], T]:
    """argparse type: a value of `kind` within the limits of an option's metadata."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError as error:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}") from error
        problem = problem_of(metadata, value)
        if problem:
            raise argparse.ArgumentTypeError(problem)
        return value

    return parse


# argparse types.
positive_int = _checked_type(int, option(1, "", least=1).metadata)
two_or_more = _checked_type(int, option(2, "", least=2).metadata)
non_negative_int = _checked_type(int, option(0, "", least=0).metadata)
positive_float = _checked_type(float, option(1.0, "", above=0).metadata)
fraction = _checked_type(float, option(0.0, "", least=0, most=1).metadata)
probability = _checked_type(float, option(0.5, "", above=0, below=1).metadata)
cosine = _checked_type(float, option(0.0, "", least=-1, most=1).metadata)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_device_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the flags of the device and of the backend of the Mamba mixers."""
    for field in options(DeviceOptions):
        _add_option(group, field, *kinds(DeviceOptions)[field.name])


def run(body: Callable[[argparse.Namespace], int | None], args: argparse.Namespace, notes: bool = False) -> int:
    """Calls a script's body and returns the exit code; a `UserError` or `OSError` becomes one sentence on stderr.

    Warnings of the project's logger are shown on stderr too, and with `notes` its other messages. Characters that the
    encoding of a stream lacks, such as bytes of file names that are not UTF-8, are shown as backslash escapes.
    """
    escape_in_streams()
    try:
        with _logging(logging.INFO if notes else logging.WARNING):
            return int(body(args) or ExitCode.DONE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f"error: {_os_sentence(error)}", file=sys.stderr)
        return int(ExitCode.BAD_INPUT)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        print(f"error: {error.object} cannot be opened, because its name is not UTF-8", file=sys.stderr)
        return int(ExitCode.BAD_INPUT)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


@contextlib.contextmanager
def _logging(shown: int) -> Iterator[None]:
    """Shows messages of the project's logger from a level on; under torchrun those of one rank."""
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
    """The system's reason and the file, such as a full disk or a folder without permission."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def progress(iterable: Iterable[T] | None = None, **kwargs: Any) -> Any:
    """A tqdm bar on stderr; silent if stderr is no terminal, and on all ranks of torchrun but the first."""
    from tqdm import tqdm

    hidden = True if os.environ.get("RANK", "0") != "0" else None  # None lets tqdm look for a terminal
    return tqdm(iterable, **{"disable": hidden, "dynamic_ncols": True, **kwargs})


def plain_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The resolved arguments as plain YAML values under their flags' names (underscores), without `--config`."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in sorted(vars(args).items()) if key != "config" and not callable(value)}


def save_config(path: Path, args: argparse.Namespace) -> None:
    """Writes the resolved arguments as a YAML file that `--config` accepts."""
    import yaml

    write_text(path, yaml.safe_dump(plain_arguments(args), sort_keys=True, allow_unicode=True))
