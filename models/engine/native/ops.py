"""The native kernels as torch operations: `selective_scan` and `causal_conv` for CPU tensors of float32 and bfloat16.

Opaque to torch.compile and torch.export, differentiable once. Every result has the same bits for any number of threads,
which follows torch.get_num_threads(). Shape letters as in `interface`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from models.engine import Unsupported
from models.engine.inputs import ConvInputs, Inputs, ScanInputs, cast
from models.engine.native.build import load
from models.engine.operators import define, empty_gradients

CHUNK = 64  # frames between saved states: their copies for backward are then a quarter of u at n = 16
SMALL = 1 << 20  # elements of state, or weighted inputs, that are worth a thread of their own: about 0.2 ms


class _Rows(ctypes.Structure):
    """Mirrors Rows in rows.hpp: a tensor of three dimensions whose last stride is 1."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("is_bfloat16", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, tensor: Tensor) -> _Rows:
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.dtype == torch.bfloat16)


def _fields(integers: str = "", rows: str = "", pointers: str = "") -> list[tuple[str, type]]:
    kinds = ((integers, ctypes.c_int64), (rows, _Rows), (pointers, ctypes.c_void_p))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class _Arguments(ctypes.Structure):
    """A C structure of numbers and tensors, which it keeps alive; absent tensors are null."""

    @classmethod
    def of(cls, values: dict[str, Tensor | int | None]) -> _Arguments:
        """Fills the fields that have values; a tensor is copied only if the kernels cannot read its layout."""
        arguments = cls()
        arguments.tensors = []
        for name, kind in cls._fields_:
            value = values.get(name)
            if value is None:
                continue
            if isinstance(value, Tensor):
                if kind is not _Rows or (value.stride(-1) != 1 and value.shape[-1] != 1):
                    value = value.contiguous()
                arguments.tensors.append(value)
                value = _Rows.of(value) if kind is _Rows else value.data_ptr()
            setattr(arguments, name, value)
        return arguments


class _Scan(_Arguments):
    """Mirrors Scan in scan.hpp."""

    _fields_ = _fields(
        "batch length channels states chunk threads softplus",
        "u dt z B C",
        "A D dt_bias initial_state seq_idx checkpoints",
    )


class _ScanGradients(_Arguments):
    """Mirrors ScanGradients in scan_backward.hpp."""

    _fields_ = [
        ("y", _Rows),
        ("final_state", ctypes.c_void_p),
        *_fields(rows="u dt z B C", pointers="A D dt_bias initial_state"),
    ]


class _Conv(_Arguments):
    """Mirrors Conv in conv.hpp."""

    _fields_ = _fields("batch length channels taps threads silu", "x initial_state", "weight bias seq_idx")


class _ConvGradients(_Arguments):
    """Mirrors ConvGradients in conv.hpp."""

    _fields_ = _fields(rows="y x initial_state", pointers="weight bias")


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba with its gate, in one pass over the inputs; see `interface.selective_scan`.

    u, dt, z, B, C in float32 or bfloat16 with any strides; they are not copied if the last is 1. The last state is in
    float32. Saves one state every CHUNK frames for backward. Raises Unsupported for other dtypes and devices. The
    kernels do not check shapes: `interface` has.
    """
    _check_dtypes("native selective scan", inputs, "u", "dt", "z", "B", "C")
    inputs = cast(inputs, torch.float32, "A", "D", "dt_bias", "initial_state")
    return _scan(cast(inputs, torch.int32, "seq_idx"))


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution; see `interface.causal_conv`.

    x in float32 or bfloat16; sums are in float32. Raises Unsupported for other dtypes and devices. The kernels do not
    check shapes: `interface` has.
    """
    _check_dtypes("native causal convolution", inputs, "x")
    inputs = cast(inputs, torch.float32, "weight", "bias", "initial_state")
    return _conv(cast(inputs, torch.int32, "seq_idx"))


