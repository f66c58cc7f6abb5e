"""Trials of a backend's kernels: a tiny mixer, forward and backward, against the definition in float64.

That a package imports proves little (wheels for another CUDA, parts left out of a build, compilers that are missing),
so a backend is chosen by what its kernels compute. Shape letters as in `interface`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.engine import reference
from models.engine.inputs import ConvInputs, Operations, ScanInputs, SSDInputs

CHUNK = 64  # the trial of SSD has more frames than one chunk of this length
TOLERANCE = 1e-2  # of the maximum: TF32 products pass, wrong mathematics does not


_DEFINITIONS = Operations(
    lambda inputs: reference.causal_conv(*inputs),
    lambda inputs: reference.selective_scan(*inputs),
    lambda inputs: reference.ssd(*inputs),
)


def problem(kernels: Operations, mixer: str, device: torch.device) -> str | None:
    """Tries the kernels of `mixer` ("mamba" or "mamba2") on a device; None if they are right, else what is wrong."""
    run, inputs = _PROBLEMS[mixer]()
    try:
        got = _outputs_and_gradients(run, kernels, [tensor.to(device, torch.float32) for tensor in inputs])
    except Exception as reason:  # whatever is wrong with a package or a driver, another backend can take over
        first_line = (str(reason).splitlines() or ["no message"])[0]
        return f"its {mixer} kernels cannot run ({type(reason).__name__}: {first_line})"
    expected = _outputs_and_gradients(run, _DEFINITIONS, inputs)
    errors = [(a.cpu().double() - b).abs().max() / b.abs().max() for a, b in zip(got, expected, strict=True)]
    error = torch.stack(errors).max().item()  # max of a NaN is NaN
    if not error < TOLERANCE:
        return f"its {mixer} kernels are wrong (by {error:.1e} of the maximum)"
    return None


def _outputs_and_gradients(run: Callable, operations: Operations, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        outputs = run(operations, *inputs)
        weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


def _mamba() -> tuple[Callable, list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    length, channels, state_size = 40, 16, 16
    inputs = [
        *_conv_inputs(draw, length, channels),
        *(_normal(draw, 2, length, channels) for _ in range(2)),  # dt, z
        -1 - torch.rand(channels, state_size, generator=draw, dtype=torch.float64),
        *(_normal(draw, 2, length, state_size) for _ in range(2)),  # B, C
        *(_normal(draw, channels) for _ in range(2)),  # D, dt_bias
    ]

    def run(operations, x, weight, bias, dt, z, A, B, C, D, dt_bias):
        u = operations.causal_conv(ConvInputs(x, weight, bias, silu=True))
        return operations.selective_scan(ScanInputs(u, dt, A, B, C, D, z, dt_bias, dt_softplus=True))

    return run, inputs


def _mamba2() -> tuple[Callable, list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    length, heads, channels, state_size = CHUNK + 16, 2, 64, 64
    sizes = [heads * channels, state_size, state_size]
    inputs = [
        *_conv_inputs(draw, length, sum(sizes)),
        _normal(draw, 2, length, heads),  # dt
        -1 - torch.rand(heads, generator=draw, dtype=torch.float64),
        *(_normal(draw, heads) for _ in range(2)),  # D, dt_bias
        _normal(draw, 2, heads, channels, state_size),  # initial state
    ]

    def run(operations, x, weight, bias, dt, A, D, dt_bias, initial_state):
        xBC = operations.causal_conv(ConvInputs(x, weight, bias, silu=True))
        x, B, C = xBC.split(sizes, dim=-1)
        x, B, C = x.unflatten(-1, (heads, channels)), B.unsqueeze(2), C.unsqueeze(2)
        return operations.ssd(SSDInputs(x, dt, A, B, C, D, dt_bias, initial_state, dt_softplus=True))

    return run, inputs


_PROBLEMS = {"mamba": _mamba, "mamba2": _mamba2}


def _conv_inputs(draw: torch.Generator, length: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    return _normal(draw, 2, length, channels), _normal(draw, channels, 4), _normal(draw, channels)


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)
