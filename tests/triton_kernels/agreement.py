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


def results(function: Callable[..., Any], inputs: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Outputs, and the gradients of a fixed random projection of them, by the input's name, on the CPU."""
    placed = {name: v.detach().to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
    leaves = {n: v.requires_grad_() for n, v in placed.items() if isinstance(v, Tensor) and v.is_floating_point()}
    outputs = function(**placed)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    draw = torch.Generator().manual_seed(7)
    # Of few digits, which no dtype rounds.
    weights = [torch.randint(-8, 9, out.shape, generator=draw).to(out.device, out.dtype) / 8 for out in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    named = {f"output {i}": out for i, out in enumerate(outputs)}
    named |= {f"gradient of {name}": value for name, value in zip(leaves, gradients, strict=True)}
    return {name: value.detach().cpu() for name, value in named.items()}


def error(op: str, inputs: dict[str, Any], device: torch.device) -> float:
    """Returns the largest error of outputs and gradients, each of its maximum; that of a NaN is infinite."""
    wide = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    want = results(getattr(reference, op), wide, torch.device("cpu"))
    got = results(kernels(op), inputs, device)
    errors = {}
    for name, expected in want.items():
        if expected.numel():
            difference = (got[name].double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
            errors[name] = difference.item() if torch.isfinite(difference) else float("inf")
    worst = max(errors, key=errors.get)
    print(f"{op}: {errors[worst]:.1e}, {worst}")
    return errors[worst]


def rounded(inputs: dict[str, Any], dtype: torch.dtype, *names: str) -> dict[str, Any]:
    """Rounds the named inputs, where present."""
    return inputs | {name: inputs[name].to(dtype) for name in names if name in inputs}
