"""Raw text to the tokens of a model, and long text to sentences of bounded length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.errors import UserError
from utils.text.normalize import normalize
from utils.text.phonemes import phonemize
from utils.text.symbols import fold
from utils.text.vocabulary import BOS, EOS, UNITS, VOCABULARIES, Vocabulary

VERSION = 3  # of the conversion of raw text; stores of another version are refused
LONGEST_SENTENCE = 400  # characters
# '"Stop!" he cried.' A run of marks is tried from its first alone, or many would take quadratic time.
_CONTINUES = re.compile(r"((?<![.!?])[.!?]*[!?][\"')]*|(?<!\.)\.{2,}[\"')]*|\.[\"')]+)(?=\s[a-z])")
_ITEM = re.compile(r"^[ \t]*(?:([0-9]{1,3})[.)]|([-*•]))[ \t]+(?=\S)", re.MULTILINE)
_UNSPLIT = "\ufdd0"  # follows such marks until the text is split; a noncharacter, reserved by Unicode for internal use


@dataclass(frozen=True)
class EncodedText:
    """One text for a model: `tokens` (N,) int32 from BOS to EOS, and the symbol of each.

    `spoken` is the normalized text; `unknown` counts the symbols that are not in the vocabulary, which `symbols` holds
    as they were written.
    """

    tokens: np.ndarray
    symbols: tuple[str, ...]
    spoken: str
    unknown: Counter[str]

    @property
    def says_nothing(self) -> bool:
        """True if it has no letter, digit or phoneme of the vocabulary."""
        return not any(len(symbol) == 1 and symbol.isalnum() and symbol not in self.unknown for symbol in self.symbols)


class FrontEnd:
    """Conversion of text to tokens of a vocabulary; its units are characters or phonemes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def for_units(cls, units: str) -> FrontEnd:
        """Makes the front end of "char" or "phoneme" with the project's vocabulary; `UserError` for other units."""
        if units not in VOCABULARIES:
            raise UserError(f"units are {' or '.join(UNITS)}, not {units!r}")
        return cls(VOCABULARIES[units])

    @property
    def units(self) -> str:
        return self.vocabulary.units

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encodes each text independently of the others; phonemes take one process for all of `texts`.

        Raises:
            UserError: the units are phonemes, and espeak-ng is not installed.
        """
        spoken = [normalize(text) for text in texts]
        written = phonemize(spoken) if self.units == "phoneme" else spoken
        return [self._encode(text, said) for text, said in zip(written, spoken, strict=True)]

    def _encode(self, text: str, spoken: str) -> EncodedText:
        symbols = (BOS, *text, EOS)
        tokens, unknown = self.vocabulary.encode(symbols)
        return EncodedText(tokens, symbols, spoken, unknown)


def split_sentences(text: str) -> list[str]:
    """Splits `text` into normalized sentences, none empty and none longer than `LONGEST_SENTENCE` characters.

    Splits at empty lines, before list items, and after . ! ? before a blank; sentences that are too long after ; or :,
    else after a comma, else at a blank, else anywhere. Isolated marks join the sentence before them. A lower-case word
    after ! ? ... or after quotes continues the sentence; a single period is left to the rules of abbreviations.
    """
    sentences: list[str] = []
    parts = (part for paragraph in re.split(r"\n\s*\n", text) for part in _items(paragraph))
    marked = (_CONTINUES.sub(rf"\1{_UNSPLIT}", fold(part)) for part in parts)
    paragraphs = "\n".join(normalize(part) for part in marked)
    for sentence in re.sub(r"([.!?][\"')]*) ", r"\1\n", paragraphs).replace(_UNSPLIT, "").split("\n"):
        for piece in _bounded(sentence):
            is_mark = not any(char.isalnum() for char in piece)
            if is_mark and sentences and len(sentences[-1]) + len(piece) < LONGEST_SENTENCE:
                sentences[-1] += f" {piece}"
            else:
                sentences.append(piece)
    return sentences


def _items(paragraph: str) -> list[str]:
    """Splits `paragraph` before lines that begin list items.

    Prose may be wrapped before a dash or before a number that ends a sentence, so items are recognized only where there
    are several: two dashes, or consecutive numbers.
    """
    marks = list(_ITEM.finditer(paragraph))
    numbers = {int(mark[1]) for mark in marks if mark[1]}
    dashes = sum(mark[1] is None for mark in marks)
    starts = [
        mark.start()
        for mark in marks
        if (numbers & {int(mark[1]) - 1, int(mark[1]) + 1} if mark[1] else dashes > 1 or mark[2] == "•")
    ]
    parts = (paragraph[start:end] for start, end in pairwise([0, *starts, len(paragraph)]))
    return [re.sub(r"^\s*\*(?=\s)", "-", part) for part in parts]


def _bounded(sentence: str) -> Iterator[str]:
    start = 0
    while len(sentence) - start > LONGEST_SENTENCE:
        end = start + _place_to_cut(sentence[start : start + LONGEST_SENTENCE])
        yield sentence[start:end].strip()
        start = end + sentence.startswith(" ", end)
    if sentence[start:].strip():
        yield sentence[start:].strip()


def _place_to_cut(window: str) -> int:
    """Position after the last mark of the best kind in `window`, but not at its beginning."""
    for marks in ("[;:] ", ", ", " "):
        if places := [match.end() - 1 for match in re.finditer(marks, window) if match.end() > 1]:
            return places[-1]
    return len(window)
