"""The judge of the engine's operations: outputs and gradients against the frame-by-frame definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import SLACK
from torch import Tensor

from models.engine import reference

TRIES, STEP = 8, 1e-6


def cast(inputs: dict[str, Any], dtype: torch.dtype, *names: str) -> dict[str, Any]:
    """Rounds the named inputs, or all; those that are no floating-point tensors stay."""
    return inputs | {name: inputs[name].to(dtype) for name in _floating(inputs) if not names or name in names}


def _floating(inputs: dict[str, Any]) -> list[str]:
    return [name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]


def wide(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs in float64."""
    return cast(inputs, torch.float64)


def results(
    function: Callable[..., Any],
    inputs: dict[str, Any],
    change: Callable[[Tensor], Tensor] = torch.clone,
    **options: Any,
) -> dict[str, Tensor]:
    """Outputs, and the gradients of a fixed random projection of them, by the input's name.

    `change` is applied to all inputs and to the projection.
    """
    wanted = {name: change(inputs[name].detach()).requires_grad_() for name in _floating(inputs)}
    outputs = function(**inputs | wanted | options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    draw = torch.Generator().manual_seed(7)
    projections = [torch.randn(out.shape, generator=draw).to(out) for out in outputs]
    gradients = torch.autograd.grad(outputs, list(wanted.values()), [change(weights) for weights in projections])
    named = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return named | {f"gradient of {name}": value for name, value in zip(wanted, gradients, strict=True)}


def largest(want: dict[str, Tensor], least: float = 1e-30) -> dict[str, Tensor]:
    """The largest value of each result that is not empty, at least `least`."""
    return {name: value.abs().max().clamp(min=least) for name, value in want.items() if value.numel()}


def sensitivities(function: Callable[..., Any], inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Scales of the errors of a definition's results: how far relative changes of what it computes with move them.

    Summands of a result may cancel, but their rounding does not, and it is at least that of inputs changed in the last
    bit. Changed are the inputs, the projection, and decays, as parts of 1. The largest of 8 random changes, or of the
    result's values, if that is more.
    """
    exact, decayed = results(function, inputs, **options), reference._decayed
    scales = largest(exact)
    for seed in range(TRIES):
        draw = torch.Generator().manual_seed(seed)

        def noise(value: Tensor, draw: torch.Generator = draw) -> Tensor:
            return STEP * torch.randn(value.shape, generator=draw, dtype=value.dtype) * value

        def changed(value: Tensor, noise: Callable[[Tensor], Tensor] = noise) -> Tensor:
            return value + noise(value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "_decayed", lambda state, by, noise=noise: decayed(state, by) + noise(state))
            moved = results(function, inputs, changed, **options)
        for name, value in moved.items():
            scales[name] = torch.maximum(scales[name], (value - exact[name]).abs().max() / STEP)
    return scales


def errors(
    got: dict[str, Tensor], want: dict[str, Tensor], scales: dict[str, Tensor] | None = None
) -> dict[str, float]:
    """Largest error of each result, as a part of its scale, by default its largest value; infinite for NaN."""
    scales = scales or largest(want)
    parts = {name: (got[name].double() - want[name]).abs().max() / scale for name, scale in scales.items()}
    return {name: part.item() if part.isfinite() else float("inf") for name, part in parts.items()}


def assert_close(
    got: dict[str, Tensor], want: dict[str, Tensor], bound: float, scales: dict[str, Tensor] | None = None
) -> None:
    """Requires each error to be within the bound, on a GPU within ten times of it."""
    bad = {name: f"{error:.1e}" for name, error in errors(got, want, scales).items() if not error <= SLACK * bound}
    assert not bad, bad
