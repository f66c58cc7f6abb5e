"""Unit-normalized embeddings of many spectrograms at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.speaker.model import SpeakerModel
from utils.errors import UserError

Mel = NDArray[np.float32]

BATCH_FRAMES = 16_000  # padded frames in one forward: 160 s of audio; a longer recording goes alone


@torch.inference_mode()
def embed_mels(model: SpeakerModel, mels: Sequence[Mel], device: torch.device) -> NDArray[np.float32]:
    """Unit-normalized embeddings (n, D) of log-mel spectrograms (T_i, n_mels), by a model in eval mode.

    They are run in batches of like length, padded; lengths mask the padding, so that neither order nor company
    changes an embedding beyond the order of floating-point sums.
    """
    parts: list[tuple[list[int], NDArray[np.float32]]] = []
    for batch in _batches([len(mel) for mel in mels]):
        embeddings = _embed_batch(model, [mels[place] for place in batch], device)
        parts.append((batch, torch.nn.functional.normalize(embeddings, dim=-1).cpu().numpy()))
    if not parts:
        return np.empty((0, model.embedding_dim), dtype=np.float32)
    result = np.concatenate([part for _, part in parts])
    result = result[np.argsort([place for batch, _ in parts for place in batch])]
    if not np.isfinite(result).all():
        raise UserError("the model gives embeddings that are not finite; its training has diverged")
    return result


def _embed_batch(model: SpeakerModel, mels: Sequence[Mel], device: torch.device) -> Tensor:
    lengths = torch.tensor([len(mel) for mel in mels])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(mel)) for mel in mels], batch_first=True)
    return model.embed(padded.to(device), lengths.to(device))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places in order of length, cut into batches of at most `BATCH_FRAMES` padded frames (at least one place)."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > BATCH_FRAMES:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
