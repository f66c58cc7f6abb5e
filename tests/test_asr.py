"""Error counts on strings whose errors can be counted by hand, and a real recognizer where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.features.audio import load_audio
from utils.tts.asr import ErrorCounts, Transcriber, comparable, judge


@pytest.mark.parametrize(
    ("reference", "heard", "words", "characters"),
    [
        ("kitten", "sitting", (1, 0, 0, 1), (2, 1, 0, 6)),
        ("the cat sat", "the cat sat", (0, 0, 0, 3), (0, 0, 0, 11)),
        ("The cat sat.", "the bat, sat sat", (1, 1, 0, 3), (1, 4, 0, 11)),
        ("the cat sat", "the the cat cat sat", (0, 2, 0, 3), (0, 8, 0, 11)),  # repeats
        ("one two three four five", "one five", (0, 0, 3, 5), (0, 0, 15, 23)),  # a skip
        ("abc", "", (0, 0, 1, 1), (0, 0, 3, 3)),
        ("", "ab", (0, 1, 0, 0), (0, 2, 0, 0)),
        ("", "", (0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_errors_are_counted_by_kind(reference, heard, words, characters):
    assert judge(reference, heard) == (heard, ErrorCounts(*characters), ErrorCounts(*words))


def test_counts_add_up():
    assert ErrorCounts.total([ErrorCounts(1, 2, 3, 10), ErrorCounts(4, 0, 1, 7)]) == ErrorCounts(5, 2, 4, 17)


def test_texts_are_compared_as_they_are_spoken():
    assert comparable("“Don’t!” she said -- twice.") == "don't she said twice"
    assert comparable("Mr. Smith paid $3 in the café on the 2nd.") == comparable(
        "mister smith paid three dollars in the cafe on the second"
    )
    assert comparable("'Tis the well-known 'twelve'") == "tis the well known twelve"
    assert comparable(" ... ") == ""


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.bin, tokenizer\.json missing"):
        Transcriber.load(tmp_path)
    with pytest.raises(UserError, match="is not a model folder of faster-whisper"):
        Transcriber.load(tmp_path / "nowhere")


@pytest.mark.parametrize("package", ["faster_whisper", "jiwer"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package.replace('_', '-')}.*pip install -r requirements-eval.txt"):
        Transcriber.load(tmp_path)


def test_a_damaged_model_is_refused(tmp_path: Path):
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        Transcriber.load(tmp_path)


@pytest.mark.real
@pytest.mark.skipif("TACOMAMBA_ASR" not in os.environ, reason="TACOMAMBA_ASR names no faster-whisper model folder")
def test_real_speech_is_heard(real_data: Path):
    """A sentence, the same sentence with a part of it missing, and with a part said twice."""
    transcriber = Transcriber.load(os.environ["TACOMAMBA_ASR"])
    audio = load_audio(real_data / "tts_dev" / "LJSpeech-1.1" / "wavs" / "LJ001-0001.wav", 22_050)
    text = (
        "Printing, in the only sense with which we are at present concerned, "
        "differs from most if not from all the arts and crafts represented in the Exhibition"
    )
    first = transcriber(audio, 22_050)
    assert first == transcriber(audio, 22_050)
    whole = judge(text, first).words
    skipped = judge(text, transcriber(audio[: len(audio) // 2], 22_050)).words
    repeated = judge(text, transcriber(np.concatenate([audio, audio[len(audio) // 2 :]]), 22_050)).words
    assert whole.errors <= 2 and whole.length == 27
    assert 8 <= skipped.deletions and skipped.insertions <= 1
    assert 8 <= repeated.insertions and repeated.deletions <= 1
