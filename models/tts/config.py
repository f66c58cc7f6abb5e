"""The configuration of a text-to-mel model, and the registry of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.config import Registry, attempt, option
from models.mixers import MIXERS, build_mixer
from models.stack import StackConfig

MODELS: Registry[Callable[[TextToMelConfig, int], nn.Module]] = Registry()


@dataclass(frozen=True)
class TextToMelConfig(StackConfig):
    """A text encoder, a decoder, whose stack the inherited fields describe, and the source of the voice."""

    title = "text-to-mel model"
    renamed: ClassVar[dict[str, str]] = {"speaker": "voice"}

    model: str = option("tacomamba", "model", choices=MODELS)
    decoder: str = option(
        "causal",
        "decoder of tacomamba: causal can stream, bidirectional sees the whole sentence, ar also reads its last frame",
        choices=("causal", "bidirectional", "ar"),
        family="tacomamba",
    )
    encoder_mixer: str = option("mamba2", "sequence mixer of the text encoder", choices=MIXERS, family="tacomamba")
    encoder_layers: int = option(2, "blocks of the text encoder", least=1)
    encoder_expand: int = option(2, "inner channels per channel of its mixers", least=1)
    encoder_d_state: int | None = option(None, "state size N of its mixers (default: that of --d-state)", least=1)
    reduction: int = option(2, "mel frames per decoder step", least=1)
    pitch: bool = option(True, "predict the pitch of each symbol, and add its harmonics", family="tacomamba")
    postnet_channels: int = option(128, "channels of the postnet", least=1)
    decoder_dim: int = option(384, "cells of tacotron2's decoder LSTMs", least=1)
    prenet_dim: int = option(128, "channels of tacotron2's prenet", least=1)
    attention_dim: int = option(128, "channels of tacotron2's attention", least=1)
    guided_attention: float = option(1.0, "weight of tacotron2's guided attention loss", above=0, family="tacotron2")
    voice: str = option(
        "none",
        "input that selects the voice: none (one voice), a table of the training speakers, or the embedding of a "
        "recording",
        choices=("none", "table", "embedding"),
    )
    n_mels: int = 80
    n_speakers: int = 1
    speaker_dim: int = 1

    @property
    def is_causal(self) -> bool:
        """True if the decoder sees the past only."""
        return self.decoder != "bidirectional"

    @property
    def encoder_stack(self) -> StackConfig:
        """The stack of the text encoder, which is bidirectional and has no MLPs."""
        names = [field.name for field in dataclasses.fields(StackConfig)]
        shared = {name: getattr(self, name) for name in names}
        own = {"mixer": self.encoder_mixer, "n_layers": self.encoder_layers, "expand": self.encoder_expand}
        return StackConfig(**shared | own | {"d_state": self.encoder_d_state or self.d_state, "mlp_ratio": 0.0})

    def problems(self) -> list[str]:
        """Contradictions that the constructors of the model and of its parts find."""
        found = []
        if self.model == "tacomamba":
            found += attempt(build_mixer, self.encoder_stack, False) + attempt(build_mixer, self, self.is_causal)
        return found or attempt(MODELS[self.model], self, 1)
