"""Phonemes by espeak-ng: exact values, and independence of everything but the text."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from root import ROOT

from utils.corpus.sentences import sentences
from utils.text.frontend import FrontEnd
from utils.text.phonemes import phonemize
from utils.text.vocabulary import VOCABULARIES

PHONEMES = {
    "": "",
    "...": "...",
    "?! -": "?! -",
    "hello, world!": "həlˈoʊ, wˈɜːld!",
    "the end - or not (maybe).": "ðɪ ˈɛnd - ɔːɹ nˈɑːt (mˈeɪbiː).",
    "the dog; the apple: the end?": "ðə dˈɑːɡ; ðɪ ˈæpəl: ðɪ ˈɛnd?",
    'he called the "apple" a "thing".': 'hiː kˈɔːld ðɪ "ˈæpəl" ɐ "θˈɪŋ".',  # the same words as without quotes
    'of "the" cat': 'ʌv "ðə" kˈæt',  # "of the" is one word for espeak-ng, but not across a quote
    "'tis two o'clock, don't": "tˈɪz tˈuː əklˈɑːk, dˈoʊnt",
    "a quick-witted fox": "ɐ kwˈɪkwˈɪɾᵻd fˈɑːks",
    "中文 and 👍 so": "中文 ænd 👍 sˈoʊ",
    "button": "bˈʌʔn\u0329",
    "three a-m in a u-s-a": "θɹˈiː ˈeɪˈɛm ɪn ɐ jˈuːˈɛsˈeɪ",  # letters, not articles
    'edwin-a walker and "f-a-a" cars': 'ˈɛdwɪnˈeɪ wˈɔːkɚɹ ænd "ˈɛfˈeɪˈeɪ" kˈɑːɹz',
    "the c-i-a's rent-a-car, the a-m": "ðə sˈiːˈaɪˈeɪz ɹˈɛntɐkˈɑːɹ, ðɪ ˈeɪˈɛm",
    "x x x x x x": "ˈɛks ˈɛks ˈɛks ˈɛks ˈɛks ˈɛks",  # espeak-ng itself speaks three
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Ordinary sentences, words of any letters, and odd marks."""
    draw = random.Random(0)
    spoken = sentences("phonemes", set())
    plain = [next(spoken).lower() for _ in range(200)]
    letters = "abcdefghijklmnopqrstuvwxyz" * 3 + "'-   \".,;:()!?"
    return [*plain, *("".join(draw.choices(letters, k=draw.randint(0, 30))) for _ in range(500))]


@pytest.fixture(scope="module")
def together(texts) -> list[str]:
    return phonemize(texts)


def test_exact_phonemes():
    assert dict(zip(PHONEMES, phonemize(list(PHONEMES)), strict=True)) == PHONEMES
    assert phonemize([]) == []


def test_a_text_has_its_phonemes_in_any_batch(texts, together):
    order = random.Random(1).sample(range(len(texts)), len(texts))
    assert phonemize([texts[i] for i in order]) == [together[i] for i in order]
    assert [phonemize([texts[i]])[0] for i in (0, 250)] == [together[0], together[250]]


def test_the_table_has_every_phoneme_and_every_mark_is_kept(texts, together):
    table = VOCABULARIES["phoneme"]
    assert not {symbol for text in together for symbol in text} - set(table.symbols)
    for text, spoken in zip(texts, together, strict=True):
        assert re.sub(r"[^.,;:()!?\"]", "", spoken) == re.sub(r"[^.,;:()!?\"]", "", text)
        assert bool(re.search("[a-z]", text)) == any(char.isalpha() for char in spoken)


@pytest.mark.parametrize(
    ("text", "word", "count"),
    [
        ("word " * 1000, "wˈɜːd", 1000),
        ("a" * 10_000, None, 100),
        ("x " * 1000, "ˈɛks", 1000),
        ("so, " * 1000, "sˈoʊ,", 1000),
    ],
)
def test_long_texts_are_phonemized_to_the_end(text, word, count):
    words = phonemize([text])[0].split()
    assert len(words) == count and (word is None or set(words) == {word})


def test_the_front_end_counts_symbols_without_phonemes():
    front_end = FrontEnd.for_units("phoneme")
    hello, chinese, marks = front_end.encode(["Hello, Mr. 2!", "中 a", "..."])
    assert hello.spoken == "hello, mister two!"
    assert hello.symbols == ("<s>", *"həlˈoʊ, mˈɪstɚ tˈuː!", "</s>")
    assert front_end.vocabulary.decode(hello.tokens) == "həlˈoʊ, mˈɪstɚ tˈuː!" and not hello.unknown
    assert chinese.unknown == Counter("中") and chinese.tokens.tolist()[:3] == [2, 1, 4]
    assert not chinese.says_nothing and marks.says_nothing


@pytest.mark.real
def test_real_transcripts_are_known_to_both_tables(real_data):
    lines = (real_data / "tts_dev" / "LJSpeech-1.1" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    chapters = (real_data / "speakers_dev").rglob("*.trans.txt")
    texts = [text for line in lines for text in line.split("|")[1:]]
    texts += [line.partition(" ")[2] for path in chapters for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) > 600
    for units in VOCABULARIES:
        assert not any(text.unknown or text.says_nothing for text in FrontEnd.for_units(units).encode(texts))


def test_missing_espeak_is_reported_with_the_command_to_install_it(tmp_path):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('not here')")
    script = (
        "from utils.cli import run; from utils.text.phonemes import phonemize; raise SystemExit(run(phonemize, ['a']))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr == (
        "error: phonemes need espeak-ng, which is not installed: pip install -r requirements-demo.txt\n"
    )


def test_only_the_worker_loads_the_library():
    script = (
        "from utils.text.phonemes import phonemize; phonemize(['hello']); "
        "assert 'libespeak-ng' not in open('/proc/self/maps').read()"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list what a process has loaded")
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
