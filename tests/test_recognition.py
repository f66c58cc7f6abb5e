"""From recordings to names: embed, enroll, identify and verify, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import answer, call, refused
from safetensors import safe_open

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.speaker.embeddings import unit
from utils.speaker.recognizer import SpeakerRecognizer


@pytest.fixture(scope="module")
def recognizer(trained_run: Path) -> SpeakerRecognizer:
    return SpeakerRecognizer.load(trained_run, "cpu")


def test_from_recordings_to_a_name(trained_run, voices, recognizer, tmp_path, capsys):
    store, model = tmp_path / "people", ["--checkpoint", trained_run]
    for speaker in ("101", "106"):
        enrolled = answer(
            capsys, "enroll", *model, "--store", store, "--name", f"Voice {speaker}", *voices[speaker][:3]
        )
        assert enrolled["enrolled"]["count"] == 3 and enrolled["enrolled"]["seconds"] > 4
    probe = voices["106"][1]
    words = ["identify", *model, "--store", store, probe, voices["101"][0]]
    named = answer(capsys, *words, "--threshold", -1)["results"]
    expected = unit(recognizer.embed_files(voices["106"][:3]).mean(axis=0)) @ recognizer.embed_file(probe)
    scores = {entry["name"]: entry["score"] for entry in named[0]["scores"]}
    assert scores["Voice 106"] == pytest.approx(float(expected), abs=1e-5)
    assert [item["audio"] for item in named] == [str(probe), str(voices["101"][0])]
    assert all(item["name"] == item["best"] and item["margin"] >= 0 for item in named)
    strangers = answer(capsys, *words, "--threshold", 1)["results"]
    assert [item["name"] for item in strangers] == ["unknown", "unknown"]
    default = answer(capsys, *words)["results"][0]
    assert default["threshold"] == recognizer.identification_threshold(None, soundfile.info(probe).duration, 2)
    assert call(*words) == 0 and "Voice 106" in capsys.readouterr().out


@pytest.mark.parametrize("window", [[], ["--window", 1]])
def test_an_unusable_recording_does_not_hide_the_answers_for_others(trained_run, voices, tmp_path, capsys, window):
    store, model = tmp_path / "people", ["--checkpoint", trained_run]
    answer(capsys, "enroll", *model, "--store", store, "--name", "Ada", *voices["101"][:2])
    silence, text = tmp_path / "silence.wav", tmp_path / "text.wav"
    soundfile.write(silence, np.zeros(32_000), 16_000)
    text.write_text("no recording")
    words = ["identify", *model, "--store", store, *window, "--json"]
    unusable = [text] if window else [silence, text]
    assert call(*words, *unusable, voices["101"][3], voices["106"][0]) == 2
    printed = capsys.readouterr()
    audio = [item["audio"] for item in json.loads(printed.out)["results"]]
    assert list(dict.fromkeys(audio)) == [str(voices["101"][3]), str(voices["106"][0])]
    assert str(unusable[0]) in printed.err and printed.err.count("\n") == 1
    assert ("1 more of the 4 cannot be used" in printed.err) == (not window)
    assert str(text) in refused(capsys, *words, text)
    assert call("people", "remove", "Ada", "--store", store) == 0
    capsys.readouterr()
    assert refused(capsys, *words, text, text).endswith("holds nobody: enroll somebody first\n")


def test_verify(trained_run, voices, recognizer, capsys):
    a, b = voices["101"][0], voices["107"][0]
    expected = float(recognizer.embed_file(a) @ recognizer.embed_file(b))
    for threshold, same in ((expected - 0.01, True), (expected + 0.01, False)):
        given = answer(capsys, "verify", "--checkpoint", trained_run, a, b, "--threshold", threshold)
        assert given["score"] == pytest.approx(expected, abs=1e-5) and given["same"] is same
    assert answer(capsys, "verify", "--checkpoint", trained_run, a, a)["same"] is True
    assert call("verify", "--checkpoint", trained_run, a, a) == 0
    assert ", cosine 1.000; threshold 0.00 at a prior of 0.5 and a cost of 1 " in capsys.readouterr().out


def test_embed_any_format_and_rate(trained_run, voices, recognizer, tmp_path, capsys):
    samples, rate = soundfile.read(voices["103"][0], dtype="float32")
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], axis=1), rate, subtype="PCM_24")
    soundfile.write(tmp_path / "lossy.ogg", samples, rate)
    doubled = 2 * np.fft.irfft(np.fft.rfft(samples), 2 * len(samples))
    soundfile.write(tmp_path / "fast.wav", doubled, 2 * rate)
    files = [voices["103"][0], *(tmp_path / name for name in ("stereo.wav", "lossy.ogg", "fast.wav"))]
    printed = answer(capsys, "embed", "--checkpoint", trained_run, *files)
    vectors = np.array([item["embedding"] for item in printed["embeddings"]])
    assert vectors[1] == pytest.approx(vectors[0], abs=1e-4)
    assert vectors[3] @ vectors[0] > 0.99
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    out = tmp_path / "vectors.safetensors"
    assert call("embed", "--checkpoint", trained_run, *files, "--out", out) == 0
    with safe_open(out, framework="numpy") as file:
        assert file.get_tensor("embeddings") == pytest.approx(vectors, abs=1e-6)
        assert json.loads(file.metadata()["names"]) == [str(path) for path in files]
    assert call("embed", "--checkpoint", trained_run, files[0]) == 0
    name, *numbers = capsys.readouterr().out.splitlines()[-1].split()
    assert name == str(files[0]) and [float(n) for n in numbers] == pytest.approx(vectors[0].tolist(), abs=1e-5)


def test_audio_that_cannot_serve_is_refused(trained_run, voices, tmp_path, capsys):
    model, store = ["--checkpoint", trained_run], tmp_path / "store"
    silence, text, short = tmp_path / "silence.wav", tmp_path / "text.flac", tmp_path / "short.wav"
    soundfile.write(silence, np.zeros(32_000), 16_000)
    text.write_text("this is not audio")
    soundfile.write(short, np.ones(100) * 0.1, 16_000)
    enroll = ["enroll", *model, "--store", store, "--name", "Ada"]
    assert "0.00 s of speech; at least 0.5 s" in refused(capsys, *enroll, voices["101"][0], silence)
    assert "not audio" in refused(capsys, *enroll, text)
    assert "missing" in refused(capsys, *enroll, tmp_path / "nowhere.wav")
    assert "too short" in refused(capsys, "embed", *model, short)
    assert "0.00 s of speech" in refused(capsys, "verify", *model, voices["101"][0], silence)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.wav", "silence.wav", "text.flac"]
    assert call(*enroll, voices["101"][0], voices["101"][0]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_stores_that_cannot_serve_are_refused(trained_run, voices, tmp_path, capsys):
    model, store, audio = ["--checkpoint", trained_run], tmp_path / "store", voices["101"][0]
    assert "there is no enrollment store" in refused(capsys, "identify", *model, "--store", store, audio)
    store.write_bytes(b"")
    assert "is empty" in refused(capsys, "identify", *model, "--store", store, audio)
    enroll = ["enroll", *model, "--store", store, "--name", "Ada", audio]
    assert call(*enroll) == 0
    content = store.read_bytes()
    capsys.readouterr()
    assert "'Ada' is enrolled already" in refused(capsys, *enroll)
    checkpoint = load_checkpoint(trained_run)
    checkpoint["model"] = {name: tensor * 1.5 for name, tensor in checkpoint["model"].items()}
    checkpoint["metrics"] = {}
    del checkpoint["operating_points"], checkpoint["calibration"]
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    other = ["--checkpoint", tmp_path / "other.pt"]
    assert "belongs to model" in refused(capsys, "enroll", *other, "--store", store, "--name", "Ben", audio)
    assert store.read_bytes() == content
    words = ["enroll", *model, "--store", store / "inside", "--name", "Ben", audio]
    assert "cannot be written" in refused(capsys, *words)
    words = ["embed", *model, audio, "--out", store / "inside"]
    assert "cannot be written to" in refused(capsys, *words)
    assert "has no calibration" in refused(capsys, "verify", *other, audio, audio)
    assert call("enroll", *other, "--store", tmp_path / "new", "--name", "Ada", audio) == 0
    capsys.readouterr()
    assert "give --threshold" in refused(capsys, "identify", *other, "--store", tmp_path / "new", audio)
    assert call(*enroll, "--replace") == 0
