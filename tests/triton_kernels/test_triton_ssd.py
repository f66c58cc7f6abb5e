"""The SSD in Triton against the frame-by-frame definition in float64, by the inputs and judges of test_ssd."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from agreement import BOUNDS, on
from judge import assert_close, cast, largest, results, sensitivities, wide
from test_ssd import LEAST, LOW, OPTIONAL, extreme_inputs, hard_cases, ssd_inputs
from torch import Tensor

from models.engine import Unsupported, interface, reference
from models.engine.inputs import SSDInputs
from models.engine.triton import ssd as triton_ssd
from models.engine.triton.ops import ssd

DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: str(dtype).split(".")[-1])


@pytest.fixture
def kernels(device) -> Callable[..., tuple[Tensor, Tensor]]:
    """The SSD by kernels on the device."""
    return on(device, "ssd")


# rows, length, heads, channels, states, groups; the inputs left out
CASES = [
    (2, 1, 2, 8, 16, 1, ()),
    (1, 7, 4, 24, 40, 2, ("D", "dt_bias")),
    (2, 65, 2, 33, 16, 2, ("initial_state",)),
    (1, 150, 4, 64, 70, 1, ()),
    (1, 150, 3, 9, 20, 3, OPTIONAL),
    (1, 40, 1, 130, 5, 1, ("seq_idx",)),
]


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:6])))
def test_equals_the_definition(kernels, case, dtype):
    """Outputs, last state and all gradients, within BOUNDS; packed rows, and the optional inputs given and left out."""
    *sizes, missing = case
    inputs = {name: v for name, v in ssd_inputs(*sizes).items() if name not in missing}
    inputs = cast(inputs, dtype, *LOW)
    got = results(kernels, inputs, dt_softplus=True)
    assert_close(got, results(reference.ssd, wide(inputs), dt_softplus=True), BOUNDS[dtype])
    assert got["output 0"].dtype == dtype and got["output 1"].dtype == torch.float32
    for name, value in inputs.items():
        assert name == "seq_idx" or got[f"gradient of {name}"].dtype == value.dtype


@DTYPES
@pytest.mark.parametrize("case", hard_cases(10, 2))
def test_hard_decays(kernels, case, dtype):
    """Where a chunk's log decay sums to hundreds, is 0 for long, or so slow that it adds up over many chunks."""
    length, heads = 140, 3
    dt, A = hard_cases(length, heads)[case]
    inputs = ssd_inputs(1, length, heads, 8, 16) | {"dt": dt.unsqueeze(0), "A": A}
    inputs = cast({name: v for name, v in inputs.items() if name not in ("dt_bias", "seq_idx")}, dtype, *LOW)
    want = results(reference.ssd, wide(inputs))
    assert_close(results(kernels, inputs), want, BOUNDS[dtype], largest(want, LEAST))


@pytest.mark.parametrize("strongest", [0.0, 3.0, 6.0])
def test_extreme_decay(kernels, strongest):
    """float32 within its bound where dt A is beyond any exponential, beside steps of 0."""
    inputs = extreme_inputs(80, 4, strongest, seed=0)
    want, scales = (judge(reference.ssd, wide(inputs)) for judge in (results, sensitivities))
    assert_close(results(kernels, inputs), want, BOUNDS[torch.float32], scales)


def test_zero_steps_keep_the_state_to_the_last_bit(kernels):
    """As those of padding are, whatever is in the padded frames; they get no gradient."""
    inputs = ssd_inputs(2, 80, 2, 8, 16) | {"dt": torch.full((2, 80, 2), -1e4)}
    del inputs["seq_idx"]
    x = inputs["x"].requires_grad_()
    _, state = kernels(**inputs, dt_softplus=True)
    assert torch.equal(state, inputs["initial_state"])
    assert not torch.autograd.grad(state.sum(), x)[0].any()


def test_small_steps(kernels):
    """Of 1e-5 frames, where 1 + exp(dt) has lost most digits of exp(dt)."""
    inputs = ssd_inputs(1, 40, 2, 8, 16)
    inputs["dt"] -= 9
    want = results(reference.ssd, wide(inputs), dt_softplus=True)
    assert_close(results(kernels, inputs, dt_softplus=True), want, 5e-6)


