"""Plain English sentences for the demo corpora: small grammars (sentences.yaml), seeded, without repetition."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

LETTERS = (42, 80)  # 2.5 to 5 s at the demo's rates
VARIED_LETTERS = (50, 90)  # 2 to 5 s at the one voice's rate

_GRAMMARS: dict[str, dict[str, list[str]]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)


def sentences(seed: str, taken: set[str]) -> Iterator[str]:
    """Yields endless sentences of one speaker, determined by `seed`; skips those in `taken`, and adds each to it."""
    draw, words = random.Random(seed), _GRAMMARS["many_voices"]
    return _sentences(lambda name: draw.choice(words[name]), LETTERS, taken)


def varied_sentences(seed: str) -> Iterator[str]:
    """Yields endless sentences of one reader with a large vocabulary, determined by `seed`, without repetition.

    Each list of words is dealt like a deck of cards, to its end before any word repeats, so that a few hundred
    sentences contain about as many different words as possible.
    """
    draw, words = random.Random(seed), _GRAMMARS["one_voice"]
    cards: dict[str, list[str]] = {name: [] for name in words}

    def deal(name: str) -> str:
        cards[name] = cards[name] or draw.sample(words[name], len(words[name]))
        return cards[name].pop()

    return _sentences(deal, VARIED_LETTERS, set())


def _sentences(pick: Callable[[str], str], letters: tuple[int, int], taken: set[str]) -> Iterator[str]:
    """Fills patterns with picked words; keeps sentences of a number of letters that are not in `taken`."""
    while True:
        text = re.sub(r"{(\w+)}", lambda slot: pick(slot[1]), pick("pattern"))
        text = text[0].upper() + text[1:]
        if letters[0] <= len(text) <= letters[1] and text not in taken:
            taken.add(text)
            yield text


def transcript(text: str) -> str:
    """Formats a sentence as LibriSpeech does: capitals, single spaces, no punctuation but apostrophes."""
    return " ".join(re.sub(r"[^A-Z' ]", " ", text.upper()).split())
