"""Speaker recognition: encoders, pooling, losses, and the model that joins them."""

from models.speaker import ecapa, encoder, losses, pooling, statistics, xvector  # noqa: F401  each registers what it defines
from models.speaker.config import ENCODERS, LOSSES, POOLINGS, SpeakerConfig
from models.speaker.model import SpeakerModel

__all__ = ["ENCODERS", "LOSSES", "POOLINGS", "SpeakerConfig", "SpeakerModel"]
