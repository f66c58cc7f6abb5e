"""The CUDA kernels of mamba-ssm and causal-conv1d with the inputs of the engine.

Meets their shapes, layouts, dtypes and limits. A call that they cannot compute raises `Unsupported`, for the torch
backend to compute instead. Nothing of theirs is imported before the first call: an import that works proves little
(wheels for another CUDA raise OSError, Mamba-1 may be left out of the build), so `probe` runs the kernels.

Written against mamba-ssm 2.3 and causal-conv1d 1.6; tensors are expected on a CUDA device. Shape letters as in
`interface`.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from models.engine import Unsupported, tuning
from models.engine.inputs import ConvInputs, Operations, ScanInputs, SSDInputs, cast
from models.engine.selective_scan import selective_scan as torch_selective_scan
from models.engine.trial import CHUNK, problem

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OFFSETS = 2**31  # their Triton kernels, and one buffer of the selective scan, count elements in 32 bits, unchecked
SCAN_CHUNK = 2048  # frames for which the selective scan stores one state
SSD_CHUNK = 256  # the chunk length their own modules use
SSD_MODULE = "mamba_ssm.ops.triton.ssd_combined"


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution by causal-conv1d; see `interface.causal_conv`.

    Raises Unsupported outside of 2 to 4 taps, multiples of 8 channels, fp32, bf16 or fp16, and 32-bit offsets.
    """
    x, weight, bias, initial_state, seq_idx, silu = inputs
    taps = weight.shape[1]
    _require_kernel(x)
    if not 2 <= taps <= 4:
        raise Unsupported(f"causal-conv1d has kernels of 2 to 4 taps, not of {taps}")
    if x.shape[2] % 8:
        raise Unsupported(f"causal-conv1d requires a multiple of 8 channels, not {x.shape[2]}")
    if _span(x) >= OFFSETS:
        raise Unsupported(f"a batch of {tuple(x.shape)} overflows the 32-bit offsets of causal-conv1d")
    from causal_conv1d import causal_conv1d_fn

    if initial_state is not None:  # as frames before the first: their own initial_states exclude seq_idx
        x = torch.cat([initial_state.to(x.dtype), x], dim=1)
        if seq_idx is not None:
            seq_idx = torch.cat([seq_idx[:, :1].expand(-1, taps - 1), seq_idx], dim=1)
    y = causal_conv1d_fn(
        _aligned(x).transpose(1, 2),  # (b, d, l) with d contiguous, their only layout that supports seq_idx
        weight,
        None if bias is None else bias.to(weight.dtype),
        seq_idx=seq_idx,
        activation="silu" if silu else None,
    ).transpose(1, 2)
    if y.requires_grad:
        y.register_hook(_aligned)  # their backward rejects gradients that are slices of a wider tensor
    return y if initial_state is None else y[:, taps - 1 :]


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba by mamba-ssm's CUDA kernel; see `interface.selective_scan`.

    The kernel takes u, dt, z, B and C in one dtype: float32 unless dt comes in u's, so that a float32 dt stays exact.
    Raises Unsupported for an initial state, packed sequences, d_state above 256 and float64.
    """
    u, dt, state_size = inputs.u, inputs.dt, inputs.A.shape[1]
    _require_kernel(u)
    if inputs.initial_state is not None:
        raise Unsupported("mamba-ssm's selective scan cannot start from a state")
    if inputs.seq_idx is not None:
        raise Unsupported("mamba-ssm's selective scan does not support packed sequences")
    if state_size > 256:
        raise Unsupported(f"mamba-ssm's selective scan has at most 256 states a channel, not {state_size}")
    stored_states = u.shape[0] * u.shape[2] * -(-u.shape[1] // SCAN_CHUNK) * state_size
    if stored_states >= OFFSETS:
        raise Unsupported(f"{stored_states} stored states overflow the 32-bit offsets of mamba-ssm's selective scan")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    dtype = u.dtype if dt.dtype == u.dtype else torch.float32
    inputs = cast(inputs, torch.float32, "A", "D", "dt_bias")
    y, state = selective_scan_fn(
        _time_last(u, dtype),
        _time_last(dt, dtype),
        inputs.A,
        _time_last(inputs.B, dtype),
        _time_last(inputs.C, dtype),
        D=inputs.D,
        z=None if inputs.z is None else _time_last(inputs.z, dtype),
        delta_bias=inputs.dt_bias,
        delta_softplus=inputs.dt_softplus,
        return_last_state=True,
    )
    state = _FinalState.apply(state.detach(), u, dt, inputs.A, inputs.B, inputs.dt_bias, inputs.dt_softplus)
    return y.transpose(1, 2).to(u.dtype), state


class _FinalState(torch.autograd.Function):
    """The final state with the gradient that the kernel leaves out.

    The torch backend computes it from the inputs, and only if it is needed: an unused state costs nothing.
    """

    @staticmethod
    def forward(ctx, state, u, dt, A, B, dt_bias, dt_softplus):
        ctx.save_for_backward(u, dt, A, B, dt_bias)
        ctx.dt_softplus = dt_softplus
        return state.contiguous()  # a copy, so that the buffer of all stored states can be freed

    @staticmethod
    def backward(ctx, grad):
        tensors = [None if tensor is None else tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        u, dt, A, B, dt_bias = tensors
        with torch.enable_grad():
            C = torch.zeros_like(B)  # the outputs are not needed here
            inputs = ScanInputs(u, dt, A, B, C, dt_bias=dt_bias, dt_softplus=ctx.dt_softplus)
            _, state = torch_selective_scan(inputs)
        present = [tensor for tensor in tensors if tensor is not None]
        grads = iter(torch.autograd.grad(state, present, grad))
        return None, *(None if tensor is None else next(grads) for tensor in tensors), None


def ssd(inputs: SSDInputs, chunk: int = SSD_CHUNK) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2 by mamba-ssm's Triton kernels; see `interface.ssd`.

    In bf16 and fp16 they keep the states between chunks in that dtype too. Raises Unsupported for float64, for more
    than 256 states or channels of a head and for tensors beyond 32-bit offsets.
    """
    x, channels, state_size = inputs.x, inputs.x.shape[3], inputs.B.shape[3]
    _require_kernel(x)
    if max(channels, state_size) > 256:
        raise Unsupported(f"mamba-ssm's SSD holds 256 states and channels a head, not {state_size} and {channels}")
    if _reach(x, inputs.B, inputs.C, chunk) >= OFFSETS:
        raise Unsupported(f"a batch of {tuple(x.shape)} overflows the 32-bit offsets of mamba-ssm's SSD")
    tuning.keep_choices()
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    tuning.announce(SSD_MODULE, (x.shape[2:], x.dtype, state_size, chunk))
    _follow_matmul_precision()
    inputs = cast(inputs, torch.float32, "dt", "A", "D", "dt_bias", "initial_state")
    return mamba_chunk_scan_combined(
        x,
        inputs.dt,
        inputs.A,
        inputs.B.to(x.dtype),
        inputs.C.to(x.dtype),
        chunk,
        D=inputs.D,
        dt_bias=inputs.dt_bias,
        initial_states=inputs.initial_state,
        seq_idx=inputs.seq_idx,
        dt_softplus=inputs.dt_softplus,
        return_final_states=True,
    )


