import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from voices import speak

from models.tts.hifigan import HiFiGAN, HiFiGANConfig, fold_weight_norm
from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.mel import LogMel, MelExtractor
from utils.features.recipe import RECIPES
from utils.tts.vocoder import GriffinLim, load_vocoder

SPEAKER, HIFIGAN = RECIPES["speaker-16k"], RECIPES["hifigan-22k"]
POWER = dataclasses.replace(SPEAKER, power=2.0, mel_norm="none", mel_scale="htk", log_floor=1e-10)
SHORT_WINDOW = dataclasses.replace(HIFIGAN, win_length=700, hop_length=210)
ALL_RECIPES = pytest.mark.parametrize(
    "recipe", [SPEAKER, HIFIGAN, POWER, SHORT_WINDOW], ids=["speaker", "hifigan", "power", "short-window"]
)
TINY = {  # a published config.json, with few channels
    "resblock": "1",
    "num_gpus": 0,
    "upsample_rates": [8, 8, 4],
    "upsample_kernel_sizes": [16, 16, 8],
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "num_mels": 80,
    "n_fft": 1024,
    "hop_size": 256,
    "win_size": 1024,
    "sampling_rate": 22050,
    "fmin": 0,
    "fmax": 8000,
    "fmax_for_loss": None,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a tiny checkpoint in the authors' format: config.json and g_00000010."""
    folder = tmp_path_factory.mktemp("vocoder")
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    torch.manual_seed(0)
    state = {}
    for name, tensor in HiFiGAN(HiFiGANConfig.from_dict(TINY)).state_dict().items():
        if name.endswith("weight"):
            state[f"{name}_v"] = torch.randn(tensor.shape)
            state[f"{name}_g"] = torch.full((len(tensor), 1, 1), 1.5)
        else:
            state[name] = 0.1 * torch.randn(tensor.shape)
    state["conv_post.weight_g"] *= 0.5
    torch.save({"generator": state}, folder / "g_00000010")
    torch.save({"mpd": {}, "steps": 10}, folder / "do_00000010")
    (folder / "LICENSE").write_text("free\n", encoding="utf-8")
    return folder


@pytest.fixture
def copied(published, tmp_path):
    """A copy of `published` that a test may spoil."""
    return shutil.copytree(published, tmp_path / "copy")


def spoil_config(folder, **changes):
    fields = {key: value for key, value in {**TINY, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def spoil_weights(folder, change):
    checkpoint = torch.load(folder / "g_00000010", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "g_00000010")


def some_mel(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-4, 2, (frames, 80)).astype(np.float32)


@ALL_RECIPES
def test_griffin_lim_gives_back_the_mel_frame_by_frame(recipe):
    speech = speak(np.random.default_rng(0), "105", 1.5, recipe.sample_rate)
    mel = MelExtractor(recipe)(speech)
    samples = GriffinLim(recipe)(mel)
    assert samples.shape == (len(mel) * recipe.hop_length,) and samples.dtype == np.float32
    again = MelExtractor(recipe)(samples)  # fewer frames without padding: the last ones reach beyond T * hop_length
    error = {
        shift: np.abs(again[2:-2] - np.roll(mel, shift, axis=0)[2 : len(again) - 2]).mean() for shift in (-1, 0, 1)
    }
    assert error[0] < 0.15 * recipe.power
    assert error[0] < 0.6 * min(error[-1], error[1])


@ALL_RECIPES
@pytest.mark.parametrize("sound", ["click", "onset"])
def test_griffin_lim_keeps_events_in_their_place(recipe, sound):
    """Within 2 ms, at several places between the frames' centers."""
    rate = recipe.sample_rate
    for place in (9000, 9071, 9133):
        audio = 1e-4 * np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
        if sound == "click":
            audio[place] += 0.9
        else:
            audio[place:] += 0.3 * np.sin(2 * np.pi * 700 / rate * np.arange(20_000 - place))
        energy = GriffinLim(recipe)(MelExtractor(recipe)(audio)) ** 2
        if sound == "click":
            found = (energy * np.arange(len(energy))).sum() / energy.sum()
        else:
            level = np.convolve(energy, np.ones(rate // 500), mode="same")  # over 2 ms
            found = np.argmax(level > 0.25 * np.median(level[place + 2000 : -2000]))
        assert abs(found - place) < 0.002 * rate


def test_griffin_lim_is_deterministic_and_draws_nothing():
    mel = some_mel(20)
    state = torch.get_rng_state()
    first = GriffinLim(HIFIGAN)(mel)
    torch.manual_seed(99)
    assert np.array_equal(first, GriffinLim(HIFIGAN)(mel))
    torch.set_rng_state(state)
    GriffinLim(HIFIGAN)(mel)
    assert torch.equal(torch.get_rng_state(), state)


@ALL_RECIPES
def test_the_magnitudes_have_the_mels_they_were_made_of(recipe):
    """Clipping the negative values of a pseudo-inverse leaves 0.02 and more."""
    mel = MelExtractor(recipe)(speak(np.random.default_rng(1), "102", 0.5, recipe.sample_rate))
    vocoder = GriffinLim(recipe)
    magnitudes = vocoder.magnitudes(torch.from_numpy(mel))
    assert magnitudes.shape == (recipe.n_fft // 2 + 1, len(mel)) and magnitudes.min() >= 0
    filters = LogMel(recipe).mel_scale.fb
    again = (filters.T @ magnitudes**recipe.power).clamp_min(recipe.log_floor).log().T
    assert np.abs(again.numpy() - mel).mean() < 0.002


@ALL_RECIPES
def test_griffin_lim_takes_any_length(recipe):
    vocoder = GriffinLim(recipe)
    for frames in (0, 1, 2, 3, 5):
        samples = vocoder(some_mel(frames))
        assert samples.shape == (frames * recipe.hop_length,) and samples.dtype == np.float32
        assert frames == 0 or samples.std() > 0


@ALL_RECIPES
def test_griffin_lim_survives_extreme_mels(recipe):
    vocoder = GriffinLim(recipe)
    for level in (1e30, 200.0, -1e30):
        samples = vocoder(np.full((10, 80), level, np.float32))
        assert np.isfinite(samples).all() and np.abs(samples).max() <= 1
    assert np.abs(samples).max() < 1e-3  # the floor is silence
    loud = some_mel(10) + 12
    assert np.abs(vocoder(loud)).max() == 1.0


def test_what_is_no_mel_is_refused(published):
    for name in ("griffin-lim", str(published)):
        vocoder = load_vocoder(name, HIFIGAN)
        for bad in (np.nan, np.inf):
            mel = some_mel(5)
            mel[2, 3] = bad
            with pytest.raises(UserError, match="not finite"):
                vocoder(mel)
        for shape in [(5, 79), (80,), (1, 5, 80)]:
            with pytest.raises(ValueError, match=r"shape \(T, 80\)"):
                vocoder(np.zeros(shape, np.float32))


def test_griffin_lim_refuses_what_it_cannot():
    vocoder = load_vocoder("griffin-lim", HIFIGAN)
    assert vocoder.name == "griffin-lim" and not vocoder.can_stream and vocoder.recipe == HIFIGAN
    with pytest.raises(UserError, match="cannot stream"):
        vocoder.stream(iter([some_mel(5)]))  # at once, not with the first piece
    with pytest.raises(UserError, match="hop_length of 600 with a win_length of 1024"):
        load_vocoder("griffin-lim", dataclasses.replace(HIFIGAN, hop_length=600))


def test_a_checkpoint_loads_by_file_and_by_folder(published):
    weights = fold_weight_norm(torch.load(published / "g_00000010", weights_only=True)["generator"])
    model = HiFiGAN(HiFiGANConfig.from_dict(TINY)).requires_grad_(False)
    model.load_state_dict(weights)
    mel = some_mel(150)
    expected = model(torch.from_numpy(mel).T[None])[0].numpy()
    assert expected.std() > 0.05
    state = torch.get_rng_state()
    for path in (published, published / "g_00000010"):
        vocoder = load_vocoder(str(path), HIFIGAN)
        assert vocoder.name == str(path) and vocoder.can_stream and vocoder.recipe == HIFIGAN
        samples = vocoder(mel)
        assert samples.shape == (150 * 256,) and samples.dtype == np.float32 and np.abs(samples).max() <= 1
        np.testing.assert_allclose(samples, expected, atol=1e-5, rtol=0)
        assert vocoder(mel[:0]).shape == (0,) and vocoder(mel[:1]).shape == (256,)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in vocoder.model.parameters())


@pytest.mark.parametrize("size", [1, 16, 64, 100, 1000])
def test_streamed_sound_equals_the_whole(published, size):
    vocoder = load_vocoder(str(published), HIFIGAN)
    mel = some_mel(150)
    parts = list(vocoder.stream(mel[start : start + size] for start in range(0, 150, size)))
    np.testing.assert_allclose(np.concatenate(parts), vocoder(mel), atol=1e-4, rtol=0)
    assert all(len(part) for part in parts)
    assert list(vocoder.stream(iter([]))) == []


def test_sound_comes_out_while_mels_go_in(published):
    vocoder = load_vocoder(str(published), HIFIGAN)
    taken = []
    pieces = (taken.append(number) or some_mel(16) for number in range(50))
    before, after = vocoder.model.config.receptive_field
    assert after < 16
    assert len(next(vocoder.stream(pieces))) >= (16 - after) * 256
    assert taken == [0]


def test_a_vocoder_for_another_recipe_is_refused_with_both_values(copied):
    spoil_config(copied, sampling_rate=24000, fmax=None, fmin=20, n_fft=2048)
    with pytest.raises(UserError) as refusal:
        load_vocoder(str(copied), HIFIGAN)
    for words in ("sample_rate 24000 against 22050", "f_max 12000.0 against 8000.0", "f_min 20.0 against 0.0"):
        assert words in str(refusal.value)
    assert "n_fft 2048 against 1024" in str(refusal.value) and "hop_length" not in str(refusal.value)
    with pytest.raises(UserError, match="padding hifigan against none"):
        load_vocoder(str(copied), SPEAKER)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"win_size": "absent"}, "win_size missing"),
        ({"upsample_rates": "absent", "resblock": "absent"}, "resblock, upsample_rates missing"),
        ({"resblock": "7"}, "resblock must be"),
        ({"sampling_rate": "22050"}, "sample_rate must be of type int"),
        ({"fmax": 20000}, "f_max <= sample_rate / 2"),
        ({"hop_size": 300}, "upsample_rates give a hop of 256 samples, hop_size is 300"),
    ],
)
def test_a_bad_configuration_is_refused(copied, changes, words):
    spoil_config(copied, **changes)
    with pytest.raises(UserError, match=words) as refusal:
        load_vocoder(str(copied), HIFIGAN)
    assert str(copied / "config.json") in str(refusal.value)


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_configuration_that_is_no_dictionary_is_refused(copied, content):
    (copied / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="config.json is not"):
        load_vocoder(str(copied), HIFIGAN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("generator"), 'no weights under "generator"'),
        (lambda c: c.update(generator=[1]), 'no weights under "generator"'),
        (lambda c: c["generator"].update({3: torch.zeros(1)}), 'no weights under "generator"'),
        (lambda c: c["generator"].pop("conv_pre.bias"), 'do not fit its config.json: Missing key.*"conv_pre.bias"'),
        (lambda c: c["generator"].update(extra=torch.zeros(1)), 'do not fit its config.json: Unexpected key.*"extra"'),
        (
            lambda c: c["generator"].update({"ups.0.bias": torch.zeros(7)}),
            r"size mismatch for ups.0.bias: .*\[7\].*\[8\]",
        ),
        (lambda c: c["generator"].update({"ups.0.weight_g": torch.ones(8, 1, 1)}), "damaged: ups.0.weight_v has"),
        (lambda c: c["generator"].update({"ups.0.weight_v": torch.ones(())}), "damaged: ups.0.weight_v has"),
        (lambda c: c["generator"]["conv_post.weight_v"].fill_(float("nan")), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(copied, change, words):
    spoil_weights(copied, change)
    with pytest.raises(UserError, match=words):
        load_vocoder(str(copied), HIFIGAN)


def test_weights_of_another_configuration_are_refused(copied):
    spoil_config(copied, upsample_initial_channel=32, resblock="2")
    with pytest.raises(UserError, match="Missing key.*resblocks.0.convs.0.weight"):
        load_vocoder(str(copied), HIFIGAN)


class Trap:
    """An object whose unpickling would run code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_checkpoints_are_refused(copied, tmp_path):
    file = copied / "g_00000010"
    whole = file.read_bytes()
    trap = {"generator": Trap(tmp_path / "x")}
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], pickle.dumps(trap, protocol=2)):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is not a checkpoint that can be loaded"):
            load_vocoder(str(copied), HIFIGAN)
    torch.save(trap, file)
    with pytest.raises(UserError, match="is not a checkpoint that can be loaded"):
        load_vocoder(str(copied), HIFIGAN)
    assert not (tmp_path / "x").exists()


def test_missing_and_ambiguous_files_are_refused(copied):
    with pytest.raises(UserError, match="there is no vocoder /nowhere: give griffin-lim, or"):
        load_vocoder("/nowhere", HIFIGAN)
    shutil.copy(copied / "g_00000010", copied / "generator_LJSpeech.pth.tar")
    with pytest.raises(UserError, match="2 checkpoints, give one: .*g_00000010, .*generator_LJSpeech.pth.tar"):
        load_vocoder(str(copied), HIFIGAN)
    assert load_vocoder(str(copied / "generator_LJSpeech.pth.tar"), HIFIGAN).can_stream
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match="config.json cannot be read: No such file"):
        load_vocoder(str(copied / "g_00000010"), HIFIGAN)
    (copied / "g_00000010").unlink()
    (copied / "generator_LJSpeech.pth.tar").unlink()
    with pytest.raises(UserError, match="holds no HiFi-GAN checkpoint"):
        load_vocoder(str(copied), HIFIGAN)


@pytest.mark.real
def test_copy_synthesis_of_real_speech(real_data):
    """Measured on five clips: log-mel L1 0.095 with 32 iterations; with a clipped pseudo-inverse 0.12."""
    vocoder, extract = GriffinLim(HIFIGAN), MelExtractor(HIFIGAN)
    for clip in sorted((real_data / "tts_dev" / "LJSpeech-1.1" / "wavs").glob("*.wav"))[:3]:
        mel = extract(load_audio(clip, 22_050)[: 3 * 22_050])
        assert np.abs(extract(vocoder(mel)) - mel).mean() < 0.11
