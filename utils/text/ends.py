"""Whether the point of an abbreviation also ends a sentence."""

from __future__ import annotations

import re

# Words that begin sentences, and hardly ever are a name after a title, a street or an initial.
STARTERS = frozenset(
    "A After All And As At But By For From He Her His How I If In It Its My No Not Now On One Our She So Some That The "
    "Their Then There These They This Those We What When Where Why With Yes You Your".split()
)
# Words with a capital that go on with a time of day.
_TIME_GOES_ON = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August "
    "September October November December Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec Mon Tue Tues Wed Thu Thur "
    "Thurs Fri Sat Sun Eastern Central Mountain Pacific Standard Daylight Greenwich"
).split()
_TEXT_ENDS = re.compile(r"[\"')]*$")
_STARTER = re.compile(rf"[\"')]*(?:$|\s[\"'(]*(?:{'|'.join(sorted(STARTERS))})\b(?!\.))")
_CAPITAL = re.compile(rf"[\"')]*(?:$|\s(?!(?:{'|'.join(_TIME_GOES_ON)}|[A-Z]{{2,}})\b)[A-Z])")


def stop_at_end(match: re.Match[str]) -> str:
    """The full stop of an abbreviation that stands before names: only the text can end there."""
    return _stop(match, _TEXT_ENDS)


def stop_before_starter(match: re.Match[str]) -> str:
    """That of one which names may follow: the text ends there, or a word follows that begins sentences."""
    return _stop(match, _STARTER)


def stop_before_capital(match: re.Match[str]) -> str:
    """That of one which no name follows: the text ends there, or a capital follows that does not go on with a time."""
    return _stop(match, _CAPITAL)


def _stop(match: re.Match[str], end: re.Pattern[str]) -> str:
    return "." if match[0].endswith(".") and end.match(match.string, match.end()) else ""
