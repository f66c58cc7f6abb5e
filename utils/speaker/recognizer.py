"""A trained speaker model, from checkpoint to embeddings, in three lines:

    from utils.speaker.recognizer import SpeakerRecognizer
    recognizer = SpeakerRecognizer.load("runs/demo")
    embedding = recognizer.embed_file("recording.flac")

Embeddings are unit-normalized, so that the cosine of two recordings is their dot product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.speaker import SpeakerConfig, SpeakerModel
from utils.cli import progress
from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.mel import MelExtractor
from utils.speaker.enrollment import require_speech
from utils.trained import TrainedModel

Mel = NDArray[np.float32]

_BATCH_FRAMES = 16_000  # padded frames in one forward: 160 s of audio; a longer recording forms a batch of its own
_READ_AHEAD = 128  # recordings held at once; lengths are sorted among them, so that little is padding


class SpeakerRecognizer(TrainedModel):
    """A speaker model with the features that it was trained on.

    `threshold` is the cosine at the equal error rate of the validation trials; None without a validation.
    """

    task = "speaker"
    config_class = SpeakerConfig

    def __init__(
        self, content: dict[str, Any], source: str | Path, device: str = "auto", backend: str = "auto"
    ) -> None:
        super().__init__(content, source, device, backend)
        self.threshold: float | None = content["metrics"].get("valid_threshold")
        self._extractor = MelExtractor(self.recipe)

    def build(self, content: dict[str, Any]) -> SpeakerModel:
        """The untrained model."""
        return SpeakerModel(self.config, len(content["speakers"]))

    @property
    def name(self) -> str:
        """`tacomamba-mamba2`, `xvector`, ..."""
        kind = self.config.model
        return f"{kind}-{self.config.mixer}" if kind == "tacomamba" else kind

    def description(self, checkpoint: str | Path) -> dict[str, Any]:
        """The entries of a report that describe the model, the threshold among them."""
        about = super().description(checkpoint)
        return {**about, "checkpoint": {**about["checkpoint"], "valid_threshold": self.threshold}}

    def decision_threshold(self, wanted: float | None) -> float:
        """`wanted`, or else the threshold of the checkpoint; `UserError` if there is neither."""
        threshold = self.threshold if wanted is None else wanted
        if threshold is None:
            raise UserError("the checkpoint has no threshold, because it was never validated: give --threshold")
        return threshold

    def mel_of_file(self, path: str | Path) -> Mel:
        """Log-mel spectrogram (t, n_mels) of an audio file of any sample rate."""
        return self._mel(path, load_audio(path, self.recipe.sample_rate))

    def _mel(self, path: str | Path, waveform: NDArray[np.float32]) -> Mel:
        try:
            return self._extractor(waveform)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def embed_mels(self, mels: Sequence[Mel]) -> NDArray[np.float32]:
        """Unit-normalized embeddings (n, d) of log-mel spectrograms (t_i, n_mels), in batches of like length."""
        return embed_mels(self.model, mels, self.device)

    def embed_durations(
        self, sources: Sequence[Any], read: Callable[[Any], Mel], durations: Iterable[float | None], **bar: Any
    ) -> list[NDArray[np.float32]]:
        """Embeddings (n, d) of `sources` for each of `durations`: seconds of their middle, or None for all of it.

        `read` returns the spectrogram of a source; it is called once for each source.
        """
        frames = [None if seconds is None else self._frames(seconds) for seconds in durations]
        parts: list[list[NDArray[np.float32]]] = [[] for _ in frames]
        with progress(total=len(sources), unit="file", **bar) as shown:
            for start in range(0, len(sources), _READ_AHEAD):
                mels = [read(source) for source in sources[start : start + _READ_AHEAD]]
                for part, length in zip(parts, frames, strict=True):
                    part.append(self.embed_mels([middle(mel, length) for mel in mels]))
                shown.update(len(mels))
        none = np.empty((0, self.model.embedding_dim), dtype=np.float32)
        return [np.concatenate([none, *part]) for part in parts]

    def _frames(self, seconds: float) -> int:
        frames = self.recipe.frames(round(seconds * self.recipe.sample_rate))
        if frames < 1:
            raise UserError(f"{seconds} s is shorter than one frame of the features")
        return frames

    def embed_files(self, paths: Sequence[str | Path], seconds: float | None = None, **bar: Any) -> NDArray[np.float32]:
        """Embeddings (n, d) of audio files, of the middle `seconds` of each (None: of the entire file)."""
        return self.embed_durations(paths, self.mel_of_file, [seconds], **bar)[0]

    def embed_file(self, path: str | Path, seconds: float | None = None) -> NDArray[np.float32]:
        """Embedding (d,) of an audio file, of its middle `seconds` (None: of the entire file)."""
        return self.embed_files([path], seconds, disable=True)[0]

    def embed_speech(self, paths: Sequence[str | Path]) -> tuple[NDArray[np.float32], list[float]]:
        """Embeddings (n, d) and seconds of recordings; `UserError` if one contains too little speech."""
        rate, seconds = self.recipe.sample_rate, []

        def read(path: str | Path) -> Mel:
            waveform = load_audio(path, rate)
            require_speech(path, waveform, rate)
            seconds.append(len(waveform) / rate)
            return self._mel(path, waveform)

        return self.embed_durations(paths, read, [None])[0], seconds

    @torch.inference_mode()
    def classify(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines (n, s) of embeddings (n, d) with the training speakers."""
        return self.model.classify(torch.from_numpy(embeddings).to(self.device)).cpu().numpy()


def middle(mel: Mel, frames: int | None) -> Mel:
    """The middle `frames` of a spectrogram (t, n_mels); all of it if it is shorter, or for None."""
    if frames is None:
        return mel
    start = max(len(mel) - frames, 0) // 2
    return mel[start : start + frames]


@torch.inference_mode()
def embed_mels(model: SpeakerModel, mels: Sequence[Mel], device: torch.device) -> NDArray[np.float32]:
    """Unit-normalized embeddings (n, d) of log-mel spectrograms (t_i, n_mels), by a model in eval mode.

    Batches hold spectrograms of like length, padded. The model masks the padding, so that order and company change an
    embedding by no more than the order of floating-point sums does.
    """
    result = np.empty((len(mels), model.embedding_dim), dtype=np.float32)
    for batch in _batches([len(mel) for mel in mels]):
        embeddings = _embed_batch(model, [mels[place] for place in batch], device)
        result[batch] = torch.nn.functional.normalize(embeddings, dim=-1).cpu().numpy()
    if not np.isfinite(result).all():
        raise UserError("the model gives embeddings that are not finite: its training has diverged")
    return result


def _embed_batch(model: SpeakerModel, mels: Sequence[Mel], device: torch.device) -> Tensor:
    lengths = torch.tensor([len(mel) for mel in mels])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(mel)) for mel in mels], batch_first=True)
    return model.embed(padded.to(device), lengths.to(device))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places in order of length, cut into batches of at most `_BATCH_FRAMES` padded frames, or of a single place."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > _BATCH_FRAMES:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
