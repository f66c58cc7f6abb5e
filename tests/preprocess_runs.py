"""Runs of preprocess.py, in the process of the tests or apart, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from root import ROOT

import preprocess


def run(*arguments: object) -> int:
    """Runs preprocess.py in this process, with one worker unless `arguments` say otherwise."""
    words = [str(argument) for argument in arguments]
    return preprocess.main(words if "--num-proc" in words else [*words, "--num-proc", "1"])


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "preprocess.py"), *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts into the background with Ctrl-C ignored, and programs inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files under a folder except the arguments."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "config.yaml"}


def write_noise(path: Path, seconds: float, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
    soundfile.write(path, samples, 16_000)
