"""Long recordings: windows, resampling in blocks, embeddings of windows, and memory that does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from root import ROOT
from voices import speak

from utils.errors import UserError
from utils.features.audio import load_audio, read_blocks
from utils.features.windows import cut_windows, read_windows
from utils.speaker.embeddings import unit
from utils.speaker.recognizer import SpeakerRecognizer, embed_mels

RATE = 16_000
MARGIN = 60 * 2**20  # bytes that the peak of a long recording may lie above that of one minute


@given(st.data())
def test_windows_cover_everything_and_share_the_rest(data):
    grid = data.draw(st.integers(1, 4))
    hop = grid * data.draw(st.integers(1, 12))
    length = hop + data.draw(st.integers(0, 9))
    total = data.draw(st.integers(1, 150))
    borders = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
    values = np.arange(total)
    windows = list(cut_windows(np.split(values, borders), length, hop, grid))
    for start, window in windows:
        np.testing.assert_array_equal(window, values[start : start + len(window)])
        assert start % grid == 0 and len(window) < length + grid
    lengths = [len(window) for _, window in windows]
    assert windows[0].start == 0 and windows[-1].start + lengths[-1] == total
    for (start, window), after in zip(windows, windows[1:], strict=False):
        assert start + len(window) - after.start == length - hop
    assert all(size == length for size in lengths[:-2])
    if len(lengths) > 1:
        assert -grid <= lengths[-1] - lengths[-2] < grid
        assert 2 * lengths[-2] >= 2 * length - hop
    else:
        assert total < length + grid


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Half a minute of two voices in turn, 16 kHz."""
    draw = np.random.default_rng(8)
    return np.concatenate([speak(draw, voice, 5) for voice in ("101", "106", "102", "106", "103", "107")])


def write(path: Path, samples: np.ndarray, seconds: float, rate: int = RATE, channels: int = 1) -> Path:
    """`seconds` of `samples`, repeated."""
    block = np.repeat(samples[:, None], channels, axis=1)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        for start in range(0, round(seconds * rate), len(block)):
            file.write(block[: round(seconds * rate) - start])
    return path


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_in_blocks_is_resampling_at_once(tmp_path, rate):
    samples = 0.2 * np.random.default_rng(9).standard_normal(round(130.01 * rate))
    path = write(tmp_path / "a.wav", samples, 130.01, rate)
    blocks = list(read_blocks(path, RATE))
    whole = load_audio(path, RATE)
    assert len(blocks) >= 13 and max(map(len, blocks)) < 11 * RATE
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=0, atol=1e-5)
    short = write(tmp_path / "b.wav", samples, 60, rate)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(short, RATE))), load_audio(short, RATE))


def test_windows_of_a_file(tmp_path, speech):
    path = write(tmp_path / "a.wav", speech, 10.4)
    windows = [(start / RATE, len(samples) / RATE) for start, samples in read_windows(path, RATE, 3 * RATE, RATE)]
    assert windows == [*((start, 3) for start in range(7)), (7, 2.7), (7.7, 2.7)]
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(UserError, match="is truncated"):
        list(read_windows(path, RATE, 3 * RATE, RATE))


@pytest.fixture(scope="module")
def recognizer(trained_run: Path) -> SpeakerRecognizer:
    return SpeakerRecognizer.load(trained_run, "cpu")


def test_up_to_a_minute_is_embedded_at_once(tmp_path, speech, recognizer):
    for name, seconds, rate in (("a.wav", 60, RATE), ("b.wav", 59.9, 44_100), ("c.wav", 3.21, RATE)):
        path = write(tmp_path / name, speech, seconds, rate)
        (whole,) = recognizer.back_end(embed_mels(recognizer.model, [recognizer.mel_of_file(path)], recognizer.device))
        np.testing.assert_array_equal(recognizer.embed_file(path), whole)
        np.testing.assert_array_equal(recognizer.embed_speech([path])[0][0], whole)


