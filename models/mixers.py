"""The interchangeable sequence mixers of `MixerStack`, all (B, L, D), lengths (B,) -> (B, L, D).

Each respects right padding (the valid part of the output is that of the unpadded sequence) and comes causal or
bidirectional, so that comparisons change one thing only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.engine.interface import causal_conv
from models.mamba import Mamba, Mamba2, MixerState, StateSpaceMixer, length_mask


def reverse_by_length(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the valid part of each sequence and leaves its right padding where it is; x (B, L, D), lengths (B,)."""
    position = torch.arange(x.shape[1], device=x.device)
    mirrored = lengths.unsqueeze(1) - 1 - position  # (B, L), negative on padding
    index = torch.where(mirrored >= 0, mirrored, position)
    return torch.gather(x, 1, index.unsqueeze(-1).expand_as(x))


class CausalMixer(nn.Module):
    """A state-space mixer read from left to right; it can go on from a state."""

    def __init__(self, make: Callable[[], StateSpaceMixer]) -> None:
        super().__init__()
        self.forward_mixer = make()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.forward_mixer(x, lengths)

    def initial_state(self, batch: int) -> MixerState:
        """The state before the first frame."""
        return self.forward_mixer.initial_state(batch)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """The next frames of a stream, (B, L, D)."""
        return self.forward_mixer.step(x, state)


class BidirectionalMixer(nn.Module):
    """The mean of two state-space mixers, the second reading each sequence from its own last valid frame."""

    def __init__(self, make: Callable[[], StateSpaceMixer]) -> None:
        super().__init__()
        self.forward_mixer = make()
        self.backward_mixer = make()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        backward = self.backward_mixer(reverse_by_length(x, lengths), lengths)
        return (self.forward_mixer(x, lengths) + reverse_by_length(backward, lengths)) / 2


class AttentionMixer(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with rotary positions (Su et al. 2021)."""

    def __init__(self, d_model: int, causal: bool, headdim: int = 64) -> None:
        super().__init__()
        if d_model % headdim or headdim % 2:
            raise ValueError(f"d_model = {d_model} must be a multiple of an even headdim, not {headdim}")
        self.headdim, self.causal = headdim, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.headdim)).permute(2, 0, 3, 1, 4)  # (3, B, H, L, P)
        cos, sin = self._rotation(x.shape[1], x.device)
        query, key = (_rotate(part, cos, sin) for part in qkv[:2])
        mask = None if self.causal else length_mask(lengths, x.shape[1])[:, None, None]
        y = F.scaled_dot_product_attention(query, key, qkv[2], attn_mask=mask, is_causal=self.causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        frequency = 1e4 ** (-torch.arange(0, self.headdim, 2, device=device) / self.headdim)
        angle = torch.arange(length, device=device).unsqueeze(1) * frequency  # (L, P / 2)
        return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the channel pairs (i, i + P/2) by their position's angle; x (B, H, L, P), cos and sin (L, P/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class LSTMMixer(nn.Module):
    """One LSTM layer (Hochreiter and Schmidhuber 1997) and an output projection."""

    def __init__(self, d_model: int, causal: bool, expand: int = 1) -> None:
        super().__init__()
        self.causal = causal
        directions = 1 if causal else 2
        self.lstm = nn.LSTM(d_model, expand * d_model // directions, batch_first=True, bidirectional=not causal)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.causal:
            return self.out_proj(self.lstm(x)[0])
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.out_proj(y)


class ConvMixer(nn.Module):
    """Gated point-wise, depth-wise and point-wise convolution: the convolution module of Conformer (Gulati 2020).

    RMSNorm stands for its batch norm, so that a sequence's output does not depend on its batch.
    """

    def __init__(self, d_model: int, causal: bool, expand: int = 2, kernel: int = 15) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.ahead = 0 if causal else kernel // 2
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, kernel, groups=d_inner)
        self.norm = nn.RMSNorm(d_inner, eps=1e-5)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = F.glu(self.in_proj(x), dim=-1)
        if self.ahead:
            x = x * length_mask(lengths, x.shape[1]).unsqueeze(-1)
            x = F.pad(x, (0, 0, 0, self.ahead))
        y = causal_conv(x, self.conv1d.weight.squeeze(1), self.conv1d.bias)[:, self.ahead :]
        return self.out_proj(F.silu(self.norm(y.to(self.norm.weight.dtype))))


def build_mixer(name: str, d_model: int, causal: bool, d_state: int, expand: int, headdim: int) -> nn.Module:
    """The mixer called `name`; options that a mixer does not know are not passed to it."""
    state_space = CausalMixer if causal else BidirectionalMixer
    if name == "mamba":
        return state_space(lambda: Mamba(d_model, d_state=d_state, expand=expand))
    if name == "mamba2":
        return state_space(lambda: Mamba2(d_model, d_state=d_state, expand=expand, headdim=headdim))
    if name == "attention":
        return AttentionMixer(d_model, causal, headdim)
    if name == "lstm":
        return LSTMMixer(d_model, causal, expand)
    if name == "conv":
        return ConvMixer(d_model, causal, expand)
    raise ValueError(f"unknown mixer {name!r}")
