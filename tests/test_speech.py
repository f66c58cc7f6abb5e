"""Detection of speech: sounds without any, and speech of any level, length and channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from voices import VOICES, speak

from utils.features.speech import audible, spoken

RATE = 16_000
NEEDED = 0.5  # s, for a speaker to be enrolled


def noise(draw: np.random.Generator, seconds: float, color: float) -> np.ndarray:
    """Noise of RMS 1 whose power falls as frequency to the power `color` above 20 Hz."""
    count = round(seconds * RATE)
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20)
    samples = np.fft.irfft(np.fft.rfft(draw.standard_normal(count)) / frequencies ** (color / 2), count)
    return samples / samples.std()


def hum(draw: np.random.Generator, time: np.ndarray, frequency: float) -> np.ndarray:
    return sum(np.sin(2 * np.pi * frequency * k * time + draw.uniform(0, 6)) / k for k in range(1, 30))


def clicks(draw: np.random.Generator, time: np.ndarray, decay: float) -> np.ndarray:
    samples = np.zeros(len(time))
    for place in draw.integers(0, len(time) - 1000, 5):
        samples[place : place + 1000] += draw.standard_normal(1000) * np.exp(-time[:1000] / decay)
    return samples


def step(draw: np.random.Generator, time: np.ndarray) -> np.ndarray:
    before, after = draw.permutation([0.01, 0.2])
    return np.where(time < draw.uniform(0.1, 0.9) * time[-1], before, after)


Sound = Callable[[np.random.Generator, np.ndarray], np.ndarray]
SILENT: dict[str, Sound] = {
    "digital silence": lambda draw, time: 0 * time,
    "offset": lambda draw, time: 0 * time + 0.1,
    "noisy offset": lambda draw, time: 0.2 + 1e-4 * draw.standard_normal(len(time)),
    "drift": lambda draw, time: 0.2 * time / time[-1],
    "swinging offset": lambda draw, time: 0.2 * np.sin(2 * np.pi * draw.uniform(0.1, 2) * time),
    "one bit that toggles": lambda draw, time: draw.integers(0, 2, len(time)) / 2**15,
    "faint white noise": lambda draw, time: 1e-4 * noise(draw, time[-1] + 1 / RATE, 0),
    "white noise": lambda draw, time: 0.03 * noise(draw, time[-1] + 1 / RATE, 0),
    "clipping white noise": lambda draw, time: noise(draw, time[-1] + 1 / RATE, 0),
    "faint pink noise": lambda draw, time: 1e-4 * noise(draw, time[-1] + 1 / RATE, 1),
    "pink noise": lambda draw, time: 0.1 * noise(draw, time[-1] + 1 / RATE, 1),
    "brown noise": lambda draw, time: 0.1 * noise(draw, time[-1] + 1 / RATE, 2),
    "50 Hz": lambda draw, time: 0.1 * hum(draw, time, 50),
    "60 Hz": lambda draw, time: 0.1 * hum(draw, time, 60) + 1e-3 * draw.standard_normal(len(time)),
    "tone": lambda draw, time: 0.3 * np.sin(2 * np.pi * draw.uniform(200, 4000) * time),
    "tone that starts": lambda draw, time: 0.3 * np.sin(2 * np.pi * 1000 * time) * (time > time[-1] / 2),
    "clicks": lambda draw, time: clicks(draw, time, 1e-4) + 1e-4 * draw.standard_normal(len(time)),
    "clicks that fade": lambda draw, time: clicks(draw, time, 3e-3),
    "noise that starts or ends": lambda draw, time: draw.standard_normal(len(time)) * step(draw, time),
}


def speech_seconds(samples: np.ndarray, rate: int) -> float:
    return spoken(samples, rate).seconds


def in_16_bits(samples: np.ndarray) -> np.ndarray:
    return (np.round(np.clip(samples, -1, 1 - 2**-15) * 2**15) / 2**15).astype(np.float32)


@pytest.mark.parametrize("seconds", [1, 10])
@pytest.mark.parametrize("name", SILENT)
def test_sounds_without_speech(name, seconds):
    draw, time = np.random.default_rng(1), np.arange(seconds * RATE) / RATE
    found = [speech_seconds(in_16_bits(SILENT[name](draw, time)), RATE) for _ in range(4)]
    # A step near the border of a recording is a sound that came or went; clicks count while they last.
    assert max(found) < NEEDED if "clicks" in name or "starts" in name else max(found) == 0


@pytest.mark.parametrize("decibels", [-200, -60])
def test_long_pauses_are_left_out(decibels):
    first, second = (in_16_bits(0.1 * speak(np.random.default_rng(seed), "103", 2)) for seed in (1, 2))
    pause = np.zeros(2 * RATE, np.float32)
    samples = np.concatenate([pause, first, pause, second, pause])
    samples += 10 ** (decibels / 20) * np.random.default_rng(3).standard_normal(len(samples)).astype(np.float32)
    kept = spoken(samples, RATE).samples
    assert len(first) + len(second) - RATE < len(kept) < len(first) + len(second) + 1.5 * RATE
    np.testing.assert_array_equal(spoken(kept, RATE).samples, kept)


def test_pauses_within_speech_stay():
    first, second = (0.1 * speak(np.random.default_rng(seed), "103", 2).astype(np.float32) for seed in (1, 2))
    samples = np.concatenate([first, np.zeros(RATE // 2, np.float32), second])
    samples += 1e-4 * np.random.default_rng(3).standard_normal(len(samples)).astype(np.float32)
    assert spoken(samples, RATE).samples is samples


def test_digital_silence_is_left_out_at_any_length():
    first, second = (in_16_bits(0.1 * speak(np.random.default_rng(seed), "103", 2)) for seed in (1, 2))
    kept = spoken(np.concatenate([first, np.zeros(RATE // 4, np.float32), second]), RATE).samples
    assert len(kept) < len(first) + len(second) + 0.05 * RATE


def test_a_click_in_digital_silence_is_not_all_that_remains():
    samples = np.zeros(RATE, np.float32)
    samples[9000:9100] = 0.5
    assert audible(samples, RATE) is samples


def test_a_recording_without_speech_stays():
    samples = np.zeros(5 * RATE, np.float32)
    assert spoken(samples, RATE).samples is samples


@pytest.mark.parametrize("samples", [0, 1, 639, 640, 900])
def test_recordings_of_a_frame_or_less_hold_none(samples):
    assert speech_seconds(np.random.default_rng(0).standard_normal(samples).astype(np.float32), RATE) == 0


@pytest.mark.parametrize("voice", VOICES)
def test_speech_counts_at_every_level(voice):
    samples = speak(np.random.default_rng(2), voice, 2.5)
    found = speech_seconds(samples, RATE)
    assert 1.9 < found <= 2.5
    for decibels in (-50, -40, -20):
        scaled = in_16_bits(samples / samples.std() * 10 ** (decibels / 20))
        assert speech_seconds(scaled, RATE) == pytest.approx(found, abs=0.1)
    for scale in (1e3, 1e38):  # files of floats
        assert speech_seconds(samples * np.float32(scale), RATE) == pytest.approx(found, abs=0.1)
    for decibels in (0, 10):  # clipped
        assert speech_seconds(in_16_bits(samples / samples.std() * 10 ** (decibels / 20)), RATE) > 1.5


def test_a_short_recording_without_a_pause_is_enough():
    time = np.arange(RATE) / RATE
    syllables = 0.01 + np.abs(np.sin(2 * np.pi * 2 * time))  # four, 30 dB deep
    for voice in VOICES:
        assert speech_seconds((speak(np.random.default_rng(7), voice, 1) * syllables).astype(np.float32), RATE) > 0.7


def test_speech_between_silence_counts_for_its_own_length_under_an_offset():
    samples = np.concatenate([np.zeros(2 * RATE), speak(np.random.default_rng(3), "105", 1.5), np.zeros(2 * RATE)])
    clean = speech_seconds(in_16_bits(samples), RATE)
    assert clean == pytest.approx(1.5, abs=0.15)
    for offset in (0.002, 0.2, 0.2 * np.linspace(0, 1, len(samples))):
        assert speech_seconds(in_16_bits(samples + offset), RATE) == pytest.approx(clean, abs=0.05)


def test_speech_does_not_depend_on_the_rate():
    found = {rate: speech_seconds(speak(np.random.default_rng(4), "103", 2, rate), rate) for rate in (8_000, 22_050)}
    assert found[8_000] == pytest.approx(found[22_050], abs=0.2) and found[8_000] > 1.5


def telephone(samples: np.ndarray) -> np.ndarray:
    spectrum, frequencies = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / RATE)
    return np.fft.irfft(spectrum * ((frequencies > 300) & (frequencies < 3400)), len(samples)).astype(np.float32)


def test_speech_on_the_telephone_and_in_noise():
    draw = np.random.default_rng(5)
    for voice in VOICES:
        samples = speak(draw, voice, 3)
        assert speech_seconds(telephone(samples), RATE) > 2.4
        noisy = samples + samples.std() / 10**0.5 * draw.standard_normal(len(samples))
        assert speech_seconds(noisy.astype(np.float32), RATE) > 1.5


@pytest.mark.real
@pytest.mark.parametrize("change", ["none", "telephone", "noise of 10 dB", "-50 dB"])
def test_real_speech(real_data: Path, change):
    draw, shares = np.random.default_rng(6), []
    for path in sorted((real_data / "speakers_dev").rglob("*.flac"))[::10]:
        samples, _ = soundfile.read(path, dtype="float32")
        level = samples.std()
        if change == "telephone":
            samples = telephone(samples)
        elif change == "noise of 10 dB":
            samples = (samples + level / 10**0.5 * draw.standard_normal(len(samples))).astype(np.float32)
        elif change == "-50 dB":
            samples = in_16_bits(samples / level * 10 ** (-50 / 20))
        found = speech_seconds(samples, RATE)
        shares.append(found / (len(samples) / RATE))
        assert found >= NEEDED, path
    assert np.median(shares) > (0.55 if "noise" in change else 0.7)


@pytest.mark.real
def test_real_noise(real_data: Path):
    for name in ("white_noise", "pink_noise", "running_tap", "exercise_bike"):
        samples, rate = soundfile.read(real_data / "speakers_more" / "noise" / f"sc_{name}.ogg", dtype="float32")
        assert speech_seconds(samples, rate) < NEEDED
