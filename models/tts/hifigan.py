"""The HiFi-GAN generator (Kong, Kim and Bae 2020, "HiFi-GAN", section 2.1): log-mels to samples, at once or in pieces.

Modules have the names of the authors' public checkpoints, whose weights load once weight norm is folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1  # of the leaky ReLUs
FINAL_SLOPE = 0.01  # of the one before the last layer: torch's default, as in the published models
OUTER_KERNEL = 7  # of the first and the last layer


@dataclass(frozen=True)
class HiFiGANConfig:
    """Sizes of a generator under the names of the published config.json; `ValueError` for impossible ones.

    Stage i upsamples by `upsample_rates[i]` and halves the channels. Parallel residual blocks follow, block j with
    kernel `resblock_kernel_sizes[j]` and a residual step for each of `resblock_dilation_sizes[j]`: two convolutions
    per step with `resblock` "1", one with "2".
    """

    num_mels: int
    resblock: str
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.resblock not in ("1", "2"):
            raise ValueError(f'resblock must be "1" or "2", not {self.resblock!r}')
        for name in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes"):
            _check_positive(name, getattr(self, name))
        _check_positive("num_mels and upsample_initial_channel", (self.num_mels, self.upsample_initial_channel))
        if not isinstance(self.resblock_dilation_sizes, tuple):
            raise ValueError("resblock_dilation_sizes must be a list of lists")
        for dilations in self.resblock_dilation_sizes:
            _check_positive("each of resblock_dilation_sizes", dilations)
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError("upsample_rates and upsample_kernel_sizes must be equally long")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("resblock_kernel_sizes and resblock_dilation_sizes must be equally long")
        pairs = zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)
        if any(kernel < rate or (kernel - rate) % 2 for rate, kernel in pairs):
            raise ValueError("each of upsample_kernel_sizes must exceed its rate by an even number, or equal it")
        if any(kernel % 2 == 0 for kernel in self.resblock_kernel_sizes):
            raise ValueError("resblock_kernel_sizes must be odd")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ValueError("upsample_initial_channel must be divisible by 2 for each of upsample_rates")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> HiFiGANConfig:
        """Reads the fields from a published config.json and ignores others."""
        missing = [name for name in cls.__dataclass_fields__ if name not in fields]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        values = {name: _tuples(fields[name]) for name in cls.__dataclass_fields__}
        return cls(**{**values, "resblock": str(fields["resblock"])})

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates)

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Mel frames before and after frame t that the samples [t * hop_length, (t + 1) * hop_length) depend on.

        Exact: the range is traced back through the layers, and through the widest residual block of each stage.
        """
        outer = OUTER_KERNEL // 2
        first, last = -outer, self.hop_length - 1 + outer
        reach = max(map(self._block_reach, self.resblock_kernel_sizes, self.resblock_dilation_sizes))
        for rate, kernel in reversed(list(zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True))):
            padding = (kernel - rate) // 2
            # Input i of a transposed convolution adds to its outputs i * rate - padding + [0, kernel).
            first = -((kernel - 1 - padding - (first - reach)) // rate)
            last = (last + reach + padding) // rate
        return outer - first, last + outer

    def _block_reach(self, kernel: int, dilations: Sequence[int]) -> int:
        """Time steps that a residual block sees to either side."""
        second = 1 if self.resblock == "1" else 0
        return sum((dilation + second) * (kernel // 2) for dilation in dilations)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_positive(name: str, values: Any) -> None:
    if not isinstance(values, tuple) or not values or not all(type(value) is int and value > 0 for value in values):
        raise ValueError(f"{name} must be whole numbers above 0")


def _convolution(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    """A convolution that keeps the length."""
    return nn.Conv1d(in_channels, out_channels, kernel, dilation=dilation, padding=dilation * (kernel // 2))


class ResidualBlock(nn.Module):
    """x + convolutions(leaky_relu(x)), once for each dilation: (b, c, l) -> (b, c, l)."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int], kind: str) -> None:
        super().__init__()
        dilated = nn.ModuleList(_convolution(channels, channels, kernel, dilation) for dilation in dilations)
        if kind == "1":
            self.convs1 = dilated
            self.convs2 = nn.ModuleList(_convolution(channels, channels, kernel) for _ in dilations)
        else:
            self.convs = dilated

    @property
    def steps(self) -> list[tuple[nn.Conv1d, ...]]:
        """The convolutions of each residual step, in order."""
        return list(zip(*self.children(), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            y = x
            for convolution in step:
                y = convolution(F.leaky_relu(y, SLOPE))
            x = x + y
        return x


class HiFiGAN(nn.Module):
    """The generator, without weight norm: `fold_weight_norm` converts a published state dict."""

    def __init__(self, config: HiFiGANConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.upsample_initial_channel
        self.conv_pre = _convolution(config.num_mels, channels, OUTER_KERNEL)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, stride=rate, padding=padding))
            channels //= 2
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(ResidualBlock(channels, size, dilations, config.resblock))
        self.conv_post = _convolution(channels, 1, OUTER_KERNEL)

    @property
    def stages(self) -> list[tuple[nn.ConvTranspose1d, list[ResidualBlock]]]:
        """Each upsampling layer with the parallel residual blocks that follow it."""
        blocks, width = list(self.resblocks), len(self.config.resblock_kernel_sizes)
        return [(up, blocks[i * width : (i + 1) * width]) for i, up in enumerate(self.ups)]

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mels (b, num_mels, t) to samples (b, t * hop_length) in -1..1."""
        x = self.conv_pre(mel)
        for up, blocks in self.stages:
            x = up(F.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in blocks) / len(blocks)
        return torch.tanh(self.conv_post(F.leaky_relu(x, FINAL_SLOPE)))[:, 0]


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merges each `weight_g` and `weight_v` of a state dict into one `weight` (Salimans and Kingma 2016, equation 2).

    The norms are over all dimensions but the first, as is torch's default. Folded weights stay as they are.
    `ValueError` for a `weight_g` that does not fit its `weight_v`.
    """
    folded = {}
    for name, tensor in state.items():
        if name.endswith(".weight_v") and (gain := state.get(f"{name[:-1]}g")) is not None:
            if tensor.dim() < 2 or gain.shape != tensor.shape[:1] + (1,) * (tensor.dim() - 1):
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, its gain {tuple(gain.shape)}")
            norms = tensor.flatten(1).norm(dim=1).view(gain.shape)
            folded[name.removesuffix("_v")] = tensor * (gain / norms)
        elif not (name.endswith(".weight_g") and f"{name[:-1]}v" in state):
            folded[name] = tensor
    return folded


class HiFiGANStream:
    """A generator fed in pieces, which computes nothing twice: every layer keeps the inputs that its next outputs need.

    The samples of frame t come with frame t + `receptive_field[1]` or earlier, and equal those of `HiFiGAN.forward` up
    to float rounding. The memory kept does not grow.
    """

    def __init__(self, model: HiFiGAN) -> None:
        self._pre, self._post = _StreamedConvolution(model.conv_pre), _StreamedConvolution(model.conv_post)
        self._stages = [
            (_StreamedUpsampling(up), [_StreamedBlock(block) for block in blocks], _StreamedSum())
            for up, blocks in model.stages
        ]

    @torch.no_grad()
    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """The samples (b, s) that the next frames (b, num_mels, t), t >= 0, complete.

        With `last` the mel ends here and all remaining samples are returned; no more frames may follow.
        """
        x = self._pre(mel, last)
        for up, blocks, add in self._stages:
            x = up(F.leaky_relu(x, SLOPE), last)
            x = add([block(x, last) for block in blocks]) / len(blocks)
        return torch.tanh(self._post(F.leaky_relu(x, FINAL_SLOPE), last))[:, 0]


class _StreamedConvolution:
    """A convolution that keeps the length: `padding` zeros stand before the first input and after the last."""

    def __init__(self, layer: nn.Conv1d) -> None:
        self._layer, self._padding = layer, layer.padding[0]
        self._context = 2 * self._padding  # inputs to keep for the next outputs
        self._kept: Tensor | None = None

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        if self._kept is None:
            self._kept = x.new_zeros(*x.shape[:2], self._padding)
        x = torch.cat([self._kept, F.pad(x, (0, self._padding)) if last else x], dim=2)
        new = max(x.shape[2] - self._context, 0)
        self._kept = x[:, :, new:].clone()  # a slice would keep all of the piece alive
        return self._apply(x, last) if new else x.new_zeros(x.shape[0], self._layer.out_channels, 0)

    def _apply(self, x: Tensor, last: bool) -> Tensor:
        return F.conv1d(x, self._layer.weight, self._layer.bias, dilation=self._layer.dilation)


class _StreamedUpsampling(_StreamedConvolution):
    """A transposed convolution: an output is complete once the last input that adds to it has arrived."""

    def __init__(self, layer: nn.ConvTranspose1d) -> None:
        super().__init__(layer)
        self._rate, self._cut = layer.stride[0], layer.padding[0]  # outputs to cut off at both ends
        self._trim = self._cut  # outputs still to be cut off at the start
        self._context = self._padding = -(-2 * self._cut // self._rate)  # inputs that add to the next one's outputs

    def _apply(self, x: Tensor, last: bool) -> Tensor:
        y = F.conv_transpose1d(x, self._layer.weight, self._layer.bias, stride=self._rate)
        extra = self._context * self._rate
        y = y[:, :, extra : x.shape[2] * self._rate - (extra - self._cut if last else 0)]
        trim = min(self._trim, y.shape[2])
        self._trim -= trim
        return y[:, :, trim:]


class _StreamedBlock:
    """A residual block, whose inputs wait for the outputs of its convolutions."""

    def __init__(self, block: ResidualBlock) -> None:
        self._steps = [([_StreamedConvolution(layer) for layer in step], _StreamedSum()) for step in block.steps]

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        for layers, add in self._steps:
            y = x
            for layer in layers:
                y = layer(F.leaky_relu(y, SLOPE), last)
            x = add([x, y])
        return x


class _StreamedSum:
    """Adds signals that arrive with different delays, as far as all of them have arrived."""

    def __init__(self) -> None:
        self._waiting: list[Tensor] | None = None

    def __call__(self, pieces: list[Tensor]) -> Tensor:
        if self._waiting is not None:
            pieces = [torch.cat(pair, dim=2) for pair in zip(self._waiting, pieces, strict=True)]
        ready = min(piece.shape[2] for piece in pieces)
        self._waiting = [piece[:, :, ready:].clone() for piece in pieces]
        return sum(piece[:, :, :ready] for piece in pieces)
