"""Written English to the words that are spoken, in lower case with the punctuation that a voice can use.

    normalise("Dr. Smith paid $3.50 on Jan. 5, 1984.")
    # "doctor smith paid three dollars and fifty cents on january fifth, nineteen eighty-four."

Numbers are num2words', accents of Latin script anyascii's. Words in capitals stay words (nasa); letters with points are
spelled (u s a). What has no English reading (Chinese, emoji) is kept for the vocabulary to count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from utils.text.numbers import Match, cardinal, expand_numbers, ordinal, stop
from utils.text.symbols import SUPERSCRIPTS, fold

# Read the same wherever they stand, with a point, in any case.
_ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "messrs": "messieurs",
    "mme": "madame",
    "mlle": "mademoiselle",
    "prof": "professor",
    "rev": "reverend",
    "capt": "captain",
    "lt": "lieutenant",
    "sgt": "sergeant",
    "col": "colonel",
    "esq": "esquire",
    "jr": "junior",
    "sr": "senior",
    "co": "company",
    "corp": "corporation",
    "inc": "incorporated",
    "ltd": "limited",
    "bros": "brothers",
    "dept": "department",
    "govt": "government",
    "ave": "avenue",
    "blvd": "boulevard",
    "mt": "mount",
    "etc": "et cetera",
    "vs": "versus",
    "viz": "namely",
    "approx": "approximately",
    "e.g": "for example",
    "i.e": "that is",
    "ph.d": "p h d",
}
# Words themselves, or ends of sentences, unless written with a capital before a name.
_TITLES = {
    "Gen": "general",
    "Gov": "governor",
    "Sen": "senator",
    "Rep": "representative",
    "Pres": "president",
    "Hon": "honorable",
    "Maj": "major",
    "Sec": "secretary",
    "Supt": "superintendent",
    "Ft": "fort",
}
_BARE_TITLES = {"Mr": "mister", "Mrs": "missus", "Ms": "miz", "Dr": "doctor"}
# Before a number.
_REFERENCES = {
    "p": "page",
    "pp": "pages",
    "vol": "volume",
    "vols": "volumes",
    "ch": "chapter",
    "chap": "chapter",
    "fig": "figure",
    "sec": "section",
    "art": "article",
    "ca": "circa",
}
_MONTHS = {
    "Jan": "january",
    "Feb": "february",
    "Aug": "august",
    "Sept": "september",
    "Oct": "october",
    "Nov": "november",
    "Dec": "december",
}
_RULERS = (
    "Alexander Benedict Catherine Charles Christian Clement Constantine Edward Elizabeth Ferdinand Francis Frederick "
    "George Gregory Gustav Henry Innocent Ivan James John Leo Leopold Louis Mary Max Napoleon Nicholas Otto Paul Peter "
    "Philip Pius Ramses Richard Robert Urban Victor Wilhelm William"
).split()
_NUMBERED = "chapter book part volume act scene section article canto appendix phase type class stage level".split()
_STARTERS = frozenset(
    "A After And As At But He I If In It Its My No On She So That The Then There They This We".split()
)
_SYMBOLS = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "@": "at",
    "#": "hash",
    "%": "percent",
    "*": "asterisk",
    "/": "slash",
    "\\": "backslash",
    "|": "bar",
    "<": "less than",
    ">": "greater than",
    "~": "tilde",
    "^": "caret",
    "_": "underscore",
    "$": "dollar",
    "£": "pound",
    "€": "euro",
    "¥": "yen",
    "₹": "rupee",
    "¢": "cent",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "≈": "about",
    "≠": "is not equal to",
    "≤": "at most",
    "≥": "at least",
    "∞": "infinity",
    "§": "section",
    "©": "copyright",
    "®": "registered",
    "²": "squared",
    "³": "cubed",
}
PASSES = 8  # a pass can bring an abbreviation to light ("Co.Mr."); the last one finds nothing to do, mostly the second
_ROMAN = "(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})"


def normalise(text: str) -> str:
    """English text in speakable words: lower case, single blanks, and the marks . , ; : ? ! - ' " ( ).

    Normalised text comes back as it is. Symbols without an English reading stay in it. The time is linear.
    """
    for _ in range(PASSES):
        spoken = _speak(text)
        if spoken == text:
            break
        text = spoken
    return text


def _speak(text: str) -> str:
    text = fold(text)
    text = re.sub(rf"[{SUPERSCRIPTS}]+", _power, text)
    text = _expand_abbreviations(text)
    text = _expand_roman(text)
    text = expand_numbers(text)
    text = _spell_letters(text)
    text = _SYMBOL.sub(lambda match: f" {_SYMBOLS[match[0]]} ", text)
    return _tidy(text.lower())


def _power(match: Match) -> str:
    if match[0] in ("²", "³"):
        return match[0]
    return " to the power of " + "".join(str(SUPERSCRIPTS.index(digit)) for digit in match[0])


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_NO_LETTER_BEFORE = r"(?<![^\W\d_])(?<![^\W_]['.])"
_ABBREVIATION = re.compile(rf"{_NO_LETTER_BEFORE}((?i:{_alternatives(_ABBREVIATIONS)}))\.(?![a-z0-9.])")
_BARE_TITLE = re.compile(rf"\b({_alternatives(_BARE_TITLES)})(?=\s[A-Z])")
_STREET = re.compile(rf"{_NO_LETTER_BEFORE}((?i:st|dr))\.(?![a-z0-9.])")
_TITLE = re.compile(rf"{_NO_LETTER_BEFORE}({_alternatives(_TITLES)})\.(?=\s[A-Z])")
_REFERENCE = re.compile(rf"(?i){_NO_LETTER_BEFORE}({_alternatives(_REFERENCES)})\.\s?(?=[0-9])")
_MONTH_ALONE = re.compile(rf"{_NO_LETTER_BEFORE}({_alternatives(_MONTHS)})\.(?!\s?[0-9])")
_TEXT_ENDS = re.compile(r"[\"')]*$")
_NAME = re.compile(r"(\s?)([A-Z][\w']*)")
_VERSUS = re.compile(r"(?<=[^\W_]) v\. (?=[A-Z])")


def _expand_abbreviations(text: str) -> str:
    text = re.sub(r"(?i)\bhttps?://", "", text)
    text = re.sub(r"(?i)\bwww\.(?=[^\W_])", "w w w dot ", text)
    text = _ABBREVIATION.sub(lambda match: _ABBREVIATIONS[match[1].lower()] + _after_abbreviation(match), text)
    text = _BARE_TITLE.sub(lambda match: _BARE_TITLES[match[1]], text)
    text = _STREET.sub(_street, text)
    text = _TITLE.sub(lambda match: _TITLES[match[1]], text)
    text = _REFERENCE.sub(lambda match: _REFERENCES[match[1].lower()] + " ", text)
    text = _MONTH_ALONE.sub(lambda match: _MONTHS[match[1]] + _stop_at_end(match), text)
    return _VERSUS.sub(" versus ", text)


def _stop_at_end(match: Match) -> str:
    return "." if _TEXT_ENDS.match(match.string, match.end()) else ""


def _after_abbreviation(match: Match) -> str:
    """After "etc." a capital begins a sentence; after a title or a company's name it may be the name going on."""
    if match.string[match.end() : match.end() + 1].isalpha():
        return " "
    return stop(match) if match[1].lower() == "etc" else _stop_at_end(match)


