"""Names of files that are not UTF-8, and streams that hold ASCII only: every command works and shows escapes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import forked
import pytest
from safetensors import safe_open
from training_runs import MODEL, flags

NAME = os.fsdecode(b"caf\xe9")
ENVIRONMENTS = {
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
    "ASCII streams": {"PYTHONIOENCODING": "ascii"},
    "C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


def call(*words: object, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = forked.run(*words, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder whose name is not UTF-8."""
    folder = tmp_path / NAME
    folder.mkdir()
    return folder


@pytest.fixture
def voices(tmp_path, librispeech_root) -> list[Path]:
    """Three recordings whose names are not ASCII."""
    recordings = sorted((librispeech_root / "LibriSpeech" / "train-tiny").rglob("*.flac"))
    names = [tmp_path / f"é{number}.flac" for number in range(3)]
    for source, name in zip(recordings, names, strict=False):
        shutil.copy(source, name)
    return names


@pytest.mark.parametrize(("environment", "shown"), [("utf-8", "é0"), ("ascii", "\\xe90")])
def test_commands_on_recordings(trained_run, folder, voices, environment, shown):
    """The store's name is not UTF-8."""
    model, store = ["--checkpoint", trained_run], ["--store", folder / f"{NAME}.store"]

    def answer(*words: object) -> str:
        return call("test.py", *words, PYTHONIOENCODING=environment)

    assert shown in answer("embed", *model, *voices)
    given = [item["audio"] for item in json.loads(answer("embed", *model, *voices, "--json"))["embeddings"]]
    assert given == list(map(str, voices))
    assert "caf\\udce9" in answer("enroll", *model, *store, "--name", "Zoé", voices[0])
    assert json.loads(answer("enroll", *model, *store, "--name", "Ada", voices[1], "--json"))["store"] == str(store[1])
    assert shown in answer("identify", *model, *store, *voices)
    assert len(json.loads(answer("identify", *model, *store, *voices, "--json"))["results"]) == 3
    assert json.loads(answer("verify", *model, *voices[:2], "--json"))["a"] == str(voices[0])


@pytest.mark.parametrize("words", [["embed"], ["embed", "--json"], ["verify", "--threshold", "0", "é"]])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_recording_with_such_a_name_is_used(trained_run, folder, voices, name, words):
    audio = folder / f"{NAME}.flac"
    shutil.copy(voices[0], audio)
    others = [word.replace("é", str(voices[1])) for word in words[1:]]
    done = forked.run("test.py", words[0], "--checkpoint", trained_run, *others, audio, **ENVIRONMENTS[name])
    assert done.returncode == 0, done.stderr
    assert words[0] == "verify" or r"caf\udce9" in done.stdout


def test_stored_embeddings_have_the_names(trained_run, folder, voices):
    out = folder / f"{NAME}.safetensors"
    assert "caf\\udce9" in call("test.py", "embed", "--checkpoint", trained_run, *voices, "--out", out)
    with safe_open(out, framework="numpy") as file:
        assert json.loads(file.metadata()["names"]) == list(map(str, voices))


def test_a_missing_file_is_named(trained_run, tmp_path):
    done = forked.run("test.py", "embed", "--checkpoint", trained_run, tmp_path / f"{NAME}.wav")
    sentence = "is missing; python download.py --dataset demo makes recordings to try"
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path}/caf\\udce9.wav {sentence}\n"


def test_folders_that_a_library_cannot_open_are_refused(processed, folder):
    shutil.copytree(processed, folder / "data")
    for words, sentence in (
        (flags(processed, folder / "run", "--tensorboard"), "TensorBoard cannot write into"),
        (flags(folder / "data", folder / "run"), "cannot be opened, because its name is not UTF-8"),
    ):
        done = forked.run("train_tacomamba.py", *words)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
        assert not (folder / "run").exists()


def test_folders_of_runs_and_reports(processed, folder):
    run = folder / "run"
    call("train_tacomamba.py", *flags(processed, run, "--steps", "2"))
    call("train_tacomamba.py", *flags(processed, run, "--steps", "3", "--resume", "auto"))
    assert json.loads((run / "run.json").read_text())["config"]["out"] == str(run)
    words = ["--checkpoint", run, "--data", processed, "--bootstrap", "5", "--out"]
    assert "caf\\udce9" in call("test.py", "evaluate", *words, folder / "report")
    assert json.loads((folder / "report" / "report.json").read_text())["checkpoint"]["path"] == str(run)
    call("test.py", "evaluate", "--config", folder / "report" / "config.yaml", "--out", folder / "again")
    call("test.py", "pool", folder / "report", folder / "again", "--bootstrap", "5", "--out", folder / "pooled")


def test_text_to_mel(processed_voice, folder):
    run, text, out = folder / "run", folder / "text.txt", folder / "speech.wav"
    words = ["--steps", "1", "--threads", "1", "--no-tensorboard", "--batch-size", "4", *MODEL[:8]]
    call("train_tacomamba.py", "--task", "tts", "--data", processed_voice, "--out", run, *words)
    text.write_text("boats", encoding="utf-8")
    words = ["--checkpoint", run, "--text-file", text, "--out", out, "--picture", folder / "speech.png"]
    assert "caf\\udce9" in call("test.py", "synthesize", *words)
    assert json.loads(call("test.py", "synthesize", *words, "--json"))["spoken"][0]["out"] == str(out)
    words = ["--checkpoint", run, "--data", processed_voice, "--limit", "1", "--bootstrap", "5"]
    call("test.py", "evaluate", *words, "--out", folder / "report")
