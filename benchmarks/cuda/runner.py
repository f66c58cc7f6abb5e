"""Parts of a check, each a process under its own limit, one after another, with one line a part.

A part that exceeds its limit is killed with everything that it started, also processes in sessions of their own, as
torchrun starts them; so are those that a finished part left. Nothing of one part is alive while the next one runs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
POLL_S = 0.05
LEAST_S = 5.0  # of time that is left, for a part to begin
LAST_LINES = 15  # of a failed part that are shown
OUTPUT, RESULTS = "output.txt", "parts.jsonl"
OK, FAILED, OVER, SKIPPED = "ok", "failed", "over its limit", "skipped"


@dataclass(frozen=True)
class Part:
    """A command and its limit.

    packages, files: what it cannot do without; where one is missing the part is skipped. after: parts that it builds
    on. last: lines at the end of its output that are shown; is_shown: all of it is shown, as it comes.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    packages: Sequence[str] = ()
    files: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()
    last: int = 0
    is_shown: bool = False

    def obstacle(self) -> str | None:
        """Why it cannot run here, None if it can."""
        for name in self.packages:
            if importlib.util.find_spec(name) is None:
                return f"the package {name} is missing"
        return next((f"there is no {path}" for path in self.files if not path.exists()), None)


class Runner:
    """Runs parts for `total_s` seconds in all; writes OUT/output.txt, all they print, and OUT/parts.jsonl."""

    def __init__(self, out: Path, total_s: float) -> None:
        self.out, self.deadline = out, time.monotonic() + total_s
        self.outcomes: dict[str, str] = {}  # by the part's name
        (out / OUTPUT).write_bytes(b"")
        (out / RESULTS).write_bytes(b"")
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of parts become children of this process

    @property
    def has_failed(self) -> bool:
        """True if a part failed or was over its limit."""
        return bool({FAILED, OVER}.intersection(self.outcomes.values()))

    def run(self, part: Part) -> None:
        """Runs one part and prints its line."""
        left = self.deadline - time.monotonic()
        reason = part.obstacle() or self._unmet(part)
        if reason or left < LEAST_S:
            self._report(part, SKIPPED, 0.0, reason or "the time is up")
            return
        start = time.monotonic()
        with open(self.out / OUTPUT, "ab") as file:
            file.write(f"=== {part.name}: {shlex.join(part.command)}\n".encode())
            file.flush()
            outcome, reason = self._watch(part, min(part.limit_s, left), file)
        self._report(part, outcome, time.monotonic() - start, reason)

    def _unmet(self, part: Part) -> str | None:
        """The part that this one builds on, if it is not ok."""
        return next((f"it needs: {name}" for name in part.after if self.outcomes.get(name) != OK), None)

    def _watch(self, part: Part, limit_s: float, file: IO[bytes]) -> tuple[str, str]:
        """Runs the command and ends what is left of it; the outcome, and the reason or the last lines."""
        begin = shown = file.tell()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **part.environment}
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + limit_s
            while process.poll() is None and time.monotonic() < end:
                shown = self._show(shown) if part.is_shown else shown
                time.sleep(POLL_S)
        finally:
            is_over = process.poll() is None
            process.kill()
            process.wait()
            _end_children()
        if part.is_shown:
            self._show(shown)
        if is_over:
            return OVER, "\n".join([f"killed after {limit_s:.0f} s", *self._last_lines(begin, LAST_LINES)])
        if process.returncode:
            return FAILED, "\n".join([f"exit code {process.returncode}", *self._last_lines(begin, LAST_LINES)])
        return OK, "\n".join(["", *self._last_lines(begin, part.last)])

    def _show(self, place: int) -> int:
        """Prints what the output has from `place` on, and returns where it ends."""
        with open(self.out / OUTPUT, "rb") as file:
            file.seek(place)
            text = file.read()
        if text:
            print(text.decode(errors="replace"), end="", flush=True)
        return place + len(text)

    def _last_lines(self, begin: int, number: int) -> list[str]:
        with open(self.out / OUTPUT, "rb") as file:
            file.seek(begin)
            lines = file.read().decode(errors="replace").splitlines()
        return lines[len(lines) - min(number, len(lines)) :]

    def _report(self, part: Part, outcome: str, seconds: float, reason: str) -> None:
        self.outcomes[part.name] = outcome
        first, *rest = reason.split("\n")
        print(f"{part.name:<40} {outcome:<15} {seconds:6.1f} s  {first}".rstrip(), flush=True)
        for line in rest:
            print(f"    {line}", flush=True)
        record = {"part": part.name, "outcome": outcome, "seconds": round(seconds, 1), "reason": reason}
        with open(self.out / RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _end_children() -> None:
    """Kills all processes that descend from this one, and waits for them."""
    while found := list(_descendants(os.getpid())):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(POLL_S / 5)
    _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _descendants(root: int) -> Iterator[int]:
    """Processes below `root` that have not ended."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
        except (OSError, ValueError):  # it has just ended
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(path.parent.name))
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        yield from below
        waiting += below
