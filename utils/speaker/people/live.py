"""Who is speaking, as it is spoken: `test.py identify --stream`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.features.audio import BlockResampler, read_blocks
from utils.features.speech import spoken
from utils.features.windows import live_windows
from utils.speaker.people.enrollment import Identification
from utils.speaker.recognizer import MIN_SPEECH_SECONDS, SpeakerRecognizer
from utils.speaker.streaming import RESAMPLED_SECONDS

_READ = 1 << 16  # bytes at most; a pipe gives what it has
_HEADERS = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3\x03": "MP3", b"ID3\x04": "MP3"}


def follow(
    source: Path,
    rate: int | None,
    recognizer: SpeakerRecognizer,
    identify: Callable[[NDArray[np.float32], float], Identification],
    window: float,
    hop: float,
    show: Callable[[dict[str, Any], Identification | None], None],
) -> None:
    """Shows the answer for each window of a stream as soon as it is complete; None for one with too little speech.

    A model that can stream gives one more answer at the end, which has no times: of all of the stream, by its running
    embedding. The end is that of `source`, an audio file or "-" for raw PCM at `rate` Hz on standard input, or Ctrl-C.
    """
    own = recognizer.recipe.sample_rate
    running = recognizer.embed_stream() if recognizer.model.can_stream else None
    is_input = str(source) == "-"
    name = "stdin" if is_input else str(source)
    is_spoken = False

    def blocks() -> Iterator[NDArray[np.float32]]:
        for block in pcm_blocks(sys.stdin.buffer, rate or own, own) if is_input else read_blocks(source, own):
            if running is not None:
                running.push(block)
            yield block

    try:
        for start, samples in live_windows(blocks(), max(1, round(window * own)), max(1, round(hop * own))):
            heard, result = spoken(samples, own), None
            if heard.seconds >= MIN_SPEECH_SECONDS:
                embedding = recognizer.embed_samples(heard.samples, own)
                result, is_spoken = identify(embedding, len(heard.samples) / own), True
            show({"audio": name, "start": start / own, "end": (start + len(samples)) / own}, result)
    except KeyboardInterrupt:
        pass
    if running is not None and running.embedding is not None:
        show({"audio": name}, identify(running.embedding, running.seconds) if is_spoken else None)


def pcm_blocks(file: BinaryIO, rate: int, sample_rate: int) -> Iterator[NDArray[np.float32]]:
    """Mono samples (s,) at `sample_rate` Hz of signed 16-bit little-endian PCM at `rate` Hz, as they arrive.

    `UserError` if the file is a terminal, has the header of an audio file, or is empty.
    """
    if file.isatty():
        raise UserError("--stream - reads raw PCM from a pipe, such as arecord -f S16_LE -r 16000, not from a terminal")
    resampler = None if rate == sample_rate else BlockResampler("stdin", rate, sample_rate, RESAMPLED_SECONDS)
    held, is_first = b"", True
    while (content := file.read1(_READ)) or is_first:
        held += content
        if is_first:
            if content and len(held) < 4:
                continue  # the end is not here, and a header may be
            if len(held) < 2:
                raise UserError("stdin holds no samples")
            if kind := _HEADERS.get(held[:4]):
                raise UserError(f"stdin has {kind}, and --stream - reads raw PCM: give the name of the file instead")
            is_first = False
        whole = len(held) // 2 * 2
        samples = np.frombuffer(held[:whole], "<i2").astype(np.float32) / 2**15
        held = held[whole:]
        yield from [samples] if resampler is None else resampler.push(samples)
    if resampler is not None:
        yield resampler.rest()


def leave_closed_output() -> None:
    """Discards what is left to write to stdout, whose reader has gone, so that Python does not complain at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
