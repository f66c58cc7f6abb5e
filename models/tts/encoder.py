"""Symbols to hidden vectors that have seen the whole text."""

from __future__ import annotations

from torch import Tensor, nn

from models.stack import MixerStack
from models.tts.condition import build_condition
from models.tts.convolution import ResidualConvs

PRENET_LAYERS, PRENET_KERNEL = 2, 5


class TextEncoder(nn.Module):
    """Embedding, residual convolutions, bidirectional mixers: tokens (B, N), lengths (B,) -> (B, N, d_model)."""

    def __init__(self, config: dict, n_symbols: int) -> None:
        super().__init__()
        d_model = config["d_model"]
        self.embedding = nn.Embedding(n_symbols, d_model, padding_idx=0)
        self.prenet = ResidualConvs(d_model, PRENET_LAYERS, PRENET_KERNEL, causal=False, dropout=config["dropout"])
        self.condition = build_condition(config, d_model)
        options = {name: config[name] for name in ("headdim", "dropout")} | {"d_state": config["encoder_d_state"]}
        mixer, n_layers = config["encoder_mixer"], config["encoder_layers"]
        self.stack = MixerStack(mixer, d_model, n_layers, causal=False, expand=config["encoder_expand"], **options)

    def forward(self, tokens: Tensor, lengths: Tensor, speaker: Tensor | None) -> Tensor:
        x = self.prenet(self.embedding(tokens), lengths)
        if self.condition is not None:
            x = x + self.condition(speaker).unsqueeze(1)
        return self.stack(x, lengths)
