"""Unicode text to the characters that English is spelt with, as far as there are such."""

from __future__ import annotations

import re
import unicodedata

from anyascii import anyascii

_SAME = {  # characters, and the one text that each of them becomes
    "'": "‘’‚‛′ʼʻʹ`´‹›＇",
    '"': "“”„‟″«»＂",
    "-": "‐‑‒﹣－",
    " - ": "—―⸺⸻",
    "–": "–",  # kept: between numbers it is spoken
    " minus ": "−",
    "...": "…",
    "(": "[{",
    ")": "]}",
    "No. ": "№",
    " trademark ": "™",
    " 1/2": "½",
    " 1/3": "⅓",
    " 2/3": "⅔",
    " 1/4": "¼",
    " 3/4": "¾",
    " 1/5": "⅕",
    " 1/8": "⅛",
    " 3/8": "⅜",
    " 5/8": "⅝",
    " 7/8": "⅞",
    "º": "º",  # kept, as are the superscripts: their plain forms mean something else
    "ª": "ª",
}
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


class _Folding(dict[int, str]):
    """Code point to text for `str.translate`, worked out when a character is met first."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(char: str) -> str:
    category = unicodedata.category(char)
    if char.isascii() or char in SUPERSCRIPTS:
        return char
    if category == "Cf" or "\ufe00" <= char <= "\ufe0f":  # joiners, direction marks, variants: they have no sound
        return ""
    compatible = unicodedata.normalize("NFKC", char)
    if compatible.replace("°", "").isascii():  # full-width letters, ligatures, odd blanks
        return compatible
    if unicodedata.name(char, "").startswith("LATIN "):
        plain = anyascii(char)
        return plain if plain.isalnum() else char
    return char


_FOLDING = _Folding({ord(char): folded for folded, chars in _SAME.items() for char in chars})
_ACCENTS = re.compile(r"(?<=[A-Za-z])[\u0300-\u036f]+")


def fold(text: str) -> str:
    """`text` with accents, ligatures, and typographic marks in ASCII, and single blanks; all else stays as it is.

    Only Latin script is transliterated: what is not said by its spelling (Chinese, emoji) is left to be counted.
    """
    folded = unicodedata.normalize("NFC", text).translate(_FOLDING)
    return " ".join(_ACCENTS.sub("", folded).split())
