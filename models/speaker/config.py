"""The configuration of a speaker model, and the registries of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.config import Config, Registry, attempt, option
from models.stack import StackConfig

ENCODERS: Registry[Callable[[SpeakerConfig], nn.Module]] = Registry()
POOLINGS: Registry[Callable[[int], nn.Module]] = Registry()
LOSSES: Registry[Callable[[SpeakerConfig, int], nn.Module]] = Registry()


@dataclass(frozen=True)
class LossConfig(Config):
    """The loss over the training speakers; each loss reads the fields that it needs."""

    title = "loss"

    loss: str = option("aam", "loss of the classifier over the training speakers", choices=LOSSES)
    scale: float = option(30.0, "factor on the cosines", above=0)
    margin: float = option(0.2, "angular margin of aam in radians", least=0, most=math.pi / 2)


@dataclass(frozen=True)
class SpeakerConfig(StackConfig, LossConfig):
    """A speaker encoder and its loss."""

    title = "speaker model"
    renamed: ClassVar[dict[str, str]] = {"normalise": "normalize"}

    model: str = option("tacomamba", "encoder", choices=ENCODERS)
    causal: bool = option(False, "let the encoder see the past only, so that it can stream")
    subsampling: int = option(2, "mel frames per encoder frame of tacomamba", least=1)
    pooling: str = option("attentive", "pooling over time of tacomamba", choices=POOLINGS, family="tacomamba")
    pooled_channels: int = option(512, "channels that tacomamba pools over time", least=1)
    embedding_dim: int = option(192, "size of a speaker embedding", least=1)
    channels: int = option(512, "channels of ecapa", least=1)
    normalize: str = option(
        "auto",
        "normalization of features: global, by statistics of the training set, or utterance, by the mean of the "
        "utterance as well; auto is global for a causal encoder, else utterance",
        choices=("auto", "global", "utterance"),
    )
    n_mels: int = 80

    @property
    def per_utterance(self) -> bool:
        """True if the mean of the utterance is subtracted."""
        return self.normalize == "utterance" or (self.normalize == "auto" and not self.causal)

    def problems(self) -> list[str]:
        """Contradictions, among them those that the encoder's constructor finds."""
        found = []
        if self.causal and self.per_utterance:
            found.append("causal and normalize utterance contradict: the mean of a stream is not known before its end")
        return [*found, *attempt(ENCODERS[self.model], self)]
