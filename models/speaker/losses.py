"""Losses of speaker models: embeddings (b, e) and labels (b,) to a summed loss and cosines with the classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.speaker.config import LOSSES, SpeakerConfig


@LOSSES.register("aam")
class AAMSoftmax(nn.Module):
    """Additive angular margin softmax (Deng et al. 2019, equation 3): cos(theta + margin) for the true class.

    Where theta + margin exceeds pi, cos theta - margin sin(margin) replaces it, so that the target logit still
    decreases with the angle.
    """

    def __init__(self, config: SpeakerConfig, n_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, config.embedding_dim))
        nn.init.xavier_normal_(self.weight)
        self.scale, self.margin = config.scale, config.margin

    def cosines(self, embedding: Tensor) -> Tensor:
        """Cosine between each embedding and each class: (b, e) -> (b, n_classes), float32 or wider."""
        wide = torch.promote_types(embedding.dtype, torch.float32)
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding.to(wide), dim=-1), F.normalize(self.weight.to(wide), dim=-1))

    def forward(self, embedding: Tensor, labels: Tensor, margin_share: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the batch, and the cosines without margin; embedding (b, e), labels (b,)."""
        margin = margin_share * self.margin
        cosines = self.cosines(embedding)
        target = cosines.gather(1, labels.unsqueeze(1)).clamp(-1 + 1e-6, 1 - 1e-6)
        sine = (1 - target.square()).sqrt()
        moved = target * math.cos(margin) - sine * math.sin(margin)
        moved = torch.where(target > -math.cos(margin), moved, target - margin * math.sin(margin))
        logits = self.scale * cosines.scatter(1, labels.unsqueeze(1), moved)
        return F.cross_entropy(logits, labels, reduction="sum"), cosines
