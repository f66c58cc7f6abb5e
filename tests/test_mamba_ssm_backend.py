"""The adapter of mamba-ssm's CUDA kernels, tested on a CPU with packages that mimic theirs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fake_mamba_ssm import RIGHT, write_packages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge import assert_close, errors, results, sensitivities, wide
from root import ROOT
from torch import Tensor

from models.engine import interface, mamba_ssm, reference, tuning
from models.engine.backends import set_backend
from models.engine.inputs import ConvInputs, ScanInputs, SSDInputs
from models.mamba import Mamba, Mamba2

OPTIONS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("mamba_ssm") is None,
    reason="needs a CUDA device and mamba-ssm",
)


def forget_packages() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("mamba_ssm", "causal_conv1d")]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that puts packages first on the path of this process, for the length of a test."""

    def put_first(**changed: str) -> None:
        monkeypatch.syspath_prepend(str(write_packages(tmp_path, **changed)))
        forget_packages()

    yield put_first
    forget_packages()


def random_inputs(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> dict:
    draw = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    if "A" in inputs:
        inputs["A"] = -inputs["A"].exp()
    return inputs


def packed(draw: st.DrawFn, batch: int, length: int) -> Tensor:
    """Rows of packed sequences, as the interface numbers them: (batch, length) int32."""
    starts = draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    return reference.numbered(torch.tensor(starts).view(batch, length).cumsum(1))


def largest_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    return max(errors({name: value.cpu() for name, value in got.items()}, want).values())


def expected(definition: Callable, inputs: dict, **options: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The definition's results in float64, and the scales of their errors: terms of short sequences may cancel."""
    return results(definition, wide(inputs), **options), sensitivities(definition, wide(inputs), **options)


def kernel(op: str, **options: bool) -> Callable:
    """The adapter's function called by keywords."""
    kind = {"causal_conv": ConvInputs, "selective_scan": ScanInputs, "ssd": SSDInputs}[op]
    return lambda **inputs: getattr(mamba_ssm, op)(kind(**inputs, **options))


@pytest.mark.parametrize(("offset", "width"), [(0, 16), (3, 24), (0, 21)])
@OPTIONS
@given(data=st.data(), batch=st.integers(1, 3), length=st.integers(1, 9), taps=st.integers(2, 4), silu=st.booleans())
def test_convolution_is_laid_out_for_the_kernel(install, offset, width, data, batch, length, taps, silu):
    """Slices of wider tensors, states and packed sequences agree with the sum over taps."""
    install()
    shapes = {"x": (batch, length, width), "weight": (16, taps), "bias": (16,)}
    if data.draw(st.booleans(), label="state"):
        shapes["initial_state"] = batch, taps - 1, 16
    inputs = random_inputs(shapes, seed=batch)
    inputs["x"] = inputs["x"][:, :, offset : offset + 16]
    if data.draw(st.booleans(), label="packed"):
        inputs["seq_idx"] = data.draw(st.composite(packed)(batch, length))

    def widened(y: Tensor) -> Tensor:
        return F.pad(y, (0, 5))  # so that y's gradient is a slice of a wider tensor

    got = results(lambda **leaves: widened(kernel("causal_conv", silu=silu)(**leaves)), inputs)
    want, scales = expected(lambda **leaves: widened(reference.causal_conv(**leaves, silu=silu)), inputs)
    assert_close(got, want, 1e-6, scales)


def test_convolution_takes_broadcast_frames(install):
    """Strides of 0, which would look like another layout to the kernel."""
    install()
    frame, weight, bias = torch.randn(16), torch.randn(16, 4), torch.randn(16)
    broadcast = frame.expand(2, 5, 16)
    y = mamba_ssm.causal_conv(ConvInputs(broadcast, weight, bias))
    torch.testing.assert_close(y, mamba_ssm.causal_conv(ConvInputs(broadcast.clone(), weight, bias)))


@OPTIONS
@given(
    data=st.data(), batch=st.integers(1, 3), length=st.integers(1, 9), dtype=st.sampled_from(["float32", "bfloat16"])
)
def test_selective_scan_is_laid_out_for_the_kernel(install, data, batch, length, dtype):
    """Outputs, the final state and all gradients, also the state's, which the kernel does not have."""
    install()
    dtype = getattr(torch, dtype)
    shapes = {"u": (batch, length, 5), "dt": (batch, length, 5), "A": (5, 7), "B": (batch, length, 7)}
    shapes["C"] = shapes["B"]
    optional = {"D": (5,), "z": (batch, length, 5), "dt_bias": (5,)}
    shapes |= {name: shape for name, shape in optional.items() if data.draw(st.booleans(), label=name)}
    inputs = random_inputs(shapes, seed=batch)
    inputs |= {name: inputs[name].to(dtype) for name in ("u", "B", "C", "z") if name in inputs}
    got = results(kernel("selective_scan", dt_softplus=True), inputs)
    want, scales = expected(reference.selective_scan, inputs, dt_softplus=True)
    assert_close(got, want, 1e-6 if dtype == torch.float32 else 1e-2, scales)
    assert errors(got, want, scales)["output 1"] < 1e-6  # the state: a float32 dt is not rounded to u's dtype


@OPTIONS
@given(data=st.data(), batch=st.integers(1, 3), length=st.integers(1, 9), narrow=st.booleans(), softplus=st.booleans())
def test_ssd_is_laid_out_for_the_kernel(install, data, batch, length, narrow, softplus):
    install()
    shapes = {"x": (batch, length, 4, 3), "dt": (batch, length, 4), "A": (4,), "B": (batch, length, 2, 5)}
    shapes["C"] = shapes["B"]
    optional = {"D": (4,), "dt_bias": (4,), "initial_state": (batch, 4, 3, 5)}
    shapes |= {name: shape for name, shape in optional.items() if data.draw(st.booleans(), label=name)}
    inputs = random_inputs(shapes, seed=batch)
    inputs |= {name: inputs[name].abs() for name in ("dt", "dt_bias") if name in inputs}  # steps are positive
    if narrow:
        inputs |= {name: inputs[name].bfloat16() for name in ("x", "dt", "B", "D") if name in inputs}
        inputs["C"] = inputs["C"].bfloat16().float()  # to be rounded to x's dtype, without a loss
    if data.draw(st.booleans(), label="packed"):
        inputs["seq_idx"] = data.draw(st.composite(packed)(batch, length))
    got = results(kernel("ssd", dt_softplus=softplus), inputs)
    want, scales = expected(reference.ssd, inputs, dt_softplus=softplus)
    assert_close(got, want, 1e-2 if narrow else 1e-6, scales)


def test_what_the_kernels_cannot_do_is_refused_before_they_are_imported(monkeypatch):
    """Each refusal is a sentence; without a package on the path, an import would raise ModuleNotFoundError."""
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    x, row = torch.zeros(1, 4, 8), torch.zeros(1, 4, dtype=torch.int32)
    scan = {"u": x, "dt": x, "A": torch.zeros(8, 2), "B": torch.zeros(1, 4, 2), "C": torch.zeros(1, 4, 2)}
    many = torch.zeros(1, 1, 1).expand(4096, 65536, 256)
    heads = {"x": x.unflatten(-1, (2, 4)), "dt": x[..., :2], "A": torch.zeros(2)}
    ssd = heads | {"B": torch.zeros(1, 4, 1, 2), "C": torch.zeros(1, 4, 1, 2)}
    wide = torch.zeros(1, 4, 1, 257)
    long = {"x": torch.zeros(1, 1, 1, 1).expand(4096, 65536, 2, 16), "dt": many[..., :2], "B": many.unsqueeze(2)}
    conv_x = {"x": x, "weight": torch.zeros(8, 4)}
    cases = [
        ("causal_conv", conv_x | {"weight": torch.zeros(8, 5)}, "2 to 4 taps, not of 5"),
        ("causal_conv", conv_x | {"x": x[..., :6]}, "multiple of 8 channels, not 6"),
        ("causal_conv", conv_x | {"x": x.double()}, "not float64"),
        ("causal_conv", conv_x | {"x": many}, "offsets of causal-conv1d"),
        ("selective_scan", scan | {"initial_state": torch.zeros(1, 8, 2)}, "start from a state"),
        ("selective_scan", scan | {"seq_idx": row}, "packed sequences"),
        ("selective_scan", scan | {"A": torch.zeros(8, 257)}, "256 states a channel, not 257"),
        ("selective_scan", scan | {"u": x.double()}, "not float64"),
        ("selective_scan", scan | {"u": many, "A": torch.zeros(256, 64)}, "32-bit offsets"),
        ("ssd", ssd | {"B": wide, "C": wide}, "not 257 and 4"),
        ("ssd", ssd | {"x": heads["x"].double()}, "not float64"),
        ("ssd", ssd | long, "32-bit offsets"),
    ]
    for op, inputs, words in cases:
        with pytest.raises(mamba_ssm.Unsupported, match=words):
            kernel(op)(**inputs)
    with pytest.raises(ModuleNotFoundError):
        kernel("selective_scan")(**scan)


def test_probe_accepts_right_kernels(install):
    install()
    assert mamba_ssm._try("mamba", torch.device("cpu")) is None
    assert mamba_ssm._try("mamba2", torch.device("cpu")) is None


def test_probe_tunes_nothing_and_the_first_real_call_says_that_it_does(install, monkeypatch, caplog):
    """The trial runs the kernels with their cheapest configuration only, and leaves them as they were."""
    install()
    monkeypatch.setattr(tuning, "_announced", set())
    monkeypatch.delenv("TRITON_CACHE_AUTOTUNING", raising=False)
    caplog.set_level("WARNING", "tacomamba")
    assert mamba_ssm._try("mamba2", torch.device("cpu")) is None
    kernel_of_theirs = sys.modules["mamba_ssm.ops.triton.ssd_combined"].kernel
    assert kernel_of_theirs.tuned == [[64]] and not caplog.messages
    assert os.environ["TRITON_CACHE_AUTOTUNING"] == "1"
    for heads in (2, 2, 4):
        inputs = random_inputs({"x": (1, 4, heads, 4), "dt": (1, 4, heads), "A": (heads,), "B": (1, 4, 1, 2)}, seed=0)
        kernel("ssd", dt_softplus=True)(**inputs, C=inputs["B"])
    assert kernel_of_theirs.tuned[1:] == [[128, 32, 64]] * 3
    assert caplog.messages == ["Triton tunes the kernels of mamba_ssm for a new shape, which can take minutes"] * 2


LEFT_OUT = 'def selective_scan_fn(*_, **__):\n    raise RuntimeError("not installed.\\nReinstall with:")\n'
RENAMED = 'def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None):\n    raise AssertionError("called")\n'
OTHER_CUDA = 'raise OSError("libcudart.so.11.0: cannot open shared object file")\n'


@pytest.mark.parametrize(
    ("changed", "mamba", "mamba2"),
    [
        ({"selective_scan": LEFT_OUT}, "(RuntimeError: not installed.)", None),
        ({"ssd": RENAMED}, None, "(TypeError: "),
        ({"causal_conv1d": OTHER_CUDA}, "(OSError: libcudart", "(OSError: libcudart"),
        ({"causal_conv1d": "import causal_conv1d_cuda_that_is_not_there"}, "(ModuleNotFoundError: ", "(ModuleNotFound"),
        ({"ssd": ""}, None, "(ImportError: "),
        ({"selective_scan": RIGHT["selective_scan"].replace("D, z,", "None, z,")}, "(RuntimeError: ", None),
        ({"selective_scan": RIGHT["selective_scan"].replace("C, D,", "C, 1.1 * D,")}, "are wrong", None),
        ({"ssd": RIGHT["ssd"].replace("(y, state)", "(y, 1.1 * state)")}, None, "are wrong"),
        ({"ssd": RIGHT["ssd"].replace("(y, state)", "(y, state / 0 * 0)")}, None, "are wrong (by nan"),
        ({"ssd": RIGHT["ssd"].replace("initial_states, seq", "initial_states.detach(), seq")}, None, "RuntimeError"),
        ({"causal_conv1d": RIGHT["causal_conv1d"].replace("taps - 1 - k", "k")}, "are wrong", "are wrong"),
    ],
)
def test_probe_says_why_kernels_are_not_used(install, changed, mamba, mamba2):
    """Each mixer for itself: broken imports, renamed arguments, missing builds, gradients and wrong numbers."""
    install(**changed)
    for mixer, words in (("mamba", mamba), ("mamba2", mamba2)):
        reason = mamba_ssm._try(mixer, torch.device("cpu"))
        assert reason is None if words is None else words in reason and "\n" not in reason


def test_package_that_imports_but_cannot_run_is_passed_over(tmp_path):
    """In a process of its own, with the CPU for a CUDA device: `auto` takes Mamba-2 and leaves Mamba-1 to torch."""
    packages = write_packages(tmp_path, selective_scan=LEFT_OUT)
    script = """
import logging, sys, torch
from models.engine import backends, mamba_ssm
logging.basicConfig(level=logging.INFO)
print("causal_conv1d" in sys.modules or "mamba_ssm" in sys.modules)
print(torch.cuda.is_available() or mamba_ssm.probe("mamba"))
mamba_ssm.probe = lambda mixer: mamba_ssm._try(mixer, torch.device("cpu"))
print(*(backends.resolve("auto", mixer, "cuda") for mixer in ("mamba", "mamba2")))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    imported, without_cuda, chosen = done.stdout.splitlines()
    assert imported == "False" and without_cuda in ("no CUDA device", "True")
    assert chosen == "torch mamba_ssm"
    assert done.stderr.count("RuntimeError: not installed.") == 1


def test_compiled_code_is_left_to_another_backend(install):
    """Dynamo catches the refusal as Python does, and the whole graph compiles with the torch backend's operator."""
    install(selective_scan=LEFT_OUT)
    inputs = random_inputs({"u": (2, 9, 8), "A": (8, 4), "B": (2, 9, 4)}, seed=0)

    def scan(u, A, B, backend="mamba_ssm"):
        return interface.selective_scan(u, u, A, B, B, dt_softplus=True, backend=backend)

    compiled = torch.compile(scan, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), scan(**inputs, backend="torch"))
    with pytest.raises(RuntimeError, match="not installed"):
        scan(**inputs)


@needs_kernels
@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_probe_accepts_the_installed_kernels(mixer):
    assert mamba_ssm.probe(mixer) is None


CONV = {"x": (2, 600, 64), "weight": (64, 4), "bias": (64,), "initial_state": (2, 3, 64)}
SCAN = {"u": (2, 3000, 32), "dt": (2, 3000, 32), "A": (32, 16), "B": (2, 3000, 16), "C": (2, 3000, 16)}
SSD = {"x": (2, 600, 4, 64), "dt": (2, 600, 4), "A": (4,), "B": (2, 600, 1, 64), "C": (2, 600, 1, 64)}


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("causal_conv", CONV),
        ("selective_scan", SCAN | {"D": (32,), "z": (2, 3000, 32), "dt_bias": (32,)}),
        ("ssd", SSD | {"D": (4,), "dt_bias": (4,), "initial_state": (2, 4, 64, 64)}),
    ],
)
def test_installed_kernels_equal_the_definition(op, shapes, dtype, tolerance):
    """Several chunks, packed rows, outputs and gradients, against float64 loops on the same inputs."""
    inputs = random_inputs(shapes, seed=0)
    inputs |= {name: inputs[name].to(dtype) for name in ("u", "x", "z", "B", "C") if name in inputs}
    if "dt_bias" in inputs:
        inputs["dt_bias"] -= 3.0  # steps of 0.05, as models begin with
    if op != "selective_scan":
        inputs["seq_idx"] = reference.numbered(torch.arange(600).expand(2, -1) // 270)
    option = {"silu" if op == "causal_conv" else "dt_softplus": True}
    got = results(kernel(op, **option), {name: value.cuda() for name, value in inputs.items()})
    want = results(getattr(reference, op), wide(inputs), **option)
    assert largest_error(got, want) < tolerance


@needs_kernels
@pytest.mark.parametrize("mixer", [Mamba, Mamba2])
def test_mixers_are_the_same_with_installed_kernels(mixer):
    """A padded batch through both backends in float32: outputs at valid frames, and the gradients of all parameters."""
    torch.manual_seed(0)
    module = mixer(64).to("cuda")
    x, lengths = torch.randn(2, 600, 64, device="cuda"), torch.tensor([600, 333], device="cuda")

    def run(backend: str) -> dict[str, Tensor]:
        set_backend(module, backend)
        y = module(x, lengths) * (torch.arange(600, device="cuda") < lengths[:, None]).unsqueeze(-1)
        names, parameters = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(y.square().sum(), parameters)
        return {name: value.detach().cpu() for name, value in zip(("y", *names), (y, *gradients), strict=True)}

    assert largest_error(run("mamba_ssm"), run("torch")) < 1e-5
