"""Triton's operations as operators of torch, and the mixers that use them."""

from __future__ import annotations

import functools

import pytest
import torch
from agreement import kernels
from test_engine import _Calls, conv_inputs, scan_inputs
from test_ssd import ssd_inputs
from torch import Tensor

from models.engine import interface
from models.engine.backends import set_backend, why_not
from models.mamba import Mamba, Mamba2

INPUTS = {
    "causal_conv": lambda: conv_inputs(2, 10, 4, 4),
    "selective_scan": lambda: scan_inputs(2, 10, 4, 3),
    "ssd": lambda: ssd_inputs(2, 10, 2, 3, 5),
}
SWITCHES = {"causal_conv": {"silu": True}, "selective_scan": {"dt_softplus": True}, "ssd": {"dt_softplus": True}}


def placed(op: str, device: torch.device) -> dict[str, Tensor]:
    inputs = {name: value.to(device) for name, value in INPUTS[op]().items()}
    return {name: value.requires_grad_(value.is_floating_point()) for name, value in inputs.items()}


@pytest.mark.parametrize("op", INPUTS)
def test_they_are_registered_as_torch_wants_them(op, device):
    """Schema, fake implementation, autograd and their tracing under compilation."""
    with _Calls(f"triton_{op}") as calls:
        kernels(op)(**placed(op, device), **SWITCHES[op])
    operator, arguments = calls.seen[0]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("op", INPUTS)
def test_a_graph_of_torch_compile_holds_them(op, device):
    """The whole of a function that calls one, forward and backward."""

    def loss(backend, inputs):
        out = getattr(interface, op)(**inputs, **SWITCHES[op], backend=backend)
        return (out[0] if isinstance(out, tuple) else out).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function, backend in ((compiled, "triton"), (loss, "torch")):
        inputs = placed(op, device)
        function(backend, inputs).backward()
        gradients.append({name: value.grad for name, value in inputs.items() if value.requires_grad})
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def run(mixer: Mamba | Mamba2, backend: str, x: Tensor, lengths: Tensor | None, seq_idx: Tensor | None) -> list[Tensor]:
    """Outputs at valid frames, of a whole, and of its second half from the state after the first; all gradients."""
    set_backend(mixer, backend)
    y, state = mixer(x, lengths, seq_idx, return_state=True)
    valid = y if lengths is None else y[torch.arange(y.shape[1], device=y.device) < lengths[:, None]]
    _, half = mixer(x[:, : x.shape[1] // 2], return_state=True)
    rest, _ = mixer.step(x[:, x.shape[1] // 2 :], half)
    loss = valid.square().sum() + rest.square().sum() + state.ssm.square().sum()
    return [valid, rest, state.ssm, *torch.autograd.grad(loss, list(mixer.parameters()))]


@pytest.mark.parametrize("how", ["padded", "packed"])
@pytest.mark.parametrize("make", [Mamba, functools.partial(Mamba2, headdim=8)])
def test_mixers_are_the_same_as_with_torch(make, how, device):
    torch.manual_seed(0)
    mixer, x = make(16, d_state=4).to(device), torch.randn(2, 30, 16, device=device)
    lengths = torch.tensor([30, 17], device=device) if how == "padded" else None
    seq_idx = (torch.arange(30, device=device) // 13).expand(2, 30).int() if how == "packed" else None
    got, want = (run(mixer, backend, x, lengths, seq_idx) for backend in ("triton", "torch"))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_the_trial_accepts_the_kernels(mixer, device):
    assert why_not("triton", mixer, device.type) is None
