"""SSD in torch operations against the frame-by-frame definition in float64, and its guarantees as an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from judge import assert_close, cast, errors, largest, results, sensitivities, wide
from on_device import KIND, SLACK, interface, moved, of_the_cpu
from torch import Tensor

from benchmarks.grid.inside import Inside
from models.engine import reference, ssd_chunks
from models.engine import ssd as engine
from models.engine.ssd_chunks import CHUNK

ssd = interface.ssd
LOW = ("x", "B", "C")
LEAST = 1e-9  # the smallest scale of hard cases: where all decays to nothing, results are what the definition rounds
TWO_HEADS = 2 * CHUNK * CHUNK * 8  # bytes of a block, in float64
OPTIONAL = ("D", "dt_bias", "initial_state", "seq_idx")


def ssd_inputs(
    rows: int, length: int, heads: int, channels: int, states: int, groups: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """All inputs, for use with softplus, with about two resets a row."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    starts = torch.rand(rows, length, generator=draw) < 2 / (length + 2)
    return {
        "x": normal(rows, length, heads, channels),
        "dt": normal(rows, length, heads) - 3,
        "A": -torch.rand(heads, generator=draw).mul(16),
        "B": normal(rows, length, groups, states),
        "C": normal(rows, length, groups, states),
        "D": normal(heads),
        "dt_bias": normal(heads),
        "initial_state": normal(rows, heads, channels, states),
        "seq_idx": starts.cumsum(1).to(torch.int32),
    }


def in_parts(function: Callable[..., Any], bounds: list[int]) -> Callable[..., Any]:
    """`function` called for each part of the frames, with the state that the part before it left."""

    def whole(initial_state: Tensor, **others: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = [], initial_state
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = {name: v[:, start:stop] if v.dim() > 2 else v for name, v in others.items()}
            y, state = function(**part, initial_state=state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    return whole


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2 * CHUNK + 2), st.integers(1, 3), *[st.integers(1, 9)] * 2),
    groups=st.integers(1, 2),
    missing=st.sets(st.sampled_from(OPTIONAL)),
    softplus=st.booleans(),
    block=st.sampled_from((1, TWO_HEADS, ssd_chunks.BLOCK)),
    seed=st.integers(0, 99),
)
@example((3, 2 * CHUNK + 1, 2, 3, 4), 2, set(), True, TWO_HEADS, 0)
@example((1, CHUNK, 1, 1, 1), 1, set(OPTIONAL), False, 1, 0)
@example((1, 3, 1, 7, 1), 1, set(), False, 1, 1)  # decays of e^-10
def test_equals_the_definition(sizes, groups, missing, softplus, block, seed):
    """Bound 1e-14 in float64: any size, optional inputs, blocks of any size; outputs and gradients.

    Of the maximum, or of what relative changes of the inputs do to the result, if that is more.
    """
    rows, length, heads_of_group, channels, states = sizes
    inputs = ssd_inputs(rows, length, groups * heads_of_group, channels, states, groups, seed)
    inputs = wide({name: v for name, v in inputs.items() if name not in missing})
    if not softplus:
        inputs["dt"] = inputs["dt"].exp()
        inputs.pop("dt_bias", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssd_chunks, "BLOCK", block)
        got = results(ssd, inputs, dt_softplus=softplus)
    want, scales = (judge(reference.ssd, inputs, dt_softplus=softplus) for judge in (results, sensitivities))
    assert_close(got, want, 1e-14, scales)


