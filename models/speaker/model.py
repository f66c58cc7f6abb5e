"""A speaker encoder and the classifier that trains it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from models.padding import length_mask, without_mean
from models.speaker.config import ENCODERS, LOSSES, SpeakerConfig
from models.speaker.pooling import widest

FLOOR = -9.0  # nepers below the level: 78 dB, less than what 16 bits hold; silence is the same at any level


class Level(NamedTuple):
    """What a causal `FeatureNorm` keeps of a stream: the sum of the frames' energies, and their number, (b, 1) each."""

    energy: Tensor
    frames: Tensor


class ModelState(NamedTuple):
    """The whole memory of a causal model, of a size that does not grow."""

    level: Level
    encoder: Any


class FeatureNorm(nn.Module):
    """Log-mels without their level, standardized by the training set's mean and deviation: (b, t, n_mels) -> same.

    With `config.level` the log of the root mean square over all frames and channels is subtracted, which makes the
    result independent of the recording's gain; a causal model uses the frames so far. With `config.normalize` utterance
    the mean of the utterance is subtracted in the end, which needs the complete utterance. Padding becomes zeros.
    """

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.level, self.causal, self.per_utterance = config.level, config.causal, config.normalize == "utterance"
        self.register_buffer("mean", torch.zeros(config.n_mels))
        self.register_buffer("std", torch.ones(config.n_mels))

    def without_level(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Log-mels relative to their level, from `FLOOR` upward; mel (b, t, n_mels), lengths (b,)."""
        if not self.level:
            return mel
        if self.causal:
            return self._continued(mel, self.initial_state(mel.shape[0]))[0]
        energy = _energy(mel).masked_fill(~length_mask(lengths, mel.shape[1]), 0)
        return _relative(mel, energy.sum(1, keepdim=True) / lengths.unsqueeze(1))

    def _continued(self, mel: Tensor, before: Level) -> tuple[Tensor, Level]:
        """Log-mels relative to the level of the frames so far; right padding changes no frame before it."""
        energy = before.energy + _energy(mel).cumsum(1)
        frames = before.frames + torch.arange(1, mel.shape[1] + 1, device=mel.device)
        return _relative(mel, energy / frames), Level(energy[:, -1:], frames[:, -1:])

    def initial_state(self, batch: int) -> Level:
        """The state before the first frame of a stream."""
        device = self.mean.device
        return Level(*torch.zeros(2, batch, 1, dtype=widest(device), device=device))

    def step(self, mel: Tensor, state: Level) -> tuple[Tensor, Level]:
        """`forward` of the next frames of a stream, (b, t, n_mels), at least one; of a causal model."""
        if self.level:
            mel, state = self._continued(mel, state)
        return (mel - self.mean) / self.std, state

    def prepared(self, mel: np.ndarray) -> np.ndarray:
        """`without_level` of one utterance (t, n_mels)."""
        return self.without_level(torch.from_numpy(mel)[None], torch.tensor([len(mel)]))[0].numpy()

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        mask = length_mask(lengths, mel.shape[1]).unsqueeze(-1)
        x = (self.without_level(mel, lengths) - self.mean) / self.std * mask
        return without_mean(x, lengths) if self.per_utterance else x


def _energy(mel: Tensor) -> Tensor:
    """Mean energy of each frame: (b, t, n_mels) -> (b, t)."""
    return (2 * mel).exp().mean(-1, dtype=widest(mel.device))


def _relative(mel: Tensor, energy: Tensor) -> Tensor:
    """Log-mels (b, t, n_mels) relative to a level, the root of `energy`, (b, t) or (b, 1)."""
    return (mel - 0.5 * energy.log().unsqueeze(-1).to(mel.dtype)).clamp_min(FLOOR)


class SpeakerModel(nn.Module):
    """Feature norm, encoder, and the loss over the training speakers."""

    def __init__(self, config: SpeakerConfig, n_speakers: int) -> None:
        super().__init__()
        self.feature_norm = FeatureNorm(config)
        self.encoder = ENCODERS[config.model](config)
        self.classifier = LOSSES[config.loss](config, n_speakers)
        self.embedding_dim = config.embedding_dim
        self._frozen: list[nn.Module] = []

    def freeze(self, part: str) -> None:
        """Keeps the `statistics` that batch norms run with, or all of the `encoder`, while the rest is trained."""
        if part == "encoder":
            self.encoder.requires_grad_(False)
        norms = [module for module in self.encoder.modules() if isinstance(module, nn.BatchNorm1d)]
        self._frozen = [self.encoder] if part == "encoder" else norms
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def embed(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings, not normalized: mel (b, t, n_mels), lengths (b,) in frames -> (b, embedding_dim) float32."""
        return self.encoder(self.feature_norm(mel, lengths), lengths).float()

    @property
    def can_stream(self) -> bool:
        """True if the model can follow a stream by `initial_state`, `step` and `embedding_of`."""
        return self.feature_norm.causal and getattr(self.encoder, "can_stream", False)

    def initial_state(self, batch: int) -> ModelState:
        """The state before the first frame of a stream."""
        return ModelState(self.feature_norm.initial_state(batch), self.encoder.initial_state(batch))

    def step(self, mel: Tensor, state: ModelState) -> ModelState:
        """The state after the next log-mel frames of a stream, (b, t, n_mels), at least one."""
        x, level = self.feature_norm.step(mel, state.level)
        return ModelState(level, self.encoder.step(x, state.encoder))

    def embedding_of(self, state: ModelState) -> Tensor:
        """What `embed` gives for the frames so far, at least one: (b, embedding_dim) float32."""
        return self.encoder.embedding_of(state.encoder).float()

    def forward(self, mel: Tensor, lengths: Tensor, labels: Tensor, margin_share: float) -> dict[str, Tensor]:
        """`loss_sum` over the batch, `count` of utterances and `correct` decisions, each a scalar tensor.

        `margin_share`, 0 to 1, is a factor on the margin of the loss.
        """
        loss_sum, cosines = self.classifier(self.embed(mel, lengths), labels, margin_share)
        correct = (cosines.argmax(-1) == labels).sum()
        return {"loss_sum": loss_sum, "count": torch.tensor(len(labels), device=mel.device), "correct": correct}
