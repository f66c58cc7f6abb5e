"""Run train_tacomamba.py and send it a signal at a given step, as soon as that step is in the log.

    python tests/signal_at_step.py STEP SIGNAL RANK TIMES FLAGS...
    python tests/signal_at_step.py CASES.json

The process of that rank sends it to itself, so that no test depends on the speed of a machine; a process that torchrun
has restarted gets none. CASES is an object of lists of such arguments. Each case runs in a process forked from this
one, two at a time, so that torch is imported once; the exit codes are printed as an object, negative for a death by a
signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from root import ROOT

sys.path.insert(0, str(ROOT))

import train_tacomamba  # noqa: E402
from utils.speaker.training import task  # noqa: E402, F401  before the forks
from utils.training import trainer  # noqa: E402, F401
from utils.training.runlog import RunLog  # noqa: E402


def run(step: str, name: str, rank: str, times: str, *flags: str) -> int:
    write = RunLog.write

    def write_and_signal(self: RunLog, at: int, values: dict[str, Any]) -> None:
        write(self, at, values)
        is_first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if at == int(step) and os.environ.get("RANK", "0") == rank and is_first_start:
            for _ in range(int(times)):
                os.kill(os.getpid(), signal.Signals[name])
                time.sleep(0.1)

    RunLog.write = write_and_signal
    return train_tacomamba.main(list(flags))


def fork(arguments: list[str]) -> int:
    """The id of a process that runs one case; its standard output is closed to it."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 70
    try:
        code = run(*arguments)
    finally:
        os._exit(code)


def run_all(cases: dict[str, list[str]]) -> dict[str, int]:
    waiting, running, codes = list(cases), {}, {}
    while waiting or running:
        if waiting and len(running) < 2:
            name = waiting.pop(0)
            running[fork(cases[name])] = name
        else:
            child, status = os.wait()
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
    return codes


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(run_all(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
    else:
        sys.exit(run(*sys.argv[1:]))
