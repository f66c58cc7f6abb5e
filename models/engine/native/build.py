"""Builds the native kernels on first use: with the system's compiler, once per machine, into a cache.

A library is used only after it has passed a trial in a separate process on this kind of CPU, so that a cache on a
shared home or a broken compiler cannot crash the program.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

SOURCES = Path(__file__).resolve().parent
FLAGS = ("-O2", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
CPU_FLAGS = (("-march=native",), ())  # in order of preference; some compilers do not know the first
COMPILE_SECONDS, TRIAL_SECONDS = 300, 60
TRIAL = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).tacomamba_self_test())"


class NativeUnavailable(RuntimeError):
    """The native backend cannot be used here; `reason` is one line that explains it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command and its answer to --version."""

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        name = Path(self.command[-1]).name  # may be c++, which can be either compiler
        if "clang" in self.version:
            name = "clang++"
        elif "Free Software Foundation" in self.version:
            name = "g++"
        number = re.search(r"\d+(\.\d+)+", self.version.splitlines()[0])
        return f"{name} {number[0] if number else ''}".strip()


@dataclass(frozen=True)
class _Loaded:
    library: ctypes.CDLL
    description: str


_lock = threading.Lock()
_outcome: _Loaded | NativeUnavailable | None = None


def load() -> ctypes.CDLL:
    """Loads the library of kernels, and builds it if necessary; once per process, whatever the outcome.

    Raises NativeUnavailable where there is no compiler, the cache cannot be written, the build or its trial fails.
    """
    return _load().library


def describe() -> str:
    """Names the compiler and the instructions of the library in use, such as "C++ by g++ 12.2.0, AVX-512".

    Raises NativeUnavailable like `load`.
    """
    return _load().description


def _load() -> _Loaded:
    global _outcome
    with _lock:
        if _outcome is None:
            try:
                _outcome = _find_or_build()
            except NativeUnavailable as error:
                _outcome = error
    if isinstance(_outcome, NativeUnavailable):
        raise NativeUnavailable(_outcome.reason)
    return _outcome


def _find_or_build() -> _Loaded:
    compiler = find_compiler()
    cache = cache_folder()
    libraries = {flags: cache / f"native-{_key(compiler, flags)}.so" for flags in CPU_FLAGS}
    for path in libraries.values():
        if _is_tried(path):
            return _open(path, compiler)
    with _building(cache, next(iter(libraries.values())).with_suffix(".lock")):
        failures = []
        for flags, path in libraries.items():
            try:
                if not _is_tried(path):  # another process may have built it while this one waited
                    _build(compiler, flags, path)
                return _open(path, compiler)
            except NativeUnavailable as error:
                failures.append(error.reason)
    raise NativeUnavailable("; without -march=native: ".join(dict.fromkeys(failures)))


def find_compiler() -> Compiler:
    """Returns the first that answers of $CXX, c++, g++ and clang++; raises NativeUnavailable if there is none."""
    named = os.environ.get("CXX", "").strip()
    for command in ([named] if named else []) + ["c++", "g++", "clang++"]:
        words = tuple(shlex.split(command))
        if shutil.which(words[0]) is None:
            continue
        try:
            answer = subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=TRIAL_SECONDS)
        except (OSError, subprocess.SubprocessError):
            continue
        if answer.returncode == 0 and answer.stdout.strip():
            return Compiler(words, answer.stdout)
    raise NativeUnavailable("no C++ compiler is on the path (tried $CXX, c++, g++ and clang++): apt-get install g++")


def cache_folder() -> Path:
    """Returns $TACOMAMBA_CACHE, else tacomamba in $XDG_CACHE_HOME, else in ~/.cache.

    Raises NativeUnavailable if none of them is set and there is no home folder.
    """
    if own := os.environ.get("TACOMAMBA_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tacomamba"
    try:
        return Path.home() / ".cache" / "tacomamba"
    except RuntimeError as error:
        raise NativeUnavailable("there is no home folder to cache the library in; set TACOMAMBA_CACHE") from error


def _key(compiler: Compiler, cpu_flags: tuple[str, ...]) -> str:
    """Hashes what determines a build: sources, compiler, flags and CPU."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.?pp")):
        digest.update(path.read_bytes())
    for text in (*compiler.command, compiler.version, *FLAGS, *cpu_flags, platform.machine(), _cpu()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """Returns the CPU's model and features, as the system names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        fields = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(fields)}))
    except OSError:
        pass
    try:
        command = ["sysctl", "-n", "machdep.cpu"]
        return subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return platform.processor()


@contextmanager
def _building(cache: Path, lock: Path) -> Iterator[None]:
    """Holds the build's lock, so that processes that start together compile once.

    The lock only saves work, as finished files are renamed into place: a file system without locks is no obstacle.
    Raises NativeUnavailable if the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise NativeUnavailable(f"the cache folder {cache} cannot be written ({error.strerror or error})") from error
    held = filelock.FileLock(lock, timeout=COMPILE_SECONDS)
    try:
        held.acquire()
    except (OSError, NotImplementedError, filelock.Timeout):
        pass
    try:
        yield
    finally:
        held.release()


def _build(compiler: Compiler, cpu_flags: tuple[str, ...], path: Path) -> None:
    """Compiles into a folder beside `path`, tries the result, and moves it to `path` with a record of the trial."""
    try:
        with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
            library = Path(folder) / path.name
            flags = [*FLAGS, *cpu_flags, str(SOURCES / "native.cpp"), "-o", str(library)]
            _run([*compiler.command, *flags], COMPILE_SECONDS, f"{compiler} failed")
            _run([sys.executable, "-I", "-S", "-c", TRIAL, str(library)], TRIAL_SECONDS, "the trial run failed")
            record = Path(folder) / _record(path).name
            record.write_text(_checksum(library), encoding="ascii")
            os.replace(library, path)
            os.replace(record, _record(path))
    except OSError as error:
        raise NativeUnavailable(f"the library could not be built in {path.parent}: {error}") from error


def _run(command: list[str], seconds: int, failure: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{failure}: not finished after {seconds} s") from error
    if done.returncode < 0:
        raise NativeUnavailable(f"{failure}: killed by signal {-done.returncode}")
    if done.returncode > 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise NativeUnavailable(f"{failure} with status {done.returncode}: {errors[0]}")


def _record(path: Path) -> Path:
    """Returns the file beside a library that holds the checksum of the bytes that passed the trial."""
    return path.with_suffix(".tried")


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_tried(path: Path) -> bool:
    try:
        return _record(path).read_text(encoding="ascii") == _checksum(path)
    except (OSError, UnicodeDecodeError):
        return False


def _open(path: Path, compiler: Compiler) -> _Loaded:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the library cannot be loaded: {error}") from error
    library.tacomamba_instructions.restype = ctypes.c_char_p
    return _Loaded(library, f"C++ by {compiler}, {library.tacomamba_instructions().decode()}")
