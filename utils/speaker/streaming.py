"""Running embeddings of causal models: speech is embedded as it arrives.

    stream = SpeakerRecognizer.load("runs/causal").embed_stream()
    for samples in microphone:
        stream.push(samples)
        print(stream.seconds, stream.embedding)

What a stream holds does not grow with its length: fewer samples than a frame needs, and the model's state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.speaker import SpeakerModel
from models.speaker.model import ModelState
from utils.errors import UserError
from utils.features.audio import BlockResampler, checked_samples
from utils.features.mel import MelExtractor, MelStream
from utils.speaker.scoring.back_end import BackEnd

RESAMPLED_SECONDS = 0.02
"""The blocks in which a stream of another rate is resampled."""

_AT_ONCE = 10  # s; a longer piece is embedded in steps of so much


class EmbeddingStream:
    """The running embedding of a recording that arrives in pieces; `SpeakerRecognizer.embed_stream` makes one."""

    def __init__(self, model: SpeakerModel, extractor: MelExtractor, back_end: BackEnd, rate: int | None) -> None:
        """Begins a stream of samples at `rate` Hz, None being that of the features; `model` must be able to stream."""
        own = extractor.recipe.sample_rate
        self.rate, self._pushed = rate or own, 0
        self._resampler = None if self.rate == own else BlockResampler("the stream", self.rate, own, RESAMPLED_SECONDS)
        self._mels, self._model, self._back_end = MelStream(extractor), model, back_end
        self._state: ModelState | None = None  # before the first frame

    @property
    def seconds(self) -> float:
        """The length of what was pushed."""
        return self._pushed / self.rate

    def push(self, samples: ArrayLike) -> None:
        """Takes the next mono samples (s,), floats or signed integers, maybe none; `UserError` if they are unusable."""
        if not np.size(samples):
            return
        values = checked_samples(samples)
        self._pushed += len(values)
        for start in range(0, len(values), _AT_ONCE * self.rate):
            piece = values[start : start + _AT_ONCE * self.rate]
            for block in [piece] if self._resampler is None else self._resampler.push(piece):
                self._advance(block)

    def _advance(self, block: NDArray[np.float32]) -> None:
        mel = self._mels.push(block)
        if len(mel):
            self._state = advance(self._model, mel, self._state)

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """What `SpeakerRecognizer.embed_samples` gives for all samples so far, (d,); None before the first frame.

        Digital silence is included, which `embed_samples` leaves out.
        """
        ended = self
        if self._resampler is not None:
            ended = copy.copy(self)
            ended._mels = copy.copy(self._mels)
            ended._advance(self._resampler.rest())
        return None if ended._state is None else self._back_end(finish(self._model, ended._state)[None])[0]


def embed_continued(model: SpeakerModel, mels: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The unit-normalized embedding (d,) of log-mels (t_i, n_mels) that continue each other, not all held at once."""
    state = None
    for mel in mels:
        state = advance(model, mel, state)
    return finish(model, state)


@torch.inference_mode()
def advance(model: SpeakerModel, mel: NDArray[np.float32], state: ModelState | None) -> ModelState:
    """The state of a stream after log-mels (t, n_mels), at least one; None is the state before the first."""
    state = model.initial_state(1) if state is None else state
    return model.step(torch.from_numpy(mel)[None].to(model.feature_norm.mean.device), state)


@torch.inference_mode()
def finish(model: SpeakerModel, state: ModelState) -> NDArray[np.float32]:
    """The unit-normalized embedding (d,) of the frames so far."""
    return normalized(model.embedding_of(state))[0]


def normalized(embeddings: Tensor) -> NDArray[np.float32]:
    """Scales a model's embeddings (n, d) to length 1; `UserError` if they are not finite."""
    result = torch.nn.functional.normalize(embeddings, dim=-1).cpu().numpy()
    if not np.isfinite(result).all():
        raise UserError("the model gives embeddings that are not finite: its training has diverged")
    return result
