"""The native kernels as torch operations: `selective_scan` and `causal_conv` for CPU tensors of float32 and bfloat16.

Opaque to torch.compile and torch.export, differentiable once (no double backward). Every result has the same bits for
any number of threads, which follows torch.get_num_threads(). Shape letters: B batch, L length, D channels, N state
size, K taps of the convolution.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from models.engine import Unsupported
from models.engine.native.build import load
from models.engine.reference import needs_gradient

CHUNK = 64  # frames between saved states: their copies for backward are then a quarter of u at N = 16
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
    def of(cls, tensor: Tensor | None) -> _Rows:
        if tensor is None:
            return cls()
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.dtype == torch.bfloat16)


def _fields(integers: str = "", rows: str = "", pointers: str = "") -> list[tuple[str, type]]:
    kinds = ((integers, ctypes.c_int64), (rows, _Rows), (pointers, ctypes.c_void_p))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class _Scan(ctypes.Structure):
    """Mirrors Scan in scan.hpp."""

    _fields_ = _fields(
        "batch length channels states chunk threads softplus",
        "u dt z B C",
        "A D dt_bias initial_state seq_idx checkpoints",
    )


class _ScanGradients(ctypes.Structure):
    """Mirrors ScanGradients in scan_backward.hpp."""

    _fields_ = [
        ("y", _Rows),
        ("final_state", ctypes.c_void_p),
        *_fields(rows="u dt z B C", pointers="A D dt_bias initial_state"),
    ]


class _Conv(ctypes.Structure):
    """Mirrors Conv in conv.hpp."""

    _fields_ = _fields("batch length channels taps threads silu", "x initial_state", "weight bias seq_idx")


class _ConvGradients(ctypes.Structure):
    """Mirrors ConvGradients in conv.hpp."""

    _fields_ = _fields(rows="y x initial_state", pointers="weight bias")


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba (Gu and Dao 2023, equations 2a, 2b) with its gate, in one pass over the inputs.

    delta = softplus(dt + dt_bias) or dt + dt_bias;  h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;
    y_t = (C_t h_t + D u_t) silu(z_t)

    u, dt, z (B, L, D); A (D, N) negative; B, C (B, L, N); D, dt_bias (D,); initial_state (B, D, N); seq_idx (B, L),
    where a new value drops the state. u, dt, z, B, C in float32 or bfloat16 with any strides, no copy if the last is 1.
    Returns y (B, L, D) in u's dtype and the state after the last frame (B, D, N) in float32. Saves one state every
    CHUNK frames for backward. Raises Unsupported for other dtypes and devices, ValueError for shapes that do not fit.
    """
    batch, length, channels = u.shape
    states = A.shape[-1]
    row, scalar = (batch, length, channels), (channels,)
    _check_shapes(
        u=(u, row),
        dt=(dt, row),
        z=(z, row),
        A=(A, (channels, states)),
        B=(B, (batch, length, states)),
        C=(C, (batch, length, states)),
        D=(D, scalar),
        dt_bias=(dt_bias, scalar),
        initial_state=(initial_state, (batch, channels, states)),
        seq_idx=(seq_idx, (batch, length)),
    )
    _check_dtypes("native selective scan", u=u, dt=dt, z=z, B=B, C=C)
    keep = needs_gradient(u, dt, A, B, C, D, z, dt_bias, initial_state)
    A, D, dt_bias, initial_state = (_float32(tensor) for tensor in (A, D, dt_bias, initial_state))
    y, state, _ = _scan(u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus, keep)
    return y, state


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """Depth-wise causal convolution, then SiLU if asked: y[t] = silu(bias + sum_k weight[:, k] x[t - K + 1 + k]).

    x (B, L, D) in float32 or bfloat16; weight (D, K); bias (D,); initial_state (B, K - 1, D), frames before x (None:
    zeros); seq_idx (B, L): taps that reach into another sequence count 0. Returns (B, L, D) in x's dtype, summed in
    float32. Raises Unsupported for other dtypes and devices, ValueError for shapes that do not fit.
    """
    batch, length, channels = x.shape
    taps = weight.shape[-1]
    _check_shapes(
        x=(x, (batch, length, channels)),
        weight=(weight, (channels, taps)),
        bias=(bias, (channels,)),
        initial_state=(initial_state, (batch, taps - 1, channels)),
        seq_idx=(seq_idx, (batch, length)),
    )
    _check_dtypes("native causal convolution", x=x)
    return _conv(x, _float32(weight), _float32(bias), _float32(initial_state), seq_idx, silu)


