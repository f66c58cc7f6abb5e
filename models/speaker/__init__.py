"""Speaker recognition: encoders, pooling, losses, and the model that joins them."""

from models.speaker.model import SpeakerModel, build_speaker_model

__all__ = ["SpeakerModel", "build_speaker_model"]
