"""The TacoMamba speaker encoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.norm import BatchNorm
from models.speaker.config import ENCODERS, POOLINGS, SpeakerConfig
from models.speaker.pooling import Moments, StatisticsPooling
from models.stack import MixerStack


class Subsampling(nn.Module):
    """Causal strided convolution, GELU: (b, t, n_mels), lengths (b,) -> (b, ceil(t / factor), d), lengths.

    Output frame i sees input frames up to `factor` i + `factor` - 1, so that a stream can be processed in groups of
    `factor` frames.
    """

    def __init__(self, n_mels: int, d_model: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.kernel = 2 * factor + 1
        self.conv = nn.Conv1d(n_mels, d_model, self.kernel, stride=factor)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        missing = -x.shape[1] % self.factor
        x = F.pad(x, (0, 0, self.kernel - self.factor, missing))
        return self._convolve(x), (lengths + self.factor - 1) // self.factor

    def initial_state(self, batch: int) -> Tensor:
        """The zeros before the first frame; later also up to `factor` - 1 frames that are no group yet."""
        weight = self.conv.weight
        return weight.new_zeros(batch, self.kernel - self.factor, weight.shape[1])

    def step(self, x: Tensor, state: Tensor, is_last: bool = False) -> tuple[Tensor, Tensor]:
        """Output frames for the next input frames of a stream, (b, t, n_mels): those of complete groups, maybe none.

        The end of a stream completes its group by zeros, as `forward` does.
        """
        x = torch.cat([state, x], dim=1)
        pending = x.shape[1] - (self.kernel - self.factor)
        if is_last:
            x = F.pad(x, (0, 0, 0, -pending % self.factor))
            pending += -pending % self.factor
        used = pending // self.factor * self.factor
        if not used:
            return x.new_empty(len(x), 0, self.conv.out_channels), x
        return self._convolve(x[:, : self.kernel - self.factor + used]), x[:, used:].clone()

    def _convolve(self, x: Tensor) -> Tensor:
        return rearrange(F.gelu(self.conv(rearrange(x, "b t m -> b m t"))), "b d l -> b l d")


class EncoderState(NamedTuple):
    """The whole memory of a causal encoder: a stream that continues from it is as if it had never been cut."""

    subsampling: Tensor  # (b, t, n_mels): the last standardized mels
    mixers: list[Any]
    pooled: Moments
    mels: Moments | None


@ENCODERS.register("tacomamba")
class TacoMambaEncoder(nn.Module):
    """Subsampling, mixer stack, pooling, embedding: (b, t, n_mels) -> (b, embedding_dim).

    With `all_layers` the input of the stack and the outputs of all blocks are pooled together (multi-layer feature
    aggregation, Desplanques et al. 2020, section 3.3); with `mel_statistics` the spectrum's mean and deviation reach
    the embedding directly, so that depth need not carry them.
    """

    takes_padding = True

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.subsampling = Subsampling(config.n_mels, config.d_model, config.subsampling)
        self.stack = MixerStack(config, config.causal)
        self.all_layers = config.all_layers
        self.expand = nn.Linear(
            config.d_model * (config.n_layers + 1 if config.all_layers else 1), config.pooled_channels
        )
        self.pooling = POOLINGS[config.pooling](config.pooled_channels)
        self.mel_statistics = StatisticsPooling(config.n_mels) if config.mel_statistics else None
        pooled = self.pooling.out_dim + (self.mel_statistics.out_dim if config.mel_statistics else 0)
        self.pooled_norm = BatchNorm(pooled)
        self.embedding = nn.Linear(pooled, config.embedding_dim)

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        x, reduced = self.subsampling(mel, lengths)
        pooled = [self.pooling(self._expand(self.stack.all_outputs(x, reduced)), reduced)]
        if self.mel_statistics is not None:
            pooled.append(self.mel_statistics(mel, lengths))
        return self._embed(pooled)

    def _expand(self, outputs: list[Tensor]) -> Tensor:
        return F.gelu(self.expand(torch.cat(outputs, dim=-1) if self.all_layers else outputs[-1]))

    def _embed(self, pooled: list[Tensor]) -> Tensor:
        return self.embedding(self.pooled_norm(torch.cat(pooled, dim=-1)))

    @property
    def can_stream(self) -> bool:
        """True if it is causal, and its mixer and its pooling keep the past in a state of constant size."""
        return self.stack.can_stream and hasattr(self.pooling, "step")

    def initial_state(self, batch: int) -> EncoderState:
        """The state before the first frame."""
        device, mels = self.expand.weight.device, None
        pooled = Moments.none(batch, self.pooling.dim, device)
        if self.mel_statistics is not None:
            mels = Moments.none(batch, self.mel_statistics.dim, device)
        return EncoderState(self.subsampling.initial_state(batch), self.stack.initial_state(batch), pooled, mels)

    def step(self, mel: Tensor, state: EncoderState, is_last: bool = False) -> EncoderState:
        """The state after the next frames of a stream, (b, t, n_mels), at least one unless it ends here."""
        x, tail = self.subsampling.step(mel, state.subsampling, is_last)
        mixers, pooled, mels = state.mixers, state.pooled, state.mels
        if x.shape[1]:
            outputs, mixers = self.stack.step_all_outputs(x, mixers)
            pooled = self.pooling.step(self._expand(outputs), pooled)
        if self.mel_statistics is not None and mel.shape[1]:
            mels = self.mel_statistics.step(mel, mels)
        return EncoderState(tail, mixers, pooled, mels)

    def embedding_of(self, state: EncoderState) -> Tensor:
        """What `forward` gives for the frames so far, at least one: (b, embedding_dim)."""
        state = self.step(state.subsampling[:, :0], state, is_last=True)
        return self._embed([pool.pooled() for pool in (state.pooled, state.mels) if pool is not None])
