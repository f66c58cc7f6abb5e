"""Error counts on strings whose errors can be counted by hand, and a real recognizer where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.features.audio import load_audio
from utils.tts.asr import ErrorCounts, Transcriber, comparable, count_errors, judge


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("kitten", "sitting", (2, 1, 0, 6)),
        ("the cat sat".split(), "the cat sat".split(), (0, 0, 0, 3)),
        ("the cat sat".split(), "the the cat cat sat".split(), (0, 2, 0, 3)),  # repeats
        ("one two three four five".split(), "one five".split(), (0, 0, 3, 5)),  # a skip
        ("a b c d".split(), "a x c d e".split(), (1, 1, 0, 4)),
        ("abc", "", (0, 0, 3, 3)),
        ("", "ab", (0, 2, 0, 0)),
        ("", "", (0, 0, 0, 0)),
    ],
)
def test_errors_are_counted_by_kind(reference, hypothesis, expected):
    assert count_errors(reference, hypothesis) == ErrorCounts(*expected)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's recursion as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    tail = edit_distance(a[1:], b[1:])
    return tail if a[0] == b[0] else 1 + min(tail, edit_distance(a[1:], b), edit_distance(a, b[1:]))


@settings(max_examples=150, deadline=None)
@given(st.text("ab ", max_size=6), st.text("ab ", max_size=6))
def test_the_count_is_the_least_there_is(a: str, b: str):
    counts = count_errors(a, b)
    assert counts.errors == edit_distance(a, b)
    assert len(a) + counts.insertions - counts.deletions == len(b) and counts.length == len(a)


def test_long_texts_are_counted_too():
    draw = np.random.default_rng(0)
    words = [f"w{number}" for number in draw.integers(0, 500, 2000)]
    heard = [*words[:900], *words[850:1500], "extra", *words[1600:]]  # 50 words twice, 100 left out, one of its own
    counts = count_errors(words, heard)
    assert (counts.errors, counts.insertions - counts.deletions) == (50 + 100, 50 + 1 - 100)


def test_counts_add_up():
    assert ErrorCounts.total([ErrorCounts(1, 2, 3, 10), ErrorCounts(4, 0, 1, 7)]) == ErrorCounts(5, 2, 4, 17)


def test_texts_are_compared_as_they_are_spoken():
    assert comparable("“Don’t!” she said -- twice.") == "don't she said twice"
    assert comparable("Mr. Smith paid $3 in the café on the 2nd.") == comparable(
        "mister smith paid three dollars in the cafe on the second"
    )
    assert comparable("'Tis the well-known 'twelve'") == "tis the well known twelve"
    assert comparable(" ... ") == ""


def test_judging_counts_characters_and_words():
    judged = judge("The cat sat.", "the bat, sat sat")
    assert judged.text == "the bat, sat sat"
    assert judged.words == ErrorCounts(1, 1, 0, 3)
    assert judged.characters == ErrorCounts(1, 4, 0, 11)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.bin, tokenizer\.json missing"):
        Transcriber.load(tmp_path)
    with pytest.raises(UserError, match="is not a folder of a faster-whisper model"):
        Transcriber.load(tmp_path / "nowhere")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match="pip install -r requirements-eval.txt"):
        Transcriber.load(tmp_path)


def test_a_damaged_model_is_refused(tmp_path: Path):
    pytest.importorskip("faster_whisper")
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