def _street(match: Match) -> str:
    """Saint and doctor stand before a name, street and drive behind one."""
    title, road = ("saint", "street") if match[1].lower() == "st" else ("doctor", "drive")
    name = _NAME.match(match.string, match.end())
    if name is None or name[2] in _STARTERS:
        return road + stop(match)
    return title if name[1] else f"{title} "


_RULER = re.compile(rf"\b({'|'.join(_RULERS)}|{'|'.join(_RULERS).upper()}) (?!I\b)({_ROMAN})(?![^\W_]|')")
_NUMBERED_PART = re.compile(
    rf"\b((?i:{'|'.join(_NUMBERED)})|World War|WORLD WAR) (?!I\b(?![.,:;)]|$))({_ROMAN})(?![^\W_]|')|"
    rf"\b((?i:{'|'.join(_NUMBERED)})) (?=[ivxl]{{2,7}}\b)({_ROMAN.lower()})(?![^\W_]|')"
)


def _expand_roman(text: str) -> str:
    text = _RULER.sub(lambda match: f"{match[1]} the {ordinal(_roman(match[2]))}", text)
    return _NUMBERED_PART.sub(
        lambda match: f"{match[1] or match[3]} {cardinal(str(_roman((match[2] or match[4]).upper())))}", text
    )


def _roman(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-value if value < after else value for value, after in zip(values, following, strict=True))


_LETTERS = re.compile(r"(?<![^\W_])(?<![^\W_][.'])[A-Za-z](?:\.[A-Za-z])+(?![^\W_])\.?(?![^\W_])")
_INITIAL = re.compile(r"(?<![^\W_])(?<![^\W_][.'])([A-HJ-Z])\.(?=\s[A-Z])")
_POINT = re.compile(r"(?<=[^\W_])\.(?=[^\W_])")


def _spell_letters(text: str) -> str:
    """Letters with points are spelled; any other point inside a word is said, unless a sentence begins after it."""
    text = _LETTERS.sub(lambda match: match[0].replace(".", " ").rstrip() + _stop_at_end_of_letters(match), text)
    text = _INITIAL.sub(r"\1", text)
    return _POINT.sub(_say_point, text)


def _stop_at_end_of_letters(match: Match) -> str:
    return _stop_at_end(match) if match[0].endswith(".") else ""


def _say_point(match: Match) -> str:
    before, after = match.string[match.start() - 1], match.string[match.end()]
    return ". " if before.islower() and after.isupper() else " dot "


_SYMBOL = re.compile(f"[{re.escape(''.join(_SYMBOLS))}]")


def _tidy(text: str) -> str:
    """Single blanks, none before closing marks, one after those inside a line; repeated marks once."""
    text = text.replace("–", " - ")
    text = re.sub("''+", '"', text)
    text = re.sub("-{2,}", " - ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" (?=[.,;:?!)])|(?<=\() ", "", text)
    text = re.sub(r"([,;:?!\"])\1+", r"\1", text)
    text = re.sub(r"\.{2,}", "...", text)
    return re.sub(r"([,;:?!])(?=[^\W_])", r"\1 ", text).strip()
