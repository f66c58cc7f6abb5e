"""How far the durations of a network without dropout are from those that it was trained to give with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def duration_scale(trained: NDArray[np.float64], held_out: NDArray[np.float64]) -> float:
    """What predicted durations are to be multiplied by, from true and predicted frames of utterances: (n, 2), (m, 2).

    Training texts are many and tell it precisely, until a model knows them by heart: without dropout it is then sure of
    them, and of no others. Validation texts do not know of that, but are few. So the scale of the training texts goes
    the way to that of the validation texts as far as chance does not explain their distance: by 1 - (standard error /
    distance)^2, if that is positive (Efron and Morris 1973, "Stein's estimation rule and its competitors"). 1 if a
    prediction is not finite.
    """
    if not (np.isfinite(trained).all() and np.isfinite(held_out).all()):
        return 1.0
    scale = _ratio(trained)
    if len(held_out) < 2:
        return scale
    held = _ratio(held_out)
    distance, chance = held - scale, _variance(held_out, held) + _variance(trained, scale)
    return scale + (distance - chance / distance if distance**2 > chance else 0.0)


def _ratio(rows: NDArray[np.float64]) -> float:
    true, predicted = rows.sum(0)
    return float(true / predicted)


def _variance(rows: NDArray[np.float64], ratio: float) -> float:
    """Of a ratio of sums (Cochran 1977, "Sampling techniques", section 6.4): the square of its standard error."""
    rest = rows[:, 0] - ratio * rows[:, 1]
    return float(len(rows) / max(1, len(rows) - 1) * (rest**2).sum() / rows[:, 1].sum() ** 2)
