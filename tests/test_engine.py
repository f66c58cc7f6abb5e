"""Convolution and selective scan of every backend that works here, against the frame-by-frame definition in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from judge import assert_close, results, sensitivities, wide
from on_device import KIND, SLACK, interface, of_the_cpu
from test_ssd import ssd_inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.grid.inside import Inside
from models.engine import conv, plan, reference, selective_scan
from models.engine.backends import why_not

HERE = [name for name in ("torch", "native", "decomposed") if why_not(name, "mamba", KIND) is None]
BY_MEMORY = "torch, as on an accelerator"
BACKENDS = pytest.mark.parametrize("backend", [*HERE, BY_MEMORY], indirect=True)
IN_BLOCKS = pytest.mark.parametrize("backend", [*HERE[:-1], BY_MEMORY], indirect=True)


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend's name; torch's chunks run one by one, or as on an accelerator side by side, in blocks by memory."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == BY_MEMORY:
            patch.setattr(plan, "by_cache", lambda device: False)
        else:
            patch.setattr(selective_scan, "FEWEST", math.inf)
        yield request.param.partition(",")[0]


def scan_inputs(
    rows: int, length: int, channels: int, states: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """All inputs of a selective scan, with two resets where the length allows them."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    starts = torch.rand(rows, length, generator=draw) < 2 / (length + 2)
    return {
        "u": normal(rows, length, channels),
        "dt": normal(rows, length, channels) - 3,
        "A": -torch.rand(channels, states, generator=draw).mul(16).to(dtype),
        "B": normal(rows, length, states),
        "C": normal(rows, length, states),
        "D": normal(channels),
        "z": normal(rows, length, channels),
        "dt_bias": normal(channels),
        "initial_state": normal(rows, channels, states),
        "seq_idx": starts.cumsum(1).to(torch.int32),
    }


