"""Which processor, and which implementation of the Mamba mixers, a command runs on."""

from __future__ import annotations

import torch
from torch import nn

from models.engine.backends import resolve, set_backend
from models.mamba import StateSpaceMixer
from utils.cli import UserError


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU; `UserError` if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise UserError(f"the device {name} is none of cpu, cuda and mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # one each for name, build and driver
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
