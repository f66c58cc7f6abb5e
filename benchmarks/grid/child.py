"""The process of one cell: `python -m benchmarks.grid.child JSON` measures it and prints the results as JSON.

JSON has the cell, the folder of peers or null, and the CPU seconds that a pass and all repeats of it may take. malloc
is set before torch is loaded, the same for every system.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def main(words: list[str]) -> int:
    """Measures the cell and prints the results."""
    order = json.loads(words[0])
    os.environ["HF_HUB_OFFLINE"] = "1"  # transformers looks for kernels to download
    malloc = set_malloc(order["cell"]["malloc"])

    import torch

    from benchmarks.grid import measure, sections

    torch.set_num_threads(order["cell"].get("threads", 1))
    folder = Path(order["peers"]) if order["peers"] else None
    meter = measure.Meter(order["limit_s"], order["budget_s"])
    figures: dict[str, Any] = sections.run(order["cell"], folder, meter)
    print(json.dumps({**figures, "malloc": malloc}))
    return 0


def set_malloc(setting: str) -> bool:
    """Sets how the C library treats freed memory; returns False if it could not be set.

    default: unchanged. training: the setting of the training script. large: everything is kept, whatever the size,
    which is best for systems with huge tensors.
    """
    if setting == "default":
        return False
    if setting == "training":
        from utils.device import keep_freed_memory

        return keep_freed_memory()
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
