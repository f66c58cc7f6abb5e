"""The lock of a folder that one process at a time may fill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import UserError
from utils.files import remove_leftovers

LOCK = ".lock"


@contextlib.contextmanager
def only_writer(folder: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Creates `folder` and keeps other processes from filling it; `UserError` that names the process that does.

    A `folder` that is a file is a `UserError` too. With `say`, waits for the end of that process instead, and says so.

    The kernel ends the lock with its process, and unfinished files of a killed one are removed. At the end the lock
    file is removed, and so are created folders that are still empty. On a file system without locks nobody is refused.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder is needed")
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = _acquire(folder, say)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):
            for path in created:
                path.rmdir()


def _acquire(folder: Path, say: Callable[[str], None] | None) -> int:
    """The descriptor of the locked file, which names this process."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not flock, as of filelock: forked loader workers would inherit it, and outlive a killed run for seconds.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if say is None:
                os.close(handle)
                raise UserError(
                    f"{_holder(path)} is writing in {folder}: wait for its end, stop it, or choose another --out"
                ) from error
            say(f"{_holder(path)} is writing in {folder}: waiting for it")
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError:
            return handle  # without a lock: unfinished files may be another process's
        if _is_file(handle, path):
            with contextlib.suppress(OSError):  # a full disk
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} on {platform.node()}".encode())
            remove_leftovers(folder)
            return handle
        os.close(handle)  # its holder has ended and removed it


def _holder(path: Path) -> str:
    for _ in range(20):  # it may have locked the file and not yet written its name
        with contextlib.suppress(OSError):
            if name := path.read_text(encoding="utf-8", errors="replace"):
                return f"process {name}"
        time.sleep(0.01)
    return "another process"


def _is_file(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
