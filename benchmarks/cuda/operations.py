"""What gpu_mixers.py times: the operations of the mixers and whole blocks, each by several systems.

Shapes are those of our mixers at their defaults: twice as many inner channels as d_model, a state of 16 (scan) or 64
(ssd), heads of 64 channels. Activations are of the cell's dtype, step sizes and parameters of float32, as in training.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cuda.plan import Cell
from models.engine import BACKENDS, interface
from models.engine.backends import why_not
from models.mamba import Mamba, Mamba2
from models.mixers import MIXERS, MixerConfig

HEAD, STATES, TAPS, SSD_STATES = 64, 16, 4, 64
OPERATIONS = {"conv": "causal_conv", "scan": "selective_scan", "ssd": "ssd"}  # by the name of our interface
MIXER = {"conv": "mamba", "scan": "mamba", "ssd": "mamba2", "mamba block": "mamba", "mamba2 block": "mamba2"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Work:
    """A computation on fixed inputs, all of which get gradients."""

    def __init__(self, forward: Callable[[], Tensor], leaves: list[Tensor]) -> None:
        self.forward, self.leaves = forward, leaves
        with torch.no_grad():
            y = forward()
        self.gradient = torch.randn_like(y)
        read, written = _bytes(leaves), _bytes([y])
        # Inputs and output once; with backward all inputs again, the output's gradient, and the inputs' gradients.
        self.bytes_forward, self.bytes_both = read + written, 3 * read + 2 * written

    def backward(self) -> None:
        """Forward and backward, for the gradients of all inputs."""
        torch.autograd.grad(self.forward(), self.leaves, self.gradient, allow_unused=True)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def obstacle(what: str, system: str, device: str) -> str | None:
    """Why a system cannot compute something here, None if it can; for kernels of others that is tried."""
    if system == "sdpa":
        return None
    if system == "fla":
        return _fla_obstacle(device)
    if system not in BACKENDS:
        return "there is no such backend"
    return why_not(system, MIXER[what], device)


def _fla_obstacle(device: str) -> str | None:
    if device != "cuda":
        return "it is for CUDA only"
    try:
        importlib.import_module("fla.ops.simple_gla")
    except (ImportError, OSError, RuntimeError) as error:
        return f"flash-linear-attention cannot be imported ({error})"
    return None


def make(cell: Cell, device: torch.device, has_skip: bool = True) -> Work:
    """The work of a cell, with inputs drawn by a fixed seed; without a skip connection D is 0."""
    torch.manual_seed(0)
    if cell.what.endswith("block"):
        return _block(cell, device)
    if cell.what == "attention":
        shape = cell.batch, cell.d_model // HEAD, cell.length, HEAD
        qkv = [_normal(*shape, dtype=DTYPES[cell.dtype], device=device) for _ in range(3)]
        return Work(lambda: F.scaled_dot_product_attention(*qkv, is_causal=True), qkv)
    inputs = {"conv": _conv_inputs, "scan": _scan_inputs, "ssd": _ssd_inputs}[cell.what](cell, device)
    if not has_skip and "D" in inputs:
        inputs["D"].data.zero_()
    if cell.system == "fla":
        return _simple_gla(inputs)
    operation = getattr(interface, OPERATIONS[cell.what])
    switch = {"silu": True} if cell.what == "conv" else {"dt_softplus": True}

    def forward() -> Tensor:
        y = operation(**inputs, **switch, backend=cell.system)
        return y[0] if isinstance(y, tuple) else y

    return Work(forward, list(inputs.values()))


def _normal(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


def _conv_inputs(cell: Cell, device: torch.device) -> dict[str, Tensor]:
    channels = 2 * cell.d_model
    return {
        "x": _normal(cell.batch, cell.length, channels, dtype=DTYPES[cell.dtype], device=device),
        "weight": _normal(channels, TAPS, device=device),
        "bias": _normal(channels, device=device),
    }


def _scan_inputs(cell: Cell, device: torch.device) -> dict[str, Tensor]:
    channels, dtype, frames = 2 * cell.d_model, DTYPES[cell.dtype], (cell.batch, cell.length)
    A = -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1)
    return {
        "u": _normal(*frames, channels, dtype=dtype, device=device),
        "dt": _normal(*frames, channels, device=device),
        "A": A.requires_grad_(),
        "B": _normal(*frames, STATES, dtype=dtype, device=device),
        "C": _normal(*frames, STATES, dtype=dtype, device=device),
        "D": _normal(channels, device=device),
        "z": _normal(*frames, channels, dtype=dtype, device=device),
        "dt_bias": torch.full((channels,), -4.6, device=device).requires_grad_(),  # a step of about 0.01
    }


def _ssd_inputs(cell: Cell, device: torch.device) -> dict[str, Tensor]:
    heads, dtype, frames = 2 * cell.d_model // HEAD, DTYPES[cell.dtype], (cell.batch, cell.length)
    return {
        "x": _normal(*frames, heads, HEAD, dtype=dtype, device=device),
        "dt": _normal(*frames, heads, device=device),
        "A": (-torch.linspace(1, 16, heads, device=device)).requires_grad_(),
        "B": _normal(*frames, 1, SSD_STATES, dtype=dtype, device=device),
        "C": _normal(*frames, 1, SSD_STATES, dtype=dtype, device=device),
        "D": _normal(heads, device=device),
        "dt_bias": torch.full((heads,), -4.6, device=device).requires_grad_(),
    }


def _simple_gla(inputs: dict[str, Tensor]) -> Work:
    """The same recurrence by fla, given ready-made inputs: a key and a query for each head, without D and softplus.

    So it has less to compute than `ssd`, and more to read.
    """
    from fla.ops.simple_gla import chunk_simple_gla

    with torch.no_grad():
        x, dt = inputs["x"], F.softplus(inputs["dt"] + inputs["dt_bias"])
        query, key = (inputs[name].expand(-1, -1, x.shape[2], -1).contiguous() for name in ("C", "B"))
        value, decay = (x * dt.unsqueeze(-1)).to(x.dtype), dt * inputs["A"]
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value, decay)]
    return Work(lambda: chunk_simple_gla(*leaves, scale=1.0)[0], leaves)


def _block(cell: Cell, device: torch.device) -> Work:
    """A mixer in float32 under autocast, on an input of float32, as in training."""
    lengths = torch.full((cell.batch,), cell.length, device=device)
    if cell.what == "attention block":
        module = MIXERS["attention"](MixerConfig(mixer="attention", d_model=cell.d_model), True)
    else:
        module = (Mamba if MIXER[cell.what] == "mamba" else Mamba2)(cell.d_model, backend=cell.system)
    module, x = module.to(device), _normal(cell.batch, cell.length, cell.d_model, device=device)

    def forward() -> Tensor:
        with torch.autocast(device.type, DTYPES[cell.dtype], enabled=cell.dtype != "fp32"):
            return module(x, lengths)

    return Work(forward, [x, *module.parameters()])


def difference(cell: Cell, device: torch.device) -> float | None:
    """Largest difference of the output from that of the backend torch in float32, relative to the largest value.

    At a small shape, and without D, which fla leaves out; None for attention.
    """
    if cell.system == "sdpa":
        return None
    small = replace(cell, batch=2, d_model=min(cell.d_model, 256), length=min(cell.length, 300))
    outputs = []
    for one in (small, replace(small, system="torch", dtype="fp32")):
        with torch.no_grad():
            outputs.append(make(one, device, has_skip=False).forward().float())
    return float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())
