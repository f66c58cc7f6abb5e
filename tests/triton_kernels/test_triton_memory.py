"""What is predicted for an operation's forward and backward pass, against what it allocates."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from agreement import kernels
from judge import cast
from test_engine import conv_inputs, scan_inputs
from test_ssd import ssd_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

from models.engine import interface
from utils.profiling.kernels import WITHOUT_KERNELS
from utils.profiling.measure import STEP, _peak
from utils.profiling.storages import Storages

CASES = {
    "conv": ("causal_conv", lambda: conv_inputs(2, 150, 100, 4), {"silu": True}),
    "scan": ("selective_scan", lambda: scan_inputs(2, 70, 48, 16), {"dt_softplus": True}),
    "scan in segments": ("selective_scan", lambda: scan_inputs(1, 520, 32, 3), {"dt_softplus": True}),
    "ssd": ("ssd", lambda: ssd_inputs(2, 150, 4, 16, 40), {"dt_softplus": True}),
    "ssd in groups": ("ssd", lambda: ssd_inputs(1, 100, 4, 48, 16, groups=2), {"dt_softplus": True}),
}
ACTIVATIONS = "x", "u", "z", "B", "C"


def run(operation, inputs, switches):
    leaves = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in inputs.items()}
    out = operation(**leaves, **switches)
    y = out[0] if isinstance(out, tuple) else out
    torch.autograd.grad(y, [v for v in leaves.values() if v.requires_grad], torch.ones_like(y))


def predicted(case, dtype, device_type):
    op, make, switches = CASES[case]
    fakes = FakeTensorMode()
    inputs = {name: fakes.from_tensor(value) for name, value in cast(make(), dtype, *ACTIVATIONS).items()}
    with fakes, Storages(device=device_type) as live:
        live.follow(inputs.values())
        run(lambda **given: getattr(interface, op)(**given, backend=WITHOUT_KERNELS), inputs, switches)
    return live.peak.total


def measured(case, dtype, device_type):
    """To be run in a new process: the interpreter keeps some tensors of a launch, and frees them in a later one."""
    op, make, switches = CASES[case]
    inputs = cast(make(), dtype, *ACTIVATIONS)
    if device_type == "cuda":
        inputs = {name: value.cuda() for name, value in inputs.items()}
        run(kernels(op), inputs, switches)
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        inputs = {name: value.clone() for name, value in inputs.items()}
        with torch.profiler.record_function(STEP):
            run(kernels(op), inputs, switches)
    return _peak(profiler)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_allocated_was_predicted(case, dtype, device):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        got = pool.submit(measured, case, dtype, device.type).result()
    want = predicted(case, dtype, device.type)
    print(f"{case}: predicted {want:,}, measured {got:,}")
    assert want == pytest.approx(got, rel=0.02)