def conv_inputs(rows: int, length: int, channels: int, taps: int, seed: int = 0) -> dict[str, Tensor]:
    """All inputs of a causal convolution."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.rand(rows, length, generator=draw) < 2 / (length + 2)
    return {
        "x": torch.randn(rows, length, channels, generator=draw),
        "weight": torch.randn(channels, taps, generator=draw),
        "bias": torch.randn(channels, generator=draw),
        "initial_state": torch.randn(rows, taps - 1, channels, generator=draw),
        "seq_idx": starts.cumsum(1).to(torch.int32),
    }


OPTIONAL = ("D", "z", "dt_bias", "initial_state", "seq_idx")


@BACKENDS
@example(sizes=(1, 2, 1, 18), missing=set(), softplus=False, seed=8)  # the terms of an output nearly cancel
@example(sizes=(3, 20, 1, 1), missing=set(), softplus=True, seed=21)  # the gradients of dt nearly cancel
@example(sizes=(2, 15, 1, 19), missing={"z", "D"}, softplus=True, seed=10)  # so they do here
@example(sizes=(1, 23, 2, 1), missing=set(), softplus=False, seed=42)  # and the terms of the states here
@example(sizes=(1, 2, 2, 1), missing=set(), softplus=False, seed=2)  # and those of a gradient of B here
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(2, 50), st.integers(1, 37), st.integers(1, 19)),
    missing=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    seed=st.integers(0, 99),
)
def test_scan_equals_the_definition(backend, sizes, missing, softplus, seed):
    """Bound 5e-7, of native 2e-6, in float32: any size, any of the optional inputs, outputs and all gradients.

    Of the maximum, or of what relative changes of the inputs do to the result, if that is more.
    """
    inputs = {name: value for name, value in scan_inputs(*sizes, seed).items() if name not in missing}
    if not softplus:
        inputs["dt"] = inputs["dt"].exp()
        inputs.pop("dt_bias", None)
    got = results(interface.selective_scan, inputs, dt_softplus=softplus, backend=backend)
    exact, options = wide(inputs), {"dt_softplus": softplus}
    want = results(reference.selective_scan, exact, **options)
    bound = 2e-6 if backend == "native" else 5e-7
    assert_close(got, want, bound, sensitivities(reference.selective_scan, exact, **options))


@BACKENDS
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 37), st.integers(2, 5)),
    missing=st.sets(st.sampled_from(("bias", "initial_state", "seq_idx"))),
    silu=st.booleans(),
    seed=st.integers(0, 99),
)
def test_conv_equals_the_definition(backend, sizes, missing, silu, seed):
    """Bound 5e-7 in float32: of the maximum, or of what relative changes of the inputs do, if that is more."""
    inputs = {name: value for name, value in conv_inputs(*sizes, seed).items() if name not in missing}
    exact = wide(inputs)
    got = results(interface.causal_conv, inputs, silu=silu, backend=backend)
    want = results(reference.causal_conv, exact, silu=silu)
    assert_close(got, want, 5e-7, sensitivities(reference.causal_conv, exact, silu=silu))


@IN_BLOCKS
@pytest.mark.parametrize(("length", "size"), [(70, 64), (300, 6 * 3 * 21 * 5)])
def test_sequences_longer_than_a_block(backend, length, size, monkeypatch):
    """Many blocks of rows and channels, or of six chunks, the last an incomplete one: the same bound as within one."""
    monkeypatch.setattr(selective_scan, "BLOCK", size)
    monkeypatch.setattr(plan, "IN_MEMORY", size * selective_scan.CHUNK)
    inputs = scan_inputs(3, length, 21, 5)
    want = results(reference.selective_scan, wide(inputs), dt_softplus=True)
    assert_close(results(interface.selective_scan, inputs, dt_softplus=True, backend=backend), want, 2e-6)
    monkeypatch.setattr(conv, "BLOCK", 64)
    monkeypatch.setattr(plan, "IN_MEMORY", 64)
    inputs = conv_inputs(3, 70, 21, 4)
    want = results(reference.causal_conv, wide(inputs), silu=True)
    assert_close(results(interface.causal_conv, inputs, silu=True, backend=backend), want, 2e-6)


def hard_cases(length: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Step sizes (2, l, 8) and A (8, 16) that broke other scans."""
    draw = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    usual_dt = 1e-3 * torch.exp(uniform(2, length, 8) * math.log(100))
    usual_A = -torch.arange(1.0, 17).repeat(8, 1)
    gaps = usual_dt.clone()
    gaps[:, length // 5 : length // 2] = 0
    gaps *= uniform(2, length, 8) > 0.3
    slow = torch.full((8, 16), -1e-2)
    return {
        "usual": (usual_dt, usual_A),
        "hard": (uniform(2, length, 8), -16 * uniform(8, 16)),
        "gaps": (gaps, usual_A),
        "slow, constant": (torch.full((2, length, 8), 1e-3), slow),
        "slow, random": (1e-3 * uniform(2, length, 8), slow),
        "underflow": (1e3 * uniform(2, length, 8), -16 * uniform(8, 16)),
    }


@IN_BLOCKS  # the decomposed scan is not for thousands of frames
@pytest.mark.parametrize("case", hard_cases(1))
def test_precision_where_others_lose_it(backend, case):
    """1e-6 of the maximum over 4096 frames, output and every gradient; 3e-6 with slow decay, where errors add up."""
    dt, A = hard_cases(4096)[case]
    draw = torch.Generator().manual_seed(4)
    inputs = {name: torch.randn(2, 4096, size, generator=draw) for name, size in (("u", 8), ("B", 16), ("C", 16))}
    inputs |= {"dt": dt, "A": A}
    want = results(reference.selective_scan, wide(inputs))
    assert_close(results(interface.selective_scan, inputs, backend=backend), want, 3e-6 if "slow" in case else 1e-6)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_a_wide_state(backend, dtype, seed):
    """u, z, B, C rounded to 16 bits: the outputs' own rounding is all that is lost (1 part in 128 or 1024)."""
    inputs = scan_inputs(2, 40, 8, 4, seed)
    for name in ("u", "z", "B", "C"):
        inputs[name] = inputs[name].to(dtype)
    want = results(reference.selective_scan, wide(inputs), dt_softplus=True)
    got = results(interface.selective_scan, inputs, dt_softplus=True, backend=backend)
    assert got["output 0"].dtype == dtype and got["output 1"].dtype == torch.float32
    assert_close(got, want, 4 * torch.finfo(dtype).eps)
    assert (got["output 1"].double() - want["output 1"]).abs().max() <= SLACK * 1e-6 * want["output 1"].abs().max()


def test_gradients_in_float64():
    """Numerical derivatives of every differentiable input of both operators."""
    inputs = scan_inputs(2, 18, 3, 2, dtype=torch.float64)
    leaves = {name: v.requires_grad_() for name, v in inputs.items() if v.is_floating_point()}
    fixed = {"seq_idx": inputs["seq_idx"], "dt_softplus": True}
    names = list(leaves)
    assert torch.autograd.gradcheck(
        lambda *values: interface.selective_scan(**dict(zip(names, values, strict=True)), **fixed),
        tuple(leaves.values()),
    )
    conv_leaves = wide(conv_inputs(2, 6, 3, 4))
    seq_idx = conv_leaves.pop("seq_idx")
    assert torch.autograd.gradcheck(
        lambda *values: interface.causal_conv(*values, seq_idx, silu=True),
        tuple(value.requires_grad_() for value in conv_leaves.values()),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.zeros(2, 4, 3)}, r"dt has shape \(2, 4, 3\) where \(2, 5, 3\) is needed"),
        ({"A": torch.zeros(3)}, r"A has shape \(3,\) where \(3, n\) is needed"),
        ({"C": torch.zeros(2, 5, 4, 1)}, r"C has shape \(2, 5, 4, 1\) where \(2, 5, 4\)"),
        ({"D": torch.zeros(4)}, r"D has shape \(4,\) where \(3\)"),
    ],
)
@BACKENDS
def test_shapes_that_do_not_fit_are_named(backend, change, message):
    with pytest.raises(ValueError, match=message):
        interface.selective_scan(**scan_inputs(2, 5, 3, 4) | change, backend=backend)


