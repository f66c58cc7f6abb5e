"""One residual shell for every mixer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mixers import build_mixer, length_mask


class GatedMLP(nn.Module):
    """SwiGLU feed-forward layer (Shazeer 2020): (B, L, D) -> (B, L, D)."""

    def __init__(self, d_model: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * d_model)
        self.up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.up(x).chunk(2, dim=-1)
        return self.down(x * F.silu(gate))


class MixerBlock(nn.Module):
    """Pre-norm residual mixer, then, where mlp_ratio > 0, a pre-norm residual MLP."""

    def __init__(self, d_model: int, mixer: nn.Module, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(d_model, eps=1e-5) if mlp_ratio > 0 else None
        self.mlp = GatedMLP(d_model, mlp_ratio) if mlp_ratio > 0 else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x + self.dropout(self.mixer(self.norm(x), lengths))
        if self.mlp is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class MixerStack(nn.Module):
    """Residual blocks around interchangeable mixers, ended by a norm: (B, L, D), lengths (B,) -> (B, L, D).

    Frames beyond a sequence's length come out as zeros.
    """

    def __init__(
        self,
        mixer: str,
        d_model: int,
        n_layers: int,
        causal: bool,
        d_state: int = 64,
        expand: int = 2,
        headdim: int = 64,
        mlp_ratio: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            MixerBlock(d_model, build_mixer(mixer, d_model, causal, d_state, expand, headdim), mlp_ratio, dropout)
            for _ in range(n_layers)
        )
        self.norm = nn.RMSNorm(d_model, eps=1e-5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # the residual stream adds up too much for bfloat16
        for block in self.blocks:
            x = block(x, lengths)
        return self.norm(x) * length_mask(lengths, x.shape[1]).unsqueeze(-1)
