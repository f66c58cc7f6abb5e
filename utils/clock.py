"""CPU time that counts helpers: espeak-ng and its like run in processes of their own."""

from __future__ import annotations

import resource
import time


def cpu_seconds() -> float:
    """CPU seconds so far of all threads of this process, and of the processes that it started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
