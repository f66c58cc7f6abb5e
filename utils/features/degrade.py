"""Degradations of speech: noise, rooms, telephones, codecs, microphones and levels, as functions of samples.

Samples are (S,) float32, at a rate in Hz where it matters; results are of the same length and aligned with the input,
except those of `speed` and `cut`. What is random takes a numpy Generator, and all else depends on the arguments alone.
Everything runs on one thread of numpy and libsndfile.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SPEED_OF_SOUND = 343.0  # m/s
ACTIVE = 30.0  # dB below the loudest frame down to which a frame counts as speech
FRAME = 400  # samples of a frame of that decision
DIRECT = 0.25  # of the peak of an impulse response
LOWEST = 1 / 800  # cycles per sample below which colored noise is flat: 20 Hz at 16 kHz
EARLY_SECONDS = 0.05  # of a room's response that consist of single reflections
CODECS = {
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "AVERAGE"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "gsm": {"format": "WAV", "subtype": "GSM610"},
    "ulaw": {"format": "WAV", "subtype": "ULAW"},
}
WITH_LEVEL = ("mp3", "vorbis", "opus")  # codecs that a compression level sets
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
HIGHEST_LEVEL = 0.99  # libsndfile refuses 1 for MP3
RAMP = 1_000  # samples, at least, between the end of a signal and its repetition in a Fourier series
TELEPHONE_RATE, TELEPHONE_BAND = 8_000, (300.0, 3_400.0)


@dataclass(frozen=True)
class Scene:
    """What surrounds samples of speech: their rate, and `voice(length)`, samples of a random other speaker."""

    rate: int
    voice: Callable[[int], np.ndarray]


def active_power(x: np.ndarray) -> float:
    """Mean square of speech without its pauses: over the frames within 30 dB of the loudest."""
    whole = len(x) // FRAME * FRAME
    squares = np.square(x[:whole] if whole else x, dtype=np.float64)
    powers = squares.reshape(-1, FRAME).mean(1) if whole else squares.mean(keepdims=True)
    return float(powers[powers >= powers.max() * 10 ** (-ACTIVE / 10)].mean())


def add_noise(x: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech with noise (S,) at a ratio in dB of the active speech to the mean of the noise; silent noise adds none."""
    power = float(np.square(noise, dtype=np.float64).mean())
    if power == 0:
        return x
    return x + noise * np.float32(math.sqrt(active_power(x) / power) * 10 ** (-snr_db / 20))


