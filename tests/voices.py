"""Eight synthetic voices, which a small model can tell apart."""

from __future__ import annotations

import numpy as np

# First three formants in Hz of five vowels of an average voice (Peterson and Barney, 1952, rounded).
VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
# Fundamental in Hz, vocal tract scale, slope of the spectrum in Hz.
VOICES = {
    "101": ("M", 85, 0.85, 900),
    "102": ("M", 105, 1.00, 1600),
    "103": ("M", 130, 0.90, 2600),
    "104": ("M", 150, 1.08, 1100),
    "105": ("F", 175, 1.05, 2200),
    "106": ("F", 200, 1.18, 1300),
    "107": ("F", 230, 1.10, 3200),
    "108": ("F", 265, 1.25, 1800),
}


def speak(draw: np.random.Generator, voice: str, seconds: float, rate: int = 16_000) -> np.ndarray:
    """A harmonic "voice" that says random vowels: pulses through formants; (S,) float32."""
    _, pitch, scale, slope = VOICES[voice]
    length, hop = int(seconds * rate), int(0.1 * rate)
    melody = pitch * (1 + 0.06 * np.sin(2 * np.pi * draw.uniform(0.5, 1.5) * np.arange(length + 2 * hop) / rate))
    pulses = np.diff(np.floor(np.cumsum(melody / rate)), prepend=0) + 0.02 * draw.standard_normal(length + 2 * hop)
    frequencies = np.fft.rfftfreq(2 * hop, 1 / rate)[:, None]
    speech = np.zeros(length + 2 * hop)
    for start in range(0, length, hop):
        formants = VOWELS[draw.integers(len(VOWELS))] * scale
        envelope = (1 / (1 + ((frequencies - formants) / 90) ** 2)).sum(axis=1) * np.exp(-frequencies[:, 0] / slope)
        frame = pulses[start : start + 2 * hop] * np.hanning(2 * hop)
        speech[start : start + 2 * hop] += np.fft.irfft(np.fft.rfft(frame) * envelope, 2 * hop)
    speech = speech[:length] + 1e-4 * draw.standard_normal(length)
    return (0.3 * speech / np.abs(speech).max()).astype(np.float32)
