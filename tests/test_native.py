"""The native kernels: built and cached safely, the same bits for any number of threads, in any kind of process."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judge import assert_close, results, wide
from test_engine import conv_inputs, scan_inputs

from models.engine import Unsupported, interface, reference
from models.engine.inputs import ScanInputs
from models.engine.native import build, ops

try:
    build.find_compiler()
except build.NativeUnavailable as missing:
    pytest.skip(str(missing), allow_module_level=True)

native_scan = partial(interface.selective_scan, backend="native")
native_conv = partial(interface.causal_conv, backend="native")
# Three threads' worth of work in units of uneven size: two groups of strips, the second not full.
LARGE = (3, 440, 150, 16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in a process that has not loaded the kernels yet."""
    monkeypatch.setenv("TACOMAMBA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_outcome", None)
    return tmp_path / "cache"


@pytest.fixture
def threads():
    """Sets the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def compiler_script(folder: Path, body: str) -> str:
    """A compiler that answers to --version and otherwise does what `body` says; $out is its output file."""
    script = folder / "compiler"
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "compiler 1.0"; exit 0;; esac\n'
        f'for out; do :; done\necho run >> "{folder}/runs"\n{body}\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def nan_in_new_memory():
    """torch.utils.deterministic fills it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# Sizes on both sides of a vector, a unit of work (8 vectors), a chunk (64 and 32 frames) and a block of states (4).
ROWS, CHANNELS = st.integers(1, 2), st.sampled_from([15, 16, 17, 33, 127, 129, 260])


@given(
    sizes=st.tuples(ROWS, st.sampled_from([2, 63, 64, 65, 130]), CHANNELS, st.integers(2, 37)), seed=st.integers(0, 99)
)
def test_scan_across_the_kernels_boundaries(sizes, seed):
    inputs = scan_inputs(*sizes, seed)
    want = results(reference.selective_scan, wide(inputs), dt_softplus=True)
    assert_close(results(native_scan, inputs, dt_softplus=True), want, 2e-6)


@given(
    sizes=st.tuples(ROWS, st.sampled_from([2, 31, 32, 33, 70]), CHANNELS, st.sampled_from([1, 2, 4, 15, 40])),
    seed=st.integers(0, 99),
)
def test_conv_across_the_kernels_boundaries(sizes, seed):
    """Up to more taps than a chunk has frames."""
    inputs = conv_inputs(*sizes, seed)
    if sizes[-1] == 1:
        del inputs["initial_state"]
    assert_close(results(native_conv, inputs, silu=True), results(reference.causal_conv, wide(inputs), silu=True), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_are_read_in_place(dtype):
    """u and z are halves of one projection, B and C lie between other columns: equal to copies of them, to the bit."""
    plain = scan_inputs(2, 70, 21, 6)
    for name in ("u", "z", "B", "C"):
        plain[name] = plain[name].to(dtype)
    both = torch.cat([plain["u"], plain["z"]], -1)
    columns = torch.cat([plain["dt"][..., :3].to(dtype), plain["B"], plain["C"]], -1)
    slices = {"u": both[..., :21], "z": both[..., 21:], "B": columns[..., 3:9], "C": columns[..., 9:]}
    slices["dt"] = plain["dt"].transpose(0, 1).contiguous().transpose(0, 1)
    with torch.no_grad():
        copies = native_scan(**plain, dt_softplus=True)
        for got, want in zip(native_scan(**plain | slices, dt_softplus=True), copies, strict=True):
            assert torch.equal(got, want)
        conv = conv_inputs(2, 70, 21, 4)
        assert torch.equal(
            native_conv(**conv | {"x": both[..., 21:]}),
            native_conv(**conv | {"x": both[..., 21:].contiguous()}),
        )


def test_bfloat16_is_converted_once_and_rounded_once():
    """Results of bfloat16 inputs are those of the same values in float32, rounded to bfloat16 where they are stored."""
    inputs = scan_inputs(2, 70, 21, 6)
    low = inputs | {name: inputs[name].bfloat16() for name in ("u", "dt", "z", "B", "C")}
    high = {name: value if name == "seq_idx" else value.float() for name, value in low.items()}
    got, want = (native_scan(**values, dt_softplus=True) for values in (low, high))
    assert got[0].dtype == torch.bfloat16 and torch.equal(got[0], want[0].bfloat16())
    assert got[1].dtype == torch.float32 and torch.equal(got[1], want[1])


def test_not_a_number_survives_bfloat16():
    """Even the one whose bits would be rounded up to minus zero."""
    weight = torch.tensor([[0x7FFFFFFF], [0]], dtype=torch.int32).view(torch.float32)
    y = native_conv(torch.ones(1, 3, 2, dtype=torch.bfloat16), weight)
    assert y[..., 0].isnan().all() and not y[..., 1].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 5, 3, dtype=torch.float16)}, "but u is torch.float16"),
        ({"B": torch.zeros(2, 5, 4, dtype=torch.float64)}, "but B is torch.float64"),
        ({"C": torch.zeros(2, 5, 4, device="meta")}, "but C is on meta"),
    ],
)
def test_what_the_scan_refuses(change, message):
    with pytest.raises(Unsupported, match=message):
        ops.selective_scan(ScanInputs(**scan_inputs(2, 5, 3, 4) | change))


