"""Tensors without data that a training step can run on, as if it ran on a device that need not exist.

The fake tensors are always of the CPU, because a build of torch for CPUs alone cannot run autograd on fake tensors of
CUDA. What differs on CUDA is applied as rules: more operations that autocast computes in float32, foreach loops in the
optimizer, blocks of 512 bytes. Sequences of a batch have equal lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models import lstm
from utils.profiling.hidden import lstm_workspace

# What CUDA's autocast computes in float32 and the CPU's does not (pytorch, aten/src/ATen/autocast_mode.h); the second
# set by a dtype, without a copy of the input.
WIDE_ON_CUDA = frozenset(
    "exp expm1 log log10 log1p log2 logsumexp pow reciprocal rsqrt softplus layer_norm group_norm norm "
    "cosine_similarity cross_entropy nll_loss l1_loss mse_loss smooth_l1_loss huber_loss kl_div".split()
)
SUMMED_ON_CUDA = frozenset("softmax log_softmax cumsum cumprod sum prod".split())
HALF = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def pretending(device: str) -> Iterator[None]:
    """Makes tensors that the block creates fake, and lets a training step run on them as on a type of device."""
    missing = lstm.MISSING
    try:
        if device == "cuda":
            lstm.MISSING = frozenset()  # a GPU has the kernels that this CPU may lack
        with FakeTensorMode(), _Operators(), _Functions(device):
            yield
    finally:
        lstm.MISSING = missing


class _Operators(TorchDispatchMode):
    """Completes what fake operators cannot know.

    A number reads as 1 if it is a sum of a step, which is in float64, so that the loss is finite; else as 0. oneDNN's
    LSTM has a workspace, which fake ones return empty.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mkldnn_rnn_layer.default:
                return (*result[:3], args[0].new_empty(lstm_workspace(args[0], args[2]), dtype=torch.uint8))
            return result
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
            with unset_fake_temporarily():
                return torch.tensor(args[0].dtype == torch.float64, dtype=args[0].dtype).item()


class _Functions(TorchFunctionMode):
    """Replaces functions that need data, and applies the rules of CUDA's autocast."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.is_cuda = device == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "backward":  # recomputes checkpointed modules
            run = torch.autograd.graph._engine_run_backward
            with self:
                start = (torch.ones_like(args[0]),)
                return run(args[:1], start, False, False, (), allow_unreachable=True, accumulate_grad=True)
        if name in REPLACED:
            return REPLACED[name](*args, **kwargs)
        if name == "__getitem__" and not isinstance(args[0], FakeTensor):  # the sizes of `_pack`
            with unset_fake_temporarily():
                return func(*args).item()
        if self.is_cuda and torch.is_autocast_enabled("cpu") and _is_half(args[0] if args else None):
            if name in WIDE_ON_CUDA:
                args = tuple(part.float() if _is_half(part) else part for part in args)
            elif name in SUMMED_ON_CUDA and kwargs.get("dtype") is None:
                kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in HALF


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """As torch._VF._pack_padded_sequence: frames of all sequences side by side, and the sequences of each frame."""
    frames = x.transpose(0, 1) if batch_first else x
    with unset_fake_temporarily():
        sizes = torch.full(frames.shape[:1], frames.shape[1])
    # Two copies, and in the backward pass a gradient of zeros that is added to.
    return torch.cat([frames.contiguous().narrow(0, 0, frames.shape[0])]).flatten(0, 1), sizes


def _pad(data: Tensor, sizes: Tensor, batch_first: bool, value: float, total: int) -> tuple[Tensor, Tensor]:
    """As torch._VF._pad_packed_sequence."""
    frames, batch = len(sizes), data.shape[0] // len(sizes)
    padded = data.new_full((frames, batch, data.shape[1]), value)
    padded[:, :batch] = data.unflatten(0, (frames, batch))
    return padded.transpose(0, 1) if batch_first else padded, torch.full((batch,), frames)


REPLACED = {"_pack_padded_sequence": _pack, "_pad_packed_sequence": _pad}
