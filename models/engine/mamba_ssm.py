"""The CUDA kernels of mamba-ssm and causal-conv1d behind the engine's signatures.

Shapes, layouts, dtypes and limits of theirs are met here. A call that they cannot compute raises `Unsupported`, for
the torch backend to compute instead. Nothing of theirs is imported before the first call: an import that works says
little (wheels for another CUDA raise OSError, Mamba-1 may be left out of the build), so `probe` runs the kernels.

Written against mamba-ssm 2.3 and causal-conv1d 1.6; tensors are expected on a CUDA device. Shape letters: B batch,
L length, D channels, N state size, H heads, P channels of a head, G groups, K taps.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.engine import Unsupported, reference
from models.engine.selective_scan import selective_scan as torch_selective_scan

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OFFSETS = 2**31  # their Triton kernels, and one buffer of the selective scan, count elements in 32 bits, unchecked
SCAN_CHUNK = 2048  # frames for which the selective scan stores one state
SSD_CHUNK = 256  # the chunk length their own modules use
PROBE_CHUNK = 64  # another one for the probe, since Triton keeps what it tuned on a tiny problem for the chunk length
PROBE_TOLERANCE = 1e-2  # of the maximum: TF32 products pass, wrong mathematics does not


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """Depth-wise causal convolution by causal-conv1d; see `interface.causal_conv`.

    Raises Unsupported outside of 2 to 4 taps, multiples of 8 channels, fp32, bf16 or fp16, and 32-bit offsets.
    """
    taps = weight.shape[1]
    _require_kernel(x)
    if not 2 <= taps <= 4:
        raise Unsupported(f"causal-conv1d has kernels of 2 to 4 taps, not of {taps}")
    if x.shape[2] % 8:
        raise Unsupported(f"causal-conv1d wants a multiple of 8 channels, not {x.shape[2]}")
    if _span(x) >= OFFSETS:
        raise Unsupported(f"a batch of {tuple(x.shape)} overflows the 32-bit offsets of causal-conv1d")
    from causal_conv1d import causal_conv1d_fn

    if initial_state is not None:  # as frames before the first: their own initial_states exclude seq_idx
        x = torch.cat([initial_state.to(x.dtype), x], dim=1)
        if seq_idx is not None:
            seq_idx = torch.cat([seq_idx[:, :1].expand(-1, taps - 1), seq_idx], dim=1)
    y = causal_conv1d_fn(
        _aligned(x).transpose(1, 2),  # (B, D, L) with D contiguous, the only layout of theirs that knows seq_idx
        weight,
        None if bias is None else bias.to(weight.dtype),
        seq_idx=_numbered_from_zero(seq_idx),
        activation="silu" if silu else None,
    ).transpose(1, 2)
    if y.requires_grad:
        y.register_hook(_aligned)  # their backward rejects gradients that are slices of a wider tensor
    return y if initial_state is None else y[:, taps - 1 :]


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
    """Selective scan of Mamba by mamba-ssm's CUDA kernel; see `interface.selective_scan`.

    The kernel takes u, dt, z, B and C in one dtype: float32 unless dt comes in u's, so that a float32 dt stays exact.
    Raises Unsupported for an initial state, packed sequences, d_state above 256 and float64.
    """
    _require_kernel(u)
    if initial_state is not None:
        raise Unsupported("mamba-ssm's selective scan cannot start from a state")
    if seq_idx is not None:
        raise Unsupported("mamba-ssm's selective scan does not know packed sequences")
    state_size = A.shape[1]
    if state_size > 256:
        raise Unsupported(f"mamba-ssm's selective scan has at most 256 states a channel, not {state_size}")
    stored_states = u.shape[0] * u.shape[2] * -(-u.shape[1] // SCAN_CHUNK) * state_size
    if stored_states >= OFFSETS:
        raise Unsupported(f"{stored_states} stored states overflow the 32-bit offsets of mamba-ssm's selective scan")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    dtype = u.dtype if dt.dtype == u.dtype else torch.float32
    y, state = selective_scan_fn(
        _time_last(u, dtype),
        _time_last(dt, dtype),
        A.float(),
        _time_last(B, dtype),
        _time_last(C, dtype),
        D=None if D is None else D.float(),
        z=None if z is None else _time_last(z, dtype),
        delta_bias=None if dt_bias is None else dt_bias.float(),
        delta_softplus=dt_softplus,
        return_last_state=True,
    )
    state = _FinalState.apply(state.detach(), u, dt, A, B, dt_bias, dt_softplus)
    return y.transpose(1, 2).to(u.dtype), state


class _FinalState(torch.autograd.Function):
    """The final state with the gradient that the kernel leaves out.

    The torch backend computes it from the inputs, once it is asked for: a state that nobody uses costs nothing.
    """

    @staticmethod
    def forward(ctx, state, u, dt, A, B, dt_bias, dt_softplus):
        ctx.save_for_backward(u, dt, A, B, dt_bias)
        ctx.dt_softplus = dt_softplus
        return state.contiguous()  # of the buffer of all stored states, which can be freed then

    @staticmethod
    def backward(ctx, grad):
        inputs = [None if tensor is None else tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        u, dt, A, B, dt_bias = inputs
        with torch.enable_grad():
            unread = torch.zeros_like(B)  # C: the outputs are not wanted here
            _, state = torch_selective_scan(u, dt, A, B, unread, dt_bias=dt_bias, dt_softplus=ctx.dt_softplus)
        wanted = [tensor for tensor in inputs if tensor is not None]
        grads = iter(torch.autograd.grad(state, wanted, grad))
        return None, *(None if tensor is None else next(grads) for tensor in inputs), None


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2 by mamba-ssm's Triton kernels; see `interface.ssd`.

    In bf16 and fp16 they keep the states between chunks in that dtype too. Raises Unsupported for float64, for more
    than 256 states or channels of a head and for tensors beyond 32-bit offsets.
    """
    return _chunk_scan(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus=dt_softplus, chunk=SSD_CHUNK)


