"""Text to mel: TacoMamba and the Tacotron 2 that it is compared with."""

from __future__ import annotations

from torch import nn

from models.tts.tacomamba import TacoMamba


def build_text_to_mel(config: dict, n_symbols: int) -> nn.Module:
    """The model of a configuration (`utils.tts.options.tts_model_config`), freshly initialized."""
    if config["model"] == "tacomamba":
        return TacoMamba(config, n_symbols)
    if config["model"] == "tacotron2":
        from models.tts.tacotron2 import Tacotron2

        return Tacotron2(config, n_symbols)
    raise ValueError(f"unknown model {config['model']!r}")