def _follow_matmul_precision() -> None:
    """Sets the precision of Triton's float32 products to torch's, unless the user has chosen one.

    Triton's own default is TF32, ten bits and errors of 1e-3; three TF32 products stand for one of float32.
    """
    if torch.version.cuda and torch.get_float32_matmul_precision() == "highest":
        os.environ.setdefault("TRITON_F32_DEFAULT", "tf32x3")


def _require_kernel(x: Tensor) -> None:
    if torch.compiler.is_compiling():
        raise Unsupported("torch.compile cannot trace the CUDA kernels of mamba-ssm")
    if x.dtype not in KERNEL_DTYPES:
        raise Unsupported(f"the CUDA kernels take float32, bfloat16 and float16, not {str(x.dtype).split('.')[-1]}")


def _aligned(x: Tensor) -> Tensor:
    """Returns x (b, l, d), or a contiguous copy if the kernel cannot read its rows in pieces of 16 bytes."""
    rows = (x.stride(0), x.stride(1), x.storage_offset())
    readable = x.stride(2) == 1 and min(rows[:2]) > 0 and not any(offset % 8 for offset in rows)
    # Not contiguous(), which keeps the strides of a single frame.
    return x if readable else x.clone(memory_format=torch.contiguous_format)


def _time_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Transposes (b, l, d) to (b, d, l), contiguous, in one copy."""
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).contiguous()


def _reach(x: Tensor, B: Tensor, C: Tensor, chunk: int) -> int:
    """Returns the largest offset, in elements, in the inputs and buffers of an SSD call."""
    batch, length, heads, channels = x.shape
    chunks = -(-length // chunk)
    states = batch * chunks * heads * channels * B.shape[3]
    scores = batch * chunks * B.shape[2] * chunk * chunk
    return max(_span(x), _span(B), _span(C), states, scores)


def _span(x: Tensor) -> int:
    """Returns the largest offset, in elements, in x or in a contiguous copy of it."""
    offset = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return max(offset, x.numel() - 1)


@functools.cache
def probe(mixer: str) -> str | None:
    """Returns None if the kernels of `mixer` ("mamba" or "mamba2") run on the CUDA device correctly, else why not."""
    return _try(mixer, torch.device("cuda")) if torch.cuda.is_available() else "no CUDA device"


@tuning.one_configuration(SSD_MODULE)
def _try(mixer: str, device: torch.device) -> str | None:
    """Tries the kernels; Triton reuses its tuning on a tiny problem for the same chunk length, so with another one."""
    return problem(Operations(causal_conv, selective_scan, functools.partial(ssd, chunk=CHUNK)), mixer, device)
