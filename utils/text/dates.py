"""Dates and times of day in English text to words, as rules of `utils.text.numbers`."""

from __future__ import annotations

import re

from utils.text.ends import stop_before_capital, stop_before_starter
from utils.text.number_words import DIGITS, END, cardinal, ordinal, year

MONTHS = tuple("january february march april may june july august september october november december".split())
_MONTH = "|".join(
    rf"{name.title()}|{name.upper()}|(?:{name[:3].title()}|{name[:3].upper()}){'t?' if name[:3] == 'sep' else ''}\.?"
    for name in MONTHS
)
_DAY_FIRST = "."  # in numeric dates with periods; otherwise the month is first if possible
_HALF_DAY = r"\s?[AaPp]\.?[Mm]"


def _iso_date(match: re.Match[str]) -> str:
    return f"{MONTHS[int(match[2]) - 1]} {ordinal(int(match[3]))}, {year(match[1])}"


def _date_of_numbers(match: re.Match[str]) -> str:
    first, second = int(match[1]), int(match[3])
    is_day_first = first > 12 or (match[2] == _DAY_FIRST and second <= 12)
    month, day = (second, first) if is_day_first else (first, second)
    if not (1 <= month <= 12 and _are_days(str(day))):
        return match[0]
    return f"{MONTHS[month - 1]} {ordinal(day)}, {year(match[4])}"


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name.lower()[:3]))


def _month_day(match: re.Match[str]) -> str:
    if not _are_days(match[2], match[3]):
        return match[0]
    last = f" to {ordinal(int(match[3]))}" if match[3] else ""
    return f"{_month(match[1])} {ordinal(int(match[2]))}{last}" + (f", {year(match[4])}" if match[4] else "")


def _day_month(match: re.Match[str]) -> str:
    if not _are_days(match[1], match[2]):
        return match[0]
    last = f" to the {ordinal(int(match[2]))}" if match[2] else ""
    date = f"the {ordinal(int(match[1]))}{last} of {_month(match[3])}"
    return date + (f", {year(match[4])}" if match[4] else stop_before_starter(match))


def _are_days(*days: str | None) -> bool:
    return all(day is None or 1 <= int(day) <= 31 for day in days)


def _time(match: re.Match[str]) -> str:
    hour, minute, second, half = match[1], match[2], match[3], match[4]
    words = [cardinal(str(int(hour)))]
    if minute and (minute != "00" or second):
        words.append(f"oh {DIGITS[int(minute[1])]}" if minute[0] == "0" else cardinal(minute))
    elif minute and not half:
        words.append("o'clock")
    if second:
        words.append(f"and {cardinal(str(int(second)))} seconds")
    return " ".join([*words, *([f"{half.lower()}-m"] if half else [])]) + stop_before_capital(match)


def _numbers_between(mark: str, year: str) -> str:
    return rf"(?<![0-9{mark}])([0-9]{{1,2}})([{mark}])([0-9]{{1,2}})[{mark}]({year})(?![{mark}]?[0-9])"


DATES = (
    (r"(?<![0-9-])([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(?![0-9-])", _iso_date),
    (rf"([0-9](?:{_HALF_DAY}\.?|:[0-5][0-9]))\s?[-–]\s?(?=[0-9])", r"\1 to "),
    (rf"(?<![0-9:.,/–-])([0-9]{{1,2}})\s?[-–]\s?(?=[0-9]{{1,2}}(?:[:.][0-5][0-9])?{_HALF_DAY}{END})", r"\1 to "),
    (_numbers_between("/", "[0-9]{4}|[0-9]{2}"), _date_of_numbers),
    (r"(?<!ersion )(?<![^\W_])" + _numbers_between(".", "1[89][0-9]{2}|20[0-9]{2}"), _date_of_numbers),
    (_numbers_between("-", "[12][0-9]{3}"), _date_of_numbers),
    (
        r"(?<![0-9:.])([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])"
        rf"(?:\s?([AaPp])\.?\s?[Mm]{END}\.?)?",
        _time,
    ),
    (rf"(?<![0-9:.,])([0-9]{{1,2}})(?:\.([0-5][0-9]))?()\s?([AaPp])\.?[Mm]{END}\.?", _time),
    (
        rf"\b({_MONTH})(?:\s|(?<=\.))([0-9]{{1,2}})(?:st|nd|rd|th)?(?:\s?[-–]\s?([0-9]{{1,2}}){END})?"
        r"(?:,?\s([12][0-9]{3}))?(?![0-9/.,]?[0-9]|[^\W_])",
        _month_day,
    ),
    (
        rf"(?:\b[Tt]he\s)?(?<![0-9.,/–-])([0-9]{{1,2}})(?:[-–]([0-9]{{1,2}}))?(?:st|nd|rd|th)?(?:\sof)?[\s-]({_MONTH})"
        rf"(?:(?:,?\s|-)([12][0-9]{{3}}|(?<=-)[0-9]{{2}}))?{END}",
        _day_month,
    ),
)