def _chunk_scan(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, *, dt_softplus, chunk) -> tuple[Tensor, Tensor]:
    _require_kernel(x)
    channels, state_size = x.shape[3], B.shape[3]
    if max(channels, state_size) > 256:
        raise Unsupported(f"mamba-ssm's SSD holds 256 states and channels a head, not {state_size} and {channels}")
    if _reach(x, B, C, chunk) >= OFFSETS:
        raise Unsupported(f"a batch of {tuple(x.shape)} overflows the 32-bit offsets of mamba-ssm's SSD")
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    _follow_matmul_precision()
    return mamba_chunk_scan_combined(
        x,
        dt.float(),
        A.float(),
        B.to(x.dtype),
        C.to(x.dtype),
        chunk,
        D=None if D is None else D.float(),
        dt_bias=None if dt_bias is None else dt_bias.float(),
        initial_states=None if initial_state is None else initial_state.float(),
        seq_idx=_numbered_from_zero(seq_idx),
        dt_softplus=dt_softplus,
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
        raise Unsupported("torch.compile cannot look into the CUDA kernels of mamba-ssm")
    if x.dtype not in KERNEL_DTYPES:
        raise Unsupported(f"the CUDA kernels take float32, bfloat16 and float16, not {str(x.dtype).split('.')[-1]}")


def _aligned(x: Tensor) -> Tensor:
    """x (B, L, D) where the kernel can read its rows in pieces of 16 bytes, else a contiguous copy."""
    rows = (x.stride(0), x.stride(1), x.storage_offset())
    readable = x.stride(2) == 1 and min(rows[:2]) > 0 and not any(offset % 8 for offset in rows)
    return (
        x if readable else x.clone(memory_format=torch.contiguous_format)
    )  # contiguous() keeps a lone frame's strides


def _numbered_from_zero(seq_idx: Tensor | None) -> Tensor | None:
    """seq_idx (B, L) with 0 for the first sequence of every row, which alone is given an initial state."""
    return None if seq_idx is None else (seq_idx - seq_idx[:, :1]).to(torch.int32).contiguous()


def _time_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, D) -> (B, D, L) contiguous, in one copy."""
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).contiguous()


def _reach(x: Tensor, B: Tensor, C: Tensor, chunk: int) -> int:
    """The largest offset in elements in the inputs and buffers of an SSD call."""
    batch, length, heads, channels = x.shape
    chunks = -(-length // chunk)
    states = batch * chunks * heads * channels * B.shape[3]
    scores = batch * chunks * B.shape[2] * chunk * chunk
    return max(_span(x), _span(B), _span(C), states, scores)


def _span(x: Tensor) -> int:
    """The largest offset in elements of x, or of a contiguous copy."""
    offset = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return max(offset, x.numel() - 1)


@functools.cache
def probe(mixer: str) -> str | None:
    """None if the kernels of `mixer` ("mamba" or "mamba2") run on the CUDA device and are right, else why not."""
    return _try(mixer, torch.device("cuda")) if torch.cuda.is_available() else "no CUDA device"


def _try(mixer: str, device: torch.device) -> str | None:
    """Runs a tiny mixer of these kernels forward and backward against the definition in float64."""
    run, define, inputs = _PROBES[mixer]()
    try:
        error = _largest_error(run, define, inputs, device)
    except Exception as reason:  # whatever is wrong with a package or a driver, another backend can go on
        first_line = (str(reason).splitlines() or ["no message"])[0]
        return f"its {mixer} kernels cannot run ({type(reason).__name__}: {first_line})"
    if not error < PROBE_TOLERANCE:
        return f"its {mixer} kernels are wrong (by {error:.1e} of the maximum)"
    return None


def _largest_error(run: Callable, define: Callable, inputs: list[Tensor], device: torch.device) -> float:
    """The largest error of outputs and gradients, relative to the maximum of each; inputs in float64."""
    got = _outputs_and_gradients(run, [tensor.to(device, torch.float32) for tensor in inputs])
    expected = _outputs_and_gradients(define, inputs)
    errors = [(a.cpu().double() - b).abs().max() / b.abs().max() for a, b in zip(got, expected, strict=True)]
    return torch.stack(errors).max().item()  # max of a NaN is NaN


def _outputs_and_gradients(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        outputs = function(*inputs)
        weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


def _mamba_probe() -> tuple[Callable, Callable, list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    length, channels, state_size = 40, 16, 16
    inputs = [
        *_conv_inputs(draw, length, channels),
        *(_normal(draw, 2, length, channels) for _ in range(2)),  # dt, z
        -1 - torch.rand(channels, state_size, generator=draw, dtype=torch.float64),
        *(_normal(draw, 2, length, state_size) for _ in range(2)),  # B, C
        *(_normal(draw, channels) for _ in range(2)),  # D, dt_bias
    ]

    def run(x, weight, bias, dt, z, A, B, C, D, dt_bias):
        u = causal_conv(x, weight, bias, silu=True)
        return selective_scan(u, dt, A, B, C, D, z, dt_bias, dt_softplus=True)

    def define(x, weight, bias, dt, z, A, B, C, D, dt_bias):
        u = _defined_conv(x, weight, bias)
        return reference.selective_scan(u, dt, A, B, C, D, z, dt_bias, dt_softplus=True)

    return run, define, inputs


def _mamba2_probe() -> tuple[Callable, Callable, list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    length, heads, channels, state_size = PROBE_CHUNK + 16, 2, 64, 64
    sizes = [heads * channels, state_size, state_size]
    inputs = [
        *_conv_inputs(draw, length, sum(sizes)),
        _normal(draw, 2, length, heads),  # dt
        -1 - torch.rand(heads, generator=draw, dtype=torch.float64),
        *(_normal(draw, heads) for _ in range(2)),  # D, dt_bias
        _normal(draw, 2, heads, channels, state_size),  # initial state
    ]

    def split(xBC):
        x, B, C = xBC.split(sizes, dim=-1)
        return x.unflatten(-1, (heads, channels)), B.unsqueeze(2), C.unsqueeze(2)

    def run(x, weight, bias, dt, A, D, dt_bias, initial_state):
        x, B, C = split(causal_conv(x, weight, bias, silu=True))
        return _chunk_scan(x, dt, A, B, C, D, dt_bias, initial_state, None, dt_softplus=True, chunk=PROBE_CHUNK)

    def define(x, weight, bias, dt, A, D, dt_bias, initial_state):
        x, B, C = split(_defined_conv(x, weight, bias))
        return reference.ssd(x, dt, A, B, C, D, dt_bias, initial_state, dt_softplus=True)

    return run, define, inputs


_PROBES = {"mamba": _mamba_probe, "mamba2": _mamba2_probe}


def _conv_inputs(draw: torch.Generator, length: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    return _normal(draw, 2, length, channels), _normal(draw, channels, 4), _normal(draw, channels)


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def _defined_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=len(weight))).transpose(1, 2)
