"""Each degradation: what it does to the spectrum, level and time of a signal."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from voices import speak

from utils.errors import UserError
from utils.features import degrade
from utils.features.sounds import SoundFolder

RATE = 16_000


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """3 s of voice and 3 s of silence."""
    voice = speak(np.random.default_rng(0), "107", 3.0)
    return np.concatenate([voice, np.zeros_like(voice)])


def share_db(x: np.ndarray, low: float, high: float, rate: int = RATE) -> float:
    """Power between two frequencies relative to all, in dB."""
    power = np.abs(np.fft.rfft(x.astype(np.float64))) ** 2
    frequencies = np.fft.rfftfreq(len(x), 1 / rate)
    return 10 * np.log10(power[(frequencies >= low) & (frequencies < high)].sum() / power.sum())


def lag(x: np.ndarray, y: np.ndarray) -> int:
    """Samples by which `y` is late, by the largest cross-correlation."""
    size = 2 * len(x)
    products = np.fft.irfft(np.fft.rfft(y, size) * np.conj(np.fft.rfft(x, size)), size)
    place = int(products.argmax())
    return place if place < len(x) else place - size


def level(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def sine(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 15.0])
@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
def test_noise_has_the_asked_ratio_to_the_speech_without_its_pauses(speech, snr, exponent):
    noise = degrade.colored_noise(len(speech), exponent, np.random.default_rng(1))
    added = degrade.add_noise(speech, noise, snr) - speech
    voiced = level(speech[: len(speech) // 2])
    assert 20 * np.log10(voiced / level(added)) == pytest.approx(snr, abs=0.5)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
def test_the_power_of_colored_noise_falls_as_its_exponent_says(exponent):
    noise = degrade.colored_noise(40 * RATE, exponent, np.random.default_rng(2))
    assert level(noise) == pytest.approx(1, abs=1e-3)
    octaves = [
        share_db(noise, low, 2 * low) for low in (250, 500, 1000, 2000)
    ]  # an octave is twice as wide as the last
    assert np.allclose(np.diff(octaves), 10 * np.log10(2) * (1 - exponent), atol=0.3)


def test_babble_has_all_voices_at_one_level():
    draw = np.random.default_rng(3)
    voices = [scale * speak(draw, name, 2.0) for scale, name in ((1, "101"), (0.01, "105"), (5, "108"))]
    mixture = degrade.babble(voices)
    shares = [voice @ mixture / level(voice) / len(mixture) for voice in voices]
    assert len(mixture) == len(voices[0]) and np.ptp(shares) < 0.25 and min(shares) > 0.8


def reverberation_time(response: np.ndarray, rate: int) -> float:
    """RT60 from the decay of the energy that is left (Schroeder 1965), between -5 and -25 dB."""
    left = 10 * np.log10(np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1] + 1e-30)
    left -= left[0]
    return 3 * (np.argmax(left < -25) - np.argmax(left < -5)) / rate


@pytest.mark.parametrize("rate", [RATE, 22_050])
@pytest.mark.parametrize("rt60", [0.2, 0.5, 0.9])
def test_rooms_decay_in_the_asked_time(rt60, rate):
    responses = [degrade.random_room(np.random.default_rng(seed), rate, rt60) for seed in range(40)]
    times = [reverberation_time(response, rate) for response in responses]
    assert np.median(times) == pytest.approx(rt60, rel=0.05)
    assert np.mean(np.abs(np.array(times) / rt60 - 1) < 0.15) >= 0.85  # beside a source, the decay begins lower
    assert all(len(response) == round(rt60 * rate) for response in responses)
    assert np.mean([abs(response[0]) > degrade.DIRECT for response in responses]) >= 0.95


def test_early_reflections_are_those_of_the_six_walls():
    size, source, microphone = np.array([7.0, 5.0, 3.0]), np.array([2.0, 1.5, 1.2]), np.array([4.5, 2.5, 1.6])
    response = degrade.room_response(size, source, microphone, RATE, 0.6, np.random.default_rng(0))
    direct = np.linalg.norm(source - microphone)
    expected = np.zeros(RATE)
    surface = 2 * (7 * 5 + 5 * 3 + 3 * 7)
    absorbed = 1 - np.exp(-24 * np.log(10) * 105 / (343 * surface * 0.6))  # Eyring
    for axis in range(3):
        for wall in (0.0, size[axis]):
            image = source.copy()
            image[axis] = 2 * wall - source[axis]
            distance = np.linalg.norm(image - microphone)
            expected[round((distance - direct) / 343 * RATE)] -= np.sqrt(1 - absorbed) * direct / distance
    places = np.flatnonzero(expected)
    first = places[: np.searchsorted(places, 150)]  # before images of images
    assert len(first) >= 3 and np.allclose(response[first], expected[first], atol=1e-6)
    assert np.flatnonzero(response[: first[2] + 1]).tolist() == [0, *first[:3]]


def test_reverberated_speech_is_aligned_at_its_level_and_goes_on_in_the_pause(speech):
    response = degrade.random_room(np.random.default_rng(5), RATE, 0.7)
    delayed = np.concatenate([np.zeros(300, np.float32), response])
    wet = degrade.reverberate(speech, delayed)
    assert lag(speech, wet) == 0 and level(wet) == pytest.approx(level(speech), rel=1e-4)
    pause = len(speech) // 2
    assert level(wet[pause : pause + 800]) > 30 * level(speech[pause : pause + 800])
    exact = np.convolve(speech, response)[: len(speech)]
    assert np.allclose(wet, exact * level(speech) / level(exact), atol=1e-5)


@pytest.mark.parametrize("coding", ["ulaw", "gsm"])
@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_a_telephone_passes_its_band(speech, coding, rate):
    x = degrade.resample(speech, RATE, rate)
    heard = degrade.telephone(x, rate, coding)
    assert lag(x, heard) == 0
    assert share_db(heard, 3_600, rate / 2, rate) < -55 < share_db(x, 3_600, rate / 2, rate)
    assert share_db(heard, 0, 200, rate) < share_db(x, 0, 200, rate) - 3
    assert np.corrcoef(degrade.low_pass(x, rate, 3_400), heard)[0, 1] > 0.8


@pytest.mark.parametrize("setting", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rate", [8_000, RATE, 22_050])
def test_codecs_change_the_signal_and_not_its_time(speech, rate, setting):
    x = 4 * degrade.resample(speech[: 3 * RATE], RATE, rate)  # beyond full scale, where codecs clip
    for name in degrade.codecs_of(rate):
        coded = degrade.codec(x, rate, name, setting)
        assert abs(lag(x, coded)) <= 4, name
        assert np.corrcoef(x, coded)[0, 1] > 0.8 and 1e-4 < level(coded - x) < 0.6 * level(x), name
        assert np.array_equal(coded, degrade.codec(x, rate, name, setting)), name


def test_more_compression_is_more_damage(speech):
    for name in degrade.codecs_of(RATE):
        errors = [level(degrade.codec(speech, RATE, name, setting) - speech) for setting in (0.2, 0.9)]
        assert errors[1] > 1.2 * errors[0], name
    assert "opus" not in degrade.codecs_of(22_050)


def test_an_equalizer_has_the_asked_gains_and_no_delay(speech):
    curve = [100.0, 1000.0, 4000.0], [-6.0, 9.0, 0.0]
    for hertz, decibels in ((50, -6.0), (1000, 9.0), (2000, 4.5), (6000, 0.0)):
        heard = degrade.equalize(sine(hertz), RATE, *curve)
        assert 20 * np.log10(level(heard) / level(sine(hertz))) == pytest.approx(decibels, abs=0.1)
    assert lag(speech, degrade.equalize(speech, RATE, *curve)) == 0


def test_random_curves_are_smooth_and_stay_within_their_limit():
    for seed in range(50):
        hertz, decibels = degrade.random_curve(np.random.default_rng(seed), RATE, 12.0)
        assert np.abs(decibels).max() <= 12 and abs(decibels.mean()) < 1e-9 and hertz[-1] < RATE / 2
        assert np.allclose(np.diff(np.log2(hertz)), 1)


def test_tilts_low_passes_and_gains():
    def decibels(change, hertz: float) -> float:
        return 20 * np.log10(level(change(sine(hertz))) / level(sine(hertz)))

    for hertz, expected in ((500, 3.0), (1000, 0.0), (4000, -6.0)):
        assert decibels(lambda x: degrade.tilt(x, RATE, -3.0), hertz) == pytest.approx(expected, abs=0.1)
    assert abs(decibels(lambda x: degrade.low_pass(x, RATE, 2000), 1000)) < 0.1
    assert decibels(lambda x: degrade.low_pass(x, RATE, 2000), 4000) < -40
    assert decibels(lambda x: degrade.gain(x, -7.0), 1000) == pytest.approx(-7, abs=1e-3)


def test_clipping_takes_off_the_peaks_alone(speech):
    clipped = degrade.clip(speech, 6.0)
    limit = np.abs(speech).max() * 10 ** (-6 / 20)
    assert np.abs(clipped).max() == pytest.approx(limit) and (clipped != speech).any()
    assert np.array_equal(clipped[np.abs(speech) < limit], speech[np.abs(speech) < limit])


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor):
    faster = degrade.speed(sine(440, 1.0), factor)
    assert abs(len(faster) - RATE / factor) < 1
    expected = sine(440 * factor, 1.2)[: len(faster)]
    assert np.allclose(faster[200:-200], expected[200:-200], atol=2e-3)


@pytest.mark.parametrize("rates", [(RATE, 8_000), (RATE, 22_050), (44_100, RATE)])
def test_resampling_keeps_what_both_rates_hold(rates):
    low, high = rates
    time = np.arange(low) / low
    x = np.sin(2 * np.pi * 1234 * time).astype(np.float32)
    expected = np.sin(2 * np.pi * 1234 * np.arange(high) / high)
    assert np.allclose(degrade.resample(x, low, high)[300:-300], expected[300:-300], atol=2e-3)


def test_cut_repeats_what_is_too_short():
    x = np.arange(10, dtype=np.float32)
    assert degrade.cut(x, 3, 4).tolist() == [3, 4, 5, 6]
    assert degrade.cut(x, 0, 23).tolist() == [*range(10), *range(10), 0, 1, 2]


ALL = {
    "noise": lambda x, rng: degrade.add_noise(x, degrade.colored_noise(len(x), 1, rng), 10),
    "silent noise": lambda x, rng: degrade.add_noise(x, np.zeros_like(x), 10),
    "babble": lambda x, rng: degrade.add_noise(x, degrade.babble([x, np.zeros_like(x), x[::-1]]), 10),
    "room": lambda x, rng: degrade.reverberate(x, degrade.random_room(rng, RATE, 0.5)),
    "telephone": lambda x, rng: degrade.telephone(x, RATE),
    "gsm": lambda x, rng: degrade.telephone(x, RATE, "gsm"),
    "mp3": lambda x, rng: degrade.codec(x, RATE, "mp3", 0.8),
    "opus": lambda x, rng: degrade.codec(x, RATE, "opus", 0.8),
    "equalizer": lambda x, rng: degrade.equalize(x, RATE, *degrade.random_curve(rng, RATE, 10)),
    "tilt": lambda x, rng: degrade.tilt(x, RATE, 3),
    "low-pass": lambda x, rng: degrade.low_pass(x, RATE, 3000),
    "gain": lambda x, rng: degrade.gain(x, 10),
    "clip": lambda x, rng: degrade.clip(x, 3),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [401, 16_001, 96_000])
def test_lengths_types_and_silence(speech, name, length):
    for x in (speech[-length:] * 0, speech[:length]):
        before = x.copy()
        first, again = (ALL[name](x, np.random.default_rng(7)) for _ in range(2))
        assert first.dtype == np.float32 and first.shape == (length,) and np.isfinite(first).all()
        assert np.array_equal(first, again) and np.array_equal(x, before)
        assert level(first) < 1e-3 if not x.any() else level(first) > 0.01 * level(x)


def test_a_sound_of_unknown_length_is_refused_before_it_is_needed(tmp_path, speech):
    """As encoders to a pipe leave it."""
    with pytest.raises(UserError, match="there is no folder .*missing"):
        SoundFolder(tmp_path / "missing")
    soundfile.write(tmp_path / "a.flac", speech, RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # 36 bits: the number of samples
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(UserError, match="a.flac is empty, or does not state its length"):
        SoundFolder(tmp_path)


@pytest.mark.real
def test_recorded_noises_and_rooms(real_data, speech):
    draw = np.random.default_rng(8)
    noises, rooms = (SoundFolder(real_data / "speakers_more" / name) for name in ("noise", "rooms"))
    assert len(noises.sounds) == 8 and len(rooms.sounds) == 148
    for rate in (RATE, 22_050):
        noise = noises.piece(len(speech), rate, draw)
        assert noise.shape == speech.shape and level(noise) > 0
    for _ in range(10):
        wet = degrade.reverberate(speech, rooms.whole(RATE, draw))
        assert abs(lag(speech, wet)) <= 20 and level(wet) == pytest.approx(level(speech), rel=1e-3)
