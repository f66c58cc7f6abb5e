"""The choice of the engine's implementation: which exist, which work on this machine, and which one `auto` picks.

torch       runs everywhere
native      C++ for CPUs, compiled on first use
triton      Triton kernels for CUDA, compiled on first use
mamba_ssm   the CUDA kernels of the mamba-ssm package
decomposed  plain operations without loops, for exporters; takes memory of (b, l, d, n)
"""

from __future__ import annotations

import functools
import logging

from torch import nn

from models.engine import BACKENDS, mamba_ssm
from models.engine.native import build
from models.engine.triton import probe

logger = logging.getLogger("tacomamba")

FASTEST_FIRST = {"cpu": ("native",), "cuda": ("triton", "mamba_ssm")}  # before torch, which comes last everywhere


def set_backend(module: nn.Module, backend: str) -> None:
    """Makes every mixer in `module` that has backends use `backend`; ValueError if there is no such backend."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    for part in module.modules():
        if hasattr(part, "backend"):
            part.backend = backend


def resolve(backend: str, mixer: str, device: str) -> str:
    """Returns the backend for `mixer` ("mamba" or "mamba2") on a device type: `backend`, or the one that `auto` picks.

    Raises ValueError if `backend` was chosen by name and does not work here.
    """
    return _resolve(backend, mixer, device)


# What torch.compiler.assume_constant_result sets, which would import the whole compiler here: 1.3 s in every script.
resolve._dynamo_marked_constant = True


@functools.cache  # the choice is made and logged once per process
def _resolve(backend: str, mixer: str, device: str) -> str:
    if backend != "auto":
        problem = why_not(backend, mixer, device)
        if problem:
            raise ValueError(f"the backend {backend} does not work here: {problem}")
        return backend
    problems = []
    for candidate in FASTEST_FIRST.get(device, ()):
        problem = why_not(candidate, mixer, device)
        if not problem:
            _report(mixer, device, f"{candidate} ({describe(candidate, mixer)})", problems)
            return candidate
        problems.append(f"{candidate} does not work here: {problem}")
    if problems:
        _report(mixer, device, "torch", problems)
    return "torch"


def _report(mixer: str, device: str, chosen: str, problems: list[str]) -> None:
    reason = f", since {'; '.join(problems)}" if problems else ""
    logger.info("%s on %s: backend %s%s", mixer, device, chosen, reason)


def why_not(backend: str, mixer: str, device: str) -> str | None:
    """Explains why a backend cannot run `mixer` on a device type; None if it can. Tries it, with a tiny input."""
    if backend == "native":
        return _native_problem() if device == "cpu" else "it is for CPUs only"
    if backend == "triton":
        return probe.probe(mixer, device)
    if backend == "mamba_ssm":
        return mamba_ssm.probe(mixer) if device == "cuda" else "it is for CUDA only"
    return None


def describe(backend: str, mixer: str) -> str:
    """Describes a backend's kernels of a mixer in a few words."""
    if backend == "triton":
        return f"its kernels are right, compiled and tried in {probe.seconds[mixer]:.1f} s"
    return build.describe() if backend == "native" else "the CUDA kernels of mamba-ssm"


def _native_problem() -> str | None:
    try:
        build.load()
    except build.NativeUnavailable as error:
        return error.reason
    return None
