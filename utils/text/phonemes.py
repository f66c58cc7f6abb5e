"""English text to IPA by espeak-ng, in a separate process.

    echo '["hello, world!"]' | python -m utils.text.phonemes
    # ["həlˈoʊ, wˈɜːld!"]

Standard input takes a JSON list of texts, standard output returns the list of their phonemes. espeak-ng is
GPL-3.0-or-later: it is an optional dependency (requirements-demo.txt), and only this worker loads it.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from utils.espeak import ESPEAK_CHARS_UTF8, Espeak, require_espeak, run_worker, serve

VOICE = "en-us"
PHONEMES_IPA = 2  # bit 1 of phoneme_mode in speak_lib.h: IPA in UTF-8
LONGEST_CALL = 300  # characters; espeak-ng splits clauses of about 800 anywhere
LONGEST_WORD = 100  # characters; espeak-ng drops those beyond 160
REPEATS = 3  # of an isolated letter; espeak-ng drops the fourth and later ones

_WORD = "'?[A-Za-z]+(?:['-]+[A-Za-z]+)*'?"
_CLAUSE = re.compile(rf"{_WORD}(?:\"? \"?{_WORD})*")
_SPELLED = re.compile(r"(?<![A-Za-z'-])((?:[a-z]-)+[a-z](?:'s)?)(?![A-Za-z'-])|(?<=[a-z]{2}-)(a)(?![A-Za-z'-])")


def phonemize(texts: Sequence[str]) -> list[str]:
    """Converts texts to IPA, each independently of the others.

    Args:
        texts: English as `normalize` returns it.

    Returns:
        For each text its words in IPA, with stress marks before vowels and blanks between words. Punctuation and
        everything else that is not a word of English letters stays in place. Apostrophes and hyphens in words belong to
        the words.

    Raises:
        UserError: espeak-ng is missing, or failed.
    """
    if not texts:
        return []
    require_espeak("phonemes")
    return json.loads(run_worker("utils.text.phonemes", list(texts), "phonemize"))


class Phonemizer(Espeak):
    """The library, used for phonemes instead of speech."""

    def __init__(self) -> None:
        super().__init__()
        self.set_voice(VOICE)
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int]

    def __call__(self, words: str) -> str:
        """Converts words without punctuation to phonemes, with single blanks."""
        return " ".join(" ".join(self._call(part) for part in _parts(words)).split())

    def _call(self, words: str) -> str:
        buffer = ctypes.create_string_buffer(words.encode())
        rest = ctypes.c_void_p(ctypes.addressof(buffer))  # espeak-ng moves it past each clause, at the end to null
        clauses = []
        while rest.value:
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), ESPEAK_CHARS_UTF8, PHONEMES_IPA))
        return " ".join(clause.decode() for clause in clauses if clause)


def _parts(words: str) -> Iterator[str]:
    """Splits `words` into parts that espeak-ng does not truncate."""
    part: list[str] = []
    length = 0
    for word in words.split():
        for start in range(0, len(word), LONGEST_WORD):
            piece = word[start : start + LONGEST_WORD]
            last = [word.strip("'") for word in part[-REPEATS:]]
            if last == [piece.strip("'")[:1]] * REPEATS or length + len(piece) > LONGEST_CALL:
                yield " ".join(part)
                part, length = [], 0
            part.append(piece)
            length += len(piece) + 1
    yield " ".join(part)


def phonemize_text(text: str, speak: Callable[[str], str]) -> str:
    """Replaces the words of `text` by their phonemes by `speak`, clause by clause.

    Letters that `normalize` joined by hyphens are spoken one by one: among others espeak-ng takes an "a" for a word.
    """
    said, start = [], 0
    for match in _SPELLED.finditer(text):
        letters = (match[1] or match[2]).split("-")
        said += _say_before(text[start : match.start()], letters[0], speak), *map(speak, letters)
        start = match.end()
    return "".join([*said, _say_words(text[start:], speak)])


def _say_before(text: str, letter: str, speak: Callable[[str], str]) -> str:
    """Phonemes of words before a spelled letter: those of "a" and "the" depend on the sound that follows."""
    if text.endswith("-"):
        return _say_words(text[:-1], speak)
    stand_in = "x" if letter in "aefhilmnorsx" else "b"
    whole, sound = _say_words(text + stand_in, speak), speak(stand_in)
    return whole.removesuffix(sound) if whole.endswith(sound) else _say_words(text, speak)


def _say_words(text: str, speak: Callable[[str], str]) -> str:
    return _CLAUSE.sub(lambda match: _clause(match[0], speak), text)


def _clause(clause: str, speak: Callable[[str], str]) -> str:
    """Phonemizes the words between marks as a whole, as their sounds depend on their neighbors; then restores quotes.

    Where espeak-ng joins two words across a quote ("of the" is one word for it), its words cannot be separated: then
    the quoted words are spoken separately.
    """
    pieces = clause.split('"')
    said = [speak(piece).split() for piece in pieces]
    if len(pieces) > 1:
        whole = speak(" ".join(clause.replace('"', "").split())).split()
        if len(whole) == sum(map(len, said)):
            rest = iter(whole)
            said = [list(islice(rest, len(words))) for words in said]
    return '"'.join(
        piece.replace(piece.strip(), " ".join(words)) if words else piece
        for piece, words in zip(pieces, said, strict=True)
    )


def _answer(texts: list[str]) -> bytes:
    speak = Phonemizer()
    return json.dumps([phonemize_text(text, speak) for text in texts]).encode()


if __name__ == "__main__":
    sys.exit(serve(_answer))
