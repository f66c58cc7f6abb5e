"""WAV files of 16-bit samples that are complete or absent."""

from __future__ import annotations

import contextlib
import io
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write


@contextlib.contextmanager
def wav_file(path: str | Path, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends samples (n,) within -1 and 1; `UserError` if the file cannot be written.

    Python writes the file, because libsndfile hides the reason when the disk is full.
    """
    try:
        with atomic_write(path) as file, wave.open(file, "wb") as sound:
            sound.setparams((1, 2, rate, 0, "NONE", ""))
            yield lambda samples: sound.writeframes(pcm16(samples))
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error


def pcm16(samples: np.ndarray) -> bytes:
    """Little-endian 16-bit samples, as libsndfile converts them."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, samples, 1, format="RAW", subtype="PCM_16", endian="LITTLE")
    return encoded.getvalue()
