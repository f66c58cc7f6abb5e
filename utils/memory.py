"""What a process keeps of the memory that it has used.

glibc gives large blocks back as soon as they are free and asks for them again at the next step, page by page, each page
set to zero by the system. Kept, they cost no more memory than the largest step needs. oneDNN keeps the last 1024
operations that it has compiled, each for one shape: where every batch has another shape, as in text to mel in bf16,
few of them are ever used again.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
LARGEST_KEPT = 32 * 2**20  # bytes; what glibc itself may grow this threshold to
COMPILED_KEPT = 256  # enough for all operations of a model on batches of one shape


def keep_freed_memory() -> bool:
    """Makes malloc keep freed blocks of up to 32 MiB, for this process; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def keep_few_compiled_operations() -> None:
    """Makes oneDNN keep `COMPILED_KEPT` operations, or as many as the environment says; before torch computes."""
    if not any(f"{name}_PRIMITIVE_CACHE_CAPACITY" in os.environ for name in ("ONEDNN", "DNNL")):
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(COMPILED_KEPT)
