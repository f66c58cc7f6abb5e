"""The configuration of a speaker model, and the registries of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

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
    model: str = option("tacomamba", "encoder", choices=ENCODERS)
    causal: bool = option(False, "let the encoder see the past only, so that it can stream")
    level: bool = option(True, "remove the level of the recording, for a causal encoder that of the frames so far")
    subsampling: int = option(2, "mel frames per encoder frame of tacomamba", least=1)
    pooling: str = option("attentive", "pooling over time of tacomamba", choices=POOLINGS, family="tacomamba")
    all_layers: bool = option(True, "pool the outputs of all blocks of tacomamba, not of the last alone")
    mel_statistics: bool = option(True, "join mean and deviation of the mels to what tacomamba pools")
    pooled_channels: int = option(512, "channels that tacomamba pools over time", least=1)
    embedding_dim: int = option(192, "size of a speaker embedding", least=1)
    channels: int = option(512, "channels of ecapa", least=1)
    normalize: str = option(
        "global",
        "normalization of features: global, by statistics of the training set, or utterance, by the mean of the "
        "utterance as well, which removes the channel of the recording and much of the voice",
        choices=("global", "utterance"),
    )
    n_mels: int = 80

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; checkpoints from before `level` keep the level, and may have `normalize` auto."""
        values = dict(values)
        if "level" not in values:
            kind = values.pop("normalise", values.get("normalize", "auto"))
            if kind == "auto":
                kind = "global" if values.get("causal") else "utterance"
            values |= {"level": False, "all_layers": False, "mel_statistics": False, "normalize": kind}
        return super().from_dict(values)

    def problems(self) -> list[str]:
        """Contradictions, among them those that the encoder's constructor finds."""
        found = []
        if self.causal and self.normalize == "utterance":
            found.append("causal contradicts normalize utterance: the mean of a stream is not known before its end")
        return [*found, *attempt(ENCODERS[self.model], self)]