def hard_cases(length: int, heads: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Steps (l, h) and A (h,) that cost other implementations their precision."""
    draw = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    usual_dt, usual_A = 1e-3 * torch.exp(uniform(length, heads) * math.log(100)), -torch.arange(1.0, heads + 1)
    gaps = usual_dt * (uniform(length, heads) > 0.3)
    gaps[length // 5 : length // 2] = 0
    slow = torch.full((heads,), -1e-2)
    return {
        "usual": (usual_dt, usual_A),
        "hard": (uniform(length, heads), -16 * uniform(heads)),
        "gaps": (gaps, usual_A),
        "slow, constant": (torch.full((length, heads), 1e-3), slow),
        "slow, random": (1e-3 * uniform(length, heads), slow),
        "underflow": (1e3 * uniform(length, heads), -16 * uniform(heads)),
    }


def test_precision_where_others_lose_it():
    """1e-6 of the maximum over 4096 frames in float32, output and every gradient, of each case in its own group."""
    heads = 4
    cases = hard_cases(4096, heads)
    inputs = ssd_inputs(1, 4096, len(cases) * heads, 4, 4, len(cases))
    inputs = {name: inputs[name] for name in ("x", "B", "C", "D", "initial_state")}
    inputs["dt"] = torch.cat([dt for dt, _ in cases.values()], dim=1).unsqueeze(0)
    inputs["A"] = torch.cat([A for _, A in cases.values()])
    definition = in_parts(reference.ssd, list(range(0, 4097, 256)))  # since its backward is quadratic in length
    got, want = results(ssd, inputs), results(definition, wide(inputs))
    head_dimension = {"output 0": 2, "output 1": 1, "gradient of x": 2, "gradient of dt": 2, "gradient of B": 2}
    head_dimension |= {"gradient of C": 2, "gradient of A": 0, "gradient of D": 0, "gradient of initial_state": 1}

    def of_case(values: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        return {name: v.chunk(len(cases), head_dimension[name])[number] for name, v in values.items()}

    for number, name in enumerate(cases):
        expected = of_case(want, number)
        worst = errors(of_case(got, number), expected, largest(expected, LEAST))
        assert max(worst.values()) <= SLACK * 1e-6, (name, worst)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_activations_keep_decays_and_states_wide(dtype, seed):
    """x, B, C of 16 bits: a few roundings of these; dt, A and states in float32; gradients as their inputs."""
    inputs = cast(ssd_inputs(2, 150, 4, 8, 8, 2, seed), dtype, *LOW)
    got = results(ssd, inputs, dt_softplus=True)
    want, scales = (judge(reference.ssd, wide(inputs), dt_softplus=True) for judge in (results, sensitivities))
    assert_close(got, want, 8 * torch.finfo(dtype).eps, scales)
    assert got["output 0"].dtype == dtype and got["output 1"].dtype == torch.float32
    for name, value in inputs.items():
        assert name == "seq_idx" or got[f"gradient of {name}"].dtype == value.dtype


def test_a_long_memory_survives_low_precision():
    """A state of ones that hardly decays stays within float32's rounding over 1000 frames of bfloat16."""
    inputs = cast(ssd_inputs(1, 1000, 2, 4, 4), torch.bfloat16, *LOW)
    inputs |= {"x": torch.zeros_like(inputs["x"]), "dt": torch.full((1, 1000, 2), 1e-4), "A": -torch.ones(2)}
    inputs |= {"initial_state": torch.ones(1, 2, 4, 4)}
    _, state = ssd(**{name: v for name, v in inputs.items() if name not in ("seq_idx", "dt_bias")})
    torch.testing.assert_close(state, torch.full_like(state, math.exp(-0.1)), rtol=SLACK * 1e-6, atol=0)


def test_gradients_in_float64(monkeypatch):
    """Numerical derivatives of every differentiable input, over several short chunks with resets."""
    for module in (engine, ssd_chunks):
        monkeypatch.setattr(module, "CHUNK", 3)
    inputs = wide(ssd_inputs(1, 8, 4, 2, 2, 2, seed=1))
    seq_idx = inputs.pop("seq_idx")
    assert seq_idx.max() > 0
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *values: ssd(**dict(zip(names, values, strict=True)), seq_idx=seq_idx, dt_softplus=True),
        tuple(value.requires_grad_() for value in inputs.values()),
    )


@given(length=st.integers(2, 3 * CHUNK), cuts=st.sets(st.integers(1, 3 * CHUNK), max_size=3), seed=st.integers(0, 99))
def test_any_split_equals_the_whole(length, cuts, seed):
    """Parts that hand on their state give the whole's outputs and gradients, in float64 to 1e-12."""
    inputs = wide(ssd_inputs(2, length, 2, 3, 4, seed=seed))
    inputs["dt"] = inputs["dt"].exp()
    del inputs["seq_idx"], inputs["dt_bias"]
    bounds = [0, *sorted(cut for cut in cuts if cut < length), length]
    whole = results(ssd, inputs)
    assert_close(results(in_parts(ssd, bounds), inputs), whole, 1e-12)


