"""A speaker encoder and the classifier that trains it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.mamba import length_mask
from models.speaker.config import ENCODERS, LOSSES, SpeakerConfig


class FeatureNorm(nn.Module):
    """Standardizes log-mels with the training set's mean and deviation per channel: (b, t, n_mels) -> same.

    With `per_utterance` the mean of the utterance is subtracted as well, which removes the channel of the recording
    but needs the complete utterance, which a causal encoder does not have. Padding becomes zeros.
    """

    def __init__(self, n_mels: int, per_utterance: bool) -> None:
        super().__init__()
        self.per_utterance = per_utterance
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        mask = length_mask(lengths, mel.shape[1]).unsqueeze(-1)
        x = (mel - self.mean) / self.std * mask
        if self.per_utterance:
            x = (x - x.sum(1, keepdim=True) / lengths[:, None, None]) * mask
        return x


class SpeakerModel(nn.Module):
    """Feature norm, encoder, and the loss over the training speakers."""

    def __init__(self, config: SpeakerConfig, n_speakers: int) -> None:
        super().__init__()
        self.feature_norm = FeatureNorm(config.n_mels, config.per_utterance)
        self.encoder = ENCODERS[config.model](config)
        self.classifier = LOSSES[config.loss](config, n_speakers)
        self.embedding_dim = config.embedding_dim

    def embed(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings, not normalized: mel (b, t, n_mels), lengths (b,) in frames -> (b, embedding_dim) float32."""
        return self.encoder(self.feature_norm(mel, lengths), lengths).float()

    def classify(self, embedding: Tensor) -> Tensor:
        """Cosine with each training speaker: (b, embedding_dim) -> (b, n_speakers)."""
        return self.classifier.cosines(embedding)

    def forward(self, mel: Tensor, lengths: Tensor, labels: Tensor, margin_share: float) -> dict[str, Tensor]:
        """`loss_sum` over the batch, `count` of utterances and `correct` decisions, each a scalar tensor.

        `margin_share`, 0 to 1, is a factor on the margin of the loss.
        """
        loss_sum, cosines = self.classifier(self.embed(mel, lengths), labels, margin_share)
        correct = (cosines.argmax(-1) == labels).sum()
        return {"loss_sum": loss_sum, "count": torch.tensor(len(labels), device=mel.device), "correct": correct}
