"""Folders compared by their content."""

from pathlib import Path


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of each file under a folder, by its path in there."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
