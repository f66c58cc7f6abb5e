"""The interchangeable sequence mixers of `MixerStack`: x (b, l, d), lengths (b,) -> (b, l, d).

Right padding does not change the valid part of an output, and each mixer can be causal or bidirectional, so that
comparisons change one thing only. `MIXERS` has them by name; each is built from a `MixerConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.config import Config, Registry, option
from models.engine.interface import causal_conv
from models.lstm import LSTM
from models.mamba import Mamba, Mamba2, MixerState, StateSpaceMixer
from models.padding import length_mask, reverse_by_length

MIXERS: Registry[Callable[[MixerConfig, bool], nn.Module]] = Registry()


@dataclass(frozen=True)
class MixerConfig(Config):
    """A mixer and its sizes; each mixer reads the fields that it needs."""

    title = "sequence mixer"

    mixer: str = option("mamba2", "sequence mixer of tacomamba", choices=MIXERS, family="tacomamba")
    d_model: int = option(192, "channels of the residual stream", least=1)
    expand: int = option(2, "inner channels per channel: all mixers but attention", least=1)
    d_state: int | None = option(None, "state size N: mamba, mamba2 (default: 16 and 64)", least=1)
    d_conv: int = option(4, "taps of the convolution inside mamba and mamba2", least=1)
    headdim: int = option(64, "channels of a head: mamba2, attention", least=1)
    ngroups: int = option(1, "groups of heads that share B and C: mamba2", least=1)
    dt_rank: int | None = option(None, "rank of the step size: mamba (default: d_model / 16, rounded up)", least=1)
    dt_min: float = option(1e-3, "least initial step size in frames: mamba, mamba2", above=0)
    dt_max: float = option(0.1, "largest initial step size in frames: mamba, mamba2", above=0)
    conv_kernel: int = option(15, "taps of conv", least=1)

    def given(self, *names: str) -> dict[str, object]:
        """Fields by name as keyword arguments, without those that are None, whose defaults the constructor has."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def build_mixer(config: MixerConfig, causal: bool) -> nn.Module:
    """The mixer of a configuration; ValueError for impossible sizes."""
    return MIXERS[config.mixer](config, causal)


class CausalMixer(nn.Module):
    """A state-space mixer from left to right, which can continue from a state."""

    def __init__(self, make: Callable[[], StateSpaceMixer]) -> None:
        super().__init__()
        self.forward_mixer = make()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.forward_mixer(x, lengths)

    def initial_state(self, batch: int) -> MixerState:
        """The state before the first frame."""
        return self.forward_mixer.initial_state(batch)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """The next frames of a stream, (b, l, d)."""
        return self.forward_mixer.step(x, state)


class BidirectionalMixer(nn.Module):
    """The mean of two state-space mixers, of which the second reads each sequence backward from its last frame."""

    def __init__(self, make: Callable[[], StateSpaceMixer]) -> None:
        super().__init__()
        self.forward_mixer = make()
        self.backward_mixer = make()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        backward = self.backward_mixer(reverse_by_length(x, lengths), lengths)
        return (self.forward_mixer(x, lengths) + reverse_by_length(backward, lengths)) / 2


@MIXERS.register("mamba")
def _mamba(config: MixerConfig, causal: bool) -> nn.Module:
    sizes = config.given("d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max")
    return (CausalMixer if causal else BidirectionalMixer)(lambda: Mamba(config.d_model, **sizes))


@MIXERS.register("mamba2")
def _mamba2(config: MixerConfig, causal: bool) -> nn.Module:
    sizes = config.given("d_state", "d_conv", "expand", "headdim", "ngroups", "dt_min", "dt_max")
    return (CausalMixer if causal else BidirectionalMixer)(lambda: Mamba2(config.d_model, **sizes))


