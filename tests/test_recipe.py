import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.features.recipe import DEFAULT_RECIPE, RECIPES, MelRecipe, require_same

SPEAKER, HIFIGAN = RECIPES["speaker-16k"], RECIPES["hifigan-22k"]


def test_hashes_of_stored_features_and_checkpoints_do_not_change():
    assert {name: recipe.hash for name, recipe in RECIPES.items()} == {
        "speaker-16k": "1c1b222a00c7",
        "hifigan-22k": "0bb58dd8dee6",
    }


def test_every_field_enters_the_hash():
    changes = {
        "sample_rate": 22_000, "n_fft": 1024, "win_length": 401, "hop_length": 161, "n_mels": 81, "f_min": 21.0,
        "f_max": 7601.0, "mel_scale": "htk", "mel_norm": "none", "power": 2.0, "power_floor": 1e-9,
        "padding": "hifigan", "log_floor": 1e-6,
    }  # fmt: skip
    single_choice = {"window", "normalisation", "log"}
    assert set(changes) | single_choice == {field.name for field in dataclasses.fields(MelRecipe)}
    hashes = {dataclasses.replace(SPEAKER, **{name: value}).hash for name, value in changes.items()}
    assert len(hashes | {SPEAKER.hash}) == len(changes) + 1


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_survives_json(recipe):
    again = MelRecipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe and again.hash == recipe.hash


def test_whole_numbers_for_frequencies_are_the_same_recipe():
    assert MelRecipe.from_dict({**SPEAKER.to_dict(), "f_min": 20, "f_max": 7600, "power": 1}) == SPEAKER


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hop_length": 401}, "0 < hop_length <= win_length <= n_fft"),
        ({"hop_length": 0}, "0 < hop_length"),
        ({"f_max": 8001.0}, "f_max <= sample_rate / 2"),
        ({"f_min": 7600.0}, "f_min < f_max"),
        ({"log_floor": 0.0}, "log floor above 0"),
        ({"log_floor": float("nan")}, "log floor above 0"),
        ({"padding": "same"}, "padding is 'same'; it can be none, hifigan"),
        ({"n_mels": "80"}, "n_mels must be of type int"),
        ({"n_mels": True}, "n_mels must be of type int"),
        ({"color": "red"}, "exactly the fields sample_rate"),
    ],
)
def test_impossible_recipes_are_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        MelRecipe.from_dict({**SPEAKER.to_dict(), **change})


def test_a_missing_field_is_refused():
    fields = SPEAKER.to_dict()
    del fields["power"]
    for broken in (fields, [], None):
        with pytest.raises(UserError, match="exactly the fields"):
            MelRecipe.from_dict(broken)


def test_a_mismatch_shows_both():
    require_same(SPEAKER, MelRecipe.from_dict(SPEAKER.to_dict()), "the data", "the model")
    with pytest.raises(UserError) as caught:
        require_same(SPEAKER, HIFIGAN, "the data", "the model")
    sentence = str(caught.value)
    assert "the data (1c1b222a00c7)" in sentence and "the model (0bb58dd8dee6)" in sentence
    assert "sample_rate 16000 against 22050" in sentence and "padding none against hifigan" in sentence
    assert "n_mels" not in sentence  # equal fields are not shown


def test_frames_and_seconds():
    assert [SPEAKER.frames(samples) for samples in (0, 399, 400, 559, 560, 16_000)] == [0, 0, 1, 1, 2, 98]
    assert SPEAKER.seconds(100) == 1.0
    assert [HIFIGAN.frames(samples) for samples in (0, 384, 385, 512, 22_050)] == [0, 0, 1, 2, 86]


@given(st.integers(1000, 10**7))
def test_hifigan_padding_gives_a_frame_for_every_hop(samples):
    assert HIFIGAN.frames(samples) == samples // 256


def test_each_task_has_a_recipe():
    assert {task: RECIPES[name].sample_rate for task, name in DEFAULT_RECIPE.items()} == {
        "speaker": 16000,
        "tts": 22050,
    }
