"""Audio files to samples: decoded by soundfile or ffmpeg, checked for damage, resampled by torchaudio."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import numbers
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from utils.corpus.layouts import FFMPEG_SUFFIXES
from utils.errors import UserError
from utils.features.containers import checked
from utils.files import shown

BLOCK = 1 << 18  # samples that are decoded at once
RESAMPLED_AT_ONCE, RESAMPLED_BLOCK = 60, 10  # s: the longest recording without blocks, and the blocks of a longer one
UNSTATED = 2**62  # above it is what libsndfile reports of a stream that states no length, as a FLAC from a pipe
SAMPLES = "the samples"  # what errors call samples that are of no file
_MAX_KERNEL = 50_000_000  # float32 taps, 200 MB; the usual pairs of rates need fewer than 100,000


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Decodes a whole file and averages its channels.

    Returns:
        Samples (s,) float32 in [-1, 1] (float files may exceed it), and the sample rate in Hz.

    Raises:
        UserError: the file is missing, is not audio, holds no samples, is truncated or damaged, or holds NaN or inf.
    """
    with open_audio(path) as (rate, blocks):
        samples = list(blocks)
    return np.concatenate(samples), rate


@contextlib.contextmanager
def open_audio(path: str | Path) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Opens a file as its sample rate and an iterator of mono blocks (s,) float32; errors as `read_audio`.

    The length that a header states is never trusted: blocks are decoded until there are no more.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    decode = _ffmpeg if path.suffix.lower() in FFMPEG_SUFFIXES else _soundfile
    try:
        with decode(path) as (rate, blocks):
            yield rate, _checked_blocks(path, blocks)
    except (UserError, MemoryError, GeneratorExit):
        raise
    except Exception as error:  # decoders raise what they like: LibsndfileError, RuntimeError, TypeError, ValueError
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise UserError(f"{path} is not audio that can be read: {' '.join(reason.split()).rstrip('.')}") from error


def _checked_blocks(path: Path, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Averages channels, (s, channels) to (s,); `UserError` for samples that are not finite, or none at all."""
    count = 0
    for block in blocks:
        if block.shape[1] > 1:
            block = block.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        mono = np.ascontiguousarray(block[:, 0])
        if not np.isfinite(mono).all():
            raise UserError(f"{path} holds NaN or infinite samples")
        count += len(mono)
        yield mono
    if not count:
        raise UserError(f"{path} holds no samples")


@contextlib.contextmanager
def _soundfile(path: Path) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    import soundfile

    with contextlib.ExitStack() as stack:
        source = checked(path)
        if isinstance(source, Path) and shown(source) != str(source):
            source = open(source, "rb")  # noqa: SIM115  soundfile takes names in UTF-8 alone; closed by the stack
        if not isinstance(source, Path):
            stack.enter_context(source)
        file = stack.enter_context(soundfile.SoundFile(source))
        # Read in sequence: soundfile seeks after each block where it can, which files of unknown length do not survive.
        file.seekable = lambda: False
        yield file.samplerate, _soundfile_blocks(path, file)


def _soundfile_blocks(path: Path, file: Any) -> Iterator[np.ndarray]:
    """Blocks (s, channels) float32; the samples of a FLAC are compared with its checksum."""
    bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(file.subtype, 0)
    wanted = _flac_checksum(path) if file.format == "FLAC" and bits else None
    # The checksum needs the exact integers, which libsndfile left-justifies in 32 bits.
    digest, kind = hashlib.md5(usedforsecurity=False), "int32" if wanted else "float32"
    count, stated = 0, file.frames
    while len(block := file.read(BLOCK // file.channels, dtype=kind, always_2d=True)):
        count += len(block)
        if wanted:
            packed = (block >> (32 - bits)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8]
            digest.update(np.ascontiguousarray(packed).tobytes())
            block = block.astype(np.float32) / np.float32(2**31)
        yield block
    if count != stated and stated < UNSTATED:
        raise UserError(f"{path} is truncated: it holds {count} of {stated} samples")
    if wanted and digest.digest() != wanted:
        raise UserError(f"{path} is damaged: its samples do not match the checksum in its header")


def _flac_checksum(path: Path) -> bytes | None:
    """Reads the MD5 of the samples from a FLAC file's STREAMINFO block; None if the encoder left it out."""
    with open(path, "rb") as file:
        head = file.read(42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F != 0:
        return None
    return head[26:42] if any(head[26:42]) else None


@contextlib.contextmanager
def _ffmpeg(path: Path) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Decodes the first audio stream by an ffmpeg process, as it is read."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(
            f"{path} can be decoded by ffmpeg only, which is not installed: install it, or convert the file elsewhere "
            f"by ffmpeg -i {path.name} {path.stem}.flac"
        )
    command = [program, "-nostdin", "-v", "error", "-i", path, "-vn", "-f", "au", "-c:a", "pcm_f32be", "-"]
    # Messages go to a file: ffmpeg would wait for a reader of a full pipe, and we for ffmpeg.
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process,
    ):
        try:
            head = process.stdout.read(24)
            if len(head) < 24:
                process.wait()
                raise UserError(f"{path} is not audio that can be read: {_reason(path, messages)}")
            begin, _, _, rate, channels = struct.unpack(">4x5I", head)
            process.stdout.read(begin - len(head))
            yield rate, _ffmpeg_blocks(path, process, channels, messages)
        finally:
            process.kill()  # one that has ended already does not mind


