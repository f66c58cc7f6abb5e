"""Numbers in words, and patterns of numbers in digits."""

from __future__ import annotations

import functools

from num2words import num2words

LEFT = r"(?<![0-9.,])"  # no digit of the same number precedes
NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
END = r"(?![^\W_])"  # no letter or digit follows
LONGEST = 15  # digits that are read as one number; those of longer ones are read one by one
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@functools.lru_cache(maxsize=4096)
def cardinal(digits: str) -> str:
    """Spells a whole number; digit by digit if it begins with 0 or is longer than `LONGEST` digits."""
    digits = digits.replace(",", "")
    if len(digits) > LONGEST or (digits[0] == "0" and len(digits) > 1):
        return one_by_one(digits)
    return str(num2words(int(digits))).replace(",", "")


def one_by_one(digits: str) -> str:
    """Spells digits one by one."""
    return " ".join(DIGITS[int(digit)] for digit in digits)


@functools.lru_cache(maxsize=4096)
def ordinal(number: int) -> str:
    """Spells an ordinal: "twenty-second"."""
    return str(num2words(number, to="ordinal")).replace(",", "")


@functools.lru_cache(maxsize=1024)
def year(digits: str) -> str:
    """Spells a year: four digits in pairs, two digits as they are, except for 2000."""
    if len(digits) == 2 and digits != "00":
        return f"oh {DIGITS[int(digits[1])]}" if digits[0] == "0" else cardinal(digits)
    return str(num2words(int(digits) or 2000, to="year"))


def is_year(digits: str) -> bool:
    """Whether four digits are more likely a year than a number."""
    return len(digits) == 4 and digits.isdigit() and 1010 <= int(digits) <= 2099


def number(text: str) -> str:
    """Spells a number with thousands separators or decimals; each part after a decimal point digit by digit."""
    whole, *decimals = text.split(".")
    words = [cardinal(whole)] if whole else []
    return " ".join([*words, *(f"point {one_by_one(part)}" for part in decimals)])


def year_or_number(text: str) -> str:
    """Spells a number that may be a year."""
    return year(text) if is_year(text) else number(text)


def plural(words: str) -> str:
    """Forms the plural of number words: "twenties", "sixes"."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")
