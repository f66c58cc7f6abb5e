"""Audio files to samples: decoded by soundfile, checked for damage that decoders ignore, resampled by torchaudio."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

# The length that recorders writing to a pipe leave in a WAV header, and the one libsndfile reports for such a FLAC.
_UNKNOWN_LENGTH = 0xFFFFFFFF
_UNKNOWN_FRAMES = 2**63 - 1
_MAX_KERNEL = 50_000_000  # float32 taps, 200 MB; the usual pairs of rates need fewer than 100,000


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Decodes a whole file and averages its channels.

    Returns:
        Samples (S,) float32 in [-1, 1] (float files may exceed it), and the sample rate in Hz.

    Raises:
        UserError: the file is missing, is not audio, holds no samples, is truncated or damaged, or holds NaN or inf.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    _check_riff_length(path)
    samples, rate = _decode(path)
    if samples.shape[1] > 1:
        samples = samples.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    samples = np.ascontiguousarray(samples[:, 0])
    if not np.isfinite(samples).all():
        raise UserError(f"{path} holds NaN or infinite samples")
    return samples, rate


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Decodes samples (S, channels) float32 and the rate; checks the number of samples and FLAC's checksum."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if file.frames == _UNKNOWN_FRAMES:  # libsndfile can neither count nor seek in such a file
                raise UserError(f"{path} has no length in its header: convert it to FLAC or WAV again")
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(file.subtype, 0)
            checksum = _flac_checksum(path) if file.format == "FLAC" and bits else None
            # The checksum needs the exact integers, which libsndfile left-justifies in 32 bits.
            samples = file.read(dtype="int32" if checksum else "float32", always_2d=True)
            frames, rate = file.frames, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise UserError(f"{path} is not audio that soundfile can read: {reason.strip().rstrip('.')}") from error
    if len(samples) == 0:
        raise UserError(f"{path} holds no samples")
    if len(samples) != frames:
        raise UserError(f"{path} is truncated: it holds {len(samples)} of {frames} samples")
    if checksum:
        if _pcm_md5(samples, bits) != checksum:
            raise UserError(f"{path} is damaged: its samples do not match the checksum in its header")
        samples = samples.astype(np.float32) / np.float32(2**31)
    return samples, rate


def _flac_checksum(path: Path) -> bytes | None:
    """Reads the MD5 of the samples from a FLAC file's STREAMINFO block; None if the encoder left it out."""
    with open(path, "rb") as file:
        head = file.read(42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F != 0:
        return None
    return head[26:42] if any(head[26:42]) else None


def _pcm_md5(samples: np.ndarray, bits: int) -> bytes:
    """MD5 of left-justified 32-bit samples (S, channels) as FLAC defines it: interleaved, little-endian, packed."""
    packed = (samples >> (32 - bits)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8]
    return hashlib.md5(np.ascontiguousarray(packed).tobytes(), usedforsecurity=False).digest()


def _check_riff_length(path: Path) -> None:
    """Raises `UserError` if a WAV's data chunk is longer than the file: decoders silently return the rest."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                if length != _UNKNOWN_LENGTH and file.tell() + length > size:
                    present = max(0, size - file.tell())
                    raise UserError(f"{path} is truncated: it holds {present} of {length} bytes of audio")
                return
            file.seek(length + length % 2, os.SEEK_CUR)
    raise UserError(f"{path} is truncated: it is a WAV file without audio data")


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Reads a file by `read_audio` and resamples it to `sample_rate` Hz where its rate differs.

    Returns:
        Samples (S,) float32.

    Raises:
        UserError: as `read_audio`, or the ratio of the rates is too complex.
    """
    samples, rate = read_audio(path)
    if rate == sample_rate:
        return samples
    if (rate // math.gcd(rate, sample_rate)) * (sample_rate // math.gcd(rate, sample_rate)) > _MAX_KERNEL:
        raise UserError(f"{path} has a sample rate of {rate} Hz, which cannot be resampled to {sample_rate} Hz")
    import torch

    with torch.no_grad():
        return _resampler(rate, sample_rate)(torch.from_numpy(samples)).numpy()


@functools.lru_cache(maxsize=8)
def _resampler(rate: int, sample_rate: int) -> Any:
    from utils.features.mel import import_torchaudio

    return import_torchaudio().transforms.Resample(rate, sample_rate)
