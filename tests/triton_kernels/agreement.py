"""Comparison of Triton's operations with the definition in float64.

Skips the test module that imports it where there is no triton, or no place to run its kernels. The folder is not called
triton and has no conftest.py, since Python would take those for others of the same name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from judge import errors, results, wide
from torch import Tensor

from models.engine import reference
from models.engine.inputs import ConvInputs, ScanInputs, SSDInputs
from models.engine.triton import ops
from models.engine.triton.launch import INTERPRETED

if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs triton, and a GPU or TRITON_INTERPRET=1", allow_module_level=True)
if INTERPRETED:
    import interpreter

    interpreter.hasten()
    interpreter.repair_products()

KINDS = {"causal_conv": ConvInputs, "selective_scan": ScanInputs, "ssd": SSDInputs}
# Largest errors of outputs and gradients, of the maximum. In 16 bits inputs, outputs and gradients are rounded.
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def kernels(op: str) -> Callable[..., Any]:
    """An operation of the backend as a function of keywords, which no other backend replaces."""
    return lambda **inputs: getattr(ops, op)(KINDS[op](**inputs))


def on(device: torch.device, op: str) -> Callable[..., Any]:
    """An operation of the backend, computed on the device for tensors on the CPU."""

    def computed(**inputs: Any) -> Any:
        outputs = kernels(op)(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()})
        return tuple(output.cpu() for output in outputs) if isinstance(outputs, tuple) else outputs.cpu()

    return computed


def error(op: str, inputs: dict[str, Any], device: torch.device) -> float:
    """Returns the largest error of outputs and gradients, each of its maximum; that of a NaN is infinite."""
    found = errors(results(on(device, op), inputs), results(getattr(reference, op), wide(inputs)))
    worst = max(found, key=found.get)
    print(f"{op}: {found[worst]:.1e}, {worst}")
    return found[worst]
