"""Digits in English text to words: money, measures, fractions, telephone numbers, ordinals, plain numbers; and dates.

Every pattern begins at the first digit of a number (`LEFT`) or at a sign, and its repetitions are bounded or match what
nothing after them can match, so the time is linear in the length of the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from utils.text.dates import DATES
from utils.text.ends import stop_before_capital
from utils.text.number_words import (
    END,
    LEFT,
    LONGEST,
    NUMBER,
    cardinal,
    is_year,
    number,
    one_by_one,
    ordinal,
    plural,
    year,
    year_or_number,
)

Match = re.Match[str]

_PARTS = frozenset({*range(2, 11), 16, 32, 64, 100})  # denominators
CURRENCIES = {  # one, many, a hundredth, hundredths
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "", ""),
}
_SIGNS = "".join(CURRENCIES)
_COUNTRIES = {"US": "", "A": "australian ", "AU": "australian ", "C": "canadian ", "CA": "canadian "}  # before $
_COUNTRY = rf"\b(?:{'|'.join(_COUNTRIES)})(?=\$)"
_MAGNITUDES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
INCH, FOOT = ("inch", "inches"), ("foot", "feet")
UNITS = {
    "km": ("kilometer", "kilometers"),
    "m": ("meter", "meters"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "μm": ("micrometer", "micrometers"),
    "km²": ("square kilometer", "square kilometers"),
    "m²": ("square meter", "square meters"),
    "m³": ("cubic meter", "cubic meters"),
    "mi": ("mile", "miles"),
    "yd": ("yard", "yards"),
    "ft": FOOT,
    "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"),
    "mg": ("milligram", "milligrams"),
    "μg": ("microgram", "micrograms"),
    "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "l": ("liter", "liters"),
    "L": ("liter", "liters"),
    "ml": ("milliliter", "milliliters"),
    "mph": ("mile per hour", "miles per hour"),
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "m/s": ("meter per second", "meters per second"),
    "ms": ("millisecond", "milliseconds"),
    "μs": ("microsecond", "microseconds"),
    "sec": ("second", "seconds"),
    "min": ("minute", "minutes"),
    "hr": ("hour", "hours"),
    "hrs": ("hour", "hours"),
    "Hz": ("hertz", "hertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
    "W": ("watt", "watts"),
    "kW": ("kilowatt", "kilowatts"),
    "Ω": ("ohm", "ohms"),
    "kΩ": ("kilohm", "kilohms"),
    "MΩ": ("megohm", "megohms"),
    "KB": ("kilobyte", "kilobytes"),
    "kB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "%": ("percent", "percent"),
    "‰": ("per mille", "per mille"),
    "°C": ("degree celsius", "degrees celsius"),
    "°F": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
    "¢": ("cent", "cents"),
    **{sign: names[:2] for sign, names in CURRENCIES.items()},
}
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_UNIT_END = rf"{END}(?!'[^\W\d_])"  # "the 5 W's" are letters
_SQUARE = {**UNITS, "in": INCH}  # "in" alone is a word


def expand_numbers(text: str) -> str:
    """Spells every number of ASCII digits in `text`."""
    text = _expand_inches(text)
    for pattern, spoken in _RULES:
        text = pattern.sub(spoken if isinstance(spoken, str) else functools.partial(_apart, spoken), text)
    return text


def _apart(spoken: Callable[[Match], str], match: Match) -> str:
    """Spoken form of a match, with blanks between it and adjacent letters."""
    before, after = match.string[max(match.start() - 1, 0) : match.start()], match.string[match.end() : match.end() + 1]
    return " " * before.isalpha() + spoken(match) + " " * after.isalpha()


_INCHES = re.compile(
    r"(?:\b([Aa]n?)\s)?(?<![\w.,])(?:([0-9]{1,3})'\s?)?"
    r"((?:[0-9]{1,3}\s)?[0-9]{1,4}/[0-9]{1,4}|[0-9]{1,3}(?:\.[0-9]+)?)\"|\""
)


def _expand_inches(text: str) -> str:
    """The mark of inches is also that of quotes: after a number it ends a quotation if one is open."""
    is_open = False

    def spoken(match: Match) -> str:
        nonlocal is_open
        article, feet, inches = match.groups()
        if inches is None or (is_open and feet is None):
            is_open = not is_open
            return match[0]
        words = [article] if article else []
        if feet:
            words += feet, FOOT[feet != "1" and not article]
        is_one = inches == "1" or ("/" in inches and " " not in inches)
        return " ".join([*words, inches, INCH[not is_one and not article]])

    return _INCHES.sub(spoken, text)


def _feet(match: Match) -> str:
    """As an attribute a measure has no plural: "a six foot tall man"."""
    article, feet = match.groups()
    return f"{article} {feet} {FOOT[0]}" if article else f"{feet} {FOOT[feet != '1']}"


def _telephone(match: Match) -> str:
    if re.fullmatch("[0-9]+0-[0-9]+0", match[0]):  # round numbers: a range
        return match[0].replace("-", " to ")
    return ", ".join(one_by_one(group) for group in re.findall("[0-9]+", match[0]))


def _telephone_with_blanks(match: Match) -> str:
    digits = sum(map(str.isdigit, match[0]))
    return ", ".join(map(one_by_one, re.findall("[0-9]+", match[0]))) if 10 <= digits <= 15 else match[0]


def _join_thousands(match: Match) -> str:
    return match[0].replace(" ", ",")


def _scientific(match: Match) -> str:
    sign = "minus " * (match[2] == "-")
    return f"{match[1]} times ten to the {sign}{int(match[3])}"


def _money_range(match: Match) -> str:
    """Speaks the sign once, after both amounts: "$5-10 million" as "5 to $10 million"."""
    sign, first, letters, second = match.groups()
    return f"{sign}{first}{letters} to {sign}{second}" if letters else f"{first} to {sign}{second}"


def _money(match: Match) -> str:
    one, many, hundredth, hundredths = CURRENCIES[match[2]]
    country, amount = _COUNTRIES.get(match[1], ""), match[3]
    letters, word, is_kind = match[4], match[5], match[6] is not None
    one, many = country + one, country + many
    if letters or word:
        magnitude = _MAGNITUDES[letters.lower()] if letters else word.lower()
        return f"{number(amount)} {magnitude} {one if is_kind else many}"
    whole, _, part = amount.partition(".")
    if len(part) != 2 or not hundredth:
        return f"{number(amount)} {one if amount == '1' or is_kind else many}"
    big, small = whole.lstrip("0,"), int(part)
    words = [f"{cardinal(big)} {one if big == '1' else many}"] if big else []
    if small:
        words.append(f"{cardinal(str(small))} {hundredth if small == 1 else hundredths}")
    return " and ".join(words) or f"zero {many}"


def _measure(match: Match) -> str:
    return f"{number(match[1])} {UNITS[match[2]][match[1] != '1']}"


def _square(match: Match) -> str:
    """An area, or a price "per sq. ft."."""
    amount, per, unit = match.groups()
    before = number(amount) + " " if amount else per or ""
    return f"{before}square {_SQUARE[unit][not per and amount != '1']}"


def _inches(match: Match) -> str:
    return f"{number(match[1])} {INCH[match[1] != '1']}" + stop_before_capital(match)


def _fraction(match: Match) -> str:
    """Fractions with a usual name; others are two numbers or years, as in 9/11, 24/7 and 1998/99."""
    above, below = int(match[2]), int(match[3])
    if not (1 <= above < below and below in _PARTS):
        last = year(match[3]) if is_year(match[2]) and len(match[3]) == 2 else year_or_number(match[3])
        return f"{cardinal(match[1]) + ' ' if match[1] else ''}{year_or_number(match[2])} {last}"
    part = {2: "half", 4: "quarter"}.get(below) or ordinal(below)
    words = f"{cardinal(str(above))} {part if above == 1 else plural(part)}"
    return f"{cardinal(match[1])} and {words}" if match[1] else words


def _plain(match: Match) -> str:
    return year_or_number(match[0])


def _decade(match: Match) -> str:
    digits = match[1]
    return plural(year(digits) if is_year(digits) else cardinal(digits).removeprefix("one "))


def _ordinal(match: Match) -> str:
    digits = match[1].replace(",", "")
    return ordinal(int(digits)) if len(digits) <= LONGEST else f"{one_by_one(digits)} {match[2]}"


_PERIOD = r"(?:\.(?=\s[a-z0-9]|[,;:]))?"  # the period of a unit, unless it ends a sentence
_BLANKS = r"[1-9][0-9]{0,2}(?:\s[0-9]{3}){1,4}"  # as separators of thousands
_RULES: tuple[tuple[re.Pattern[str], Callable[[Match], str] | str], ...] = tuple(
    (re.compile(pattern), spoken)
    for pattern, spoken in (
        (rf"(?<![^\s(\"])~\s?(?=[{_SIGNS}]?\.?[0-9])", "about "),
        (
            # Not codes and hexadecimals, which look alike: 3E8, 3745e48, 4e45:5.
            r"(?<![\w.,:])([0-9]{1,15}\.[0-9]{1,15}(?=[eE])|[0-9]{1,3}(?=e)|[0-9]{1,15}(?=[eE][-+]))[eE]([-+]?)"
            rf"([0-9]{{1,3}}){END}(?![:-][0-9a-f])",
            _scientific,
        ),
        *DATES,
        (r"([0-9]%)\s?[-–]\s?(?=[0-9])", r"\1 to "),
        (r"(?<![0-9-])(?:\+?[0-9]{1,2}[ -])?(?:\([0-9]{3}\)\s?|[0-9]{3}[ -])?[0-9]{3}-[0-9]{4}(?![0-9-])", _telephone),
        (r"(?<![\w+])\+[0-9]{1,3}(?:[ -](?:\([0-9]{1,4}\)|[0-9]{2,8})){2,5}(?![0-9-])", _telephone_with_blanks),
        (r"(?<![0-9.,+-])0[0-9]{1,4}(?: [0-9]{2,8}){1,4}(?![0-9-])", _telephone_with_blanks),
        (
            # Without a unit only round thousands are distinguished from consecutive numbers: "rooms 12 345".
            rf"(?<![\w.,/:+-])(?<![0-9]\s)(?:(?<=[{_SIGNS}])|(?=[0-9]{{1,3}}(?:\s[0-9]{{3}}){{0,3}}\s000)"
            rf"|(?={_BLANKS}(?:\.[0-9]+)?\s?(?:{_UNIT}){_UNIT_END})){_BLANKS}(?!\s?[0-9])",
            _join_thousands,
        ),
        (rf"((?:{_COUNTRY})?[{_SIGNS}])\s?({NUMBER})(tn|bn|[kKmMbB]|)\s?[-–]\s?({NUMBER})", _money_range),
        (r"(?<![0-9-])([0-9]{1,6})-([0-9]{1,4}/[0-9]{1,4})(?![0-9/])", r"\1 \2"),
        (rf"(?<=[0-9])\s?–\s?(?=[{_SIGNS}]?[0-9])|(?<=[0-9])-(?=[{_SIGNS}][0-9])", " to "),
        (r"(?<![0-9-])([0-9]{1,4})-([0-9]{1,4})(?![0-9-])", r"\1 to \2"),
        (r"(?<![0-9:])([0-9]{1,3}):([0-9]{1,3})(?![0-9:])", r"\1 to \2"),
        (rf"(?<![^\s(\"])([{_SIGNS}])\s?-(?=\.?[0-9])", r"-\1"),
        (rf"(?<![^\s(\"])-(?=[{_SIGNS}]?\.?[0-9])", "minus "),
        (r"(?<=[0-9])(?:\s\*\s|\*)(?=[0-9])", " times "),
        (
            rf"({_COUNTRY})?(?<![0-9])([{_SIGNS}])\s?({NUMBER}|\.[0-9]{{2}}(?![0-9]))(?:\s?(tn|bn|[kKmMbB]){END}"
            r"|[\s-](hundred|thousand|million|billion|trillion)\b(?:\sdollars\b)?)?(?=([\s-](?:bill|note|coin)s?\b)?)",
            _money,
        ),
        (rf"{LEFT}(?<!/)(?:([0-9]{{1,6}})\s)?([0-9]{{1,4}})/([0-9]{{1,4}})(?![0-9/])", _fraction),
        (rf"(?:\b([Aa]n?)\s)?{LEFT}({NUMBER})'(?=[\s-](?:tall|long|wide|high|deep|thick|across)\b)", _feet),
        (rf"{LEFT}({NUMBER})\s?in\.{END}", _inches),
        (r"(?<=°)\s(?=[CF]\b)", ""),
        (rf"{LEFT}({NUMBER})\s?({_UNIT}){_UNIT_END}{_PERIOD}", _measure),
        (rf"(?:{LEFT}({NUMBER})\s?|\b([Pp]er )|\b)sq(?:\.\s?|\s)({_UNIT}|in(?=\.)){END}{_PERIOD}", _square),
        (r"\b[Nn]os\.\s?(?=[0-9])", "numbers "),
        (r"(?:\b[Nn]o\.\s?|#\s?)(?=[0-9])", "number "),
        (rf"{LEFT}([0-9]{{1,4}})'?s{END}", _decade),
        (rf"(?i){LEFT}([0-9]+(?:,[0-9]{{3}})*)(st|nd|rd|th){END}", _ordinal),
        (r"(?<=[^\W\d_])-?(?=[0-9])|(?<=[0-9])(?=[^\W\d_])", " "),
        (r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)*|(?<!\.)\.[0-9]+(?:\.[0-9]+)*", _plain),
    )
)
