"""The factor on predicted durations: the texts that determine it."""

import numpy as np
import pytest

from utils.tts.task import duration_scale


def rows(n: int, bias: float, seed: int) -> np.ndarray:
    """True and predicted frames of n utterances whose lengths scatter by 7 % about predictions that are off by bias."""
    draw = np.random.default_rng(seed)
    true = draw.uniform(200, 800, n)
    return np.stack([true, (1 + bias) * true * (1 + 0.07 * draw.standard_normal(n))], axis=1)


def test_training_texts_tell_it_where_validation_texts_do_not_disagree():
    trained = rows(64, 0.05, 0)
    for held_out in (rows(9, 0.05, 1), rows(100, 0.05, 2), np.empty((0, 2)), rows(1, 0.5, 3)):
        assert duration_scale(trained, held_out) == pytest.approx(trained[:, 0].sum() / trained[:, 1].sum())
        assert duration_scale(trained, held_out) == pytest.approx(1 / 1.05, abs=0.02)


def test_validation_texts_tell_it_where_training_texts_are_known_by_heart():
    held_out = rows(400, -0.05, 1)
    scale = duration_scale(rows(64, 0.09, 0), held_out)
    assert scale == pytest.approx(held_out[:, 0].sum() / held_out[:, 1].sum(), abs=0.002)
    assert scale == pytest.approx(1 / 0.95, abs=0.01)


@pytest.mark.parametrize("bias", [0.0, 0.03, 0.06, 0.12])
def test_few_validation_texts_mislead_little_and_mend_what_training_texts_hide(bias):
    """Error of the length, root of the mean square over 300 draws: training texts are off by the bias."""
    pairs = [(rows(64, 0.0, 2 * seed), rows(9, -bias, 2 * seed + 1)) for seed in range(300)]
    alone = [(held[:, 0].sum() / held[:, 1].sum(), duration_scale(trained, held)) for trained, held in pairs]
    held_out, mixed = (np.sqrt(np.mean((np.array(each) * (1 - bias) - 1) ** 2)) for each in zip(*alone, strict=True))
    assert mixed < 1.25 * held_out  # about 2.4 %
    assert mixed < max(0.75 * held_out, 1.01 * bias)


def test_predictions_that_are_not_finite_are_left_alone():
    trained, broken = rows(64, 0.1, 0), rows(9, 0.1, 1)
    broken[3, 1] = np.inf
    assert duration_scale(trained, broken) == duration_scale(broken, trained) == 1
