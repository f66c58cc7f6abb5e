"""Commands that are run in order, and remembered once they are finished: what `make demo` is made of."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, sha256_file, sha256_text, write_json, write_text

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Stage:
    """Commands that are run in order, and what decides whether they still must be.

    `commands` are the words after `python`; `inputs` are files whose content the result follows from, `outputs` what
    must exist afterwards. `anew` is removed first, unless the same stage was interrupted and its scripts go on from
    there. The last command's standard output is also kept as the file `stdout`, if there is one.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    anew: tuple[Path, ...] = ()
    stdout: Path | None = None

    def key(self) -> str:
        """Changes with the commands and with the content of the inputs."""
        missing = [str(path) for path in self.inputs if not path.is_file()]
        if missing:
            raise UserError(f"the stage {self.name} needs {', '.join(missing)}, and the stages before it made none")
        return sha256_text(json.dumps([self.commands, [sha256_file(path) for path in self.inputs]]))


class StageFailed(Exception):
    """A stage ended with an exit code that is not 0."""

    def __init__(self, stage: Stage, code: int) -> None:
        super().__init__(f"the stage {stage.name} ended with exit code {code}")
        self.code = code


class Runner:
    """Runs stages as subprocesses and remembers the finished ones in a JSON file, with their wall times.

    `kept` are the names of the stages that this runner did not have to repeat.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.stages: dict[str, dict[str, Any]] = read_json(record) if record.exists() else {}
        self.kept: set[str] = set()

    def run(self, stage: Stage) -> None:
        """Runs `stage` unless it is finished; raises `StageFailed`."""
        before = self.stages.get(stage.name, {})
        key = stage.key()
        same = before.get("key") == key
        if same and before["finished"] and all(path.exists() for path in stage.outputs):
            self.kept.add(stage.name)
            print(f"\n== {stage.name}: finished earlier, in {before['seconds']:.1f} s", flush=True)
            return
        print(f"\n== {stage.name}", flush=True)
        continued = same and not before["finished"]
        spent = before["seconds"] if continued else 0.0
        if not continued:
            for path in stage.anew:
                path.unlink(missing_ok=True)
        self._note(stage, key, spent, finished=False)
        started = time.monotonic()
        try:
            self._run_commands(stage)
        except BaseException:
            self._note(stage, key, spent + time.monotonic() - started, finished=False)
            raise
        self._note(stage, key, spent + time.monotonic() - started, finished=True)

    def seconds(self, name: str) -> float:
        """Wall time of a stage, that of its interrupted runs included."""
        return self.stages[name]["seconds"]

    def _run_commands(self, stage: Stage) -> None:
        for number, words in enumerate(stage.commands, start=1):
            print(f"$ {shlex.join([shown_interpreter(), *words])}", flush=True)
            keep = stage.stdout if number == len(stage.commands) else None
            code, output = run_command([sys.executable, *words], capture=keep is not None)
            if code:
                raise StageFailed(stage, code)
            if keep is not None:
                write_text(keep, output)
        missing = [str(path) for path in stage.outputs if not path.exists()]
        if missing:
            raise UserError(f"the stage {stage.name} ended well and yet did not make {', '.join(missing)}")

    def _note(self, stage: Stage, key: str, seconds: float, finished: bool) -> None:
        self.stages[stage.name] = {"key": key, "seconds": round(seconds, 3), "finished": finished}
        write_json(self.record, self.stages)


def run_command(words: Sequence[str], capture: bool) -> tuple[int, str]:
    """Runs a program to its end; its exit code (128 + n after signal n) and, with `capture`, its standard output.

    Captured output is printed too, when the program has ended. Signals that would stop us are handed to the program,
    once each (its own session keeps the terminal from sending a Ctrl-C too): a training saves what it has, and then we
    end with its exit code.
    """
    running: list[subprocess.Popen] = []

    def hand_on(number: int, frame: Any) -> None:
        for process in running:
            process.send_signal(number)

    handlers = {number: signal.signal(number, hand_on) for number in STOP_SIGNALS}
    try:
        output = subprocess.PIPE if capture else None
        running.append(subprocess.Popen(words, stdout=output, text=True, start_new_session=True))
        printed = running[0].communicate()[0] or ""
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(printed, end="", flush=True)
    code = running[0].returncode
    return (code if code >= 0 else 128 - code), printed


def shown_interpreter() -> str:
    """The interpreter as one would type it here."""
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative
