"""WAV files: the samples that libsndfile would write, and a sentence when the disk is full."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from root import ROOT

from utils.wav import wav_file

FULL = """
import argparse, resource, sys
import numpy as np
from utils import cli
from utils.training.runlog import RunLog
from utils.tts.commands import _audio_file

def in_pieces(args):
    with _audio_file(sys.argv[2], 22050) as write:
        for _ in range(20):
            write(np.zeros(22050, np.float32))

def in_a_log(args):
    RunLog(Path(sys.argv[2]).parent, True, 0, True).sound(1, "x", np.zeros(441000, np.float32), 22050)

from pathlib import Path
import torch.utils.tensorboard
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
sys.exit(cli.run({"pieces": in_pieces, "log": in_a_log}[sys.argv[1]], argparse.Namespace()))
"""


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pieces_are_the_file_that_libsndfile_writes(tmp_path, kind):
    samples = np.random.default_rng(0).normal(0, 0.5, 10_000).astype(kind)
    with wav_file(tmp_path / "x.wav", 22_050) as write:
        for piece in np.array_split(samples, 7):
            write(piece)
    expected = io.BytesIO()
    soundfile.write(expected, samples, 22_050, format="WAV", subtype="PCM_16")
    assert (tmp_path / "x.wav").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("how", ["pieces", "log"])
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, how):
    command = [sys.executable, "-c", FULL, how, str(tmp_path / "x.wav")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    name = {"pieces": "x.wav", "log": "sounds/x-00000001.wav"}[how]
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr == f"error: {tmp_path / name} could not be written: File too large\n"
    assert not (tmp_path / name).exists() and not list(tmp_path.rglob("*.tmp"))
