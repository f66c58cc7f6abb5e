"""Triton's interpreter, made fast enough for tests."""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle


def hasten() -> None:
    """Lets scans and reductions call their function for slices of the axis: Triton's call it for every element.

    That turns minutes into seconds. Only for reductions along an axis, the one kind that the kernels have.
    """
    ScanOps.generic_scan = _scan
    ReduceOps.generic_reduce = _reduce


def _running(operation, tensors):
    """Yields the results after each slice along the axis, as arrays."""
    state = None
    for i in range(tensors[0].handle.data.shape[operation.axis]):
        part = tuple(
            operation.to_tensor(np.take(tensor.handle.data, i, operation.axis), tensor.dtype) for tensor in tensors
        )
        state = part if state is None else operation.combine_fn.fn(*state, *part)
        state = state if isinstance(state, tuple) else (state,)
        yield [value.handle.data for value in state]


def _scan(self, tensors):
    steps = zip(*_running(self, tensors), strict=True)
    return [self.to_tensor(np.stack(s, self.axis), tensor.dtype) for s, tensor in zip(steps, tensors, strict=True)]


def _reduce(self, tensors):
    *_, last = _running(self, tensors)
    last = [np.expand_dims(value, self.axis) for value in last] if self.keep_dims else last
    return [self.to_tensor(value, tensor.dtype) for value, tensor in zip(last, tensors, strict=True)]


def repair_products() -> None:
    """Lets products take bfloat16 for what it is: Triton's take its bits for whole numbers."""
    InterpreterBuilder.create_dot = _dot


def _dot(self, a, b, total, input_precision, max_num_imprecise_acc):
    a, b = (self.cast_impl(v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b))
    return TensorHandle(np.matmul(a.data, b.data, dtype=total.data.dtype) + total.data, total.dtype.scalar)
