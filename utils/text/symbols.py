"""Unicode text to the characters of English spelling, as far as possible."""

from __future__ import annotations

import re
import unicodedata

from anyascii import anyascii

_SAME = {  # replacement text, and the characters that it replaces
    "'": "‘’‚‛′ʼʻʹ`´‹›＇",
    '"': "“”„‟″«»＂",
    "-": "‐‑‒﹣－",
    " - ": "—―⸺⸻•",
    " minus ": "−",
    "...": "…",
    "/": "⁄",
    "μ": "µ",  # Greek letter for the micro sign
    "(": "[{",
    ")": "]}",
    "No. ": "№",
    " trademark ": "™",
    "º": "º",  # kept, as are superscripts and dashes: their plain forms mean something else
    "ª": "ª",
}
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
MINUS_ABOVE = "⁻"


class _Folding(dict[int, str]):
    """Code point to text for `str.translate`, computed on a character's first occurrence."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(char: str) -> str:
    category = unicodedata.category(char)
    if char.isascii() or char in SUPERSCRIPTS or char == MINUS_ABOVE:
        return char
    if category == "Cf" or "\ufe00" <= char <= "\ufe0f":  # joiners, direction marks, variation selectors: silent
        return ""
    compatible = unicodedata.normalize("NFKC", char)
    if "\u2044" in compatible and len(compatible) > 1:  # ½ is 1, fraction slash, 2
        return " " + compatible.replace("\u2044", "/")
    if compatible.replace("°", "").isascii():  # full-width letters, ligatures, odd blanks
        return compatible
    if unicodedata.name(char, "").startswith("LATIN "):
        plain = anyascii(char)
        return plain if plain.isalnum() else char
    return char


_FOLDING = _Folding({ord(char): folded for folded, chars in _SAME.items() for char in chars})
_NARROW = "\u00a0\u2009\u202f"  # no-break blanks: between digits they separate thousands
_THOUSANDS = re.compile(
    rf"(?<![\w.,+-])(?<![0-9][{_NARROW}])[1-9][0-9]{{0,2}}(?:[{_NARROW}][0-9]{{3}})+(?![{_NARROW}]?[0-9])"
)
_ACCENTS = re.compile(r"(?<=[A-Za-z])[\u0300-\u036f]+")


def fold(text: str) -> str:
    """Converts accents, ligatures and typographic marks to ASCII, and runs of blanks to one; keeps everything else.

    Only Latin script is transliterated: what has no English spelling (Chinese, emoji) is kept, to be counted.
    """
    text = _THOUSANDS.sub(lambda match: re.sub(f"[{_NARROW}]", ",", match[0]), unicodedata.normalize("NFC", text))
    folded = text.translate(_FOLDING)
    return " ".join(_ACCENTS.sub("", folded).split())
