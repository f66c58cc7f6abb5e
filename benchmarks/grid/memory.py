"""Memory of this process, as Linux counts it in /proc/self."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS is resident now, VmHWM the most so far, VmSize what is mapped."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(field)


def peak_memory(body: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process rises at most while `body` runs."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to what is resident now
    before = memory("VmRSS")
    body()
    return memory("VmHWM") - before