def _ffmpeg_blocks(path: Path, process: subprocess.Popen, channels: int, messages: IO[bytes]) -> Iterator[np.ndarray]:
    size = 4 * channels * (BLOCK // channels)
    while content := process.stdout.read(size):
        yield np.frombuffer(content, ">f4").reshape(-1, channels).astype(np.float32)
    if process.wait():
        raise UserError(f"{path} is truncated or damaged: {_reason(path, messages)}")


def _reason(path: Path, messages: IO[bytes]) -> str:
    """The last line of ffmpeg's messages, without the path."""
    messages.seek(0)
    lines = messages.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix(f"{path}: ") if lines else "ffmpeg reports no reason"


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Reads a file by `read_audio` and resamples it to `sample_rate` Hz where its rate differs.

    Returns:
        Samples (S,) float32.

    Raises:
        UserError: as `read_audio`, or the ratio of the rates is too complex.
    """
    return resample(path, *read_audio(path), sample_rate)


def checked_samples(samples: ArrayLike) -> np.ndarray:
    """Mono samples (s,) as float32, within [-1, 1] if they were signed integers; `UserError` for anything else."""
    values = np.asarray(samples)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{SAMPLES} have the shape {values.shape}; mono samples (s,) are needed")
    if values.dtype == np.int64:  # what numpy makes of a list of 16-bit samples
        raise UserError(f"{SAMPLES} are integers of 64 bits, which have no full scale: give int16, int32 or floats")
    if np.issubdtype(values.dtype, np.signedinteger):
        values = values / np.iinfo(values.dtype).max
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{SAMPLES} are of type {values.dtype}; floats or signed integers are needed")
    if not np.isfinite(values).all():
        raise UserError(f"{SAMPLES} contain NaN or infinite values")
    return values.astype(np.float32)


def resample(path: str | Path, samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Samples (s,) of `rate` Hz at `sample_rate` Hz; `path` names them in the error for too complex a ratio."""
    return samples if rate == sample_rate else _resample(_resampler(path, rate, sample_rate), samples)


def read_blocks(path: str | Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks (s,) float32 of what `load_audio` returns, read and resampled one after another; errors as there.

    A recording of up to `RESAMPLED_AT_ONCE` seconds is resampled at once.
    """
    with open_audio(path) as (rate, blocks):
        if rate == sample_rate:
            yield from blocks
            return
        resampler = BlockResampler(path, rate, sample_rate, RESAMPLED_BLOCK, RESAMPLED_AT_ONCE)
        for block in blocks:
            yield from resampler.push(block)
        yield resampler.rest()


class BlockResampler:
    """Resamples samples that arrive one after another, in blocks of `seconds`; `path` names them in errors.

    Each block is resampled with the samples that the filter reaches on both sides, which changes the result by rounding
    alone. What is no longer than `at_once` seconds altogether is left to `rest`, which then resamples it at once.
    """

    def __init__(self, path: str | Path, rate: int, sample_rate: int, seconds: float, at_once: float = 0) -> None:
        self._resampler = _resampler(path, rate, sample_rate)
        shared = math.gcd(rate, sample_rate)
        self._down, self._up = rate // shared, sample_rate // shared
        self._reach = self._down * (1 + math.ceil(self._resampler.width / self._down))
        self._size = self._down * math.ceil(seconds * rate / self._down)
        self._held, self._before, self._at_once = np.empty(0, np.float32), 0, at_once * rate

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Takes the next samples (s,), and yields the blocks that they complete."""
        self._held = np.concatenate([self._held, samples])
        while len(self._held) > max(self._at_once, self._before + self._size + self._reach):
            end = self._before + self._size
            result = _resample(self._resampler, self._held[: end + self._reach])
            yield result[self._before // self._down * self._up : end // self._down * self._up]
            self._held, self._before, self._at_once = self._held[end - self._reach :], self._reach, 0

    def rest(self) -> np.ndarray:
        """What is left if the samples end here; changes nothing."""
        return _resample(self._resampler, self._held)[self._before // self._down * self._up :]


def _resample(resampler: Any, samples: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return resampler(torch.from_numpy(samples)).numpy()


def _resampler(path: str | Path, rate: int, sample_rate: int) -> Any:
    if not isinstance(rate, numbers.Integral) or rate < 1:
        raise UserError(f"{path} cannot have a sample rate of {rate} Hz: it is an integer from 1 on")
    shared = math.gcd(rate, sample_rate)
    if (rate // shared) * (sample_rate // shared) > _MAX_KERNEL:
        raise UserError(f"{path} has a sample rate of {rate} Hz, which cannot be resampled to {sample_rate} Hz")
    return _cached_resampler(rate, sample_rate)


@functools.lru_cache(maxsize=8)
def _cached_resampler(rate: int, sample_rate: int) -> Any:
    from utils.features.mel import import_torchaudio

    return import_torchaudio().transforms.Resample(rate, sample_rate)
