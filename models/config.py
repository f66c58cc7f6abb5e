"""Configurations: frozen dataclasses whose fields hold default, help, choices and limits.

`utils.cli` generates flags and YAML keys from the fields, constructors take a configuration as one argument, and
checkpoints keep it as a plain dictionary.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """Classes or functions under the names that flags use, in order of registration."""

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a class or function under `name`."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add


def option(
    default: Any,
    help: str,
    *,
    choices: Container[str] | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    metavar: str | tuple[str, ...] | None = None,
    family: str | None = None,
    may_change: bool = False,
) -> Any:
    """A field that becomes a flag.

    Args:
        choices: a tuple, or a registry whose names are the choices.
        least, above, most, below: limits of numbers, and of each number of a tuple.
        metavar: name of the value in the help.
        family: the only value of `model` that reads the flag.
        may_change: true if a resumed run may have another value, because the flag does not affect results.
    """
    metadata = {"help": help, "choices": choices, "least": least, "above": above, "most": most, "below": below}
    return dataclasses.field(
        default=default, metadata=metadata | {"metavar": metavar, "family": family, "may_change": may_change}
    )


def problem_of(metadata: Mapping[str, Any], value: Any) -> str | None:
    """The reason why an option cannot have a value, such as `must be at least 1, not 0`; None if it can."""
    if isinstance(value, tuple):
        return next(filter(None, (problem_of(metadata, item) for item in value)), None)
    choices = metadata["choices"]
    if choices is not None and value not in choices:
        return f"must be one of {', '.join(choices)}, not {value}"
    if value is None or isinstance(value, (str, bool, Path)):
        return None
    if not abs(value) < float("inf"):
        return f"must be a number, not {value}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"must be at most {_LARGEST}, not {value}"
    for name, holds, words in _LIMITS:
        limit = metadata[name]
        if limit is not None and not holds(value, limit):
            return f"must be {words} {limit:g}, not {value:g}"
    return None


_LARGEST = 2**63 - 1  # of 64 bits, which torch takes
_LIMITS: tuple[tuple[str, Callable[[float, float], bool], str], ...] = (
    ("least", operator.ge, "at least"),
    ("above", operator.gt, "above"),
    ("most", operator.le, "at most"),
    ("below", operator.lt, "below"),
)


@dataclass(frozen=True)
class Config:
    """Base of all configurations; ValueError with a sentence for values outside limits or in contradiction."""

    title: ClassVar[str] = ""  # of the group of flags
    renamed: ClassVar[Mapping[str, str]] = {}  # keys of older checkpoints

    def __post_init__(self) -> None:
        found = {field.name: problem_of(field.metadata, getattr(self, field.name)) for field in options(type(self))}
        problems = [f"{name} {problem}" for name, problem in found.items() if problem]
        problems = problems or list(dict.fromkeys(self.problems()))
        if problems:
            raise ValueError("; ".join(problems))

    def problems(self) -> list[str]:
        """Sentences about fields that contradict each other."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; fields that `values` lacks keep their defaults, ValueError for unknown ones."""
        values = {cls.renamed.get(name, name): value for name, value in values.items()}
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def options(config: type[Config]) -> list[dataclasses.Field]:
    """The fields that are flags."""
    return [field for field in dataclasses.fields(config) if "help" in field.metadata]


@functools.cache
def kinds(config: type[Config]) -> dict[str, tuple[type, int]]:
    """The type of each field, without None, and the number of its values: `d_model` -> (int, 1)."""
    found, hints = {}, typing.get_type_hints(config)
    for name in (field.name for field in dataclasses.fields(config)):
        kind = hints[name]
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        parts = typing.get_args(kind) if typing.get_origin(kind) is tuple else (kind,)
        found[name] = parts[0], len(parts)
    return found


def attempt(build: Callable[..., Any], *arguments: Any) -> list[str]:
    """The message of the ValueError that a constructor raises for its arguments, if it does.

    It is called on the meta device, which allocates nothing and draws no random numbers, so that only the constructor
    needs to state the rules for its arguments.
    """
    import torch  # slow, and scripts without a model do not need it

    try:
        with torch.device("meta"):
            build(*arguments)
    except ValueError as error:
        return [str(error)]
    return []
