"""Runs scripts in processes of their own, forked from one that has imported torch: that takes longer than most of them.

Only libraries are imported before the fork, none of our modules. Tests that talk to a process while it runs, by signals
or pipes, and tests of loading processes or of imports start an interpreter.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from root import ROOT

LIBRARIES = ("matplotlib.figure", "pyarrow.parquet", "safetensors.torch", "scipy.signal", "soundfile", "torch._dynamo")
READ_AT_START = ("LANG", "LC_", "PYTHON")  # variables by which an interpreter chooses its encodings
SECONDS = 120


def run(
    *words: object, cwd: Path = ROOT, text: bool = True, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess:
    """What `python WORDS...` does in `cwd`, with `environment` beside this one: its exit code and what it wrote."""
    variables = {**os.environ, **environment}
    server = _server(tuple(sorted(item for item in variables.items() if item[0].startswith(READ_AT_START))))
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("in", "out", "err")]
        streams[0].write_bytes(stdin)
        order = {
            "words": [os.fsencode(word if isinstance(word, bytes) else str(word)).hex() for word in words],
            "variables": [f"{os.fsencode(name).hex()}={os.fsencode(value).hex()}" for name, value in variables.items()],
            "cwd": str(cwd),
            "streams": list(map(str, streams)),
        }
        server.stdin.write(json.dumps(order).encode() + b"\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        written = [stream.read_bytes() for stream in streams[1:]]
    return subprocess.CompletedProcess(words, code, *(map(bytes.decode, written) if text else written))


@functools.lru_cache(maxsize=2)
def _server(variables: tuple[tuple[str, str], ...]) -> subprocess.Popen:
    """The process to fork from; one that falls out of the cache ends, because its input does."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(READ_AT_START)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__], env={**others, **dict(variables)}, **pipes)


def _serve() -> dict[str, Any] | None:
    """Forks a process for each order that comes, until there are no more; returns the order in that process."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    for line in sys.stdin.buffer:
        child = os.fork()
        if not child:
            return json.loads(line)
        sys.stdout.buffer.write(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        sys.stdout.buffer.flush()
    return None


def _become(order: dict[str, Any]) -> None:
    """Runs the script that is ordered as the main program of this process."""
    signal.alarm(SECONDS)
    atexit.register(gc.freeze)  # the collection at the end of an interpreter would touch, so copy, all that it holds
    for number, name in enumerate(order["streams"]):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(order["cwd"])
    os.environ.clear()
    for variable in order["variables"]:
        name, value = variable.split("=")
        os.environb[bytes.fromhex(name)] = bytes.fromhex(value)
    sys.argv = [os.fsdecode(bytes.fromhex(word)) for word in order["words"]]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    ordered = _serve()
    if ordered:
        _become(ordered)
