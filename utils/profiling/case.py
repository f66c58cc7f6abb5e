"""A training step to profile: a model, a batch of random samples, and the options that change its memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.config import Config
from models.engine.backends import FASTEST_FIRST
from models.speaker import SpeakerModel
from models.tts import MODELS
from utils.errors import UserError
from utils.features.recipe import MelRecipe
from utils.profiling import kernels
from utils.text.vocabulary import SPECIAL, VOCABULARIES
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.update import Update


@dataclass(frozen=True)
class Case:
    """A step of `samples` recordings of `frames` mel frames each; `config` is complete, with its number of mels.

    `symbols` are those of a text, `speakers` the training speakers.
    """

    task: str
    config: Config
    training: TrainingOptions
    recipe: MelRecipe
    samples: int
    frames: int
    symbols: int
    speakers: int
    device: str = "cpu"

    def at(self, samples: int | None = None, frames: int | None = None) -> Self:
        """The same step with another batch, or with recordings, and texts in proportion, of another length."""
        frames = frames or self.frames
        symbols = min(frames, max(1, round(self.symbols * frames / self.frames)))
        return dataclasses.replace(self, samples=samples or self.samples, frames=frames, symbols=symbols)

    @property
    def seconds(self) -> float:
        """The length of a recording."""
        return self.recipe.seconds(self.frames)

    def backend(self) -> str:
        """The backend of the Mamba mixers that is predicted; on CUDA, where none is tried, `auto` is the first."""
        chosen = self.training.backend
        return FASTEST_FIRST["cuda"][0] if self.device == "cuda" and chosen == "auto" else chosen

    def model(self) -> nn.Module:
        """A new model."""
        if self.task == "speaker":
            return SpeakerModel(self.config, self.speakers)
        return MODELS[self.config.model](self.config, len(VOCABULARIES["phoneme"]))

    def batches(self) -> list[dict[str, Tensor]]:
        """The micro-batches of a step."""
        parts = self.training.accumulate
        make = self._speaker_batch if self.task == "speaker" else self._text_batch
        alone = Ranks(0, 1, torch.device("cpu"))
        return [make(len(alone.micro_batch(range(self.samples), part, parts))) for part in range(parts)]

    def _speaker_batch(self, samples: int) -> dict[str, Tensor]:
        return {
            "mel": torch.randn(samples, self.frames, self.config.n_mels),
            "lengths": torch.full((samples,), self.frames),
            "labels": torch.arange(samples) % self.speakers,
        }

    def _text_batch(self, samples: int) -> dict[str, Tensor]:
        size = len(VOCABULARIES["phoneme"])
        batch = {
            "tokens": torch.randint(len(SPECIAL), size, (samples, self.symbols)),
            "token_lengths": torch.full((samples,), self.symbols),
            "mel": torch.randn(samples, self.frames, self.config.n_mels),
            "mel_lengths": torch.full((samples,), self.frames),
        }
        if self.config.voice == "table":
            batch["speaker"] = torch.arange(samples) % self.speakers
        if self.config.voice == "embedding":
            batch["speaker"] = torch.randn(samples, self.config.speaker_dim)
        return batch

    def update(self, model: nn.Module, device: torch.device) -> Update:
        """The training loop's step for a model on a device, which stands for another one if the types differ.

        `UserError` if an option is impossible.
        """
        backend = self.training.backend if device.type == self.device else self.backend()
        if backend == "native" and self.device != "cpu":
            raise UserError("--backend native: it is for CPUs only")
        is_replaced = device.type != self.device and backend in kernels.PREDICTED_WITH
        known = dataclasses.replace(self.training, backend="torch" if is_replaced else backend)
        update = Update(_Task(model, self), known, Ranks(0, 1, device))
        if is_replaced:
            kernels.use(update.model, backend)
        return update

    def shown(self) -> dict[str, Any]:
        """The sizes and options of the step, by name."""
        own = {"speakers": self.speakers}
        if self.task == "tts":
            own = {"symbols": self.symbols, "voice": self.config.voice}
        training = self.training
        return {
            "task": self.task,
            "batch_size": self.samples,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            **own,
            "amp": training.amp,
            "ema": training.ema,
            "accumulate": training.accumulate,
            "checkpoint_layers": training.checkpoint_layers,
            "device": self.device,
            "backend": kernels.BY_FORMULA if self.backend() == "mamba_ssm" else self.backend(),
        }


@dataclass
class _Task:
    """What `Update` needs of a `utils.training.task.Task`."""

    model: nn.Module
    case: Case

    def frames(self, batch: dict[str, Tensor]) -> int:
        return self.case.samples * self.case.frames

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        return {**batch, "margin_share": 1.0} if self.case.task == "speaker" else batch
