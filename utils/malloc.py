"""How glibc gets memory from the system.

By default it gives large blocks back as soon as they are free and asks for them again at the next step, page by page,
each page set to zero by the system. Kept, they cost no more memory than the largest step needs.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
LARGEST_KEPT = 32 * 2**20  # bytes; what glibc itself may grow this threshold to


def keep_freed_memory() -> bool:
    """Makes malloc keep freed blocks of up to 32 MiB, for this process; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