@pytest.mark.parametrize("value", [-1e4, -90.0, -87.3, -20.0, 0.0, 88.0, 1e4])
def test_extreme_steps_give_finite_gradients(value):
    """Steps that underflow to nothing and steps that forget everything, with gates wide open and shut."""
    inputs = scan_inputs(1, 40, 5, 4)
    inputs["dt"] = torch.where(inputs["dt"] > -3, value, inputs["dt"])
    inputs["z"] = inputs["z"] * 100
    inputs["A"] = inputs["A"] * 100
    for name, tensor in results(native_scan, inputs, dt_softplus=True).items():
        assert tensor.isfinite().all(), name


def test_the_same_bits_for_any_number_of_threads(threads):
    scan, conv = partial(native_scan, dt_softplus=True), partial(native_conv, silu=True)
    for function, inputs in ((scan, scan_inputs(*LARGE)), (conv, conv_inputs(3, 2000, 150, 4))):
        threads(1)
        want = results(function, inputs)
        for count in (2, 3):
            threads(count)
            for name, got in results(function, inputs).items():
                assert torch.equal(got, want[name]), (count, name)


def test_large_work_takes_the_threads_of_torch_and_small_work_one(threads):
    threads(3)
    for (rows, length, channels, states), count in ((LARGE, 3), ((1, 300, 150, 16), 1)):
        u, A, B = torch.zeros(rows, length, channels), torch.zeros(channels, states), torch.zeros(rows, length, states)
        assert ops._scan_arguments(ScanInputs(u, u, A, B, B), torch.empty(0)).threads == count


def scan_on_two_threads() -> list[bytes]:
    """A scan and gradients of it. Only the kernels run in parallel: torch's own threads do not survive a fork."""
    torch.set_num_threads(1)
    inputs = {name: value.requires_grad_(value.is_floating_point()) for name, value in scan_inputs(*LARGE).items()}
    ones = torch.ones(LARGE[:3])
    torch.set_num_threads(2)
    y, state = native_scan(**inputs, dt_softplus=True)
    gradients = torch.autograd.grad(y, [inputs["u"], inputs["B"]], ones)
    return [tensor.detach().numpy().tobytes() for tensor in (y, state, *gradients)]


def scan_again(want: list[bytes]) -> None:
    """Runs in a child."""
    assert scan_on_two_threads() == want


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_works_in_workers(method, threads):
    """After the parent has used two threads, in the kernels and in torch."""
    want = scan_on_two_threads()
    torch.randn(400, 400) @ torch.randn(400, 400)
    worker = multiprocessing.get_context(method).Process(target=scan_again, args=(want,))
    worker.start()
    worker.join(60)
    worker.kill()
    assert worker.exitcode == 0


OTHER_BUILDS = [pytest.param((), id="no CPU flags")]
if platform.machine() == "x86_64":
    OTHER_BUILDS.append(pytest.param(("-march=native", "-mno-avx512f"), id="no AVX-512"))


@pytest.mark.parametrize("flags", OTHER_BUILDS)
def test_other_instructions_give_the_same_to_rounding(flags, cache, nan_in_new_memory, monkeypatch):
    """All that the operators return is written, the padding of the saved states behind the last channel as well."""
    monkeypatch.setattr(build, "CPU_FLAGS", (flags,))
    assert "AVX-512" not in build.describe()
    monkeypatch.setattr(ops, "load", build.load)
    scan, conv = scan_inputs(2, 70, 37, 6), conv_inputs(2, 70, 37, 4)
    want = results(reference.selective_scan, wide(scan), dt_softplus=True)
    assert_close(results(native_scan, scan, dt_softplus=True), want, 2e-6)
    assert_close(results(native_conv, conv, silu=True), results(reference.causal_conv, wide(conv), silu=True), 2e-6)
    saved = ops._scan_forward(ScanInputs(**scan, dt_softplus=True), True)[-1]
    assert saved.isfinite().all()


