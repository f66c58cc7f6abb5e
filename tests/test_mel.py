import sys
import textwrap

import numpy as np
import pytest
import soundfile

from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.mel import MelExtractor, import_torchaudio
from utils.features.recipe import RECIPES, MelRecipe

SPEAKER, HIFIGAN = RECIPES["speaker-16k"], RECIPES["hifigan-22k"]


def hertz_to_mel(hertz):
    """Slaney's scale (Auditory Toolbox, 1998): linear to 1 kHz, then logarithmic, 27 steps to 6.4 kHz."""
    hertz = np.asarray(hertz, dtype=np.float64)
    return np.where(hertz < 1000, 3 * hertz / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4))


def mel_to_hertz(mel):
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))


def filterbank(recipe: MelRecipe) -> np.ndarray:
    """Triangles of unit area in Hz over the bins of the DFT, (n_mels, n_fft // 2 + 1) float64."""
    bins = np.arange(recipe.n_fft // 2 + 1) * recipe.sample_rate / recipe.n_fft
    edges = mel_to_hertz(np.linspace(hertz_to_mel(recipe.f_min), hertz_to_mel(recipe.f_max), recipe.n_mels + 2))
    rows = []
    for low, center, high in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.minimum((bins - low) / (center - low), (high - bins) / (high - center))
        rows.append(np.maximum(triangle, 0) * 2 / (high - low))
    return np.array(rows)


def dft(frames: np.ndarray) -> np.ndarray:
    """The discrete Fourier transform by its definition, (T, N) real to (T, N // 2 + 1) complex128."""
    size = frames.shape[1]
    turns = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size
    return frames @ np.exp(-2j * np.pi * turns / size)


def hann(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def speaker_mel(samples: np.ndarray) -> np.ndarray:
    """25 ms windows every 10 ms, padded with zeros to 512, magnitudes."""
    starts = np.arange(0, len(samples) - 400 + 1, 160)
    frames = np.stack([samples[start : start + 400] * hann(400) for start in starts])
    magnitude = np.abs(dft(np.pad(frames, ((0, 0), (0, 112)))))
    return np.log(np.maximum(magnitude @ filterbank(SPEAKER).T, 1e-8))


def hifigan_mel(samples: np.ndarray) -> np.ndarray:
    """Reflection of 384 samples on both sides, sqrt(re^2 + im^2 + 1e-9), as HiFi-GAN was trained."""
    padded = np.concatenate([samples[384:0:-1], samples, samples[-2:-386:-1]])
    starts = np.arange(0, len(padded) - 1024 + 1, 256)
    spectrum = dft(np.stack([padded[start : start + 1024] * hann(1024) for start in starts]))
    magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    return np.log(np.maximum(magnitude @ filterbank(HIFIGAN).T, 1e-5))


FORMULAS = {"speaker-16k": speaker_mel, "hifigan-22k": hifigan_mel}
FLOORS = {"speaker-16k": (1e-8, ("silence",)), "hifigan-22k": (1e-5, ("fading", "silence", "sweep"))}  # who reaches it


def sounds(rate: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    time = np.arange(rate // 2) / rate
    sweep = 0.5 * np.sin(2 * np.pi * (50 * time + 7000 * time**2))
    fading = draw.standard_normal(len(time)) * 10 ** np.linspace(-0.5, -5, len(time))
    return {
        "noise": 0.1 * draw.standard_normal(len(time)),
        "sweep": sweep,
        "fading": fading,  # through the log floor
        "silence": np.zeros(len(time)),
        "offset": np.full(len(time), 0.3) + 1e-3 * draw.standard_normal(len(time)),
    }


def assert_agree(mel: np.ndarray, expected: np.ndarray) -> None:
    """The bound of float32 against the float64 formula: 1e-4 in the log domain, and beneath a loud sound more.

    float32 knows a filter's energy to about 1e-7 of the frame's loudest, so the logarithm of one that is 1000 times
    quieter is known to about 1e-4 only.
    """
    bound = 1e-4 + 1e-7 * np.exp(expected.max(axis=1, keepdims=True) - expected)
    error = np.abs(mel - expected)
    assert (error <= bound).all(), f"largest error {error.max():.2e}, {np.max(error / bound):.2f} of the bound"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sound", ["noise", "sweep", "fading", "silence", "offset"])
def test_features_follow_the_formula(name, sound, seed):
    samples = sounds(RECIPES[name].sample_rate, seed)[sound].astype(np.float32)
    expected = FORMULAS[name](samples.astype(np.float64))
    mel = MelExtractor(RECIPES[name])(samples)
    assert mel.dtype == np.float32 and mel.shape == expected.shape == (RECIPES[name].frames(len(samples)), 80)
    assert_agree(mel, expected)
    floor, reached = FLOORS[name]
    assert (expected == np.log(floor)).any() == (sound in reached)


@pytest.mark.real
def test_features_of_real_speech_follow_the_formula(real_data):
    clips = {
        "speaker-16k": "speakers_dev/LibriSpeech/train-clean-100/19/198/19-198-0004.flac",
        "hifigan-22k": "tts_dev/LJSpeech-1.1/wavs/LJ001-0002.wav",
    }
    for name, path in clips.items():
        samples = load_audio(real_data / path, RECIPES[name].sample_rate)[:40_000]
        assert_agree(MelExtractor(RECIPES[name])(samples), FORMULAS[name](samples.astype(np.float64)))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_no_filter_is_empty(recipe):
    tone = np.eye(recipe.n_fft // 2 + 1)
    assert ((filterbank(recipe) @ tone) > 0).sum(axis=1).min() >= 2


def test_speaker_features_of_a_stream_are_those_of_the_file():
    """Frame t depends on samples [160 t, 160 t + 400) alone; equal to 1e-5, since products of other sizes round."""
    samples = sounds(16_000, seed=3)["noise"].astype(np.float32)
    extractor = MelExtractor(SPEAKER)
    whole = extractor(samples)
    for first, last in ((0, 1), (0, 17), (5, 30), (len(whole) - 1, len(whole))):
        part = extractor(samples[160 * first : 160 * (last - 1) + 400])
        np.testing.assert_allclose(part, whole[first:last], atol=1e-5)
    loud = samples.copy()
    loud[160 * 10 + 400 :] = 1.0
    np.testing.assert_allclose(extractor(loud)[:11], whole[:11], atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_audio_too_short_for_a_frame_is_refused(recipe):
    extractor = MelExtractor(recipe)
    assert extractor(np.ones(recipe.min_samples, dtype=np.float32)).shape == (1, 80)
    for samples in (0, recipe.min_samples - 1):
        with pytest.raises(UserError, match="is too short"):
            extractor(np.ones(samples, dtype=np.float32))


def test_resampling_keeps_a_tone(tmp_path):
    time = np.arange(22_050) / 22_050
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 22_050, subtype="FLOAT")
    resampled = load_audio(tmp_path / "tone.wav", 16_000)
    assert resampled.dtype == np.float32 and len(resampled) == 16_000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(resampled[100:-100], expected[100:-100], atol=1e-3)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages that comes before the installed ones, with torchaudio not yet imported."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchaudio"}
    for name in kept:
        del sys.modules[name]
    (tmp_path / "torchaudio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "torchaudio"
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules.update(kept)


def write_package(folder, init, extension):
    (folder / "__init__.py").write_text(init)
    (folder / "transforms.py").write_text(
        "from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE as compiled\n"
    )
    (folder / "_extension.py").write_text(textwrap.dedent(extension))


def test_a_torchaudio_that_matches_is_used_unchanged(packages):
    write_package(packages, "from . import _extension, transforms\n", "_IS_TORCHAUDIO_EXT_AVAILABLE = True")
    torchaudio = import_torchaudio()
    assert torchaudio.__file__.startswith(str(packages)) and torchaudio.transforms.compiled is True
    assert import_torchaudio() is torchaudio


def test_a_torchaudio_whose_library_does_not_load_works_without_it(packages):
    write_package(packages, "from . import _extension, transforms\n", "raise OSError('libcudart.so is missing')")
    torchaudio = import_torchaudio()
    assert torchaudio.__file__.startswith(str(packages)) and torchaudio.transforms.compiled is False
    with pytest.raises(RuntimeError, match="needs its compiled library"):
        sys.modules["torchaudio._extension"].fail_if_no_align(lambda: 1)()


def test_a_missing_torchaudio_is_not_hidden(packages):
    (packages / "__init__.py").write_text("import a_module_that_is_nowhere\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        import_torchaudio()


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_a_tone_is_loudest_in_its_channel(scale):
    recipe = MelRecipe.from_dict({**SPEAKER.to_dict(), "mel_scale": scale})
    time = np.arange(recipe.sample_rate) / recipe.sample_rate
    for hertz in (250, 600, 1000, 1500, 3000, 6000):
        mel = MelExtractor(recipe)(np.sin(2 * np.pi * hertz * time).astype(np.float32))
        assert mel.mean(0).argmax() == pytest.approx(recipe.channel(hertz), abs=1)
