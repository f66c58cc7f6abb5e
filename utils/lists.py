"""Lists of recordings, speakers and trials as text files, one item a line; and the record of a folder of splits.

The fields of a line are separated by blanks, or by tabs if a field contains a blank. No other character separates:
names may contain any blank of Unicode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.files import read_json, read_text, sha256_text, shown, staging_directory, write_json, write_text

SPLITS_FORMAT = 1  # of protocol.json
DEFAULT_PROTOCOL = "default"
MAX_TRIALS = 20_000  # targets, and as many others
BLANKS = " \t"  # of lists; those of Unicode belong to names


class Trial(NamedTuple):
    """Two recordings, as paths relative to the raw root, and whether both are of the same speaker."""

    target: bool
    a: str
    b: str


def read_trials(path: str | Path, allow_empty: bool = False) -> list[Trial]:
    """Reads a trial list; `UserError` if a line is not a trial, or, unless `allow_empty`, if there are none."""
    trials, labels = [], {}
    for number, fields in _split_lines(path):
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise UserError(f"line {number} of {path} is not `1|0 path path`")
        if fields[1] == fields[2]:
            raise UserError(f"line {number} of {path} pairs a recording with itself")
        pair = tuple(sorted(fields[1:]))
        if labels.setdefault(pair, fields[0]) != fields[0]:
            raise UserError(f"line {number} of {path} contradicts an earlier one: the pair has both labels")
        trials.append(Trial(fields[0] == "1", fields[1], fields[2]))
    if not trials and not allow_empty:
        raise UserError(f"{path} holds no trials")
    return trials


def read_identification(path: str | Path) -> list[tuple[str, str]]:
    """Reads `speaker path` lines as pairs; `UserError` if a line is malformed, or if there are none."""
    pairs, speakers = [], {}
    for number, fields in _split_lines(path):
        if len(fields) != 2:
            raise UserError(f"line {number} of {path} is not `speaker path`")
        if speakers.setdefault(fields[1], fields[0]) != fields[0]:
            raise UserError(f"line {number} of {path} contradicts an earlier one: the recording has two speakers")
        pairs.append((fields[0], fields[1]))
    if not pairs:
        raise UserError(f"{path} lists no recordings")
    return pairs


def read_speakers(path: str | Path) -> list[str]:
    """Reads a list of speakers, one per line; `UserError` if it is empty."""
    speakers = [line.strip(BLANKS) for line in read_lines(path)]
    if not speakers:
        raise UserError(f"{path} lists no speakers")
    return speakers


def trial_lines(trials: Iterable[Trial]) -> str:
    """Formats the text of a trial list, `1|0 path path` per line."""
    return "".join(join_fields(str(int(trial.target)), trial.a, trial.b) for trial in trials)


def join_fields(*fields: str) -> str:
    """Formats one line of a list: blanks between the fields, or tabs if a field contains a blank.

    Raises:
        UserError: a field that no line can hold; see `unlistable`.
    """
    for field in fields:
        if unlistable(field):
            raise UserError(f"{shown(repr(field))} cannot be written into a list: it {unlistable(field)}")
    return ("\t" if any(" " in field for field in fields) else " ").join(fields) + "\n"


def unlistable(name: str) -> str | None:
    """The reason why a name cannot be an item of a list; None if it can."""
    if not name or name != name.strip(BLANKS):
        return "is empty, or begins or ends with a blank"
    if name.startswith("\ufeff"):
        return "begins with a byte-order mark"
    if any(character in name for character in "\t\n\r"):
        return "contains a tab or a line break"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


def split_fields(line: str) -> list[str]:
    """Inverse of `join_fields`; also accepts several blanks between fields."""
    line = line.rstrip("\n")
    fields = line.split("\t" if "\t" in line else " ")
    return [field.strip(" ") for field in fields if field.strip(" ")]


def _split_lines(path: str | Path) -> list[tuple[int, list[str]]]:
    return [(number, split_fields(line)) for number, line in _numbered_lines(path)]


def as_lines(items: Iterable[str]) -> str:
    """Formats a text of one item per line."""
    return "".join(f"{item}\n" for item in items)


def read_lines(path: str | Path) -> list[str]:
    """Reads the lines of a text file that are not blank; `UserError` if it cannot be read."""
    return [line for _, line in _numbered_lines(path)]


def _numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    """Reads the lines of a text file that are not blank, with their numbers from 1."""
    lines = read_text(path).split("\n")  # splitlines would also cut at U+2028
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip(BLANKS)]


def shuffled(names: Iterable[str], seed: str) -> list[str]:
    """Sorts names by a hash of the seed and each name: an order that does not depend on the order of `names`."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}/{name}".encode()).digest(), name))


def training_list_hash(train: Iterable[str]) -> str:
    """Identifies a training list by 16 hex digits, so that a checkpoint can be compared with a protocol."""
    return sha256_text("\n".join(sorted(train)))[:16]


def write_splits(directory: str | Path, texts: Mapping[str, str], **content: Any) -> None:
    """Writes a folder of splits atomically: its text files by their names, and `content` in protocol.json."""
    with staging_directory(directory) as folder:
        for name, text in texts.items():
            write_text(folder / name, text)
        write_json(folder / "protocol.json", {"format": SPLITS_FORMAT, **content})


def read_splits_file(directory: Path) -> dict[str, Any]:
    """Reads protocol.json of a folder of splits; `UserError` if there is none, or of another format."""
    if not (directory / "protocol.json").is_file():
        others = sorted(path.parent.name for path in directory.parent.glob("*/protocol.json"))
        raise UserError(f"there is no protocol {directory}" + (f"; there is {', '.join(others)}" if others else ""))
    content = read_json(directory / "protocol.json")
    if not isinstance(content, dict) or content.get("format") != SPLITS_FORMAT:
        raise UserError(f"{directory}/protocol.json is not of format {SPLITS_FORMAT}")
    return content
