"""The kernels compiled for GPUs that need not be here: what they take, and what they cost to compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import agreement  # noqa: F401, skips this where the kernels are not tested
import pytest

HERE = Path(__file__).parent
SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes that a program may have
SPILLED = {"scan64": 4, "segments": 4}  # accesses to memory in a loop, of 1,200 instructions


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["conv", "scan", "scan64", "segments", "ssd", "ssd32-16", "ssd64-128", "ssd256-256"])
def test_kernels_fit_and_do_not_spill(case, dtype):
    """For sm_80 and sm_90: in no loop over tiles does a register go to memory. Prints the CPU seconds of compiling."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, HERE / "offline.py", case, "--dtype", dtype, "--capability", "80", "90", "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["capability"] for kernel in kernels} == {80, 90} and len(kernels) >= 4
    for kernel in kernels:
        print(kernel)
        assert kernel["spilled"] <= SPILLED.get(case, 0)
        assert kernel["stack"] == 0 or not case.startswith("ssd")
        assert kernel["shared"] <= SHARED[kernel["capability"]]
    seconds = sum(kernel["seconds"] for kernel in kernels) / 2
    print(f"{case}, {dtype}: {seconds:.1f} CPU seconds to compile what the first step of training needs")
