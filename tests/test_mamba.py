"""Mamba and Mamba-2 as modules, on every backend that works here: state, steps, padding, packing, compilation."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from root import ROOT
from torch import Tensor, nn

from models.engine import backends
from models.engine.backends import resolve, set_backend, why_not
from models.mamba import Mamba, Mamba2, MixerState, StateSpaceMixer
from models.mixers import BidirectionalMixer
from models.stack import MixerStack, StackConfig

HERE = [name for name in ("torch", "native", "decomposed") if why_not(name, "mamba", "cpu") is None]
BACKENDS = pytest.mark.parametrize("backend", HERE)
MIXERS = pytest.mark.parametrize("make", [Mamba, Mamba2])
SMALL = {"d_model": 16, "n_layers": 2}
BOUND = 2e-6  # of the largest value, in float32: rounding in another order


def build(make: type[StateSpaceMixer], backend: str = "torch", seed: int = 0, **options) -> StateSpaceMixer:
    torch.manual_seed(seed)
    if make is Mamba2:
        options = {"headdim": 8, "d_state": 8, **options}
    mixer = make(16, backend=backend, **options)
    with torch.no_grad():
        mixer.out_proj.weight.mul_(8)  # to outputs of about unit scale
    return mixer


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(got: Tensor, want: Tensor) -> Tensor:
    """The largest error, as a share of the largest value."""
    return (got - want).abs().max() / want.abs().max()


def gradients(mixer: nn.Module, y: Tensor, retain: bool = False) -> list[Tensor]:
    total = (y * noise(*y.shape, seed=5)).sum()
    return list(torch.autograd.grad(total, list(mixer.parameters()), retain_graph=retain))


@BACKENDS
@MIXERS
@given(cuts=st.lists(st.integers(1, 149), max_size=4, unique=True), seed=st.integers(0, 99))
def test_any_split_equals_the_whole(make, backend, cuts, seed):
    """Outputs, last state, and every gradient through the states between the parts."""
    mixer, x = build(make, backend, seed), noise(2, 150, 16, seed=seed + 1)
    whole, last = mixer(x, return_state=True)
    state, parts = mixer.initial_state(2), []
    edges = [0, *sorted(cuts), 150]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        y, state = mixer.step(x[:, start:stop], state)
        parts.append(y)
    split = torch.cat(parts, 1)
    assert error(split, whole) < BOUND
    for part, want in zip(state, last, strict=True):
        assert error(part, want) < BOUND
    for got, want in zip(gradients(mixer, split), gradients(mixer, whole), strict=True):
        assert error(got, want) < 2e-5


@pytest.mark.parametrize("precise", [True, False], ids=["float32", "bfloat16"])
@BACKENDS
@MIXERS
def test_frame_by_frame_equals_at_once(make, backend, precise, seed):
    """Also under autocast, where both round to bfloat16 in the same places: two of its steps at the maximum."""
    mixer, x = build(make, backend, seed).eval(), noise(2, 40, 16, seed=seed + 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=not precise), torch.no_grad():
        whole = mixer(x)
        state, frames = mixer.initial_state(2), []
        for t in range(40):
            y, state = mixer.step(x[:, t], state)
            frames.append(y)
    stepped = torch.stack(frames, 1)
    assert state.ssm.dtype == torch.float32 and stepped.dtype == whole.dtype
    assert error(stepped, whole) <= (BOUND if precise else 2 * torch.finfo(torch.bfloat16).eps)


@BACKENDS
@MIXERS
def test_padding_reaches_neither_outputs_nor_states_nor_gradients(make, backend, seed):
    """Right padding full of NaN: each row is as if it stood alone."""
    mixer, x = build(make, backend, seed), noise(3, 40, 16, seed=seed + 1)
    lengths = torch.tensor([40, 17, 2])
    valid = torch.arange(40) < lengths[:, None]
    padded = x.masked_fill(~valid.unsqueeze(-1), torch.nan)
    y, state = mixer(padded, lengths, return_state=True)
    total = sum((y[row, :length] ** 2).sum() for row, length in enumerate(lengths))
    alone = [mixer(x[row : row + 1, :length], return_state=True) for row, length in enumerate(lengths)]
    for row, (want, last) in enumerate(alone):
        assert error(y[row, : lengths[row]], want[0]) < BOUND
        for part, expected in zip(state, last, strict=True):
            assert error(part[row], expected[0]) < BOUND
    want_total = sum((want**2).sum() for want, _ in alone)
    parameters = list(mixer.parameters())
    for got, want in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(want_total, parameters), strict=True
    ):
        assert error(got, want) < 2e-5


@BACKENDS
@MIXERS
def test_a_bidirectional_mixer_reads_each_row_from_its_own_end(make, backend, seed):
    mixer = BidirectionalMixer(lambda: build(make, backend, seed))
    x, lengths = noise(3, 40, 16, seed=seed + 1), torch.tensor([40, 17, 2])
    together = mixer(x, lengths)
    for row, length in enumerate(lengths):
        alone = mixer(x[row : row + 1, :length], lengths[row : row + 1])
        mirrored = mixer.backward_mixer(alone.new_tensor(x[row : row + 1, :length].flip(1).numpy())).flip(1)
        assert error(together[row, :length], alone[0]) < BOUND
        forward = mixer.forward_mixer(x[row : row + 1, :length])
        assert error(alone, (forward + mirrored) / 2) < BOUND


@BACKENDS
@MIXERS
def test_packed_sequences_do_not_see_each_other(make, backend, seed):
    """Three sequences in a row, with and without a state for the first: each as if alone, and the gradients too."""
    mixer, lengths = build(make, backend, seed), (21, 3, 16)
    x = noise(1, sum(lengths), 16, seed=seed + 1)
    seq_idx = torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(lengths))[None]
    _, before = mixer(noise(1, 9, 16, seed=3), return_state=True)
    packed, last = mixer(x, seq_idx=seq_idx, state=before, return_state=True)
    parts = x.split(lengths, dim=1)
    separate = [mixer(part, state=before if i == 0 else None, return_state=True) for i, part in enumerate(parts)]
    alone = torch.cat([y for y, _ in separate], 1)
    assert error(packed, alone) < BOUND
    for part, want in zip(last, separate[-1][1], strict=True):
        assert error(part, want) < BOUND
    for got, want in zip(gradients(mixer, packed, retain=True), gradients(mixer, alone), strict=True):
        assert error(got, want) < 2e-5


@MIXERS
def test_a_state_keeps_no_frame_alive(make):
    """Of a long piece of a stream, of one shorter than the kernel, and of none."""
    mixer = build(make, "torch")
    state = mixer.initial_state(1)
    for length in (150, 2, 0):
        y, state = mixer.step(noise(1, length, 16), state)
        assert y.shape == (1, length, 16)
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in state)


@BACKENDS
@MIXERS
def test_causality_by_perturbation(make, backend):
    """A change at frame 70 (not at a chunk's edge) changes no bit before it, and what comes after."""
    mixer, x = build(make, backend), noise(1, 150, 16)
    changed = x.clone()
    changed[:, 70] += 1
    first, second = mixer(x), mixer(changed)
    assert torch.equal(first[:, :70], second[:, :70])
    assert (first[:, 70:] != second[:, 70:]).any(-1).all()


@MIXERS
def test_backends_agree(make, seed):
    """Outputs and the gradients of every parameter, each against torch's."""
    x = noise(2, 100, 16, seed=seed + 1)
    want_mixer = build(make, "torch", seed)
    y = want_mixer(x)
    for backend in HERE:
        mixer = build(make, backend, seed)
        assert error(mixer(x), y) < BOUND
        for got, want in zip(gradients(mixer, mixer(x)), gradients(want_mixer, want_mixer(x)), strict=True):
            assert error(got, want) < 2e-5


@pytest.mark.parametrize("backend", [name for name in HERE if name != "decomposed"])
@MIXERS
def test_compiles_as_one_graph(make, backend):
    """Forward and backward through torch.compile without a break, two lengths without a wrong answer."""
    mixer = build(make, backend)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    for length in (40, 70):
        x = noise(2, length, 16)
        y, want = compiled(x), mixer(x)
        assert error(y, want) < BOUND
        for got, expected in zip(gradients(mixer, y), gradients(mixer, want), strict=True):
            assert error(got, expected) < 2e-5


@pytest.mark.slow
@MIXERS
def test_compiles_with_the_default_compiler(make):
    """The same through inductor, which needs a C++ compiler."""
    mixer, x = build(make, "torch"), noise(2, 40, 16)
    compiled = torch.compile(mixer, fullgraph=True)
    assert error(compiled(x), mixer(x)) < BOUND


@BACKENDS
@MIXERS
def test_exports_with_a_dynamic_length(make, backend):
    mixer = build(make, backend).eval()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(mixer, (noise(2, 40, 16),), dynamic_shapes={"x": {1: length}})
    custom = any("tacomamba" in str(node.target) for node in program.graph.nodes)
    assert custom != (backend == "decomposed")
    for frames in (11, 97):
        x = noise(2, frames, 16, seed=frames)
        assert error(program.module()(x), mixer(x)) < BOUND


@MIXERS
def test_gradients_in_float64(make):
    torch.manual_seed(0)
    mixer = (Mamba(4, d_state=2) if make is Mamba else Mamba2(4, d_state=2, headdim=4)).double()
    state = MixerState(*(noise(*part.shape, seed=9).double().requires_grad_() for part in mixer.initial_state(1)))

    def run(x: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, ...]:
        y, last = mixer(x, state=MixerState(conv, ssm), return_state=True)
        return y, *last

    assert torch.autograd.gradcheck(run, (noise(1, 5, 4).double().requires_grad_(), *state))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Mamba, {"d_state": 0}, "d_state 0 must be at least 1"),
        (Mamba, {"dt_rank": 0}, "dt_rank 0 must be at least 1"),
        (Mamba2, {"d_conv": 0}, "d_conv 0 must be at least 1"),
        (Mamba2, {"ngroups": -1}, "ngroups -1 must be at least 1"),
        (Mamba2, {"headdim": 48}, "headdim 48 must divide expand x d_model = 32"),
        (Mamba2, {"headdim": 8, "ngroups": 3}, "ngroups 3 must divide expand x d_model / headdim = 4"),
        (Mamba, {"dt_min": 0.0}, "dt_min 0.0 must be positive and at most dt_max = 0.1"),
        (Mamba2, {"headdim": 8, "dt_min": 0.2}, "dt_min 0.2 must be positive and at most dt_max = 0.1"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(16, **options)


@MIXERS
def test_the_range_of_initial_steps(make):
    """Softplus of the bias fills the range, down to the floor where that is higher."""
    torch.manual_seed(0)
    options = {"headdim": 1} if make is Mamba2 else {}
    mixer = make(512, dt_min=1e-2, dt_max=0.5, dt_init_floor=2e-2, **options)
    steps = nn.functional.softplus(mixer.dt_bias if make is Mamba2 else mixer.dt_proj.bias)
    assert 2e-2 * (1 - 1e-5) <= steps.min() < 2.1e-2 and 0.45 < steps.max() <= 0.5 * (1 + 1e-5)


@BACKENDS
@MIXERS
def test_a_convolution_of_one_tap_streams(make, backend, seed):
    """Its state has no frames."""
    mixer, x = build(make, backend, seed, d_conv=1), noise(2, 20, 16, seed=seed + 1)
    first, state = mixer(x[:, :7], return_state=True)
    assert state.conv.shape[1] == 0
    second, _ = mixer.step(x[:, 7:], state)
    assert error(torch.cat([first, second], 1), mixer(x)) < BOUND


@MIXERS
def test_construction_on_the_meta_device_draws_no_random_numbers(make):
    before = torch.get_rng_state()
    with torch.device("meta"):
        mixer = make(64)
    assert all(parameter.is_meta for parameter in mixer.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stack_streams(seed):
    """Blocks of frames through a causal stack with its states: the whole at once, to rounding."""
    torch.manual_seed(seed)
    stack = MixerStack(StackConfig(mixer="mamba2", **SMALL, d_state=8, headdim=8, mlp_ratio=1.0), causal=True).eval()
    x = noise(2, 50, 16, seed=seed + 1)
    states, parts = stack.initial_state(2), []
    for part in x.split([16, 1, 33], dim=1):
        y, states = stack.step(part, states)
        parts.append(y)
    assert error(torch.cat(parts, 1), stack(x, torch.tensor([50, 50]))) < BOUND


def test_checkpointed_layers_give_the_same_gradients():
    torch.manual_seed(0)
    stack = MixerStack(StackConfig(mixer="mamba", **SMALL, d_state=4), causal=False)
    x, lengths = noise(2, 30, 16), torch.tensor([30, 12])
    plain = gradients(stack, stack(x, lengths))
    stack.checkpoint_layers = True
    for got, want in zip(gradients(stack, stack(x, lengths)), plain, strict=True):
        assert torch.equal(got, want)


def test_set_backend_reaches_every_mixer_and_refuses_unknown_names():
    stack = MixerStack(StackConfig(mixer="mamba", **SMALL, d_state=4), causal=False)
    set_backend(stack, "torch")
    assert {part.backend for part in stack.modules() if isinstance(part, StateSpaceMixer)} == {"torch"}
    with pytest.raises(ValueError, match="unknown backend 'cuda'; there are auto, torch, native"):
        set_backend(stack, "cuda")


def test_a_backend_asked_for_by_name_is_not_replaced():
    with pytest.raises(ValueError, match="the backend mamba_ssm does not work here: it is for CUDA only"):
        resolve("mamba_ssm", "mamba", "cpu")


def test_auto_says_once_what_it_picked(caplog):
    backends._resolve.cache_clear()
    with caplog.at_level(logging.INFO, logger="tacomamba"):
        picked = {resolve("auto", "mamba", "cpu") for _ in range(3)}
    assert len(picked) == 1 and len(caplog.records) == 1
    assert f"mamba on cpu: backend {picked.pop()}" in caplog.text


WITHOUT_COMPILER = """
import os, sys
os.environ.update(PATH="/nonexistent", CXX="", TACOMAMBA_CACHE=sys.argv[1])
import logging, torch
logging.basicConfig(level=logging.INFO)
from models.mamba import Mamba
mixer = Mamba(8)
mixer(torch.randn(1, 20, 8)).sum().backward()
mixer(torch.randn(1, 20, 8))
"""


def test_without_a_compiler_auto_falls_back_with_one_line(tmp_path):
    command = [sys.executable, "-c", WITHOUT_COMPILER, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "backend" in line]
    assert len(lines) == 1 and "native does not work here: no C++ compiler" in lines[0]
