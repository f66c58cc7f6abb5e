"""The engine's operations on the device that TACOMAMBA_TEST_DEVICE names, for tests whose tensors are on the CPU.

    TACOMAMBA_TEST_DEVICE=cuda python -m pytest tests/test_engine.py tests/test_ssd.py

"cpu:0" is a CPU to which tensors are moved as to another device.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.engine import interface as engine

DEVICE = os.environ.get("TACOMAMBA_TEST_DEVICE", "cpu")
KIND = torch.device(DEVICE).type
# On bounds that CPUs keep: GPUs add in another order. An H100 was up to 1.2e-5 off where a CPU is within 2e-6.
SLACK = 1 if KIND == "cpu" else 10
of_the_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="counts what a CPU computes or keeps")


def moved(value: Any) -> Any:
    """A tensor on the device, anything else as it is."""
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def _there(operation: Callable[..., Any]) -> Callable[..., Any]:
    """`operation` computed on the device, with tensors, results and gradients on the CPU."""
    if DEVICE == "cpu":
        return operation

    @functools.wraps(operation)
    def computed(*args: Any, **options: Any) -> Any:
        outputs = operation(*map(moved, args), **{name: moved(value) for name, value in options.items()})
        return tuple(output.cpu() for output in outputs) if isinstance(outputs, tuple) else outputs.cpu()

    return computed


interface = SimpleNamespace(
    causal_conv=_there(engine.causal_conv), selective_scan=_there(engine.selective_scan), ssd=_there(engine.ssd)
)
