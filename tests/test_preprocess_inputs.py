"""preprocess.py and recordings as people have them: odd names and places, damaged, replaced, or not there yet."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import soundfile
from preprocess_runs import run, tree, write_noise
from root import ROOT

from utils.errors import UserError
from utils.features.extract import Shard, _extract
from utils.features.mel import MelExtractor
from utils.features.recipe import RECIPES
from utils.features.store import FeatureStore


@pytest.fixture
def raw(tmp_path) -> Path:
    """Four speakers with six recordings of 0.6 s each."""
    for speaker in "1234":
        for number in range(6):
            write_noise(tmp_path / "raw" / speaker / "a" / f"{number}.wav", 0.6, 10 * int(speaker) + number)
    return tmp_path / "raw"


def words(raw: Path, *more: object) -> list[object]:
    return ["--dataset", "librispeech", "--raw", raw, "--out", raw.parent / "out", "--heldout-speakers", 2, *more]


def bad_files(raw: Path) -> str:
    return (raw.parent / "out" / "bad_files.txt").read_text(encoding="utf-8")


def test_names_with_blanks_of_unicode_survive_preprocessing_training_and_evaluation(tmp_path):
    for speaker in ("a\u00a0b", "c\u3000d", "e f", "g\u2028h"):
        for number, blank in enumerate("\u00a0\u3000\u2028\u2029\u0085\x0c\x0b\x1f"):
            write_noise(tmp_path / "raw" / speaker / f"x{blank}y" / f"{blank}r{blank}{number}.wav", 0.6, number)
    assert run(*words(tmp_path / "raw")) == 0
    assert len(FeatureStore.open(tmp_path / "out")) == 32
    model = "--d-model 16 --n-layers 1 --headdim 8 --batch-size 4 --crop-seconds 0.5 --steps 2 --threads 1".split()
    trained = forked.run("train_tacomamba.py", "--data", tmp_path / "out", "--out", tmp_path / "run", *model)
    assert trained.returncode == 0, trained.stderr
    arguments = ("--checkpoint", tmp_path / "run", "--data", tmp_path / "out", "--out", tmp_path / "report")
    evaluated = forked.run("test.py", "evaluate", *arguments, "--bootstrap", 5)
    assert evaluated.returncode == 0, evaluated.stderr


def test_what_does_not_fit_is_counted_by_suffix(raw, capsys):
    (raw / "1" / "a" / "deep").mkdir()
    for name in ("0.wav", "1.wav"):
        (raw / "1" / "a" / name).rename(raw / "1" / "a" / "deep" / name)
    shutil.copy(raw / "2" / "a" / "0.wav", raw / "2" / "a" / "tab\there.wav")
    shutil.copy(raw / "2" / "a" / "0.wav", raw / "2" / "a" / os.fsdecode(b"caf\xe9.wav"))
    (raw / "2" / "a" / "9.pcm").touch()
    (raw / "loose.flac").touch()
    (raw / "3" / "a" / "0.wav").rename(raw / "3" / "0.wav")
    assert run(*words(raw)) == 0
    output = capsys.readouterr().out
    assert "ignored    6 files (4 .wav, 1 .flac, 1 .pcm), the first: loose.flac\n" in output
    assert len(FeatureStore.open(raw.parent / "out")) == 22 and bad_files(raw) == ""


def test_recordings_outside_of_the_splits_are_counted(raw, capsys):
    top = raw.parent / "top"
    shutil.copytree(raw, top / "dev")
    shutil.copytree(raw / "1", top / "test" / "9")
    shutil.copytree(raw / "1", top / "more" / "w" / "x" / "y" / "z")
    (top / "README").touch()
    assert run(*words(raw, "--raw", top, "--split", "dev")) == 0
    assert "ignored    6 files (6 .wav), the first: more/w/x/y/z/a/0.wav\n" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_names_that_a_stream_lacks_are_shown_with_escapes(raw, encoding):
    (raw / "1" / "a" / "0.wav").rename(raw / "1" / "a" / os.fsdecode(b"caf\xe9.wav"))
    (raw / "1" / "a" / "1.wav").write_text("no audio")
    (raw / "1" / "a" / "1.wav").rename(raw / "1" / "a" / "h\u00f6ren.wav")
    result = forked.run("preprocess.py", *words(raw, "--max-bad", 0.1, "--num-proc", 1), **encoding)
    assert (result.returncode, result.stderr) == (0, "warning: no test of identification by chapter\n")
    assert "ignored    1 files (1 .wav), the first: 1/a/caf\\udce9.wav\n" in result.stdout
    assert bad_files(raw).startswith("1/a/h\u00f6ren.wav\tis not audio")
    result = forked.run("preprocess.py", *words(raw, "--out", raw.parent / "b", "--num-proc", 1), **encoding)
    assert result.returncode == 3 and re.search(r"the first: 1/a/h(\\xf6|\xf6)ren.wav: is not audio", result.stderr)


def test_a_corpus_of_names_that_no_list_can_hold_is_refused(raw, capsys):
    other = raw.rename(raw.parent / os.fsdecode(b"caf\xe9"))
    assert run(*words(raw, "--raw", raw.parent, "--layout", "librispeech")[2:]) == 2
    assert "holds no recording with a name that a list can hold" in capsys.readouterr().err
    assert run(*words(raw, "--raw", other)) == 2
    assert capsys.readouterr().err.endswith(
        "/caf\\udce9 is not a name in UTF-8: rename the folder, or set PYTHONUTF8=1 if it is\n"
    )
    assert not (raw.parent / "out").exists()


def test_a_recording_replaced_by_one_of_the_same_size_is_noticed(raw, capsys):
    assert run(*words(raw)) == 0
    before = tree(raw.parent / "out")
    assert run(*words(raw)) == 0
    assert "nothing to do" in capsys.readouterr().out
    path = raw / "1" / "a" / "3.wav"
    write_noise(path, 0.6, 99)
    assert run(*words(raw)) == 2
    assert f"than {raw} now holds (1 changed, the first is 1/a/3.wav): " in capsys.readouterr().err
    assert tree(raw.parent / "out") == before


def test_a_copy_of_the_corpus_is_the_same_corpus(raw, capsys):
    assert run(*words(raw)) == 0
    before = tree(raw.parent / "out")
    copy = shutil.copytree(raw, raw.parent / "copy" / "raw", copy_function=shutil.copyfile)
    capsys.readouterr()
    assert run(*words(raw, "--raw", copy)) == 0
    assert "nothing to do" in capsys.readouterr().out
    after = tree(raw.parent / "out")
    assert after.pop("recordings.txt") != before.pop("recordings.txt") and after == before


def test_a_shard_of_an_interrupted_run_is_made_again_if_a_recording_was_replaced(raw):
    for number in range(10, 140):
        write_noise(raw / "1" / "a" / f"{number}.wav", 0.1, number)
    write_noise(raw / "4" / "a" / "5.wav", 0.01)
    assert run(*words(raw, "--max-bad", 0)) == 3  # the first shard is kept, and not the second with a bad recording
    write_noise(raw / "4" / "a" / "5.wav", 0.6)
    write_noise(raw / "1" / "a" / "10.wav", 0.1, 999)
    assert run(*words(raw)) == 0
    store = FeatureStore.open(raw.parent / "out")
    samples, _ = soundfile.read(raw / "1" / "a" / "10.wav", dtype="float32")
    expected = MelExtractor(RECIPES["speaker-16k"])(samples)
    np.testing.assert_array_equal(store.mel(store.index["1-a-10"]), expected.astype(np.float16).astype(np.float32))


def test_samples_beyond_all_range_are_a_fault_of_their_file(raw, trained_run):
    path = raw / "1" / "a" / "0.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, samples / np.abs(samples).max() * np.float32(1e22), rate, subtype="FLOAT")
    assert run(*words(raw, "--max-bad", 0.1)) == 0
    assert bad_files(raw) == "1/a/0.wav\tthe features are not finite: samples reach 1e+22\n"
    embedded = forked.run("test.py", "embed", "--checkpoint", trained_run, path)
    assert embedded.returncode == 2 and f"{path}: the features are not finite" in embedded.stderr


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError(5, "Input/output error"), AssertionError()])
def test_any_error_of_a_recording_is_an_entry_and_the_others_are_used(raw, error):
    def make(samples):
        if len(bad) < 1:
            raise error
        return np.zeros(160, np.float16)

    shard, bad = Shard("", "", (), "", raw, raw, RECIPES["speaker-16k"], "char", "mel"), []
    batch = {"path": ["1/a/0.wav", "1/a/1.wav"], "utterance": ["1-a-0", "1-a-1"]}
    columns = _extract(shard, make, {}, bad, lambda: False, batch)
    assert columns["path"] == ["1/a/1.wav"]
    assert bad == [("1/a/0.wav", " ".join(f"{type(error).__name__}: {error}".split()))]


def test_nothing_but_bad_recordings(tmp_path, capsys):
    for speaker in range(4):
        for number in range(2):
            path = tmp_path / "raw" / "s" / f"{speaker}" / "1" / f"{speaker}-1-{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("not audio")
    assert run("--dataset", "librispeech", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--max-bad", 1) == 2
    assert "none of the 8 recordings is usable" in capsys.readouterr().err
    assert not (tmp_path / "out" / "meta.json").exists()


def test_what_is_not_downloaded_yet_is_a_command_away(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, command in (
        (["--dataset", "ljspeech"], "python download.py --dataset ljspeech"),
        (
            ["--dataset", "librispeech", "--split", "dev-clean", "--raw", "my data/librispeech"],
            "python download.py --dataset librispeech --split dev-clean --root 'my data'",
        ),
    ):
        assert run(*arguments) == 2
        assert capsys.readouterr().err.endswith(f" is missing: run {command} first\n")
    assert run("--dataset", "ljspeech", "--raw", "mine") == 2
    assert capsys.readouterr().err == "error: the folder mine is missing\n"


def test_features_are_not_looked_for_in_raw_audio(raw):
    for folder in (raw, raw / "1" / "a"):
        with pytest.raises(UserError, match="looks like raw audio, not like features: make those by preprocess.py"):
            FeatureStore.open(folder)


@pytest.mark.parametrize("name", [".lock", "best.pt"])
def test_a_folder_of_something_else_is_not_written_into(raw, capsys, name):
    """Not even one that a running training has locked."""
    out = raw.parent / "run"
    out.mkdir()
    for file in (name, "config.yaml"):
        (out / file).write_text("lr: 0.5")
    assert run(*words(raw), "--out", out) == 2
    assert "holds other files" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {name, "config.yaml"}


def test_a_record_of_something_else_is_no_store(raw, capsys):
    (raw.parent / "out").mkdir()
    (raw.parent / "out" / "meta.json").write_text('{"a": 1}')
    assert run(*words(raw)) == 2
    assert "is not a feature store of format" in capsys.readouterr().err


HOLDER = """
import pathlib, sys
from utils.locks import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_at_once_are_refused(raw, capsys):
    command = [sys.executable, "-c", HOLDER, raw.parent / "out"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        assert run(*words(raw)) == 2
        assert f"error: process {other.pid} on " in (said := capsys.readouterr().err) and said.count("\n") == 1
        other.stdin.close()
    assert run(*words(raw)) == 0
