"""Convolutions over time that respect padding, and causal ones that can continue from a state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.padding import length_mask

POSTNET_KERNEL = 5


class ConvLayer(nn.Module):
    """Convolution over time of width `kernel`, padded with zeros: (b, l, c) -> (b, l, c').

    A causal layer sees frames up to the present one. The other looks (kernel - 1) / 2 frames ahead and needs the
    lengths, because values on the padding would reach the frames before it.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.ahead = 0 if causal else kernel // 2
        self.conv = nn.Conv1d(channels_in, channels_out, kernel)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.ahead:
            x = x * length_mask(lengths, x.shape[1]).unsqueeze(-1)
        return self._convolve(F.pad(x, (0, 0, self.kernel - 1 - self.ahead, self.ahead)))

    def initial_state(self, batch: int) -> Tensor:
        """The zeros before the first frame: (b, kernel - 1, c)."""
        weight = self.conv.weight
        return weight.new_zeros(batch, self.kernel - 1, weight.shape[1])

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next frames of a stream, (b, l, c), after the last kernel - 1 frames before them; causal layers only."""
        x = torch.cat([state, x], dim=1)
        return self._convolve(x), x[:, x.shape[1] - self.kernel + 1 :].clone()

    def _convolve(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class ResidualConvs(nn.Module):
    """Pre-norm residual convolutions with GELU: (b, l, d), lengths (b,) -> (b, l, d)."""

    def __init__(self, d_model: int, n_layers: int, kernel: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers))
        self.layers = nn.ModuleList(ConvLayer(d_model, d_model, kernel, causal) for _ in range(n_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 is too coarse for sums of residuals
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + self.dropout(F.gelu(layer(norm(x), lengths)))
        return x

    def initial_state(self, batch: int) -> list[Tensor]:
        """The states of all layers before the first frame."""
        return [layer.initial_state(batch) for layer in self.layers]

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The next frames of a stream, (b, l, d); causal layers only."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        new_states = []
        for norm, layer, state in zip(self.norms, self.layers, states, strict=True):
            y, state = layer.step(norm(x), state)
            x = x + F.gelu(y)
            new_states.append(state)
        return x, new_states


class Postnet(nn.Module):
    """Correction that sharpens a mel when added to it: (b, t, n_mels), lengths (b,) -> same."""

    def __init__(self, n_mels: int, channels: int, n_layers: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(n_mels, channels)
        self.convs = ResidualConvs(channels, n_layers, POSTNET_KERNEL, causal, dropout)
        self.output = nn.Linear(channels, n_mels)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        return self.output(self.convs(self.input(mel), lengths))

    def initial_state(self, batch: int) -> list[Tensor]:
        """The states before the first frame."""
        return self.convs.initial_state(batch)

    def step(self, mel: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The next frames of a stream, (b, t, n_mels)."""
        x, states = self.convs.step(self.input(mel), states)
        return self.output(x), states
