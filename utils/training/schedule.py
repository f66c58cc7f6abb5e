"""Schedules as functions of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: float, final: float) -> float:
    """Factor on the peak learning rate at update `step`, from 0, of `steps`.

    Linear over the first `warmup` share of the steps, then half a cosine down to `final` at the last update.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, steps - 1 - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def linear_warmup(step: int, steps: int, warmup: float) -> float:
    """Rises from 0 at the first update to 1 after the first `warmup` share of `steps`."""
    rising = warmup * steps
    return 1.0 if step >= rising else step / rising
