"""The mixers against the length of a recording: memory and FLOPs of a step, all else equal."""

from __future__ import annotations

import dataclasses

from models.mixers import MIXERS
from utils.profiling.case import Case
from utils.profiling.step import predict

Curves = dict[str, list[tuple[float, int, int]]]  # of each mixer: seconds, bytes of the peak, FLOPs of the step
FACTORS = (1, 8, 64)


def mixer_curves(case: Case) -> Curves:
    """Profiles the step of `case` with each mixer that its other options allow, at its length times `FACTORS`."""
    curves: Curves = {}
    for mixer in MIXERS:
        try:
            one = dataclasses.replace(case, config=dataclasses.replace(case.config, mixer=mixer))
        except ValueError:
            continue
        curves[mixer] = []
        for factor in FACTORS:
            profile = predict(one.at(frames=factor * case.frames))
            flops = profile.layers[0].forward_flops + profile.layers[0].backward_flops
            curves[mixer].append((profile.case.seconds, profile.predicted, flops))
    return curves