def _check_shapes(**tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} where {tuple(shape)} is needed")


def _check_dtypes(operation: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise Unsupported(f"The {operation} runs on the CPU, but {name} is on {tensor.device}.")
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            raise Unsupported(f"The {operation} takes float32 and bfloat16, but {name} is {tensor.dtype}.")


def _float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _rows(tensor: Tensor | None) -> Tensor | None:
    """A tensor whose last stride is 1, the same one if it can be."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _int32(seq_idx: Tensor | None) -> Tensor | None:
    return None if seq_idx is None else seq_idx.to(torch.int32).contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // SMALL))


def _call(function: str, *arguments: object) -> None:
    if getattr(load(), function)(*arguments) != 0:
        raise MemoryError("The native kernels found no memory for their buffers.")


def _fresh(tensor: Tensor | None, like: Tensor) -> Tensor:
    """Room for the gradient of an optional input, contiguous; of no size where there is no input."""
    return like.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)


def _where(inputs: tuple[Tensor | None, ...], gradients: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The gradients whose inputs exist."""
    return [None if tensor is None else gradient for tensor, gradient in zip(inputs, gradients, strict=True)]


def _scan_arguments(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *optional: Tensor | None, checkpoints: Tensor | None
) -> _Scan:
    """The C structure for the inputs, which it keeps alive; `optional` is D, z, dt_bias, initial_state, seq_idx."""
    D, z, dt_bias, initial_state, seq_idx = optional
    rows = [_rows(tensor) for tensor in (u, dt, z, B, C)]
    plain = [_contiguous(tensor) for tensor in (A, D, dt_bias, initial_state, _int32(seq_idx), checkpoints)]
    batch, length, channels = u.shape
    states = A.shape[1]
    sizes = (batch, length, channels, states, CHUNK, _threads(u.numel() * states))
    arguments = _Scan(*sizes, 0, *map(_Rows.of, rows), *map(_address, plain))
    arguments.tensors = rows + plain
    return arguments


def _allocate_scan(u: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for y, the final state, and a state a chunk, in strips of 16 channels and blocks of 4 states.

    Those are flat, because a dimension that may be 1 is a special case to torch.export.
    """
    batch, length, channels = u.shape
    size = batch * ((length + CHUNK - 1) // CHUNK) * ((channels + 15) // 16 * 16) * ((A.shape[1] + 3) // 4 * 4)
    checkpoints = A.new_empty(size if keep else 0)
    return u.new_empty(u.shape), A.new_empty(batch, channels, A.shape[1]), checkpoints


@torch.library.custom_op("tacomamba::native_selective_scan", mutates_args=(), device_types="cpu")
def _scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state and, with `keep`, what backward needs beside the inputs; parameters and states in float32."""
    y, state, checkpoints = _allocate_scan(u, A, keep)
    optional = (D, z, dt_bias, initial_state, seq_idx)
    arguments = _scan_arguments(u, dt, A, B, C, *optional, checkpoints=checkpoints if keep else None)
    arguments.softplus = dt_softplus
    _call(
        "tacomamba_scan_forward", ctypes.byref(arguments), ctypes.byref(_Rows.of(y)), ctypes.c_void_p(_address(state))
    )
    return y, state, checkpoints


@_scan.register_fake
def _(u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus, keep):
    return _allocate_scan(u, A, keep)


@torch.library.custom_op("tacomamba::native_selective_scan_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
    dy: Tensor,
    dstate: Tensor | None,
    checkpoints: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, dt, A, B, C, D, z, dt_bias, initial_state; of no size where the input is absent."""
    arguments = _scan_arguments(u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, checkpoints=checkpoints)
    arguments.softplus = dt_softplus
    inputs = (u, dt, A, B, C, D, z, dt_bias, initial_state)
    results = tuple(_fresh(tensor, u) for tensor in inputs)
    du, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial = _where(inputs, results)
    dy, dstate = _rows(dy), _contiguous(dstate)
    gradients = _ScanGradients(
        _Rows.of(dy),
        _address(dstate),
        *map(_Rows.of, (du, ddt, dz, dB, dC)),
        *map(_address, (dA, dD, ddt_bias, dinitial)),
    )
    _call("tacomamba_scan_backward", ctypes.byref(arguments), ctypes.byref(gradients))
    return results


@_scan_backward.register_fake
def _(dy, dstate, checkpoints, u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus):
    return tuple(_fresh(tensor, u) for tensor in (u, dt, A, B, C, D, z, dt_bias, initial_state))


def _save_scan(ctx, inputs, output) -> None:
    *tensors, ctx.dt_softplus, _ = inputs
    checkpoints = output[2]
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(checkpoints, *tensors)


def _differentiate_scan(ctx, dy, dstate, _):
    checkpoints, *tensors = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    results = _scan_backward(dy, dstate, checkpoints, *tensors, ctx.dt_softplus)
    return *_where(tuple(tensors[:9]), results), None, None, None


torch.library.register_autograd("tacomamba::native_selective_scan", _differentiate_scan, setup_context=_save_scan)


def _conv_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> _Conv:
    """The C structure for the inputs, which it keeps alive."""
    rows = [_rows(tensor) for tensor in (x, initial_state)]
    plain = [_contiguous(tensor) for tensor in (weight, bias, _int32(seq_idx))]
    sizes = (*x.shape, weight.shape[1], _threads(x.numel() * weight.shape[1]))
    arguments = _Conv(*sizes, silu, *map(_Rows.of, rows), *map(_address, plain))
    arguments.tensors = rows + plain
    return arguments


@torch.library.custom_op("tacomamba::native_causal_conv", mutates_args=(), device_types="cpu")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> Tensor:
    y = x.new_empty(x.shape)
    arguments = _conv_arguments(x, weight, bias, initial_state, seq_idx, silu)
    _call("tacomamba_conv_forward", ctypes.byref(arguments), ctypes.byref(_Rows.of(y)))
    return y


@_conv.register_fake
def _(x, weight, bias, initial_state, seq_idx, silu):
    return x.new_empty(x.shape)


@torch.library.custom_op("tacomamba::native_causal_conv_backward", mutates_args=(), device_types="cpu")
def _conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and initial_state; of no size where the input is absent."""
    arguments = _conv_arguments(x, weight, bias, initial_state, seq_idx, silu)
    inputs = (x, weight, bias, initial_state)
    results = tuple(_fresh(tensor, x) for tensor in inputs)
    dx, dweight, dbias, dinitial = _where(inputs, results)
    dy = _rows(dy)
    gradients = _ConvGradients(*map(_Rows.of, (dy, dx, dinitial)), *map(_address, (dweight, dbias)))
    _call("tacomamba_conv_backward", ctypes.byref(arguments), ctypes.byref(gradients))
    return results


@_conv_backward.register_fake
def _(dy, x, weight, bias, initial_state, seq_idx, silu):
    return tuple(_fresh(tensor, x) for tensor in (x, weight, bias, initial_state))


def _save_conv(ctx, inputs, output) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_conv(ctx, dy):
    tensors = ctx.saved_tensors
    results = _conv_backward(dy, *tensors, ctx.silu)
    return *_where(tensors[:4], results), None, None


torch.library.register_autograd("tacomamba::native_causal_conv", _differentiate_conv, setup_context=_save_conv)