@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_a_longer_recording_gets_the_mean_of_its_windows(tmp_path, speech, recognizer, rate):
    path = write(tmp_path / "a.flac", speech, 150, rate)
    mel = recognizer.mel_of_file(path)
    full = recognizer.recipe.frames(60 * RATE)
    half = (len(mel) - full + 1) // 2
    parts = np.split(mel, [full, full + half])
    vectors = embed_mels(recognizer.model, parts, recognizer.device)
    raw = unit(np.array([len(part) for part in parts]) @ vectors.astype(np.float64))
    assert np.abs(raw - embed_mels(recognizer.model, [mel], recognizer.device)[0]).max() > 1e-4  # not the same
    (expected,) = recognizer.back_end(raw[None])
    together = recognizer.embed_files([path, write(tmp_path / "b.flac", speech, 2)])
    assert together[0] == pytest.approx(expected, abs=1e-5)
    assert recognizer.embed_mels([mel])[0] == pytest.approx(expected, abs=1e-5)  # as stored features are
    embeddings, seconds = recognizer.embed_speech([path])
    assert seconds == [150]
    assert float(embeddings[0] @ expected) > 0.99


def test_windows_without_speech_do_not_count(tmp_path, speech, recognizer):
    minute = np.concatenate([speech, speech])[: 60 * RATE]
    parts = [np.zeros(len(minute)), minute, np.full(len(minute), 0.01), np.zeros(40 * RATE)]
    path = write(tmp_path / "a.wav", np.concatenate(parts), 220)
    windows = [samples for _, samples in recognizer._windows(path)]
    raw = embed_mels(recognizer.model, [recognizer._extractor(windows[1])], recognizer.device)
    expected = recognizer.back_end(raw)
    embeddings, seconds = recognizer.embed_speech([path])
    assert seconds == pytest.approx([60], abs=0.3) and float(embeddings[0] @ expected[0]) > 0.999
    assert float(recognizer.embed_file(path) @ expected[0]) < 0.99
    silence = write(tmp_path / "b.wav", np.concatenate([parts[2], speech[: RATE // 4], parts[2]]), 120)
    with pytest.raises(UserError, match=r"b.wav has 0\.[0-4]\d s of speech; at least 0.5 s are needed"):
        recognizer.embed_speech([silence])


def test_silence_around_speech_changes_little(tmp_path, speech, recognizer):
    """Of digital silence, which is like nothing in training, little remains, in recordings and in their windows."""
    turn, silence = speech[: 3 * RATE], np.zeros(3 * RATE)
    plain = write(tmp_path / "a.wav", turn, 3)
    edited = write(tmp_path / "b.wav", np.concatenate([silence, turn, silence]), 9)
    embeddings, seconds = recognizer.embed_speech([plain, edited])
    assert seconds == pytest.approx([3, 3], abs=0.3)
    assert float(embeddings[0] @ embeddings[1]) > 0.9
    window = next(recognizer.windows(edited, 9))
    assert (window.start, window.end) == (0, 9) and window.seconds == pytest.approx(seconds[1], abs=0.01)
    assert float(embeddings[0] @ window.embedding) > 0.9
    assert float(recognizer.embed_file(plain) @ recognizer.embed_file(edited)) > 0.99
    hissing = write(tmp_path / "c.wav", np.where(np.arange(9 * RATE) % 2, 1, -1) * 1e-3 + load_audio(edited, RATE), 9)
    assert float(embeddings[0] @ recognizer.embed_file(hissing)) < 0.8  # which hears all that is not digital silence


def run(*words: object) -> tuple[dict, int]:
    """The JSON that test.py prints, and the peak of its resident memory in bytes."""
    command = [sys.executable, ROOT / "test.py", *map(str, words), "--device", "cpu", "--json"]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        out.seek(0)
        return json.load(out), usage.ru_maxrss * 1024


def embedding(answer: dict) -> np.ndarray:
    return np.array(answer["embeddings"][0]["embedding"])


@pytest.mark.parametrize(
    ("name", "minutes", "rate", "channels"),
    [
        ("a.wav", 5, RATE, 1),
        ("a.flac", 5, 44_100, 2),
        pytest.param("a.wav", 60, RATE, 1, marks=pytest.mark.slow),
        pytest.param("a.flac", 60, 48_000, 1, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_a_recording(tmp_path, speech, trained_run, name, minutes, rate, channels):
    short = write(tmp_path / f"short-{name}", speech, 60, rate, channels)
    long = write(tmp_path / name, speech, 60 * minutes, rate, channels)
    model = ["--checkpoint", trained_run]
    (first, least), (second, most) = run("embed", *model, short), run("embed", *model, long)
    assert most < least + MARGIN
    assert float(embedding(first) @ embedding(second)) > 0.999
    least = run("verify", *model, short, short)[1]
    verdict, most = run("verify", *model, short, long)
    assert most < least + MARGIN
    assert verdict["score"] > 0.999
