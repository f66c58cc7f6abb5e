"""Residual blocks around any mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import option
from models.mixers import MixerConfig, ReversedMixer, build_mixer
from models.padding import length_mask


@dataclass(frozen=True)
class StackConfig(MixerConfig):
    """A stack of residual blocks around mixers."""

    title = "stack of mixers"

    n_layers: int = option(4, "blocks of tacomamba (text to mel: of its decoder); 0 leaves no mixer", least=0)
    directions: str = option(
        "both",
        "bidirectional stacks: both directions in every block, or one at a time: forward, backward, forward ...",
        choices=("both", "alternate"),
    )
    mlp_ratio: float = option(0.0, "hidden channels of an MLP per channel; 0 for none", least=0)
    dropout: float = option(0.0, "dropout on each residual branch", least=0, most=1)


class GatedMLP(nn.Module):
    """SwiGLU feed-forward layer (Shazeer 2020): (b, l, d) -> (b, l, d)."""

    def __init__(self, d_model: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * d_model)
        self.up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.up(x).chunk(2, dim=-1)
        return self.down(x * F.silu(gate))


class MixerBlock(nn.Module):
    """Pre-norm residual mixer, followed by a pre-norm residual MLP if mlp_ratio > 0."""

    def __init__(self, d_model: int, mixer: nn.Module, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(d_model, eps=1e-5) if mlp_ratio > 0 else None
        self.mlp = GatedMLP(d_model, mlp_ratio) if mlp_ratio > 0 else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self._feed_forward(x + self.dropout(self.mixer(self.norm(x), lengths)))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next frames of a stream, (b, l, d), after those in `state`; for blocks around a causal mixer."""
        y, state = self.mixer.step(self.norm(x), state)
        return self._feed_forward(x + self.dropout(y)), state

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.dropout(self.mlp(self.mlp_norm(x)))


def _mixer_of_block(config: StackConfig, causal: bool, number: int) -> nn.Module:
    if causal or config.directions == "both":
        return build_mixer(config, causal)
    mixer = build_mixer(config, causal=True)
    return ReversedMixer(mixer) if number % 2 else mixer


class MixerStack(nn.Module):
    """Residual blocks around interchangeable mixers, followed by a norm: (b, l, d), lengths (b,) -> (b, l, d).

    Frames beyond a sequence's length are zeros. With `checkpoint_layers` set, training keeps only the input of each
    block and recomputes the rest in the backward pass.
    """

    def __init__(self, config: StackConfig, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(
            MixerBlock(config.d_model, _mixer_of_block(config, causal, number), config.mlp_ratio, config.dropout)
            for number in range(config.n_layers)
        )
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.checkpoint_layers = False

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.all_outputs(x, lengths)[-1]

    def all_outputs(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        """The residual stream before the first block and after each, (b, l, d); the last one is normalized."""
        valid = length_mask(lengths, x.shape[1]).unsqueeze(-1)
        x = x.masked_fill(~valid, 0.0)  # a product would keep NaN, which padding may contain
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 is too coarse for sums of residuals
        outputs = [x]
        for block in self.blocks:
            if self.checkpoint_layers and torch.is_grad_enabled():
                x = checkpoint(block, x, lengths, use_reentrant=False)
            else:
                x = block(x, lengths)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x).masked_fill(~valid, 0.0)]

    @property
    def can_stream(self) -> bool:
        """True if the mixers are causal and keep the past in a state of constant size, which `step` needs."""
        return self.causal and all(hasattr(block.mixer, "step") for block in self.blocks)

    def initial_state(self, batch: int) -> list[Any]:
        """The states of all blocks before the first frame; of each mixer's own type, tensors or tuples of them."""
        return [block.mixer.initial_state(batch) for block in self.blocks]

    def step(self, x: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """The next frames of a stream, (b, l, d), after those in `states`; where `can_stream`."""
        outputs, states = self.step_all_outputs(x, states)
        return outputs[-1], states

    def step_all_outputs(self, x: Tensor, states: list[Any]) -> tuple[list[Tensor], list[Any]]:
        """As `step`, with the outputs that `all_outputs` has."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        outputs, new_states = [x], []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block.step(x, state)
            outputs.append(x)
            new_states.append(state)
        return [*outputs[:-1], self.norm(x)], new_states
