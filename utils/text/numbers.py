"""Digits in English text to words: dates, times, money, measures, fractions, ordinals, years, plain numbers.

Every pattern begins at the first digit of a number (`_LEFT`) or at a sign, and repeats only what it bounds or what
nothing after it can match, so the time is linear in the text's length.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from num2words import num2words

from utils.text.ends import stop_before_capital

Match = re.Match[str]

_LEFT = r"(?<![0-9.,])"
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
_END = r"(?![^\W_])"  # no letter or digit follows
LONGEST = 15  # digits that are read as one number; longer ones are read one by one
_PARTS = frozenset({*range(2, 11), 16, 32, 64, 100})  # denominators
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MONTHS = tuple("january february march april may june july august september october november december".split())
_MONTH = "|".join(
    rf"{name.title()}|{name.upper()}|(?:{name[:3].title()}|{name[:3].upper()}){'t?' if name[:3] == 'sep' else ''}\.?"
    for name in MONTHS
)
CURRENCIES = {  # one, many, a hundredth, hundredths
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "", ""),
}
_SIGNS = "".join(CURRENCIES)
_MAGNITUDES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
UNITS = {
    "km": ("kilometer", "kilometers"),
    "m": ("meter", "meters"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "km²": ("square kilometer", "square kilometers"),
    "m²": ("square meter", "square meters"),
    "m³": ("cubic meter", "cubic meters"),
    "mi": ("mile", "miles"),
    "yd": ("yard", "yards"),
    "ft": ("foot", "feet"),
    "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"),
    "mg": ("milligram", "milligrams"),
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
    "KB": ("kilobyte", "kilobytes"),
    "kB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "%": ("percent", "percent"),
    "°C": ("degree celsius", "degrees celsius"),
    "°F": ("degree fahrenheit", "degrees fahrenheit"),
    "°": ("degree", "degrees"),
    "¢": ("cent", "cents"),
    **{sign: names[:2] for sign, names in CURRENCIES.items()},
}
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))


@functools.lru_cache(maxsize=4096)
def cardinal(digits: str) -> str:
    """A whole number in words; one by one if it begins with 0 or is longer than `LONGEST` digits."""
    digits = digits.replace(",", "")
    if len(digits) > LONGEST or (digits[0] == "0" and len(digits) > 1):
        return one_by_one(digits)
    return str(num2words(int(digits))).replace(",", "")


def one_by_one(digits: str) -> str:
    """Digits each by its name."""
    return " ".join(DIGITS[int(digit)] for digit in digits)


@functools.lru_cache(maxsize=4096)
def ordinal(number: int) -> str:
    """A place in words: "twenty-second"."""
    return str(num2words(number, to="ordinal")).replace(",", "")


@functools.lru_cache(maxsize=1024)
def year(digits: str) -> str:
    """A year in words: four digits in pairs, two digits as they are."""
    if len(digits) == 2:
        return f"oh {DIGITS[int(digits[1])]}" if digits[0] == "0" else cardinal(digits)
    return str(num2words(int(digits), to="year"))


def number(text: str) -> str:
    """A number with thousands separators or decimals in words; each part after a point digit by digit."""
    whole, *decimals = text.split(".")
    words = [cardinal(whole)] if whole else []
    return " ".join([*words, *(f"point {one_by_one(part)}" for part in decimals)])


def expand_numbers(text: str) -> str:
    """`text` with every number of ASCII digits in words."""
    for pattern, spoken in _RULES:
        text = pattern.sub(spoken if isinstance(spoken, str) else functools.partial(_apart, spoken), text)
    return text


def _apart(spoken: Callable[[Match], str], match: Match) -> str:
    """What is said for a match, with blanks towards letters beside it."""
    before, after = match.string[max(match.start() - 1, 0) : match.start()], match.string[match.end() : match.end() + 1]
    return " " * before.isalpha() + spoken(match) + " " * after.isalpha()


def _iso_date(match: Match) -> str:
    return f"{MONTHS[int(match[2]) - 1]} {ordinal(int(match[3]))}, {year(match[1])}"


def _slash_date(match: Match) -> str:
    first, second = int(match[1]), int(match[2])
    month, day = (second, first) if first > 12 else (first, second)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{MONTHS[month - 1]} {ordinal(day)}, {year(match[3])}"


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name.lower()[:3]))


def _month_day(match: Match) -> str:
    if not _are_days(match[2], match[3]):
        return match[0]
    last = f" to {ordinal(int(match[3]))}" if match[3] else ""
    return f"{_month(match[1])} {ordinal(int(match[2]))}{last}" + (f", {year(match[4])}" if match[4] else "")


def _day_month(match: Match) -> str:
    if not _are_days(match[1], match[2]):
        return match[0]
    last = f" to the {ordinal(int(match[2]))}" if match[2] else ""
    return f"the {ordinal(int(match[1]))}{last} of {_month(match[3])}" + (f", {year(match[4])}" if match[4] else "")


def _are_days(*days: str | None) -> bool:
    return all(day is None or 1 <= int(day) <= 31 for day in days)


def _time(match: Match) -> str:
    hour, minute, second, half = match[1], match[2], match[3], match[4]
    words = [cardinal(str(int(hour)))]
    if minute and (minute != "00" or second):
        words.append(f"oh {DIGITS[int(minute[1])]}" if minute[0] == "0" else cardinal(minute))
    elif minute and not half:
        words.append("o'clock")
    if second:
        words.append(f"and {cardinal(str(int(second)))} seconds")
    return " ".join([*words, *([f"{half.lower()}-m"] if half else [])]) + stop_before_capital(match)


def _telephone(match: Match) -> str:
    if re.fullmatch("[0-9]+0-[0-9]+0", match[0]):  # round numbers: from one to the other
        return match[0].replace("-", " to ")
    return ", ".join(one_by_one(group) for group in re.findall("[0-9]+", match[0]))


def _money_range(match: Match) -> str:
    """The sign is said once, after both amounts: "$5-10 million" as "5 to $10 million"."""
    sign, first, letters, second = match.groups()
    return f"{sign}{first}{letters} to {sign}{second}" if letters else f"{first} to {sign}{second}"


def _money(match: Match) -> str:
    one, many, hundredth, hundredths = CURRENCIES[match[1]]
    amount, letters, word, is_kind = match[2], match[3], match[4], match[5] is not None
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


def _inches(match: Match) -> str:
    return f"{number(match[1])} {'inch' if match[1] == '1' else 'inches'}" + stop_before_capital(match)


def _fraction(match: Match) -> str:
    """Parts of a whole that have a name; others are two numbers, as in 9/11 and 24/7."""
    above, below = int(match[2]), int(match[3])
    if not (1 <= above < below and below in _PARTS):
        return f"{cardinal(match[1]) + ' ' if match[1] else ''}{cardinal(match[2])} {cardinal(match[3])}"
    part = {2: "half", 4: "quarter"}.get(below) or ordinal(below)
    words = f"{cardinal(str(above))} {part if above == 1 else plural(part)}"
    return f"{cardinal(match[1])} and {words}" if match[1] else words


def plural(words: str) -> str:
    """Number words in the plural: "twenties", "sixes"."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")


