"""Errors that a user can mend, and the exit codes of all scripts."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of all scripts; a signal that stops a script gives 128 + its number."""

    DONE = 0
    BAD_INPUT = 2
    TOO_MUCH_BAD_DATA = 3
    INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend; its text is one sentence, shown on stderr without a traceback."""

    exit_code = ExitCode.BAD_INPUT


class TooMuchBadData(UserError):
    """The corpus holds more unreadable files than the user allowed."""

    exit_code = ExitCode.TOO_MUCH_BAD_DATA
