"""The choice of the Triton backend, and one small case of each of its operations in the interpreter.

All other tests of its kernels are in triton_kernels, which make test-slow runs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from root import ROOT

from models.engine import Unsupported, backends
from models.engine.inputs import ConvInputs
from models.engine.triton import ops, probe

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
without_interpreter = pytest.mark.skipif(INTERPRETED, reason="for kernels that are compiled")


def run(script: str, **environment: str) -> subprocess.CompletedProcess:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/triton_kernels")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    whole = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=whole, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


@without_interpreter
def test_a_cpu_is_refused_in_a_sentence():
    assert backends.why_not("triton", "mamba", "cpu") == "it is for CUDA only"
    with pytest.raises(ValueError, match="the backend triton does not work here: it is for CUDA only"):
        backends.resolve("triton", "mamba", "cpu")
    with pytest.raises(Unsupported, match="runs on CUDA devices, but x is on cpu"):
        ops.causal_conv(ConvInputs(torch.zeros(1, 4, 8), torch.zeros(8, 4)))


OLD_GPU = """
import importlib.util, sys
import torch
from models.engine import backends
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda: (7, 5)
importlib.util.find_spec = lambda name: {}.get(name) if sys.argv[1:] == ["absent"] else name
print(backends.why_not("triton", "mamba", "cuda"))
"""


@without_interpreter
def test_what_is_missing_is_named():
    """No GPU, no triton, and a GPU that is too old, each in a process of its own."""
    if not torch.cuda.is_available():
        assert backends.why_not("triton", "mamba", "cuda") == "no CUDA device"
    assert run(OLD_GPU).stdout.strip() == "the GPU's compute capability is 7.5, and its kernels need 8.0"
    absent = OLD_GPU.replace('sys.argv[1:] == ["absent"]', "True")
    assert run(absent).stdout.strip() == "the package triton is not installed"


CHOICE = """
import logging
from models.engine import backends
logging.basicConfig(level=logging.INFO, format="%(message)s")
problems = {"triton": "no CUDA device", "mamba_ssm": PROBLEM}
backends.why_not = lambda backend, mixer, device: problems[backend]
print(backends.resolve("auto", "mamba", "cuda"))
"""


@pytest.mark.parametrize(
    ("other", "chosen", "line"),
    [
        (
            None,
            "mamba_ssm",
            "mamba_ssm (the CUDA kernels of mamba-ssm), since triton does not work here: no CUDA device",
        ),
        (
            "no kernels",
            "torch",
            "torch, since triton does not work here: no CUDA device; mamba_ssm does not work here: no kernels",
        ),
    ],
)
def test_auto_gives_its_reasons_in_one_line(other, chosen, line):
    done = run(CHOICE.replace("PROBLEM", repr(other)))
    assert done.stdout.strip() == chosen
    assert done.stderr.splitlines() == [f"mamba on cuda: backend {line}"]


def test_nothing_imports_triton_before_it_is_used():
    """Neither the engine nor a mixer on a CPU, and both work where it is not installed."""
    script = """
import sys
sys.modules["triton"] = None
import torch
from models.mamba import Mamba
Mamba(8, backend="torch")(torch.randn(1, 5, 8)).sum().backward()
print([name for name, module in sys.modules.items() if name.split(".")[0] == "triton" and module])
"""
    assert run(script).stdout.strip() == "[]"


SMALL = """
import torch
from agreement import error
from test_engine import conv_inputs, scan_inputs
from test_ssd import ssd_inputs
cpu = torch.device("cpu")
assert error("causal_conv", conv_inputs(1, 20, 9, 4) | {"silu": True}, cpu) < 2e-5
assert error("selective_scan", scan_inputs(1, 10, 9, 4) | {"dt_softplus": True}, cpu) < 2e-5
assert error("ssd", ssd_inputs(1, 10, 2, 9, 4) | {"dt_softplus": True}, cpu) < 2e-5
"""


@needs_triton
def test_operations_equal_the_definition_in_the_interpreter():
    run(SMALL, TRITON_INTERPRET="1")


TRIAL = """
import agreement, logging, sys, torch
from models.engine import backends
from models.engine.triton import scan_tiles
logging.basicConfig(level=logging.INFO, format="%(message)s")
print(backends.why_not("triton", "mamba", "cpu"))
backends.probe.probe.cache_clear()
scan_tiles.LN_2 = 0.8
print(backends.why_not("triton", "mamba", "cpu"))
"""


@needs_triton
@pytest.mark.slow
def test_the_trial_accepts_right_kernels_and_no_others():
    done = run(TRIAL, TRITON_INTERPRET="1")
    right, wrong = done.stdout.splitlines()
    assert right == "None" and wrong.startswith("its mamba kernels are wrong (by ")
    assert done.stderr.splitlines()[0] == "mamba on cpu: compiling Triton kernels, which takes some seconds"


def test_the_time_of_the_trial_is_said():
    probe.seconds["mamba"] = 2.34
    assert backends.describe("triton", "mamba") == "its kernels are right, compiled and tried in 2.3 s"
