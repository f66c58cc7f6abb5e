"""Mamba and Mamba-2 mixers, the shell they live in, and the models built from it."""

from models.speaker import SpeakerModel, build_speaker_model

__all__ = ["SpeakerModel", "build_speaker_model"]