def test_packed_sequences_equal_single_ones(seed):
    """Three sequences in one row: bounds inside a chunk, at its edge; the initial state reaches only the first."""
    inputs = ssd_inputs(1, 3 * CHUNK, 2, 3, 4, seed=seed)
    bounds = [0, 20, CHUNK, 3 * CHUNK]
    lengths = torch.tensor([stop - start for start, stop in zip(bounds, bounds[1:], strict=False)])
    inputs["seq_idx"] = torch.arange(3).repeat_interleave(lengths)[None]
    y, state = ssd(**inputs, dt_softplus=True)
    for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = {name: v[:, start:stop] if name in ("x", "dt", "B", "C") else v for name, v in inputs.items()}
        part |= {"seq_idx": None, "initial_state": inputs["initial_state"] if number == 0 else None}
        y_part, last = ssd(**part, dt_softplus=True)
        torch.testing.assert_close(y[:, start:stop], y_part, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_zero_steps_keep_the_state_to_the_last_bit():
    inputs = ssd_inputs(2, CHUNK + 9, 2, 3, 4) | {"seq_idx": None, "dt": torch.full((2, CHUNK + 9, 2), -1e4)}
    _, state = ssd(**inputs, dt_softplus=True)
    assert torch.equal(state, inputs["initial_state"])


def extreme_inputs(length: int, heads: int, strongest: float, seed: int) -> dict[str, Tensor]:
    """Steps of 0, small and huge ones side by side, dt A beyond any exponential; every head a group of its own."""
    inputs = ssd_inputs(1, length, heads, 3, 4, heads, seed)
    draw = torch.Generator().manual_seed(seed)
    inputs["A"] = -(10 ** torch.linspace(-2, strongest, heads))
    kind = torch.rand(1, length, heads, generator=draw)
    steps = torch.rand(1, length, heads, generator=draw)
    inputs["dt"] = torch.where(kind < 0.7, 0.05 * steps, torch.where(kind < 0.9, 0.0, 1e3 * steps))
    del inputs["dt_bias"]
    return inputs


@given(strongest=st.floats(0, 6), seed=st.integers(0, 99))
@example(6.0, 0)
@example(0.0, 69)  # the summands of a gradient of A are 130 times their sum, whose rounding is theirs
@example(1.0, 69)
def test_extreme_decay_gives_finite_and_right_gradients(strongest, seed):
    """float32 within 5e-6 of the maximum, or of what relative changes of the inputs do, if that is more."""
    inputs = extreme_inputs(CHUNK + 20, 8, strongest, seed)
    want, scales = (judge(reference.ssd, wide(inputs)) for judge in (results, sensitivities))
    assert_close(results(ssd, inputs), want, 5e-6, scales)


def test_a_huge_state_is_forgotten_without_a_trace():
    """1e8, decayed by e^-50 within a chunk, leaves the states that follow as exact as if it had not been there."""
    inputs = {name: v for name, v in ssd_inputs(1, CHUNK, 2, 3, 4).items() if name in ("x", "B", "C")}
    inputs |= {"dt": torch.full((1, CHUNK, 2), 50 / CHUNK), "A": -torch.ones(2)}
    _, want = ssd(**inputs)
    _, state = ssd(**inputs, initial_state=torch.full((1, 2, 3, 4), 1e8))
    torch.testing.assert_close(state, want, rtol=1e-6, atol=1e-6)


def test_views_and_expanded_gradients(seed):
    """Inputs may be slices of wider tensors, gradients expanded, and one of the two missing."""
    inputs = ssd_inputs(2, 80, 2, 4, 6, seed=seed)
    wide = torch.cat([inputs[name].flatten(2) for name in ("x", "B", "C")], dim=-1)
    x, B, C = wide.split([8, 6, 6], dim=-1)
    views = inputs | {"x": x.unflatten(-1, (2, 4)), "B": B.unflatten(-1, (1, 6)), "C": C.unflatten(-1, (1, 6))}
    assert not views["x"].is_contiguous()
    for got, want in zip(ssd(**views, dt_softplus=True), ssd(**inputs, dt_softplus=True), strict=True):
        torch.testing.assert_close(got, want)
    x = inputs.pop("x").requires_grad_()
    y, state = ssd(x, **inputs, dt_softplus=True)
    (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (want,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    assert torch.equal(dx, want)
    (of_state,) = torch.autograd.grad(state.sum(), x, retain_graph=True)
    (of_both,) = torch.autograd.grad(y.sum() + state.sum(), x)
    torch.testing.assert_close(of_both, dx + of_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_changes_nothing(dtype):
    """The operator decides its dtypes itself, also in backward."""
    inputs = cast(ssd_inputs(2, 70, 2, 4, 6), dtype, *LOW)
    want = results(ssd, inputs, dt_softplus=True)
    with torch.autocast(KIND, dtype=torch.bfloat16):
        got = results(ssd, inputs, dt_softplus=True)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_float64_where_the_inputs_have_none(dtype):
    """Some devices (MPS) do not know it: not one tensor of it in forward or backward."""
    inputs = cast(ssd_inputs(2, 100, 2, 4, 6), dtype, *LOW)
    with Inside() as inside:
        results(ssd, inputs, dt_softplus=True)
    assert inside.calls > 100 and torch.float32 in inside.dtypes
    assert torch.float64 not in inside.dtypes


@of_the_cpu
def test_work_grows_in_proportion_to_the_length():
    """Operations and their elements, forward and backward: four times the frames, at most 4.1 times the work."""
    seen = []
    for length in (8 * CHUNK, 32 * CHUNK):
        with Inside() as inside:
            results(ssd, ssd_inputs(2, length, 4, 4, 4), dt_softplus=True)
        seen.append(inside)
    assert 2.5 * seen[0].calls < seen[1].calls < 4.1 * seen[0].calls
    assert 2.5 * seen[0].elements < seen[1].elements < 4.1 * seen[0].elements


@of_the_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_keeps_one_state_a_chunk(dtype):
    """Saved for backward beside the inputs: the states at the chunks' starts, in x's dtype; none without gradients."""
    inputs = cast(ssd_inputs(2, 3 * CHUNK, 4, 8, 16), dtype, *LOW)
    leaves = {name: v.requires_grad_(v.is_floating_point()) for name, v in inputs.items()}
    own = {v.untyped_storage().data_ptr() for v in leaves.values()}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ssd(**leaves, dt_softplus=True)
    states, numbers = 3 * 2 * 4 * 8 * 16 * dtype.itemsize, leaves["seq_idx"].nbytes
    assert sum(size for place, size in saved.items() if place not in own) == states + numbers
    with torch.no_grad(), Inside() as inside:
        y, state = ssd(**leaves, dt_softplus=True)
    assert y.grad_fn is None and state.grad_fn is None and inside.calls


def test_operators_are_registered_as_torch_wants_them():
    """Schemas, fake implementations, autograd and tracing under compilation, with and without optional inputs."""
    inputs = ssd_inputs(2, CHUNK + 6, 4, 3, 5, 2)
    leaves = [moved(v).requires_grad_(v.is_floating_point()) for v in inputs.values()]
    forward, backward = torch.ops.tacomamba.ssd.default, torch.ops.tacomamba.ssd_backward.default
    torch.library.opcheck(forward, (*leaves, True, True))
    arguments = [*(v.detach() for v in leaves), True]
    plain = [arguments[0], arguments[1].exp(), *arguments[2:5], None, None, None, None, False]
    torch.library.opcheck(forward, (*plain, False))
    y, final_state, states = forward(*arguments, True)
    torch.library.opcheck(backward, (*arguments, y, final_state, states))
    torch.library.opcheck(backward, (*plain, y, None, states))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(backend, monkeypatch, tmp_path):
    """Outputs and gradients of the compiled function equal those of the plain one, at two lengths."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # an older cache does not notice changes of ours
    compiled = torch.compile(ssd, fullgraph=True, backend=backend, dynamic=True)
    for length in (CHUNK + 6, 2 * CHUNK + 10):
        inputs = ssd_inputs(2, length, 2, 3, 5)
        want = {name: value.double() for name, value in results(ssd, inputs, dt_softplus=True).items()}
        assert_close(results(compiled, inputs, dt_softplus=True), want, 1e-6)


class _Layer(torch.nn.Module):
    def forward(self, x, dt, A, B, C, D, dt_bias, initial_state, seq_idx):
        return ssd(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus=True)


def test_exports_with_a_dynamic_length():
    """One operator in the graph, and equal bits at lengths shorter and longer than the one exported with."""
    inputs = ssd_inputs(2, 40, 2, 3, 5)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {name: {1: length} if name in ("x", "dt", "B", "C", "seq_idx") else None for name in inputs}
    program = torch.export.export(_Layer(), tuple(inputs.values()), dynamic_shapes=shapes)
    operators = [str(node.target) for node in program.graph.nodes if "tacomamba" in str(node.target)]
    assert operators == ["tacomamba.ssd.default"]
    for other in (11, 3 * CHUNK + 1):
        inputs = ssd_inputs(2, other, 2, 3, 5)
        for got, want in zip(program.module()(*inputs.values()), _Layer()(**inputs), strict=True):
            assert torch.equal(got, want)


def test_shapes_that_do_not_fit_are_named():
    inputs = ssd_inputs(2, 8, 4, 3, 5, 2)
    with pytest.raises(ValueError, match=r"dt has shape \(2, 7, 4\) where \(2, 8, 4\) is needed"):
        ssd(**inputs | {"dt": inputs["dt"][:, :-1]})
    with pytest.raises(ValueError, match="groups"):
        ssd(**inputs | {"B": inputs["B"].repeat(1, 1, 3, 1)[:, :, :3], "C": inputs["C"].repeat(1, 1, 3, 1)[:, :, :3]})
