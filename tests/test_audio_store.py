"""Stores of audio: the samples of the recordings, and the mels that are made of them, against a store of mels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest
import soundfile

import preprocess
import test
import train_tacomamba
from utils.errors import ExitCode
from utils.features.store import FeatureStore

ROUNDING = {"rtol": 2**-11, "atol": 1e-6}  # of float16, in which a store of mels holds them


def make(dataset: str, raw: Path, out: Path, *more: str) -> int:
    words = ["--dataset", dataset, "--raw", str(raw), "--out", str(out), "--store", "audio", *more]
    return preprocess.main([*words, *(() if "--num-proc" in more else ("--num-proc", "1"))])


@pytest.fixture(scope="module")
def folder(librispeech_root, tmp_path_factory) -> Path:
    """A store of audio of the recordings of `processed`, made by the script."""
    out = tmp_path_factory.mktemp("audio") / "store"
    words = ["--dataset", "librispeech", "--raw", librispeech_root, "--out", out, "--store", "audio", "--num-proc", "1"]
    done = forked.run("preprocess.py", *words)
    assert done.returncode == 0 and "94 utterances" in done.stdout, done.stderr
    return out


@pytest.fixture(scope="module")
def store(folder) -> FeatureStore:
    return FeatureStore.open(folder)


def test_it_holds_the_samples_and_says_so(store, processed, librispeech_root):
    mels = FeatureStore.open(processed)
    assert (store.kind, store.meta["store"]) == ("audio", "audio")
    assert mels.kind == "mel" and "store" not in mels.meta
    assert store.rows == mels.rows
    for item in (0, 40, 93):
        samples, _ = soundfile.read(librispeech_root / store.rows[item].path, dtype="float32")
        assert store.audio(item).dtype == np.float32
        np.testing.assert_array_equal(store.audio(item), samples)
        np.testing.assert_array_equal(store.audio(item, 500, 300), samples[500:800])
        np.testing.assert_array_equal(store.tokens(item), mels.tokens(item))


def test_its_mels_are_those_of_a_store_of_mels_but_for_half_precision(store, processed):
    mels = FeatureStore.open(processed)
    for item in (0, 40, 93):
        np.testing.assert_allclose(mels.mel(item), store.mel(item), **ROUNDING)
        assert store.mel(item).dtype == np.float32
    for mean, expected in zip(store.statistics([1, 4, 7], 0), mels.statistics([1, 4, 7], 0), strict=True):
        np.testing.assert_allclose(mean, expected, atol=1e-3)


def test_parts_of_its_mels_need_their_samples_alone(store, monkeypatch):
    whole, read = store.mel(7), []
    audio = store.audio
    monkeypatch.setattr(store, "audio", lambda i, *part: read.append(part) or audio(i, *part))
    for start, frames in ((0, 1), (30, 50), (len(whole) - 5, 50), (3, None)):
        stop = None if frames is None else start + frames
        np.testing.assert_allclose(store.mel(7, start, frames), whole[start:stop], atol=1e-5)
    assert read[1] == (30 * 160, 49 * 160 + 400)


def test_it_does_not_depend_on_the_number_of_processes_and_is_complete(folder, librispeech_root, tmp_path, capsys):
    words = "librispeech", librispeech_root, tmp_path / "two", "--num-proc", "2"
    assert make(*words) == 0
    for path in (tmp_path / "two").glob("features/*"):
        assert path.read_bytes() == (folder / "features" / path.name).read_bytes()
    capsys.readouterr()
    assert make(*words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_the_other_kind_goes_into_another_folder(folder, processed, librispeech_root, capsys):
    assert make("librispeech", librispeech_root, processed) == ExitCode.BAD_INPUT
    assert "was made with --store mel, not audio: choose another --out" in capsys.readouterr().err
    words = ["--dataset", "librispeech", "--raw", str(librispeech_root), "--out", str(folder)]
    assert preprocess.main(words) == ExitCode.BAD_INPUT
    assert "was made with --store audio, not mel" in capsys.readouterr().err


def test_a_recording_beyond_full_scale_is_scaled_down_and_one_without_a_frame_is_bad(librispeech_root, tmp_path):
    raw = shutil.copytree(librispeech_root, tmp_path / "raw")
    loud, short = sorted(raw.rglob("101-*.flac"))[:2]
    samples, rate = soundfile.read(loud, dtype="float32")
    loud.unlink()
    soundfile.write(loud.with_suffix(".wav"), 20 * samples, rate, subtype="FLOAT")
    soundfile.write(short, samples[:300], rate)
    assert make("librispeech", raw, tmp_path / "out", "--max-bad", "0.05") == 0
    store = FeatureStore.open(tmp_path / "out")
    stored = store.audio(store.index[loud.stem])
    np.testing.assert_allclose(stored, samples / np.abs(samples).max(), atol=1 / 32_768)
    assert "audio of 0.019 s is too short" in (tmp_path / "out" / "bad_files.txt").read_text()


def test_a_checkpoint_is_evaluated_alike_on_both(folder, processed, trained_run, tmp_path):
    errors = []
    for data in (processed, folder):
        out = tmp_path / data.name
        words = ["--checkpoint", trained_run, "--data", data, "--out", out, "--bootstrap", "5"]
        assert test.main(["evaluate", *map(str, words)]) == 0
        report = json.loads((out / "report.json").read_text())
        errors.append(report["verification"]["all"]["eer"])
    assert errors[0] == pytest.approx(errors[1], abs=0.01)


def test_text_to_mel_trains_on_audio_of_a_recipe_that_pads(ljspeech_root, processed_voice, tmp_path):
    data = tmp_path / "voice"
    assert make("ljspeech", ljspeech_root, data) == 0
    audio, mels = FeatureStore.open(data), FeatureStore.open(processed_voice)
    for item in (0, 11):
        whole = audio.mel(item)
        np.testing.assert_allclose(mels.mel(item), whole, rtol=2**-11, atol=0.01)  # resampled: int16 rounds here too
        np.testing.assert_array_equal(audio.mel(item, 5, 20), whole[5:25])
    words = "--task tts --steps 2 --save-every 2 --batch-size 4 --threads 1 --no-tensorboard --encoder-layers 1".split()
    words += "--n-layers 1 --d-model 16 --headdim 8 --d-state 8 --postnet-channels 16 --device cpu".split()
    assert train_tacomamba.main(["--data", str(data), "--out", str(tmp_path / "run"), *words]) == 0
