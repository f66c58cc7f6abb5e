"""Errors that a user can fix, and the exit codes of all scripts."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of all scripts; a script stopped by a signal exits with 128 + its number."""

    DONE = 0
    BAD_INPUT = 2
    TOO_MUCH_BAD_DATA = 3
    INTERRUPTED = 130


class UserError(Exception):
    """Error that the user can fix; its text is one sentence, shown on stderr without a traceback."""

    exit_code = ExitCode.BAD_INPUT


class TooMuchBadData(UserError):
    """More recordings of a corpus are unusable than the user allowed."""

    exit_code = ExitCode.TOO_MUCH_BAD_DATA