def _plain(match: Match) -> str:
    digits = match[0]
    is_year = len(digits) == 4 and digits.isdigit() and 1010 <= int(digits) <= 2099
    return year(digits) if is_year else number(digits)


def _decade(match: Match) -> str:
    digits = match[1]
    is_year = len(digits) == 4 and "1010" <= digits <= "2099"
    return plural(year(digits) if is_year else cardinal(digits).removeprefix("one "))


def _ordinal(match: Match) -> str:
    digits = match[1].replace(",", "")
    return ordinal(int(digits)) if len(digits) <= LONGEST else f"{one_by_one(digits)} {match[2]}"


_RULES: tuple[tuple[re.Pattern[str], Callable[[Match], str] | str], ...] = tuple(
    (re.compile(pattern), spoken)
    for pattern, spoken in (
        (r"(?<![0-9-])([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(?![0-9-])", _iso_date),
        (r"([0-9](?:%|\s?[AaPp]\.?[Mm]\.?|:[0-5][0-9]))\s?[-–]\s?(?=[0-9])", r"\1 to "),
        (r"(?<![0-9/])([0-9]{1,2})/([0-9]{1,2})/([0-9]{4}|[0-9]{2})(?![0-9/])", _slash_date),
        (
            r"(?<![0-9:.])([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])"
            rf"(?:\s?([AaPp])\.?\s?[Mm]{_END}\.?)?",
            _time,
        ),
        (rf"(?<![0-9:.,])([0-9]{{1,2}})(?:\.([0-5][0-9]))?()\s?([AaPp])\.?[Mm]{_END}\.?", _time),
        (
            r"(?<![0-9-])(?:\+?[0-9]{1,2}[ -])?(?:\([0-9]{3}\)\s?|[0-9]{3}[ -])?[0-9]{3}-[0-9]{4}(?![0-9-])",
            _telephone,
        ),
        (
            rf"\b({_MONTH})(?:\s|(?<=\.))([0-9]{{1,2}})(?:st|nd|rd|th)?(?:\s?[-–]\s?([0-9]{{1,2}}){_END})?"
            r"(?:,?\s([12][0-9]{3}))?(?![0-9/.,]?[0-9]|[^\W_])",
            _month_day,
        ),
        (
            rf"(?:\b[Tt]he\s)?(?<![0-9.,/–-])([0-9]{{1,2}})(?:[-–]([0-9]{{1,2}}))?(?:st|nd|rd|th)?(?:\sof)?\s({_MONTH})"
            rf"(?:,?\s([12][0-9]{{3}}))?{_END}",
            _day_month,
        ),
        (rf"([{_SIGNS}])\s?({_NUMBER})(tn|bn|[kKmMbB]|)\s?[-–]\s?({_NUMBER})", _money_range),
        (r"(?<![0-9-])([0-9]{1,6})-([0-9]{1,4}/[0-9]{1,4})(?![0-9/])", r"\1 \2"),
        (rf"(?<=[0-9])\s?–\s?(?=[{_SIGNS}]?[0-9])|(?<=[0-9])-(?=[{_SIGNS}][0-9])", " to "),
        (r"(?<![0-9-])([0-9]{1,4})-([0-9]{1,4})(?![0-9-])", r"\1 to \2"),
        (r"(?<![0-9:])([0-9]{1,3}):([0-9]{1,3})(?![0-9:])", r"\1 to \2"),
        (rf"(?<![^\s(\"])-(?=[{_SIGNS}]?\.?[0-9])", "minus "),
        (
            rf"(?:\bUS)?(?<![0-9])([{_SIGNS}])\s?({_NUMBER}|\.[0-9]{{2}}(?![0-9]))(?:\s?(tn|bn|[kKmMbB]){_END}"
            r"|[\s-](hundred|thousand|million|billion|trillion)\b(?:\sdollars\b)?)?(?=([\s-](?:bill|note|coin)s?\b)?)",
            _money,
        ),
        (rf"{_LEFT}(?<!/)(?:([0-9]{{1,6}})\s)?([0-9]{{1,4}})/([0-9]{{1,4}})(?![0-9/])", _fraction),
        (rf"{_LEFT}([0-9]{{1,3}})'\s?([0-9]{{1,2}})\"", r"\1 feet \2 inches"),
        (rf"{_LEFT}({_NUMBER})\s?in\.{_END}", _inches),
        (r"(?<=°)\s(?=[CF]\b)", ""),
        (rf"{_LEFT}({_NUMBER})\s?({_UNIT}){_END}(?:\.(?=\s[a-z0-9]))?", _measure),
        (r"\b[Nn]os\.\s?(?=[0-9])", "numbers "),
        (r"(?:\b[Nn]o\.\s?|#\s?)(?=[0-9])", "number "),
        (rf"{_LEFT}([0-9]{{1,4}})'?s{_END}", _decade),
        (rf"(?i){_LEFT}([0-9]+(?:,[0-9]{{3}})*)(st|nd|rd|th){_END}", _ordinal),
        (r"(?<=[^\W\d_])-?(?=[0-9])|(?<=[0-9])(?=[^\W\d_])", " "),
        (r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)*|(?<!\.)\.[0-9]+(?:\.[0-9]+)*", _plain),
    )
)
