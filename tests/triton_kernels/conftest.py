"""What the tests of the Triton kernels share. Without triton, and a place to run its kernels, there is nothing to test.

The folder is not called triton, and the tests not as those in the folder above: Python would take one for the other.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from models.engine.triton.launch import INTERPRETED

RUNS = importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())
collect_ignore_glob = [] if RUNS else ["test_*.py"]

if RUNS and INTERPRETED:
    import interpreter

    interpreter.hasten()
    interpreter.repair_products()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: on the GPU, or with TRITON_INTERPRET=1 on the CPU."""
    return torch.device("cpu" if INTERPRETED else "cuda")
