"""The plain path for exporters: equal to the definition, with a dynamic length, of ordinary operations only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.engine import decomposed, interface, reference
from models.engine.decomposed import CHUNK, LONGEST

OPTIONAL = ("D", "dt_bias", "initial_state", "seq_idx")
OVER_TIME = ("x", "u", "dt", "B", "C", "z", "seq_idx")


def inputs_of(name: str, length: int, seed: int = 0, groups: int = 2) -> dict[str, Tensor]:
    """All inputs of `causal_conv`, `selective_scan` or `ssd`, with about two resets a row."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    rows, heads, channels, states = 2, 2 * groups, 3, 4
    seq_idx = (torch.rand(rows, length, generator=draw) < 2 / (length + 2)).cumsum(1).to(torch.int32) + 5
    if name == "causal_conv":
        window = {"weight": normal(channels, 4), "bias": normal(channels), "initial_state": normal(rows, 3, channels)}
        return {"x": normal(rows, length, channels), **window, "seq_idx": seq_idx}
    width = (heads,) if name == "ssd" else (channels,)
    of_head = (heads, channels) if name == "ssd" else (channels,)
    of_group = (groups, states) if name == "ssd" else (states,)
    values = {
        "x" if name == "ssd" else "u": normal(rows, length, *of_head),
        "dt": normal(rows, length, *width) - 2,
        "A": -8 * torch.rand(*(width if name == "ssd" else (channels, states)), generator=draw),
        "B": normal(rows, length, *of_group),
        "C": normal(rows, length, *of_group),
        "D": normal(*width),
    }
    if name == "selective_scan":
        values["z"] = normal(rows, length, channels)
    return values | {"dt_bias": normal(*width), "initial_state": normal(rows, *of_head, states), "seq_idx": seq_idx}


def operation(name: str) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    return partial(getattr(interface, name), backend="decomposed")


def wide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v.double() if v.is_floating_point() else v for name, v in inputs.items()}


def with_gradients(function: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: v.detach().clone().requires_grad_(v.is_floating_point()) for name, v in inputs.items()}
    outputs = function(**leaves, dt_softplus=True)
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    projections = [out.detach().cos() for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, wanted, projections, materialize_grads=True)]  # no decay in 1 frame


@given(
    length=st.integers(1, 2 * CHUNK + 2),
    groups=st.integers(1, 2),
    missing=st.sets(st.sampled_from(OPTIONAL)),
    seed=st.integers(0, 99),
)
@example(2 * CHUNK, 2, set(), 0)
@pytest.mark.parametrize("name", ["selective_scan", "ssd"])
def test_equals_the_definition(name, length, groups, missing, seed):
    """Outputs and all gradients in float64, to 1e-11."""
    inputs = wide({key: v for key, v in inputs_of(name, length, seed, groups).items() if key not in missing})
    got = with_gradients(operation(name), inputs)
    want = with_gradients(getattr(reference, name), inputs)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["selective_scan", "ssd"])
def test_slow_decay_keeps_its_digits(name):
    """A product of 1024 rounded decays is wrong by 1e-5; sums of their logarithms are not: 1e-6 in float32."""
    inputs = inputs_of(name, 1024)
    inputs |= {"A": torch.full_like(inputs["A"], -1e-2), "dt": torch.full_like(inputs["dt"], 1e-3)}
    for missing in ("dt_bias", "seq_idx"):
        del inputs[missing]
    got, state = operation(name)(**inputs)
    want, wanted_state = getattr(reference, name)(**wide(inputs))
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()
    assert (state - wanted_state).abs().max() <= 1e-6 * wanted_state.abs().max()


class _Operation(nn.Module):
    """One of the operations, for export."""

    def __init__(self, name: str, option: str, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.operation, self.options, self.names = operation(name), {option: True}, list(inputs)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.operation(**dict(zip(self.names, inputs, strict=True)), **self.options)


@pytest.mark.parametrize(
    ("name", "option", "example_length", "packed"),
    [
        ("causal_conv", "silu", 40, True),
        ("selective_scan", "dt_softplus", 40, True),
        ("ssd", "dt_softplus", 40, True),
        ("ssd", "dt_softplus", CHUNK + 40, False),
    ],
)
def test_exports_with_a_dynamic_length(name, option, example_length, packed):
    """Nothing but torch's own operators in the graph, and equal results at lengths of other numbers of chunks."""

    def arguments(length: int) -> dict[str, Tensor]:
        inputs = inputs_of(name, length)
        return inputs if packed else {key: v for key, v in inputs.items() if key != "seq_idx"}

    inputs = arguments(example_length)
    layer = _Operation(name, option, inputs)
    length = torch.export.Dim("length", min=2, max=LONGEST)
    shapes = {"inputs": tuple({1: length} if key in OVER_TIME else None for key in inputs)}
    program = torch.export.export(layer, tuple(inputs.values()), dynamic_shapes=shapes)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    on_sizes = [target for target in called if target.__module__ in ("_operator", "operator", "math", "builtins")]
    others = [target for target in called if target not in on_sizes]
    assert others and all(str(target).startswith("aten.") for target in others)
    for other in (7, 2 * CHUNK, 3 * CHUNK + 9):
        inputs = arguments(other).values()
        torch.testing.assert_close(program.module()(*inputs), layer(*inputs), rtol=1e-5, atol=1e-5)


class _Dtypes(TorchDispatchMode):
    """Remembers the dtypes of all tensors that operations put out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        self.seen |= {v.dtype for v in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(v, Tensor)}
        return out


@pytest.mark.parametrize("name", ["selective_scan", "ssd"])
def test_no_float64_where_the_inputs_have_none(name):
    with _Dtypes() as dtypes:
        with_gradients(operation(name), inputs_of(name, 100))
    assert torch.float32 in dtypes.seen and torch.float64 not in dtypes.seen


@pytest.mark.parametrize("name", ["selective_scan", "ssd"])
def test_second_derivatives(name, monkeypatch):
    """Autograd differentiates the plain operations twice, which the fast operators do not offer."""
    monkeypatch.setattr(decomposed, "CHUNK", 2)
    inputs = wide(inputs_of(name, 3, groups=1))
    seq_idx = inputs.pop("seq_idx")
    names = list(inputs)

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return operation(name)(**dict(zip(names, values, strict=True)), seq_idx=seq_idx, dt_softplus=True)

    assert torch.autograd.gradgradcheck(function, tuple(v.requires_grad_() for v in inputs.values()), fast_mode=True)


def test_too_many_frames_are_refused():
    """The selective scan's graph has a fixed number of doublings."""
    frames = torch.ones(1, LONGEST + 1, 1)
    with pytest.raises(ValueError, match=str(LONGEST)):
        operation("selective_scan")(frames, frames, -torch.ones(1, 1), frames, frames)
