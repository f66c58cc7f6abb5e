"""Packages that stand in for mamba-ssm and causal-conv1d on a CPU: the kernels' own checks, and exact results."""

from pathlib import Path

MODULES = {
    "causal_conv1d": "causal_conv1d/__init__.py",
    "selective_scan": "mamba_ssm/ops/selective_scan_interface.py",
    "ssd": "mamba_ssm/ops/triton/ssd_combined.py",
}
# What the kernels demand and compute: signatures, checks and layouts of causal-conv1d 1.6 and mamba-ssm 2.3.
RIGHT = {
    "causal_conv1d": """
import torch

def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                     final_states_out=None, activation=None):
    batch, channels, length = x.shape
    taps = weight.shape[1]
    assert x.stride(1) == 1 and x.stride(2) > 1 and x.stride(0) % 8 == 0 and x.stride(2) % 8 == 0
    assert x.storage_offset() % 8 == 0 and channels % 8 == 0 and 2 <= taps <= 4
    assert weight.shape == (channels, taps) and bias.dtype == weight.dtype and bias.shape == (channels,)
    number = torch.zeros(batch, length, dtype=torch.int32) if seq_idx is None else seq_idx
    assert number.dtype == torch.int32 and number.is_contiguous() and (number >= 0).all()
    y = bias[None, :, None].float().expand(x.shape)
    for k in range(min(taps, length)):
        part = x[:, :, : length - k].float() * weight[:, taps - 1 - k, None]
        same = number[:, k:] == number[:, : length - k]
        y = y + torch.nn.functional.pad(part * same[:, None], (k, 0))
    y = (torch.nn.functional.silu(y) if activation else y).to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    if y.requires_grad:
        y.register_hook(check_gradient)
    return y

def check_gradient(gradient):
    assert gradient.stride(1) != 1 or (gradient.stride(2) % 8 == 0 and gradient.stride(0) % 8 == 0)
""",
    "selective_scan": """
import torch
from models.engine import reference

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    batch, channels, length = u.shape
    assert u.dtype in (torch.float32, torch.bfloat16, torch.float16)
    for tensor in (u, delta, B, C) if z is None else (u, delta, B, C, z):
        assert tensor.dtype == u.dtype and tensor.shape[::2] == (batch, length)
        assert tensor.stride(-1) == 1 or length == 1
    for tensor in (A, D, delta_bias):
        assert tensor is None or tensor.dtype == torch.float32 and tensor.is_contiguous()
    u, delta, B, C, z = (None if tensor is None else tensor.transpose(1, 2) for tensor in (u, delta, B, C, z))
    y, state = reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, dt_softplus=delta_softplus)
    states = torch.stack([torch.ones_like(state), state], dim=-1).flatten(2).detach()
    y = y.transpose(1, 2).contiguous()
    return (y, states[:, :, 1::2]) if return_last_state else y
""",
    "ssd": """
import torch
from models.engine import reference

class Config:
    def __init__(self, kwargs, num_stages):
        self.kwargs, self.num_stages = kwargs, num_stages

class Autotuner:
    configs = [Config({"BLOCK_SIZE_M": 128}, 2), Config({"BLOCK_SIZE_M": 32}, 4), Config({"BLOCK_SIZE_M": 64}, 1)]
    tuned = []

    def run(self):
        self.tuned.append([config.kwargs["BLOCK_SIZE_M"] for config in self.configs])

kernel = Autotuner()

def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
                              seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
                              return_final_states=False, return_varlen_states=False):
    assert x.dtype == B.dtype == C.dtype and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    assert A.dtype == dt.dtype == torch.float32 and chunk_size.bit_count() == 1
    assert seq_idx is None or seq_idx.dtype == torch.int32 and not seq_idx[:, 0].any()
    assert seq_idx is None or seq_idx.is_contiguous()
    kernel.run()
    y, state = reference.ssd(x, dt, A, B, C, D, dt_bias, initial_states, seq_idx, dt_softplus=dt_softplus)
    return (y, state) if return_final_states else y
""",
}


def write_packages(folder: Path, **changed: str) -> Path:
    """Package folders causal_conv1d and mamba_ssm with the sources of RIGHT, `changed` ones instead of theirs."""
    for name, path in MODULES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(changed.get(name, RIGHT[name]), encoding="utf-8")
    return folder
