"""Files that are complete or absent: written under a temporary name in the same folder, flushed, and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` that is renamed to `path` only if the block ends without an exception."""
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)  # a link is kept, and its target replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_owner_and_mode(name, path)
        os.replace(name, path)
        _sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def staging_directory(path: str | Path, like: Path | None = None) -> Iterator[Path]:
    """Makes a temporary folder beside `path` that is renamed to `path` if the block succeeds, and removed otherwise.

    `path` must not exist at that time. The folder gets the owner and mode of `like`, if that exists then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield staging
        take_owner_and_mode(staging, like or path)
        os.rename(staging, path)
        _sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Replaces `path` by a new folder of the same owner and mode if the block succeeds; else as `staging_directory`."""
    path = path.resolve() if path.is_symlink() else path  # a link is kept, and its target replaced
    replaced = path.with_name(f".{path.name}.replaced.tmp")
    with staging_directory(path, like=replaced) as staging:
        yield staging
        if path.exists():
            os.rename(path, replaced)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(folder: Path, pattern: str = ".?*.????????.tmp") -> None:
    """Removes unfinished files and folders that killed processes left behind; the caller holds the folder's lock."""
    for leftover in folder.glob(pattern):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def take_owner_and_mode(name: str | Path, path: Path) -> None:
    """Gives a new file or folder owner and mode of the one that it replaces, or the usual mode if there is none."""
    try:
        before = path.stat()
    except FileNotFoundError:  # temporary files and folders are private; these are to be shared
        os.chmod(name, (0o777 if os.path.isdir(name) else 0o666) & ~_umask())
        return
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.chown(name, before.st_uid, before.st_gid)
    os.chmod(name, stat.S_IMODE(before.st_mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    """Makes a rename survive a power failure, on file systems that can sync directories."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def read_text(path: str | Path) -> str:
    """Reads UTF-8 text without a byte-order mark, with "\\n" for every line end; `UserError` if it cannot be read."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} cannot be read as text: {error}") from error


def shown(text: object) -> str:
    """Text that any stream can hold: what UTF-8 lacks, such as bytes of file names, becomes backslash escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def escape_in_streams() -> None:
    """Makes standard output and error show characters that their encoding lacks as backslash escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a caller replaced it
            stream.reconfigure(errors="backslashreplace")


def json_text(content: Any, encoding: str = "utf-8") -> str:
    """Plain values as strict JSON (no NaN), indented, keys in the given order.

    Characters are escaped if the text has some that `encoding` lacks.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(content, indent=2, allow_nan=False)
    return text


def write_json(path: str | Path, content: Any) -> None:
    """Writes plain values atomically, as `json_text` gives them."""
    write_text(path, json_text(content) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; `UserError` if it is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a string's UTF-8 bytes, as hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