def test_a_long_memory(kernels):
    """A state of ones that hardly decays stays within float32's rounding over 4000 frames."""
    inputs = ssd_inputs(1, 4000, 1, 4, 4)
    inputs |= {"x": torch.zeros(1, 4000, 1, 4), "dt": torch.full((1, 4000, 1), 1e-5), "A": -torch.ones(1)}
    inputs |= {"initial_state": torch.ones(1, 1, 4, 4)}
    _, state = kernels(**{name: v for name, v in inputs.items() if name not in ("seq_idx", "dt_bias")})
    torch.testing.assert_close(state, torch.full_like(state, math.exp(-0.04)), rtol=1e-6, atol=0)


@DTYPES
def test_equal_bits_in_every_run(kernels, dtype):
    inputs = cast(ssd_inputs(1, 70, 2, 16, 16, 2), dtype, *LOW)
    first, second = (results(kernels, inputs, dt_softplus=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_views_and_one_of_two_gradients(device, kernels):
    """x, B and C are parts of a wider tensor, dt has its heads first; gradients are expanded, or of the state alone."""
    inputs = {name: v.to(device) for name, v in ssd_inputs(2, 40, 2, 8, 16).items()}
    wide = torch.cat([inputs[name].flatten(2) for name in LOW], dim=-1)
    x, B, C = wide.split([16, 16, 16], dim=-1)
    views = inputs | {"x": x.unflatten(-1, (2, 8)), "B": B.unsqueeze(2), "C": C.unsqueeze(2)}
    views["dt"] = inputs["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    for got, want in zip(*(kernels(**v, dt_softplus=True) for v in (views, inputs)), strict=True):
        assert torch.equal(got, want)
    x = inputs.pop("x").requires_grad_()
    y, state = ssd(SSDInputs(x, **inputs, dt_softplus=True))
    of_y, of_state = (torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in (y, state))
    (of_both,) = torch.autograd.grad((y, state), x, (torch.ones_like(y), torch.ones_like(state)))
    torch.testing.assert_close(of_y + of_state, of_both)


def test_sums_of_heads_are_shared_out_or_not(kernels, monkeypatch):
    """The gradients of B and C are sums over heads, made by one program or by several."""
    inputs = ssd_inputs(1, 20, 6, 8, 16, 2)
    several = results(kernels, inputs, dt_softplus=True)
    monkeypatch.setattr(triton_ssd, "PROGRAMS", 1)
    one = results(kernels, inputs, dt_softplus=True)
    assert_close(one, {name: value.double() for name, value in several.items()}, 1e-6)


def test_only_inputs_are_saved_for_backward(device):
    leaves = {name: v.to(device) for name, v in ssd_inputs(1, 100, 2, 8, 16).items()}
    leaves = {name: v.requires_grad_(v.is_floating_point()) for name, v in leaves.items()}
    own = {v.untyped_storage().data_ptr() for v in leaves.values()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: saved.append(v) or v, lambda v: v):
        ssd(SSDInputs(**leaves, dt_softplus=True))
    assert len(saved) >= len(own)
    assert not sum(v.numel() for v in saved if v.untyped_storage().data_ptr() not in own)


def test_offsets_beyond_32_bits(device):
    """Rows and chunks 2^31 elements after the first, and as many before it, in which wrong offsets would end.

    Only the pages in use exist on a CPU.
    """
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 16 GiB of a GPU's memory")
    inputs = cast(ssd_inputs(3, 70, 2, 8, 16), torch.bfloat16, *LOW)
    inputs = {name: v.to(device) for name, v in inputs.items()}
    row, frame = 2**30 + 2**10, 2**25
    memory = torch.empty(2**31 + 3 * row + 70 * frame, dtype=torch.bfloat16, device=device)
    far = memory.as_strided((3, 70, 2, 8), (row, frame, 8, 1), 2**31)
    far.copy_(inputs["x"])
    got, want = (ssd(SSDInputs(**inputs | {"x": x}, dt_softplus=True)) for x in (far, inputs["x"]))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_what_it_cannot_compute_is_left_to_torch(device):
    """float64, more than 256 states, more than 256 channels: Unsupported here, and right through the interface."""
    sizes = {"channels": 2, "states": 2}
    for dtype, changes in ((torch.float64, {}), (torch.float32, {"states": 257}), (torch.float32, {"channels": 257})):
        inputs = cast(ssd_inputs(1, 4, 1, **sizes | changes), dtype)
        inputs = {name: v.to(device) for name, v in inputs.items()}
        with pytest.raises(Unsupported):
            ssd(SSDInputs(**inputs))
        got, want = (interface.ssd(**inputs, dt_softplus=True, backend=backend) for backend in ("triton", "torch"))
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
