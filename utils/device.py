"""The device, the backend of the Mamba mixers, and the memory that the process keeps."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import nn

from models.engine.backends import resolve, set_backend
from models.mamba import StateSpaceMixer
from utils.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
LARGEST_KEPT = 32 * 2**20  # bytes; the largest threshold that glibc itself would set
COMPILED_KEPT = 256  # enough for all operations of a model on batches of one shape


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU; `UserError` if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise UserError(f"the device must be cpu, cuda or mps, not {name}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # by name, build and driver
        raise UserError(f"the device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def use_backend(model: nn.Module, backend: str, device: torch.device) -> None:
    """Makes the state-space mixers of `model` run on a backend; `UserError` if it does not work on the device."""
    set_backend(model, backend)
    try:
        for mixer in sorted({part.name for part in model.modules() if isinstance(part, StateSpaceMixer)}):
            resolve(backend, mixer, device.type)
    except ValueError as error:
        raise UserError(f"--backend {backend}: {error}") from error


def keep_freed_memory() -> bool:
    """Makes malloc keep freed blocks of up to 32 MiB, for this process; False where the C library is not glibc.

    glibc returns large free blocks at once and requests them again at the next step, page by page, which the system
    sets to zero. Kept blocks take no more memory than the largest step needs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def keep_few_compiled_operations() -> None:
    """Makes oneDNN keep `COMPILED_KEPT` operations unless the environment sets a number; call before torch computes.

    By default it keeps 1024, each for one shape. If every batch has another shape, as in text to mel in bf16, few of
    them are ever used again.
    """
    if not any(f"{name}_PRIMITIVE_CACHE_CAPACITY" in os.environ for name in ("ONEDNN", "DNNL")):
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(COMPILED_KEPT)