@BACKENDS
def test_a_state_of_the_convolution_has_one_frame_less_than_taps(backend):
    inputs = conv_inputs(2, 5, 3, 4)
    with pytest.raises(ValueError, match=r"initial_state has shape \(2, 4, 3\) where \(2, 3, 3\)"):
        interface.causal_conv(**inputs | {"initial_state": torch.zeros(2, 4, 3)}, backend=backend)


@pytest.mark.parametrize("numbers", [[0, 1, 0], [2, 1, 0], [0, 1, -1]])
@BACKENDS
def test_numbers_of_packed_sequences_may_repeat_and_fall(backend, numbers):
    """A change begins a sequence, whatever its number: as if they were numbered in order."""
    softplus = {"dt_softplus": True}
    for operation, inputs in (
        (interface.selective_scan, scan_inputs(2, 120, 6, 4) | softplus),
        (interface.causal_conv, conv_inputs(2, 120, 8, 4)),
        (interface.ssd, ssd_inputs(2, 120, 2, 4, 4) | softplus),
    ):
        outputs, expected = (
            operation(**inputs | {"seq_idx": numbered.repeat_interleave(40).expand(2, -1)}, backend=backend)
            for numbered in (torch.tensor(numbers), torch.arange(3))
        )
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    short = conv_inputs(1, 3, 8, 4) | {"seq_idx": torch.tensor([[0, 1, 0]])}
    y = interface.causal_conv(**short, backend=backend)
    torch.testing.assert_close(y[0, 2], short["weight"][:, 3] * short["x"][0, 2] + short["bias"])


@pytest.mark.parametrize(("rows", "length"), [(0, 5), (2, 0), (0, 0)])
@BACKENDS
def test_no_frames_and_no_rows(backend, rows, length):
    """Outputs are empty, and a state stays as it is."""
    for operation, inputs in (
        (interface.selective_scan, scan_inputs(rows, length, 6, 4)),
        (interface.ssd, ssd_inputs(rows, length, 2, 4, 4)),
    ):
        y, state = operation(**inputs, backend=backend)
        assert y.shape == next(iter(inputs.values())).shape
        torch.testing.assert_close(state, inputs["initial_state"])
    inputs = conv_inputs(rows, length, 8, 4)
    assert interface.causal_conv(**inputs, backend=backend).shape == inputs["x"].shape


