"""Audio files to samples: decoded by soundfile, checked for damage that decoders pass over, resampled by torchaudio."""

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

# What recorders that write to a pipe leave in a WAV's header, and what libsndfile makes of such a FLAC's.
_UNKNOWN_LENGTH = 0xFFFFFFFF
_UNKNOWN_FRAMES = 2**63 - 1
_MAX_KERNEL = 50_000_000  # float32 taps, 200 MB; the usual pairs of rates need fewer than 100,000


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Decodes a whole file and mixes its channels.

    Returns:
        Samples (S,) float32 in [-1, 1] (float files may exceed it), and the sample rate in Hz.

    Raises:
        UserError: the file is missing, is not audio, holds no samples, is cut short or damaged, or holds NaN or inf.
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
        raise UserError(f"{path} holds samples that are not finite numbers")
    return samples, rate


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Samples (S, channels) float32 and rate; checks the number of samples and FLAC's checksum."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if file.frames == _UNKNOWN_FRAMES:  # libsndfile can neither count such a file's samples nor seek in it
                raise UserError(f"{path} does not say how many samples it holds: convert it to FLAC or WAV again")
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(file.subtype, 0)
            checksum = _flac_checksum(path) if file.format == "FLAC" and bits else None
            # With a checksum the exact integers are needed; libsndfile left-justifies them in 32 bits.
            samples = file.read(dtype="int32" if checksum else "float32", always_2d=True)
            frames, rate = file.frames, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise UserError(f"{path} is not audio that can be read: {reason.strip().rstrip('.')}") from error
    if len(samples) == 0:
        raise UserError(f"{path} holds no samples")
    if len(samples) != frames:
        raise UserError(f"{path} is cut short: {len(samples)} samples where its header says {frames}")
    if checksum:
        if _pcm_md5(samples, bits) != checksum:
            raise UserError(f"{path} is damaged: its samples do not match the checksum in its header")
        samples = samples.astype(np.float32) / np.float32(2**31)
    return samples, rate


def _flac_checksum(path: Path) -> bytes | None:
    """The MD5 of the samples that a FLAC file carries in its STREAMINFO block; None if the encoder left it out."""
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
    """`UserError` if a WAV's data chunk is longer than the file: decoders silently return what is left of it."""
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
                    raise UserError(f"{path} is cut short: {present} bytes of audio where its header says {length}")
                return
            file.seek(length + length % 2, os.SEEK_CUR)
    raise UserError(f"{path} is cut short: a WAV file without audio data")


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """`read_audio`, resampled to `sample_rate` Hz where the file's rate differs.

    Returns:
        Samples (S,) float32.
    """
    samples, rate = read_audio(path)
    if rate == sample_rate:
        return samples
    if (rate // math.gcd(rate, sample_rate)) * (sample_rate // math.gcd(rate, sample_rate)) > _MAX_KERNEL:
        raise UserError(f"{path} has {rate} samples per second, a rate that cannot be turned into {sample_rate}")
    import torch

    with torch.no_grad():
        return _resampler(rate, sample_rate)(torch.from_numpy(samples)).numpy()


@functools.lru_cache(maxsize=8)
def _resampler(rate: int, sample_rate: int) -> Any:
    from utils.features.mel import import_torchaudio

    return import_torchaudio().transforms.Resample(rate, sample_rate)
