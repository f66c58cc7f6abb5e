"""Whether the Triton kernels work on this machine."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time

import torch

from models.engine.inputs import Operations
from models.engine.trial import problem
from models.engine.triton import ops
from models.engine.triton.launch import INTERPRETED

logger = logging.getLogger("tacomamba")

OLDEST = (8, 0)  # compute capability: bfloat16, and asynchronous copies into shared memory


@functools.cache
def probe(mixer: str, device: str) -> str | None:
    """Returns None if the kernels of `mixer` ("mamba" or "mamba2") run on a device type correctly, else why not.

    Compiles them, which takes seconds, and says so.
    """
    obstacle = _obstacle(device)
    if obstacle:
        return obstacle
    logger.info("%s on %s: compiling Triton kernels, which takes some seconds", mixer, device)
    kernels = Operations(ops.causal_conv, ops.selective_scan, ops.ssd)
    start = time.perf_counter()
    reason = problem(kernels, mixer, torch.device(device))
    seconds[mixer] = time.perf_counter() - start
    return reason


seconds: dict[str, float] = {}  # that the probe of each mixer took


def _obstacle(device: str) -> str | None:
    if INTERPRETED:
        return None if device == "cpu" else "under TRITON_INTERPRET=1 it runs on the CPU"
    if device != "cuda":
        return "it is for CUDA only"
    if not torch.cuda.is_available():
        return "no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return "the GPU's compute capability is {}.{}, and its kernels need {}.{}".format(*capability, *OLDEST)
    return None