def _check_dtypes(operation: str, inputs: Inputs, *names: str) -> None:
    for name in names:
        tensor = getattr(inputs, name)
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise Unsupported(f"the {operation} runs on the CPU, but {name} is on {tensor.device}")
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            raise Unsupported(f"the {operation} takes float32 and bfloat16, but {name} is {tensor.dtype}")


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // SMALL))


def _call(function: str, *arguments: object) -> None:
    if getattr(load(), function)(*arguments) != 0:
        raise MemoryError("the native kernels found no memory for their buffers")


def _present(inputs: Inputs, gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Names the gradients whose inputs exist: the kernels take null for the others."""
    named = zip(inputs._fields, inputs, gradients, strict=False)
    return {name: gradient for name, tensor, gradient in named if tensor is not None}


def _scan_arguments(inputs: ScanInputs, checkpoints: Tensor) -> _Scan:
    batch, length, channels = inputs.u.shape
    states = inputs.A.shape[1]
    sizes = {"batch": batch, "length": length, "channels": channels, "states": states, "chunk": CHUNK}
    options = {"threads": _threads(inputs.u.numel() * states), "softplus": inputs.dt_softplus}
    kept = {"checkpoints": checkpoints if checkpoints.numel() else None}
    return _Scan.of(inputs._asdict() | sizes | options | kept)


def _allocate_scan(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates y, the final state, and with `keep` a state per chunk, in strips of 16 channels and blocks of 4 states.

    Those are flat, because a dimension that may be 1 is a special case to torch.export.
    """
    u, A = inputs.u, inputs.A
    batch, length, channels = u.shape
    size = batch * ((length + CHUNK - 1) // CHUNK) * ((channels + 15) // 16 * 16) * ((A.shape[1] + 3) // 4 * 4)
    return u.new_empty(u.shape), A.new_empty(batch, *A.shape), A.new_empty(size if keep else 0)


def _scan_forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    y, state, checkpoints = _allocate_scan(inputs, keep)
    arguments = _scan_arguments(inputs, checkpoints)
    address = ctypes.c_void_p(state.data_ptr())
    _call("tacomamba_scan_forward", ctypes.byref(arguments), ctypes.byref(_Rows.of(y)), address)
    return y, state, checkpoints


def _scan_backward(inputs: ScanInputs, dy: Tensor, dstate: Tensor | None, saved: Tensor) -> tuple[Tensor, ...]:
    results = empty_gradients(inputs)
    gradients = _ScanGradients.of({"y": dy, "final_state": dstate} | _present(inputs, results))
    _call("tacomamba_scan_backward", ctypes.byref(_scan_arguments(inputs, saved)), ctypes.byref(gradients))
    return results


def _conv_arguments(inputs: ConvInputs) -> _Conv:
    (batch, length, channels), taps = inputs.x.shape, inputs.weight.shape[1]
    sizes = {"batch": batch, "length": length, "channels": channels, "taps": taps}
    return _Conv.of(inputs._asdict() | sizes | {"threads": _threads(inputs.x.numel() * taps)})


def _allocate_conv(inputs: ConvInputs) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape)


def _conv_forward(inputs: ConvInputs) -> Tensor:
    y = _allocate_conv(inputs)
    _call("tacomamba_conv_forward", ctypes.byref(_conv_arguments(inputs)), ctypes.byref(_Rows.of(y)))
    return y


def _conv_backward(inputs: ConvInputs, dy: Tensor) -> tuple[Tensor, ...]:
    results = empty_gradients(inputs)
    gradients = _ConvGradients.of({"y": dy} | _present(inputs, results))
    _call("tacomamba_conv_backward", ctypes.byref(_conv_arguments(inputs)), ctypes.byref(gradients))
    return results


_scan = define("native_selective_scan", ScanInputs, _scan_forward, _allocate_scan, _scan_backward, "cpu")
_conv = define("native_causal_conv", ConvInputs, _conv_forward, _allocate_conv, _conv_backward, "cpu")
