"""Speaker encoders and the classifier that trains them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mamba import length_mask
from models.norm import BatchNorm
from models.speaker.ecapa import ECAPA
from models.speaker.losses import AAMSoftmax
from models.speaker.pooling import AttentiveStatisticsPooling
from models.speaker.xvector import XVector
from models.stack import MixerStack


class FeatureNorm(nn.Module):
    """Standardizes log-mels with the training set's mean and deviation per channel: (B, T, n_mels) -> same.

    With `per_utterance` the utterance's own mean is subtracted as well, which takes out the recording's channel but
    needs the whole utterance, so that a causal encoder cannot have it. Padding comes out as zeros.
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


class Subsampling(nn.Module):
    """Causal strided convolution, GELU: (B, T, n_mels), lengths (B,) -> (B, ceil(T / factor), D), new lengths.

    Output frame i sees input frames up to `factor` i + `factor` - 1, so that a stream can be cut into groups of
    `factor` frames.
    """

    def __init__(self, n_mels: int, d_model: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.kernel = 2 * factor + 1
        self.conv = nn.Conv1d(n_mels, d_model, self.kernel, stride=factor)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        missing = -x.shape[1] % self.factor
        x = F.pad(x.transpose(1, 2), (self.kernel - self.factor, missing))
        return F.gelu(self.conv(x)).transpose(1, 2), (lengths + self.factor - 1) // self.factor


class TacoMambaEncoder(nn.Module):
    """Subsampling, mixer stack, attentive statistics pooling, embedding: (B, T, n_mels) -> (B, embedding_dim)."""

    def __init__(
        self, n_mels: int, embedding_dim: int, d_model: int, subsampling: int, pooled_channels: int, **stack: object
    ) -> None:
        super().__init__()
        self.subsampling = Subsampling(n_mels, d_model, subsampling)
        self.stack = MixerStack(d_model=d_model, **stack)
        self.expand = nn.Linear(d_model, pooled_channels)
        self.pooling = AttentiveStatisticsPooling(pooled_channels)
        self.pooled_norm = BatchNorm(2 * pooled_channels)
        self.embedding = nn.Linear(2 * pooled_channels, embedding_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x, lengths = self.subsampling(x, lengths)
        x = F.gelu(self.expand(self.stack(x, lengths)))
        return self.embedding(self.pooled_norm(self.pooling(x, lengths)))


class SpeakerModel(nn.Module):
    """Feature norm, encoder, AAM-softmax classifier over the training speakers."""

    def __init__(self, encoder: nn.Module, n_mels: int, embedding_dim: int, n_speakers: int, per_utterance: bool):
        super().__init__()
        self.feature_norm = FeatureNorm(n_mels, per_utterance)
        self.encoder = encoder
        self.classifier = AAMSoftmax(embedding_dim, n_speakers)
        self.embedding_dim = embedding_dim

    def embed(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings, not normalized: mel (B, T, n_mels), lengths (B,) in frames -> (B, embedding_dim) float32."""
        return self.encoder(self.feature_norm(mel, lengths), lengths).float()

    def classify(self, embedding: Tensor) -> Tensor:
        """Cosine with each training speaker: (B, embedding_dim) -> (B, n_speakers)."""
        return self.classifier.cosines(embedding)

    def forward(self, mel: Tensor, lengths: Tensor, labels: Tensor, margin: float) -> dict[str, Tensor]:
        """`loss_sum` over the batch, `count` of utterances and `correct` decisions, each a scalar tensor."""
        loss_sum, cosines = self.classifier(self.embed(mel, lengths), labels, margin)
        correct = (cosines.argmax(-1) == labels).sum()
        return {"loss_sum": loss_sum, "count": torch.tensor(len(labels), device=mel.device), "correct": correct}


def build_speaker_model(config: dict, n_speakers: int) -> SpeakerModel:
    """The model of a configuration (`utils.speaker.options.speaker_model_config`), freshly initialized.

    Raises ValueError for a contradiction, such as a causal encoder with per-utterance statistics.
    """
    n_mels, embedding_dim, kind = config["n_mels"], config["embedding_dim"], config["model"]
    per_utterance = config["normalize"] == "utterance"
    if kind == "tacomamba":
        if config["causal"] and per_utterance:
            raise ValueError("a causal encoder cannot use per-utterance statistics: streaming must equal offline")
        names = ("mixer", "n_layers", "causal", "d_state", "expand", "headdim", "mlp_ratio", "dropout")
        stack = {name: config[name] for name in names}
        encoder = TacoMambaEncoder(
            n_mels, embedding_dim, config["d_model"], config["subsampling"], config["pooled_channels"], **stack
        )
    elif kind == "xvector":
        encoder = XVector(n_mels, embedding_dim)
    elif kind == "ecapa":
        encoder = ECAPA(n_mels, embedding_dim, config["channels"])
    else:
        raise ValueError(f"unknown model {kind!r}")
    return SpeakerModel(encoder, n_mels, embedding_dim, n_speakers, per_utterance)
