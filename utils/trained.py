"""A trained model restored from its checkpoint: what the speaker recognizer and the synthesizer share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml
from torch import nn

from models.config import Config
from utils.checkpoint import find_model, load_checkpoint, model_hash
from utils.device import pick_device, use_backend
from utils.errors import UserError
from utils.features.recipe import MelRecipe
from utils.files import read_text
from utils.packed import TRAINING, is_packed, shipped_model
from utils.training.runlog import costs_until


class TrainedModel:
    """A model in eval mode on a device, with the mel recipe and the speakers that it was trained on.

    `speakers` are in the order of the classifier's rows or of the voices. `model_hash` names weights, configuration and
    recipe, whatever file holds them. A subclass sets `task` and `config_class`, and has a `name` for its kind of model.
    """

    task: str
    config_class: type[Config]
    name: str

    def __init__(
        self, content: dict[str, Any], source: str | Path, device: str = "auto", backend: str = "auto"
    ) -> None:
        """Restores the model from the content of a checkpoint; `source` names the checkpoint in errors."""
        try:
            self.config = self.config_class.from_dict(content["model_config"])
            model = self.build(content)
            model.load_state_dict(content["model"])
        except ValueError as error:
            raise UserError(
                f"{source} was written by another version of this program ({error}): train the model again"
            ) from error
        except RuntimeError as error:
            raise UserError(f"the weights in {source} do not fit its model configuration") from error
        self.device = pick_device(device)
        use_backend(model, backend, self.device)
        self.model = model.to(self.device).eval()
        self.recipe = MelRecipe.from_dict(content["recipe"])
        self.speakers: list[str] = list(content["speakers"])
        self.step: int = content["step"]
        self._flags: dict[str, Any] | None = content.get("config")
        self.training_list: str = content["training_list"]
        tensors = {**content["model"], **content.get("back_end", {})}
        self.model_hash = model_hash(tensors, content["model_config"], content["recipe"])

    @classmethod
    def load(cls, checkpoint: str | Path | None = None, device: str = "auto", backend: str = "auto") -> Self:
        """Reads a checkpoint file, the best checkpoint of a run folder, or a packed model by its folder or name.

        By default it is the model that the repository ships for this task. `UserError` for anything wrong with it.
        """
        checkpoint = shipped_model(cls.task) if checkpoint is None else checkpoint
        content = load_checkpoint(checkpoint)
        cls.require_task(content, checkpoint)
        return cls(content, checkpoint, device, backend)

    @classmethod
    def require_task(cls, content: dict[str, Any], source: str | Path) -> None:
        """`UserError` if the content of a checkpoint is a model of another task."""
        if content["task"] != cls.task:
            raise UserError(f"{source} holds a model of --task {content['task']}; one of --task {cls.task} is needed")

    def build(self, content: dict[str, Any]) -> nn.Module:
        """The untrained model that `self.config` and the content of the checkpoint describe."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def description(self, checkpoint: str | Path) -> dict[str, Any]:
        """The entries of a report that describe the model, as plain values."""
        model = {"name": self.name, "parameters": self.parameters, "hash": self.model_hash}
        return {
            "model": {**model, "training": self._training(find_model(checkpoint))},
            "recipe": {"hash": self.recipe.hash, **self.recipe.to_dict()},
            "checkpoint": {"path": str(checkpoint), "step": self.step},
            "training_speakers": len(self.speakers),
        }

    def _training(self, path: Path) -> dict[str, Any]:
        """Steps and flags of the training, and what it cost if its log is beside the checkpoint."""
        flags = self._flags
        if is_packed(path) and (path / TRAINING).exists():
            flags = yaml.safe_load(read_text(path / TRAINING))
        return {"steps": self.step, "flags": flags, **costs_until(path if path.is_dir() else path.parent, self.step)}
