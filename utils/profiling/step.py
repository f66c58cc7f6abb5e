"""Predicts a training step: every operator runs once without data, on the training loop's own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from utils.profiling.case import Case
from utils.profiling.fakes import pretending
from utils.profiling.kernels import stand_ins
from utils.profiling.layers import PHASES, Layer, Modules
from utils.profiling.storages import PURPOSES, Peak, tensors_in, unique_bytes

POINTS = 400  # of a timeline that is shown
# What small allocations inside operators may add, which no formula has: a share of the peak, and bytes.
MARGIN, LEAST_MARGIN = 0.005, 64 * 1024


@dataclass(frozen=True)
class Moment:
    """The highest moment of a stretch of operators: its phase, and live bytes for each of `PURPOSES`."""

    operator: int
    phase: str
    parts: list[int]


@dataclass(frozen=True)
class Profile:
    """A step after the first, when the optimizer has its state: its layers, its peak, and its history.

    `whole` has the bytes of each purpose that lasts, such as all gradients; `phase_peaks` the peak of each phase.
    """

    case: Case
    layers: list[Layer]
    peak: Peak
    whole: dict[str, int]
    phase_peaks: dict[str, int]
    timeline: list[Moment]
    operators: int

    @property
    def predicted(self) -> int:
        """The peak with a margin."""
        return self.peak.total + LEAST_MARGIN + round(MARGIN * self.peak.total)

    @property
    def resident(self) -> int:
        """Bytes between steps."""
        return sum(self.whole[name] for name in ("parameters", "buffers", "average", "optimizer", "inputs"))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            **self.case.shown(),
            "model_config": self.case.config.to_dict(),
            "parameters": self.layers[0].parameters,
            "predicted_bytes": self.predicted,
            "peak": {
                "bytes": self.peak.total,
                "phase": self.peak.phase,
                "layer": self.peak.layer,
                "parts": dict(zip(PURPOSES, self.peak.parts, strict=True)),
            },
            "step_bytes": {
                **self.whole,
                **{f"{phase}_peak": self.phase_peaks[phase] for phase in PHASES},
                "resident": self.resident,
            },
            "flops": {"forward": self.layers[0].forward_flops, "backward": self.layers[0].backward_flops},
            "layers": [vars(layer) for layer in self.layers],
            "timeline": [vars(moment) for moment in self.timeline],
        }


def predict(case: Case) -> Profile:
    """Runs two steps on fake tensors, and returns the second."""
    with stand_ins(), pretending(case.device):
        model = case.model()
        # A fake parameter can be neither moved, although all are where they belong, nor copied.
        model.to = lambda _: model
        model.__deepcopy__ = lambda _: case.model()
        return _profile(case, model)


def _profile(case: Case, model: torch.nn.Module) -> Profile:
    update = case.update(model, torch.device("cpu"))
    average = list(update.average.module.state_dict().values()) if update.average else []
    if case.device == "cuda":
        for group in update.optimizer.param_groups:
            group["foreach"] = True  # its default there
    batches = case.batches()
    modules = Modules(model, case.device)
    lasting = {"parameters": list(model.parameters()), "buffers": list(model.buffers()), "average": average}
    lasting["inputs"] = tensors_in(batches)
    update(batches, range(case.samples), 0, 0)
    lasting["optimizer"] = tensors_in([list(state.values()) for state in update.optimizer.state.values()])
    model.zero_grad()
    for purpose, tensors in lasting.items():
        modules.storages.follow(tensors, purpose)
    with modules:
        update(batches, range(case.samples), 1, 0)
    lasting["gradients"] = [owner.grad for owner in model.parameters() if owner.grad is not None]
    storages = modules.storages
    return Profile(
        case=case,
        layers=modules.rows(),
        peak=storages.peak,
        whole={purpose: unique_bytes(lasting[purpose]) for purpose in PURPOSES if purpose in lasting},
        phase_peaks=storages.phase_peaks,
        timeline=timeline(storages.history, storages.phases),
        operators=len(storages.phases),
    )


def timeline(history: Any, phases: list[str], points: int = POINTS) -> list[Moment]:
    """At most about `points` moments, the highest of each stretch of operators in one phase.

    `history` has the bytes of every purpose after each operator, one operator after another.
    """
    width, stretch = len(PURPOSES), max(1, len(phases) // points)
    found: list[Moment] = []
    best, start = -1, 0
    for number, phase in enumerate(phases):
        parts = history[number * width : (number + 1) * width]
        if number - start == stretch or (number and phase != phases[number - 1]):
            best, start = -1, number
        if best < 0:
            found.append(Moment(number, phase, parts.tolist()))
            best = sum(parts)
        elif sum(parts) > best:
            found[-1], best = Moment(number, phase, parts.tolist()), sum(parts)
    return found
