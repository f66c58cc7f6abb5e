"""Compiles the kernels of an operation for a GPU that is not there, and says what they take of it.

    python tests/triton_kernels/offline.py conv --capability 80 90 --dtype float32 bfloat16

An operation's own forward and backward run on meta tensors, so that its kernels are compiled as they are launched, with
the configuration, the options and the alignments of the case. ptxas is in Triton's wheel. A case is a function in CASES
that runs them; compiled kernels are reported in the order of their launch.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from models.engine.inputs import ConvInputs, ScanInputs, SSDInputs  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Compiled(NamedTuple):
    """A kernel compiled for a GPU."""

    name: str
    registers: int  # of a thread
    stack: int  # bytes of a thread in memory: spilled registers
    spilled: int  # instructions in innermost loops that store or load those
    shared: int  # bytes of a program
    seconds: float  # of one CPU that compiling took
    sass: str  # machine code


class _Absent:
    """The driver of a GPU that can be compiled for, and nothing else."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def compiling(capability: int) -> Iterator[list[Compiled]]:
    """Compiles the kernels that are launched in this context instead of running them, without Triton's cache."""
    compiled, run = [], JITFunction.run

    def compile_only(self: JITFunction, *arguments, grid, warmup, **options):
        start = _work()
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append(_read(kernel, round(_work() - start, 1)))
        self.device_caches.clear()

    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        driver.set_active(_Absent(capability))
        JITFunction.run = compile_only
        try:
            yield compiled
        finally:
            JITFunction.run = run


def _work() -> float:
    """Returns the CPU seconds so far, those of ptxas included."""
    return sum(os.times()[:4])


def _read(kernel, seconds: float) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    sass = _disassemble(kernel.asm["cubin"])
    name = f"{kernel.src.fn.__module__.rpartition('.')[2]}.{kernel.metadata.name}"
    return Compiled(name, int(registers), int(stack), _spilled(sass), kernel.metadata.shared, seconds, sass)


def _disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout


def _spilled(sass: str) -> int:
    """Counts accesses to the stack in loops that contain no other loop."""
    lines, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+) ?([^;]*);", line):
            target = re.search(r"\.L_\w+", instruction[2]) if instruction[1].startswith("BRA") else None
            if target and target[0] in labels:  # backward
                loops.append((labels[target[0]], len(lines)))
            lines.append(instruction[1])
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return sum(name.startswith(("LDL", "STL")) for a, b in innermost for name in lines[a : b + 1])


def meta(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def conv(dtype: torch.dtype, taps: int = 4) -> None:
    """A convolution as in Mamba's training."""
    from models.engine.triton import conv

    x, wide = meta(dtype, 2, 100, 1024), torch.float32
    inputs = ConvInputs(x, meta(wide, 1024, taps), meta(wide, 1024), silu=True)
    conv._backward(inputs, conv._forward(inputs))


def scan(dtype: torch.dtype, states: int = 16, batch: int = 16) -> None:
    """A selective scan as in Mamba's training, where the steps are in float32; with one row, in segments."""
    from models.engine.triton import selective_scan

    u, wide = meta(dtype, batch, 2048, 1024), torch.float32
    A, B, D = meta(wide, 1024, states), meta(dtype, batch, 2048, states), meta(wide, 1024)
    inputs = ScanInputs(u, meta(wide, *u.shape), A, B, B, D, u, D, dt_softplus=True)
    _, _, saved = selective_scan._forward(inputs, keep=True)
    selective_scan._backward(inputs, u, None, saved)


def ssd(dtype: torch.dtype, channels: int = 64, states: int = 64) -> None:
    """A state-space duality as in Mamba-2's training, where x, B and C are parts of one tensor."""
    from models.engine.triton import ssd

    wide, heads = torch.float32, 1024 // channels
    x, B, C = meta(dtype, 16, 2048, 1024 + 2 * states).split([1024, states, states], dim=2)
    x, B, C, h = x.unflatten(2, (heads, channels)), B.unsqueeze(2), C.unsqueeze(2), meta(wide, heads)
    inputs = SSDInputs(x, meta(wide, 16, 2048, heads), h, B, C, h, h, dt_softplus=True)
    y, _, saved = ssd._forward(inputs, keep=True)
    ssd._backward(inputs, y, None, saved)


CASES: dict[str, Callable[[torch.dtype], None]] = {
    "conv": conv,
    "scan": scan,
    "scan64": functools.partial(scan, states=64),
    "scan256": functools.partial(scan, states=256),
    "segments": functools.partial(scan, batch=1),
    "ssd": ssd,
    "ssd32-16": functools.partial(ssd, channels=32, states=16),
    "ssd64-128": functools.partial(ssd, states=128),
    "ssd128-128": functools.partial(ssd, channels=128, states=128),
    "ssd256-256": functools.partial(ssd, channels=256, states=256),
}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--capability", nargs="+", type=int, default=[90], metavar="CC", help="80 for sm_80")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], metavar="DTYPE", help="of the activations")
    parser.add_argument("--sass", type=Path, metavar="FOLDER", help="writes the machine code there")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args(words)
    for case, dtype, capability in itertools.product(options.cases, options.dtype, options.capability):
        with compiling(capability) as compiled:
            CASES[case](getattr(torch, dtype))
        for kernel in compiled:
            if options.sass:
                options.sass.mkdir(exist_ok=True)
                path = options.sass / f"{case}-{dtype}-{capability}-{kernel.name}.sass"
                path.write_text(kernel.sass, encoding="utf-8")
            fields = {"case": case, "dtype": dtype, "capability": capability, **kernel._asdict()}
            fields.pop("sass")
            print(json.dumps(fields) if options.json else " ".join(f"{k} {v}" for k, v in fields.items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
