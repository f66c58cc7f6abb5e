"""Which recordings a store was made from, so that a recording that was replaced since is noticed.

OUT/recordings.txt holds a line per recording: SHA-256 of its bytes, size, time of its last change in ns, path. While
size and time are as they were, nothing is read; another time alone, as of a copy of the corpus, does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.cli import progress
from utils.files import sha256_file, write_text
from utils.lists import join_fields, read_lines, split_fields

FILE = "recordings.txt"


class Stamp(NamedTuple):
    """A recording's contents, and when they were seen; of one that cannot be read, `size` is -1 and `sha256` "-"."""

    sha256: str
    size: int
    mtime_ns: int


def stamp(path: Path, known: Stamp | None = None) -> Stamp:
    """Stamps a recording as it is now; its bytes are not read if size and time are those of the stamp `known`."""
    try:
        status = os.stat(path)
        seen = status.st_size, status.st_mtime_ns
        return known if known and known[1:] == seen else Stamp(sha256_file(path), *seen)
    except OSError:
        return Stamp("-", -1, 0)


def restamp(raw: Path, known: Mapping[str, Stamp]) -> tuple[dict[str, Stamp], list[str]]:
    """Stamps recordings again, by their paths relative to `raw`; also returns those whose bytes changed."""
    now = {path: stamp(raw / path, known[path]) for path in progress(known, desc="compare", leave=False)}
    return now, [path for path in now if now[path].sha256 != known[path].sha256]


def read_stamps(out: Path) -> dict[str, Stamp]:
    """Reads the stamps of a store by path; empty for a store that was made before there were any."""
    if not (out / FILE).exists():
        return {}
    lines = map(split_fields, read_lines(out / FILE))
    return {path: Stamp(sha256, int(size), int(mtime_ns)) for sha256, size, mtime_ns, path in lines}


def write_stamps(out: Path, stamps: Mapping[str, Stamp]) -> None:
    """Writes the stamps of a store, sorted by path."""
    write_text(out / FILE, "".join(join_fields(*map(str, stamps[path]), path) for path in sorted(stamps)))


def stamps_of(pairs: Iterable[Sequence]) -> dict[str, Stamp]:
    """Stamps by path from the pairs of path and stamp in a shard's record, which is JSON."""
    return {path: Stamp(*values) for path, values in pairs}
