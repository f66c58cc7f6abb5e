"""A trained speaker model, from checkpoint to embeddings, in three lines:

    from utils.speaker.recognizer import SpeakerRecognizer
    recognizer = SpeakerRecognizer.load("runs/demo")
    embedding = recognizer.embed_file("recording.flac")

Embeddings are unit-normalized, so that the cosine of two recordings is their dot product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.speaker import SpeakerConfig, SpeakerModel
from utils.checkpoint import load_checkpoint, model_hash
from utils.cli import progress
from utils.device import pick_device, use_backend
from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.mel import MelExtractor
from utils.features.recipe import MelRecipe
from utils.speaker.embedding import Mel, embed_mels
from utils.speaker.enrollment import require_speech

_READ_AHEAD = 128  # recordings held at once; lengths are sorted among them, so that little is padding


def middle(mel: Mel, frames: int) -> Mel:
    """The middle `frames` of a spectrogram (T, n_mels); all of it if it is shorter."""
    start = max(len(mel) - frames, 0) // 2
    return mel[start : start + frames]


class SpeakerRecognizer:
    """A speaker model with the features it was trained on.

    `speakers` are the training speakers in the order of the classifier's rows, `threshold` the cosine at the EER of the
    validation trials (None if there was no validation), `model_hash` names weights and recipe wherever the file lies.
    """

    def __init__(self, model: SpeakerModel, checkpoint: dict[str, Any], device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.recipe = MelRecipe.from_dict(checkpoint["recipe"])
        self.speakers: list[str] = list(checkpoint["speakers"])
        self.threshold: float | None = checkpoint["metrics"].get("valid_threshold")
        self.step: int = checkpoint["step"]
        self.training_list: str = checkpoint["training_list"]
        self.config = SpeakerConfig.from_dict(checkpoint["model_config"])
        self.model_hash = model_hash(checkpoint["model"], checkpoint["model_config"], checkpoint["recipe"])
        self._extractor = MelExtractor(self.recipe)

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "auto", backend: str = "auto") -> SpeakerRecognizer:
        """Reads a checkpoint file or a run folder (its best checkpoint); `UserError` for anything wrong with it."""
        content = load_checkpoint(checkpoint)
        if content["task"] != "speaker":
            raise UserError(f"{checkpoint} holds a model for {content['task']}; a speaker model is needed")
        return cls.restore(content, checkpoint, device, backend)

    @classmethod
    def restore(
        cls, content: dict[str, Any], checkpoint: str | Path, device: str = "auto", backend: str = "auto"
    ) -> SpeakerRecognizer:
        """The recognizer that a checkpoint's content describes; `checkpoint` names it in errors."""
        try:
            config = SpeakerConfig.from_dict(content["model_config"])
            model = SpeakerModel(config, len(content["speakers"]))
            model.load_state_dict(content["model"])
        except ValueError as error:
            raise UserError(f"{checkpoint} is of another version of this program ({error}): train it anew") from error
        except RuntimeError as error:
            raise UserError(f"the weights in {checkpoint} do not fit its own model configuration") from error
        processor = pick_device(device)
        use_backend(model, backend, processor)
        return cls(model, content, processor)

    @property
    def parameters(self) -> int:
        """Trained values of encoder and classifier together."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def name(self) -> str:
        """`tacomamba-mamba2`, `xvector`, ..."""
        kind = self.config.model
        return f"{kind}-{self.config.mixer}" if kind == "tacomamba" else kind

    def description(self, checkpoint: str | Path) -> dict[str, Any]:
        """What a report says of the model, as plain values."""
        return {
            "model": {"name": self.name, "parameters": self.parameters, "hash": self.model_hash},
            "recipe": {"hash": self.recipe.hash, **self.recipe.to_dict()},
            "checkpoint": {"path": str(checkpoint), "step": self.step, "valid_threshold": self.threshold},
            "training_speakers": len(self.speakers),
        }

    def decision_threshold(self, wanted: float | None) -> float:
        """`wanted`, or else the checkpoint's; `UserError` if there is neither."""
        threshold = self.threshold if wanted is None else wanted
        if threshold is None:
            raise UserError("the checkpoint has no threshold, as it was never validated; give --threshold")
        return threshold

    def mel_of_file(self, path: str | Path) -> Mel:
        """Log-mel spectrogram (T, n_mels) of an audio file of any rate."""
        return self._mel(path, load_audio(path, self.recipe.sample_rate))

    def _mel(self, path: str | Path, waveform: NDArray[np.float32]) -> Mel:
        try:
            return self._extractor(waveform)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def embed_mels(self, mels: Sequence[Mel]) -> NDArray[np.float32]:
        """Unit-normalized embeddings (n, D) of log-mel spectrograms (T_i, n_mels), in batches of like length."""
        return embed_mels(self.model, mels, self.device)

    def embed_durations(
        self, sources: Sequence[Any], read: Callable[[Any], Mel], durations: Iterable[float | None], **bar: Any
    ) -> list[NDArray[np.float32]]:
        """Embeddings (n, D) of `sources` for each of `durations` in seconds of their middle (None: whole).

        `read` makes the spectrogram of a source, and is called once for each, whatever the number of durations.
        """
        frames = [None if seconds is None else self.recipe.frames(self._samples(seconds)) for seconds in durations]
        parts: list[list[NDArray[np.float32]]] = [[] for _ in frames]
        with progress(total=len(sources), unit="file", **bar) as shown:
            for start in range(0, len(sources), _READ_AHEAD):
                mels = [read(source) for source in sources[start : start + _READ_AHEAD]]
                for part, length in zip(parts, frames, strict=True):
                    part.append(self.embed_mels(mels if length is None else [middle(mel, length) for mel in mels]))
                shown.update(len(mels))
        none = np.empty((0, self.model.embedding_dim), dtype=np.float32)
        return [np.concatenate([none, *part]) for part in parts]

    def _samples(self, seconds: float) -> int:
        samples = round(seconds * self.recipe.sample_rate)
        if self.recipe.frames(samples) < 1:
            raise UserError(f"{seconds} s is shorter than one frame of the features")
        return samples

    def embed_files(self, paths: Sequence[str | Path], seconds: float | None = None, **bar: Any) -> NDArray[np.float32]:
        """Embeddings (n, D) of audio files, of the middle `seconds` of each (None: of the whole file)."""
        return self.embed_durations(paths, self.mel_of_file, [seconds], **bar)[0]

    def embed_file(self, path: str | Path, seconds: float | None = None) -> NDArray[np.float32]:
        """Embedding (D,) of an audio file, of its middle `seconds` (None: of all of it)."""
        mel = self.mel_of_file(path)
        return self.embed_mels([mel if seconds is None else middle(mel, self.recipe.frames(self._samples(seconds)))])[0]

    def embed_speech(self, paths: Sequence[str | Path]) -> tuple[NDArray[np.float32], list[float]]:
        """Embeddings (n, D) and seconds of recordings; `UserError` if one holds too little speech."""
        rate, seconds = self.recipe.sample_rate, []

        def read(path: str | Path) -> Mel:
            waveform = load_audio(path, rate)
            require_speech(path, waveform, rate)
            seconds.append(len(waveform) / rate)
            return self._mel(path, waveform)

        return self.embed_durations(paths, read, [None])[0], seconds

    @torch.inference_mode()
    def classify(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines (n, S) of embeddings (n, D) with the training speakers."""
        return self.model.classify(torch.from_numpy(embeddings).to(self.device)).cpu().numpy()
