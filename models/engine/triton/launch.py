"""What all kernels share: which tensors they take, in which layout, and their launch."""

from __future__ import annotations

import importlib
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from models.engine import Unsupported
from models.engine.inputs import Inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on CPU tensors, in Python
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require(operation: str, inputs: Inputs, *activations: str) -> None:
    """Raises Unsupported unless the named tensors have a dtype and a device of the kernels."""
    for name in activations:
        tensor = getattr(inputs, name)
        if tensor is None:
            continue
        if tensor.device.type != ("cpu" if INTERPRETED else "cuda"):
            raise Unsupported(f"the Triton {operation} runs on CUDA devices, but {name} is on {tensor.device}")
        if tensor.dtype not in DTYPES:
            raise Unsupported(f"the Triton {operation} takes 32 and 16-bit floats, but {name} is {tensor.dtype}")


def rows(tensor: Tensor) -> Tensor:
    """Returns a tensor whose last dimension is contiguous, as kernels expect of activations: itself, or a copy.

    They take the other strides as they are. Offsets of whole rows and tiles are added to pointers in 64 bits; what
    remains inside a tile fits in 32.
    """
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class Rows(NamedTuple):
    """An activation (b, l, d) as a kernel gets it, as one argument with these fields; d is contiguous."""

    data: Tensor
    row: int  # strides
    frame: int


def as_rows(tensor: Tensor | None) -> Rows | None:
    """Returns the activation for a kernel, copied if its last dimension is not contiguous."""
    return None if tensor is None else Rows(rows(tensor), *rows(tensor).stride()[:2])


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns contiguous tensors, copies where necessary, as kernels expect of all but activations."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def launch(kernel: str, programs: int, like: Tensor, *arguments: Any, **options: Any) -> None:
    """Runs a kernel in so many programs on the device of `like`, which need not be the current one.

    `kernel` is "module.function" of this package, which is imported here: what surrounds a launch needs no triton. On
    fake tensors nothing runs, so that it can be watched for what it allocates.
    """
    if isinstance(like, FakeTensor):
        return
    module, _, name = kernel.partition(".")
    function = getattr(importlib.import_module(f"models.engine.triton.{module}"), name)
    with torch.cuda.device_of(like):
        function[(programs,)](*arguments, **options)


def cdiv(number: int, divisor: int) -> int:
    """Divides and rounds up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Returns the least power of 2 that is not below a number from 1 on."""
    return 1 << (number - 1).bit_length()
