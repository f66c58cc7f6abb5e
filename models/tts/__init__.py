"""Text to mel: TacoMamba, and the Tacotron 2 that it is compared with."""

from models.tts import tacomamba, tacotron2  # noqa: F401  each registers what it defines
from models.tts.config import MODELS, TextToMelConfig

__all__ = ["MODELS", "TextToMelConfig"]
