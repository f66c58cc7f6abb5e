"""Expansion of abbreviations, titles and streets in English text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from utils.text.dates import MONTHS
from utils.text.ends import STARTERS, stop_at_end, stop_before_capital, stop_before_starter

# With a period, in upper or lower case, these have one reading everywhere. The first group precedes names.
_BEFORE_NAMES = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "messrs": "messieurs",
    "mme": "madame",
    "mlle": "mademoiselle",
    "drs": "doctors",
    "prof": "professor",
    "rev": "reverend",
    "adm": "admiral",
    "brig": "brigadier",
    "capt": "captain",
    "lt": "lieutenant",
    "sgt": "sergeant",
    "col": "colonel",
    "cpl": "corporal",
    "pvt": "private",
    "mt": "mount",
}
_ABBREVIATIONS = {
    **_BEFORE_NAMES,
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
    "rd": "road",
    "hwy": "highway",
    "et al": "et al",
    "etc": "et cetera",
    "&c": "et cetera",
    "vs": "versus",
    "viz": "namely",
    "approx": "approximately",
    "e.g": "for example",
    "e. g": "for example",
    "i.e": "that is",
    "i. e": "that is",
    "ph.d": "p-h-d",
    "ll.d": "l-l-d",
}
_CONTINUE = (*_BEFORE_NAMES, "et al")  # hardly ever at the end of a sentence
_LISTS_END = ("etc", "&c")
# Words in their own right, or ends of sentences, unless capitalized before a name.
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
    "Bart": "baronet",
    "Ft": "fort",
    "Fr": "father",
}
TITLE_WORDS = (*_BEFORE_NAMES.values(), *_TITLES.values(), "doctor")
_BARE_TITLES = {"Mr": "mister", "Mrs": "missus", "Ms": "miz", "Dr": "doctor", "St": "saint"}
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
    "apt": "apartment",
    "ca": "circa",
    "tel": "telephone",
}
_LIMITS = {"max": "maximum", "min": "minimum"}
# After a name and a comma; those that are also words or names (Miss., Pa., Tex.) are omitted.
_STATES = {
    "Ala": "alabama",
    "Ariz": "arizona",
    "Calif": "california",
    "Conn": "connecticut",
    "Fla": "florida",
    "Mass": "massachusetts",
    "Mich": "michigan",
    "Minn": "minnesota",
    "Okla": "oklahoma",
    "Tenn": "tennessee",
    "Wis": "wisconsin",
}
_DAYS = {
    "Mon": "monday",
    "Tue": "tuesday",
    "Tues": "tuesday",
    "Wed": "wednesday",
    "Thu": "thursday",
    "Thur": "thursday",
    "Thurs": "thursday",
    "Fri": "friday",
    "Sat": "saturday",
}
# Capitalized for the rules of dates, which read a month beside a day.
_MONTHS = {**{month.title()[:3]: month.title() for month in MONTHS if month != "may"}, "Sept": "September"}
_DAYS_AND_MONTHS = {**_DAYS, **_MONTHS}
_IN_RANGES = {**_DAYS_AND_MONTHS, "Sun": "sunday", "May": "May"}  # elsewhere these two are words
_BEFORE_DOCTOR = frozenset("a the my his her our your their and or dear".split())


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _from_to(names: Iterable[str]) -> str:
    one = _alternatives([name for name in names for name in (name, name.upper())])
    return rf"({one})\.?\s?[-–]\s?({one})"


_NO_LETTER_BEFORE = r"(?<![^\W_])(?<![^\W_]['.])"
_ABBREVIATION = re.compile(rf"{_NO_LETTER_BEFORE}((?i:{_alternatives(_ABBREVIATIONS)}))\.(?![a-z0-9.])")
_BARE_TITLE = re.compile(rf"\b({_alternatives(_BARE_TITLES)})(?=\s[A-Z]|\s(?:and|&)\s[A-Z])")
_STREET = re.compile(rf"(?:(?<![\w'])([\w']+)\s)?{_NO_LETTER_BEFORE}((?i:st|dr))\.(?![a-z0-9.])")
_TITLE = re.compile(rf"{_NO_LETTER_BEFORE}({_alternatives(_TITLES)})\.(?=\s[A-Z])")
_REFERENCE = re.compile(
    rf"(?i){_NO_LETTER_BEFORE}({_alternatives(_REFERENCES)})\.\s?(?=[+(]?[0-9]|(?-i:(?!I\b)[IVXL]+\b))"
)
_LIMIT = re.compile(  # not "5 min. 30 sec.", nor the name Max
    r"(?<![0-9-])(?<![0-9]\s)(?:\b(max|min|MAX|MIN)|(?<![^\W_]\s)\b(Max|Min))\.\s?(?=\.?[0-9])"
)
_CIRCA = re.compile(rf"{_NO_LETTER_BEFORE}c\.\s?(?=[1-9][0-9]{{2,3}}(?![0-9,.]*[0-9]))")
_ESTABLISHED = re.compile(rf"{_NO_LETTER_BEFORE}[Ee]st\.\s?(?=[12][0-9]{{3}}(?![0-9,.]*[0-9]))")
_STATE = re.compile(rf"(?<=[a-z], )({_alternatives(_STATES)})\.(?![^\W_])")
_DATE = re.compile(rf"{_NO_LETTER_BEFORE}({_alternatives(_DAYS_AND_MONTHS)})\.(?![^\W_])")
_DATE_RANGE = re.compile(rf"\b(?:{_from_to([*_DAYS, 'Sun'])}|{_from_to([*_MONTHS, 'May'])})(?![^\W_]|-[^\W_])\.?")
_NAME = re.compile(r"(\s?)([A-Z][\w']*)")
_WIFE = re.compile(r"\s(?:and|&)\s(?:missus|mister|miz)\b")
_VERSUS = re.compile(r"(?<=[^\W_]) (?:v\. (?=[A-Z])|vs(?= ))")
_JUNIOR = re.compile(r"(?<=[a-z],) Jr\b(?!\.)|(?<=[a-z]) Jr\b(?!\.)")


def expand_abbreviations(text: str) -> str:
    """Expands abbreviations of folded `text` to lower-case words; keeps a period that also ends a sentence."""
    text = re.sub(r"(?i)\bhttps?://", "", text)
    text = re.sub(r"(?i)\bwww\.(?=[^\W_])", "w-w-w dot ", text)
    text = _ABBREVIATION.sub(lambda match: _ABBREVIATIONS[match[1].lower()] + _after_abbreviation(match), text)
    text = _STREET.sub(_street, text)
    text = _BARE_TITLE.sub(lambda match: _BARE_TITLES[match[1]], text)
    text = _TITLE.sub(lambda match: _TITLES[match[1]], text)
    text = _REFERENCE.sub(lambda match: _REFERENCES[match[1].lower()] + " ", text)
    text = _LIMIT.sub(lambda match: _LIMITS[(match[1] or match[2]).lower()] + " ", text)
    text = _ESTABLISHED.sub("established ", _CIRCA.sub("circa ", text))
    text = _STATE.sub(lambda match: _STATES[match[1]] + stop_before_starter(match), text)
    text = _DATE_RANGE.sub(_date_range, text)
    text = _DATE.sub(lambda match: _DAYS_AND_MONTHS[match[1]] + stop_before_starter(match), text)
    return _JUNIOR.sub(" junior", _VERSUS.sub(_versus, text))


def _date_range(match: re.Match[str]) -> str:
    first, last = (_IN_RANGES[name.title()] for name in match.groups() if name)
    return f"{first} to {last}" + stop_before_starter(match)


def _versus(match: re.Match[str]) -> str:
    return " versus" + " " * match[0].endswith(" ")


def _after_abbreviation(match: re.Match[str]) -> str:
    """After "etc." a capital begins a sentence; after a company's name it may continue the name."""
    if match.string[match.end() : match.end() + 1].isalpha():
        return " "
    short = match[1].lower()
    if short in _CONTINUE:
        return stop_at_end(match)
    return stop_before_capital(match) if short in _LISTS_END else stop_before_starter(match)


def _street(match: re.Match[str]) -> str:
    """Saint and doctor precede a name, street and drive follow one."""
    before, short = match[1], match[2].lower()
    kept = match[0][: match.start(2) - match.start()]
    title, road = ("saint", "street") if short == "st" else ("doctor", "drive")
    name = _NAME.match(match.string, match.end())
    if name is not None and (name[2] not in STARTERS or match.string.startswith(".", name.end())):
        return kept + title + (" " if not name[1] else "")
    if short == "dr" and (before is None or before.lower() in _BEFORE_DOCTOR or _WIFE.match(match.string, match.end())):
        return kept + title + stop_before_starter(match)
    return kept + road + stop_before_capital(match)