def in_child(function: Callable[[], object]) -> int:
    """Forks, calls, and gives the child's process id; it ends with status 0 unless `function` raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return child


def test_processes_that_start_together_compile_once_and_damage_is_repaired(cache, tmp_path, monkeypatch):
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    monkeypatch.setenv("CXX", compiler_script(tmp_path, f'exec {real} "$@" -O0'))
    children = [in_child(build.load) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert (tmp_path / "runs").read_text().count("run") == 1

    (library,) = cache.glob("*.so")
    library.write_bytes(library.read_bytes()[:-1000] + bytes(1000))
    assert os.waitpid(in_child(build.load), 0)[1] == 0
    assert (tmp_path / "runs").read_text().count("run") == 2
    assert build.load().tacomamba_self_test() == 0  # and is found by those that come later
    assert (tmp_path / "runs").read_text().count("run") == 2


CRASH = 'echo "int tacomamba_self_test(void) { __builtin_trap(); }" | cc -x c -shared -fPIC -o "$out" -'
WRONG = 'echo "int tacomamba_self_test(void) { return 2; }" | cc -x c -shared -fPIC -o "$out" -'


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make broken libraries with")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (CRASH, "the trial run failed: killed by signal"),
        (WRONG, "the trial run failed with status 2"),
        ('echo "x.cpp:1: error: no such machine" >&2; exit 1', "compiler 1.0 failed with status 1: x.cpp:1: error: no"),
        ("exit 0", "the library could not be built|the trial run failed"),
    ],
    ids=["crash", "wrong numbers", "compiler error", "no output"],
)
def test_a_bad_build_is_never_loaded(body, reason, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler_script(tmp_path, body))
    with pytest.raises(build.NativeUnavailable, match=reason) as failure:
        build.load()
    assert "\n" not in failure.value.reason
    assert not list(cache.glob("*.so")) and not list(cache.glob("build-*"))
    runs = (tmp_path / "runs").read_text().count("run")
    with pytest.raises(build.NativeUnavailable, match=reason):
        build.load()
    assert (tmp_path / "runs").read_text().count("run") == runs  # one try a process


def test_a_compiler_that_does_not_know_the_cpu_builds_without_its_flags(cache, tmp_path, monkeypatch):
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    refuse = f'case "$*" in *-march=native*) echo "error: unknown" >&2; exit 1;; esac\nexec {real} "$@" -O0'
    monkeypatch.setenv("CXX", compiler_script(tmp_path, refuse))
    assert build.load().tacomamba_self_test() == 0


def unwritable_file(folder: Path) -> str:
    (folder / "file").write_text("")
    return str(folder / "file" / "cache")


@pytest.mark.parametrize("place", [unwritable_file, lambda folder: "/proc/cache"], ids=["under a file", "read-only"])
def test_a_cache_that_cannot_be_written(place, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TACOMAMBA_CACHE", place(tmp_path))
    with pytest.raises(build.NativeUnavailable, match="^the cache folder .* cannot be written"):
        build.load()


def test_no_compiler(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NativeUnavailable, match=r"^no C\+\+ compiler is on the path"):
        build.describe()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"TACOMAMBA_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/tacomamba"),
        ({"HOME": "/c"}, "/c/.cache/tacomamba"),
    ],
)
def test_where_the_cache_is(variables, folder, monkeypatch):
    for name in ("TACOMAMBA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert build.cache_folder() == Path(folder)


def test_the_key_holds_source_compiler_flags_and_cpu(monkeypatch):
    compiler = build.Compiler(("c++",), "c++ 1.0")
    keys = [build._key(compiler, ()), build._key(compiler, ("-march=native",))]
    keys.append(build._key(build.Compiler(("c++",), "c++ 1.1"), ()))
    monkeypatch.setattr(build, "_cpu", lambda: "another CPU")
    keys.append(build._key(compiler, ()))
    monkeypatch.undo()
    monkeypatch.setattr(build, "SOURCES", build.SOURCES.parent)
    keys.append(build._key(compiler, ()))
    assert len(set(keys)) == len(keys)
