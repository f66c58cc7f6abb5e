"""Seconds from import to the end of the first step: `python -m benchmarks.cuda.first_step WHAT SYSTEM DEVICE LENGTH`.

The step is forward and backward of a block (of an operation, for fla) in bf16 at batch 16 and d_model 512 on a GPU. It
includes whatever a backend tries, compiles and tunes at its first use. Prints JSON.
"""

import time

BEGUN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402

from benchmarks.cuda.operations import make, obstacle  # noqa: E402
from benchmarks.cuda.plan import Cell  # noqa: E402


def main(words: list[str]) -> int:
    """Takes the step and prints the seconds."""
    what, system, device, length = words
    imported = time.perf_counter()
    reason = obstacle(what, system, device)
    if reason:
        print(json.dumps({"status": "skipped", "why": reason}))
        return 0
    batch, d_model = (16, 512) if device == "cuda" else (2, 64)
    work = make(Cell(what, system, batch, d_model, int(length), "bf16"), torch.device(device))
    work.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    end = time.perf_counter()
    print(json.dumps({"status": "ok", "import_s": imported - BEGUN, "first_step_s": end - BEGUN}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
