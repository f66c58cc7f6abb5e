"""Decisions whether the period of an abbreviation also ends a sentence."""

from __future__ import annotations

import re

# Words that begin sentences, and are hardly ever a name after a title, a street or an initial.
STARTERS = frozenset(
    "A After All And As At But By For From He Her His How I If In It Its My No Not Now On One Our She So Some That The "
    "Their Then There These They This Those We What When Where Why With Yes You Your".split()
)
# Capitalized words that continue a time of day.
_TIME_CONTINUES = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August "
    "September October November December Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec Mon Tue Tues Wed Thu Thur "
    "Thurs Fri Sat Sun Eastern Central Mountain Pacific Standard Daylight Greenwich"
).split()
_TEXT_ENDS = re.compile(r"[\"')]*$")
_STARTER = re.compile(rf"[\"')]*(?:$|\s[\"'(]*(?:{'|'.join(sorted(STARTERS))})\b(?!\.))")
_CAPITAL = re.compile(rf"[\"')]*(?:$|\s(?!(?:{'|'.join(_TIME_CONTINUES)}|[A-Z]{{2,}})\b)[A-Z])")


def stop_at_end(match: re.Match[str]) -> str:
    """Period of an abbreviation that precedes names: kept only at the end of the text."""
    return _stop(match, _TEXT_ENDS)


def stop_before_starter(match: re.Match[str]) -> str:
    """Period of one that names may follow: kept at the end of the text, or before a word that begins sentences."""
    return _stop(match, _STARTER)


def stop_before_capital(match: re.Match[str]) -> str:
    """Period of one that no name follows: kept at the end of the text, or before a capital that continues no time."""
    return _stop(match, _CAPITAL)


def _stop(match: re.Match[str], end: re.Pattern[str]) -> str:
    return "." if match[0].endswith(".") and end.match(match.string, match.end()) else ""