def colored_noise(length: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of mean square 1 whose power falls as 1 / f^exponent: 0 is white, 1 pink, 2 brown, -1 blue."""
    size = _fast_length(length)
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    frequencies = np.maximum(np.fft.rfftfreq(size), LOWEST)
    noise = np.fft.irfft(spectrum * frequencies.astype(np.float32) ** (-exponent / 2), size)[:length]
    return (noise / np.sqrt(np.square(noise).mean())).astype(np.float32)


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of voices (S,) at equal active levels."""
    levels = [math.sqrt(active_power(voice)) for voice in voices]
    return sum(voice / np.float32(level or 1.0) for voice, level in zip(voices, levels, strict=True))


def reverberate(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech in a room with an impulse response (N,), aligned to its direct path; the level stays.

    The direct path is the first sample within 12 dB of the peak, which can be a later one where reflections coincide.
    """
    size = _fast_length(len(x) + len(response) - 1)
    wet = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(response, size), size)
    sizes = np.abs(response)
    direct = int((sizes > DIRECT * sizes.max()).argmax())
    wet = wet[direct : direct + len(x)]
    power = np.square(wet).mean()
    return (wet * np.sqrt(np.square(x).mean() / power) if power else x).astype(np.float32)


def random_room(rng: np.random.Generator, rate: int, rt60: float) -> np.ndarray:
    """The response between two places in a random room of 3 to 10 by 3 to 8 by 2.4 to 4 m."""
    size = rng.uniform((3, 3, 2.4), (10, 8, 4))
    source, microphone = rng.uniform(0.1, 0.9, (2, 3)) * size
    return room_response(size, source, microphone, rate, rt60, rng)


def room_response(
    size: np.ndarray, source: np.ndarray, microphone: np.ndarray, rate: int, rt60: float, rng: np.random.Generator
) -> np.ndarray:
    """Impulse response (N,) float32 of a shoebox room, from a direct path at sample 0 to `rt60` seconds.

    Early reflections are those of the image method (Allen and Berkley 1979). The millions of images that follow are
    replaced by noise that decays with their expected power (Lehmann and Johansson, "Diffuse reverberation model for
    efficient image-source simulation of room impulse responses", 2010), so that a response takes a millisecond.
    Eyring's formula gives the reflection from `rt60`; its sign is negative, which leaves no offset.

    Args:
        size, source, microphone: edges of the room and two places in it, (3,) in m.
    """
    early = min(EARLY_SECONDS, rt60)
    volume, surface = size.prod(), 2 * (size[0] * size[1] + size[1] * size[2] + size[2] * size[0])
    reflection = -math.exp(-12 * math.log(10) * volume / (SPEED_OF_SOUND * surface * rt60))
    direct = float(np.linalg.norm(source - microphone))
    offsets, bounces = [], []
    for edge, here, there in zip(size, source, microphone, strict=True):
        rooms = np.arange(-(n := math.ceil((direct + SPEED_OF_SOUND * early) / (2 * edge))), n + 1)
        offsets.append(np.concatenate([2 * rooms * edge + here - there, 2 * rooms * edge - here - there]))
        bounces.append(np.concatenate([np.abs(2 * rooms), np.abs(2 * rooms - 1)]))
    distance = np.sqrt(sum(np.square(part) for part in np.ix_(*offsets))).ravel()
    order = sum(np.ix_(*bounces)).ravel()
    delay = np.rint((distance - direct) / SPEED_OF_SOUND * rate).astype(int)
    near = delay < round(early * rate)
    response = np.zeros(round(rt60 * rate))
    pressure = reflection ** order[near] / (4 * math.pi * distance[near])
    response += np.bincount(delay[near], pressure, len(response))
    late = np.arange(round(early * rate), len(response))
    density = SPEED_OF_SOUND / (4 * math.pi * volume * rate)  # mean power of a sample before absorption
    decay = 10 ** (-3 * (late / rate + direct / SPEED_OF_SOUND) / rt60)
    response[late] = rng.standard_normal(len(late)) * math.sqrt(density) * decay
    return (response / np.abs(response).max()).astype(np.float32)


def telephone(x: np.ndarray, rate: int, coding: str = "ulaw") -> np.ndarray:
    """Speech through a telephone: 300 to 3400 Hz at 8 kHz, 8-bit mu-law (G.711) or GSM full rate (`coding` "gsm")."""
    narrow = _telephone_band(resample(x, rate, TELEPHONE_RATE))
    heard = _telephone_band(codec(narrow, TELEPHONE_RATE, coding))
    return cut(resample(heard, TELEPHONE_RATE, rate), 0, len(x))


def _telephone_band(x: np.ndarray) -> np.ndarray:
    low, high = TELEPHONE_BAND
    return _filtered(x, TELEPHONE_RATE, lambda f: _edge(f, low, 6) * _edge(f, high, -60))


def codecs_of(rate: int) -> list[str]:
    """Names of the codecs with a compression level that take a sample rate."""
    return [name for name in WITH_LEVEL if name != "opus" or rate in OPUS_RATES]


def codec(x: np.ndarray, rate: int, name: str, level: float | None = None) -> np.ndarray:
    """Speech coded and decoded by libsndfile; one of `CODECS`.

    Args:
        level: compression from 0, the largest file, to 1, for those in `WITH_LEVEL`. At 16 kHz, 0.5 to 1 is 88 to
            12 kb/s for mp3, 57 to 40 for vorbis, 137 to 9 for opus.
    """
    import soundfile

    scale = np.float32(max(1.0, float(np.abs(x).max())))  # codecs clip what exceeds full scale
    options = {**CODECS[name]} if level is None else {**CODECS[name], "compression_level": min(level, HIGHEST_LEVEL)}
    file = io.BytesIO()
    soundfile.write(file, x / scale, rate, **options)
    file.seek(0)
    decoded = soundfile.read(file, dtype="float32")[0] * scale
    return np.pad(decoded[: len(x)], (0, max(0, len(x) - len(decoded))))


def equalize(x: np.ndarray, rate: int, hertz: Sequence[float], decibels: Sequence[float]) -> np.ndarray:
    """Speech through a zero-phase filter with gains in dB at rising frequencies, linear in log f between them."""
    knots = np.log(hertz)
    return _filtered(x, rate, lambda f: 10 ** (np.interp(np.log(np.maximum(f, 1.0)), knots, decibels) / 20))


def random_curve(rng: np.random.Generator, rate: int, largest_db: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and gains for `equalize`: every octave from 60 Hz on, a walk that stays within `largest_db` dB."""
    hertz = 60.0 * 2.0 ** np.arange(math.log2(rate / 120))
    walk = np.cumsum(rng.uniform(-1, 1, len(hertz)))
    walk -= walk.mean()
    return hertz, walk * largest_db * rng.uniform() / max(float(np.abs(walk).max()), 1e-9)


def tilt(x: np.ndarray, rate: int, db_per_octave: float) -> np.ndarray:
    """Speech whose spectrum is tilted about 1 kHz."""
    ends = np.array([50.0, rate / 2])
    return equalize(x, rate, ends, db_per_octave * np.log2(ends / 1000))


def low_pass(x: np.ndarray, rate: int, hertz: float) -> np.ndarray:
    """Speech without what is above a frequency, by 24 dB per octave and more."""
    return _filtered(x, rate, lambda f: _edge(f, hertz, -24))


def gain(x: np.ndarray, decibels: float) -> np.ndarray:
    """Speech at another level."""
    return x * np.float32(10 ** (decibels / 20))


def clip(x: np.ndarray, decibels: float) -> np.ndarray:
    """Speech clipped `decibels` dB below its peak."""
    limit = np.abs(x).max() * np.float32(10 ** (-decibels / 20))
    return x.clip(-limit, limit)


def speed(x: np.ndarray, factor: float) -> np.ndarray:
    """Speech played faster by a factor of two digits, which raises its pitch too; about S / factor samples."""
    ratio = Fraction(factor).limit_denominator(100)
    return resample(x, ratio.numerator, ratio.denominator)


def cut(x: np.ndarray, start: int, length: int) -> np.ndarray:
    """`length` samples from `start` on, of speech that is repeated where it ends."""
    return x[start : start + length] if start + length <= len(x) else np.resize(x[start:], length)


def resample(x: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples at another rate, ceil(S new_rate / rate) of them, without what the lower rate cannot hold."""
    if rate == new_rate:
        return x
    divisor = math.gcd(rate, new_rate)
    down, up = rate // divisor, new_rate // divisor
    unit = _fast_length(-(-(len(x) + RAMP) // down))
    spectrum = np.fft.rfft(_ramped(x, unit * down))[: unit * min(up, down) // 2] * np.float32(up / down)
    return np.fft.irfft(spectrum, unit * up)[: -(-len(x) * up // down)].astype(np.float32)


def _filtered(x: np.ndarray, rate: int, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Samples with the gain `response` (of frequencies in Hz), at zero phase."""
    size = _fast_length(len(x) + RAMP)
    gains = response(np.fft.rfftfreq(size, 1 / rate))
    return np.fft.irfft(np.fft.rfft(_ramped(x, size)) * gains.astype(np.float32), size)[: len(x)].astype(np.float32)


def _ramped(x: np.ndarray, size: int) -> np.ndarray:
    """Samples and a straight line back to the first, so that a Fourier series of length `size` meets no jump."""
    return np.concatenate([x, np.linspace(x[-1], x[0], size - len(x), dtype=np.float32)])


def _edge(frequencies: np.ndarray, corner: float, order: float) -> np.ndarray:
    """Gain of a Butterworth filter of an order, high-pass if it is positive, low-pass if it is negative."""
    ratio = np.maximum(frequencies, 1.0) / corner
    return 1 / np.sqrt(1 + ratio ** (-2.0 * order))


def _fast_length(length: int) -> int:
    """The least size of at least `length` for a fast Fourier transform: a power of two, or 3/4 or 5/8 of one."""
    power = 1 << (length - 1).bit_length()
    return min(size for size in (power, power * 3 // 4, power * 5 // 8) if size >= length)