class ReversedMixer(nn.Module):
    """A causal mixer that reads each sequence backward from its last valid frame."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return reverse_by_length(self.mixer(reverse_by_length(x, lengths), lengths), lengths)


@MIXERS.register("attention")
class AttentionMixer(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with rotary positions (Su et al. 2021)."""

    def __init__(self, config: MixerConfig, causal: bool) -> None:
        super().__init__()
        d_model, headdim = config.d_model, config.headdim
        if d_model % headdim or headdim % 2:
            raise ValueError(f"headdim {headdim} must be even and divide d_model = {d_model}")
        self.headdim, self.causal = headdim, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(x), "b l (three h p) -> three b h l p", three=3, p=self.headdim)
        cos, sin = self._rotation(x.shape[1], x.device)
        query, key = (_rotate(part, cos, sin) for part in qkv[:2])
        mask = None if self.causal else length_mask(lengths, x.shape[1])[:, None, None]
        y = F.scaled_dot_product_attention(query, key, qkv[2], attn_mask=mask, is_causal=self.causal)
        return self.out_proj(rearrange(y, "b h l p -> b l (h p)"))

    def _rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        frequency = 1e4 ** (-torch.arange(0, self.headdim, 2, device=device) / self.headdim)
        angle = torch.arange(length, device=device).unsqueeze(1) * frequency  # (l, p / 2)
        return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the channel pairs (i, i + p/2) by their position's angle; x (b, h, l, p), cos and sin (l, p/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


@MIXERS.register("lstm")
class LSTMMixer(nn.Module):
    """One LSTM layer (Hochreiter and Schmidhuber 1997) and an output projection."""

    def __init__(self, config: MixerConfig, causal: bool) -> None:
        super().__init__()
        self.causal, self.backend = causal, "auto"
        d_inner, directions = config.expand * config.d_model, 1 if causal else 2
        if d_inner % directions:
            raise ValueError(f"expand x d_model = {d_inner} must be even for a bidirectional lstm")
        self.lstm = LSTM(config.d_model, d_inner // directions, batch_first=True, bidirectional=not causal)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.causal:
            return self.out_proj(self.lstm(x)[0])
        if self.backend == "decomposed":  # exporters cannot follow the batches of a packed sequence
            backward = reverse_by_length(self._read(reverse_by_length(x, lengths), 1), lengths)
            return self.out_proj(torch.cat([self._read(x, 0), backward], dim=-1))
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.out_proj(y)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Hidden state and cell before the first frame, (1, b, d) each; of a causal mixer."""
        zeros = self.out_proj.weight.new_zeros(1, batch, self.lstm.hidden_size)
        return zeros, zeros

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The next frames of a stream, (b, l, d); of a causal mixer."""
        y, state = self.lstm(x, state)
        return self.out_proj(y), state

    def _read(self, x: Tensor, direction: int) -> Tensor:
        """The output of one direction's weights from left to right: (b, l, d_model) -> (b, l, d_inner / 2)."""
        start = x.new_zeros(1, x.shape[0], self.lstm.hidden_size)
        weights = self.lstm.all_weights[direction]
        return torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, True)[0]


@MIXERS.register("conv")
class ConvMixer(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution: the convolution module of Conformer (Gulati 2020).

    RMSNorm replaces its batch norm, so that a sequence's output does not depend on its batch.
    """

    def __init__(self, config: MixerConfig, causal: bool) -> None:
        super().__init__()
        d_model, d_inner, kernel = config.d_model, config.expand * config.d_model, config.conv_kernel
        self.ahead, self.backend = 0 if causal else kernel // 2, "auto"
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, kernel, groups=d_inner)
        self.norm = nn.RMSNorm(d_inner, eps=1e-5)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = F.glu(self.in_proj(x), dim=-1)
        if self.ahead:
            x = x * length_mask(lengths, x.shape[1]).unsqueeze(-1)
            x = F.pad(x, (0, 0, 0, self.ahead))
        return self._project(self._convolve(x)[:, self.ahead :])

    def initial_state(self, batch: int) -> Tensor:
        """The zeros before the first frame, (b, kernel - 1, d); of a causal mixer."""
        weight = self.conv1d.weight
        return weight.new_zeros(batch, weight.shape[2] - 1, weight.shape[0])

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next frames of a stream, (b, l, d); of a causal mixer."""
        x = F.glu(self.in_proj(x), dim=-1)
        y = self._convolve(x, state.to(x.dtype))
        return self._project(y), torch.cat([state.to(x.dtype), x], dim=1)[:, x.shape[1] :].clone()

    def _convolve(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        backend = "decomposed" if self.backend == "decomposed" else "torch"
        return causal_conv(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, before, backend=backend)

    def _project(self, y: Tensor) -> Tensor:
        return self.out_proj(F.silu(self.norm(y.to(self.norm.weight.dtype))))