@BACKENDS
def test_zero_steps_keep_the_state_to_the_last_bit(backend):
    inputs = scan_inputs(2, 40, 6, 4) | {"seq_idx": None}
    inputs["dt"] = torch.full_like(inputs["dt"], -1e4)
    _, state = interface.selective_scan(**inputs, dt_softplus=True, backend=backend)
    assert torch.equal(state, inputs["initial_state"])


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv"])
@IN_BLOCKS
def test_operators_are_registered_as_torch_wants_them(backend, name):
    """Schema, fake implementation, autograd and their tracing under compilation."""
    inputs = scan_inputs(2, 20, 4, 3) if name == "selective_scan" else conv_inputs(2, 20, 4, 4)
    switch = {"dt_softplus": True} if name == "selective_scan" else {"silu": True}
    leaves = {key: v.requires_grad_(v.is_floating_point()) for key, v in inputs.items()}
    with _Calls(name) as calls:
        getattr(interface, name)(**leaves, **switch, backend=backend)
    operator, arguments = calls.seen[0]
    torch.library.opcheck(operator, arguments)


class _Calls(TorchDispatchMode):
    """Remembers the calls of our forward operators."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.seen = name, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        text = str(operator)
        if text.startswith("tacomamba") and self.name in text:
            leaves = tuple(
                v.detach().requires_grad_(v.is_floating_point()) if isinstance(v, Tensor) else v for v in args
            )
            self.seen.append((operator, leaves))
        return operator(*args, **(kwargs or {}))


@of_the_cpu
@pytest.mark.parametrize("backend", ["torch", BY_MEMORY], indirect=True)
def test_work_grows_in_proportion_to_the_length(backend):
    """Operations and elements of forward and backward: four times the frames cost at most 4.1 times the work.

    Side by side, four times the chunks cost two more doublings in forward and in backward.
    """
    counts = []
    for length in (512, 2048):
        inputs = scan_inputs(2, length, 8, 4)
        with Inside() as inside:
            results(interface.selective_scan, inputs, dt_softplus=True)
        counts.append(inside)
    one_by_one = plan.by_cache("cpu")
    assert (3.9 if one_by_one else 1) < counts[1].calls / counts[0].calls < (4.1 if one_by_one else 1.1)
    assert counts[1].elements < (4.1 if one_by_one else 4.2) * counts[0].elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_float64_where_the_inputs_have_none(dtype):
    """Some devices (MPS) do not know it: not one tensor of it in forward or backward of convolution and scan."""
    scan, convolution = scan_inputs(2, 40, 4, 3), conv_inputs(2, 40, 4, 4)
    for name in ("u", "z", "B", "C"):
        scan[name] = scan[name].to(dtype)
    convolution["x"] = convolution["x"].to(dtype)
    with Inside() as inside:
        for function, inputs in ((interface.selective_scan, scan), (interface.causal_conv, convolution)):
            leaves = {name: v.requires_grad_(v.is_floating_point()) for name, v in inputs.items()}
            out = function(**leaves)
            (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert inside.calls > 100 and torch.float32 in inside.dtypes
    assert torch.float64 not in inside.dtypes


@of_the_cpu
def test_training_keeps_a_sixteenth_of_the_states():
    """Saved for backward beside the inputs: one state in 16 frames, the number of the sequence, and nothing else."""
    inputs = {name: v.requires_grad_(v.is_floating_point()) for name, v in scan_inputs(2, 160, 8, 4).items()}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        interface.selective_scan(**inputs, dt_softplus=True)
    own = {v.untyped_storage().data_ptr() for v in inputs.values()}
    saved = sum(size for place, size in storages.items() if place not in own)
    states, numbers = 4 * 2 * 160 * 8 * 4 // 16, 4 * 2 * 160
    assert saved <= states + numbers
