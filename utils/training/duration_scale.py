"""How far the durations of a network without dropout are from those that it was trained to give with it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FAR = 3.0  # standard errors between training and validation texts from which a model knows its training texts by heart


def duration_scale(trained: NDArray[np.float64], held_out: NDArray[np.float64]) -> float:
    """What predicted durations are to be multiplied by, from true and predicted frames of utterances: (n, 2), (m, 2).

    Training texts are many and tell it precisely, until a model knows them by heart: without dropout it is then sure of
    them, and of no others. The validation texts show that, and then they tell the scale. 1 if a prediction is not
    finite.
    """
    if not (np.isfinite(trained).all() and np.isfinite(held_out).all()):
        return 1.0
    scale = _ratio(trained)
    if len(held_out) < 2:
        return scale
    held = _ratio(held_out)
    error = math.hypot(_standard_error(held_out, held), _standard_error(trained, scale))
    return held if abs(held - scale) > FAR * error else scale


def _ratio(rows: NDArray[np.float64]) -> float:
    true, predicted = rows.sum(0)
    return float(true / predicted)


def _standard_error(rows: NDArray[np.float64], ratio: float) -> float:
    """Of a ratio of sums (Cochran 1977, "Sampling techniques", section 6.4)."""
    rest = rows[:, 0] - ratio * rows[:, 1]
    return float(math.sqrt(len(rows) / max(1, len(rows) - 1) * (rest**2).sum()) / rows[:, 1].sum())
