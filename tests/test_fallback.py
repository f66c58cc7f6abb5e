"""Without a C++ compiler: training and profiling say once what that costs and what helps; other commands are silent."""

from __future__ import annotations

import forked
import pytest
from training_runs import flags

SENTENCE = (
    "mamba2 on cpu: backend torch, since native does not work here: no C++ compiler is on the "
    "path (tried $CXX, c++, g++ and clang++): apt-get install g++"
)


@pytest.fixture
def call(tmp_path):
    """Runs a script where there is no compiler, and gives its lines on stderr."""

    def run(*words: object) -> list[str]:
        done = forked.run(*words, PATH=str(tmp_path / "nothing"), CXX="", TACOMAMBA_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    return run


def test_training_and_profiling_say_it_once(call, processed, tmp_path):
    run = tmp_path / "run"
    assert call("train_tacomamba.py", *flags(processed, run, "--steps", "1", "--device", "cpu")) == [SENTENCE]
    assert call("profile_model.py", "--d-model", "16", "--n-layers", "2", "--headdim", "8", "--frames", "50") == [
        SENTENCE
    ]


def test_commands_on_a_trained_model_are_silent(call, trained_run, processed, librispeech_root, tmp_path):
    audio = sorted((librispeech_root / "LibriSpeech" / "train-tiny" / "101").rglob("*.flac"))[:2]
    model, store = ["--checkpoint", trained_run, "--device", "cpu"], ["--store", tmp_path / "store"]
    assert call("test.py", "embed", *model, *audio) == []
    assert call("test.py", "enroll", *model, *store, "--name", "Ada", *audio) == []
    assert call("test.py", "identify", *model, *store, *audio) == []
    assert call("test.py", "verify", *model, *audio) == []
    report = ["--data", processed, "--bootstrap", "5", "--out", tmp_path / "report"]
    assert call("test.py", "evaluate", *model, *report) == []
