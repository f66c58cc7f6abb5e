"""Training that begins with a trained encoder instead of a random one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.config import options
from models.speaker import SpeakerConfig, SpeakerModel
from models.speaker.config import LossConfig
from utils.checkpoint import load_checkpoint
from utils.cli import flag_name
from utils.errors import UserError
from utils.features.recipe import MelRecipe, require_same

_OF_LOSS = {field.name for field in options(LossConfig)}
_TAKEN = ("encoder.", "feature_norm.")


def encoder_flags(name: str) -> dict[str, Any]:
    """The flags of the encoder in a checkpoint, run folder or packed model; `UserError` if it holds none."""
    config = _config(name, load_checkpoint(name))
    return {field.name: getattr(config, field.name) for field in options(SpeakerConfig) if field.name not in _OF_LOSS}


def begin_with(
    model: SpeakerModel, config: SpeakerConfig, recipe: MelRecipe, speakers: Sequence[str], name: str
) -> dict[str, Any]:
    """Gives `model` the encoder and the feature statistics of a checkpoint, and its classifier for the same `speakers`.

    Classes of speeds that `model` does not have are left out. Returns the checkpoint. `UserError` if recipe or encoder
    differ.
    """
    checkpoint = load_checkpoint(name)
    theirs = _config(name, checkpoint).to_dict()
    require_same(MelRecipe.from_dict(checkpoint["recipe"]), recipe, f"--init {name}", "the features")
    pairs = {key: (theirs[key], value) for key, value in config.to_dict().items() if key not in _OF_LOSS}
    if wrong := [f"{flag_name(key)} ({a} there, {b} here)" for key, (a, b) in pairs.items() if a != b]:
        raise UserError(f"--init {name} has another encoder: {', '.join(wrong)}")
    state = model.state_dict()
    state |= {key: tensor for key, tensor in checkpoint["model"].items() if key.startswith(_TAKEN)}
    if list(speakers) == checkpoint["speakers"]:
        for key in (key for key in state if not key.startswith(_TAKEN)):
            saved = checkpoint["model"].get(key)
            if saved is not None and len(saved) >= len(state[key]):
                state[key] = saved[: len(state[key])]
    model.load_state_dict(state)
    return checkpoint


def _config(name: str, checkpoint: dict[str, Any]) -> SpeakerConfig:
    if checkpoint["task"] != "speaker":
        raise UserError(f"--init {name} holds a model of --task {checkpoint['task']}; one of --task speaker is needed")
    try:
        return SpeakerConfig.from_dict(checkpoint["model_config"])
    except ValueError as error:
        raise UserError(f"--init {name} holds a model that this version cannot build: {error}") from error
