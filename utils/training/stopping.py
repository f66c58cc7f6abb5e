"""Signals that end a run after the step in flight."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FORWARDING = 1.0  # seconds in which torchrun may repeat a signal of the terminal or SLURM to its ranks


class StopSignals:
    """Sets `number`, 0 before, at the first signal within the block; a second signal ends the process at once.

    The main rank says so on stderr.
    """

    def __init__(self, is_main: bool) -> None:
        self._is_main = is_main
        self.number = 0
        self._first = 0.0
        self._forwarded = "TORCHELASTIC_RUN_ID" in os.environ

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if not self.number:
            self.number, self._first = number, time.monotonic()
            if self._is_main:  # not by print: the signal may have come within another print
                os.write(2, b"\nstopping after this step; once more ends at once\n")
            if not self._forwarded:  # the system acts on the second at once, even during a kernel
                for each in STOP_SIGNALS:
                    signal.signal(each, signal.SIG_DFL)
        elif time.monotonic() - self._first > FORWARDING:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def ignore_stop_signals(worker: int) -> None:
    """Start-up of loader workers: the loop stops them, and a Ctrl-C that reaches them must not lose a batch."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
