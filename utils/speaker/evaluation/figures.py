"""The pictures in the folder of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from utils.plots import percent, save_figure
from utils.speaker.evaluation.det import make_det
from utils.speaker.evaluation.metrics import rates_at
from utils.speaker.evaluation.plots import Threshold, det_figure, draw_scores
from utils.speaker.evaluation.rates import choices
from utils.speaker.evaluation.trials import TrialSet

PICTURES = ("det", "scores")


def draw_verification(out: Path, report: dict[str, Any], trials: TrialSet, scores: dict[str, Any], kind: str) -> None:
    """Draws the DET curves of the conditions that have metrics, and the scores of entire recordings.

    `scores`: name of a duration -> (n,); `kind`: format of the pictures. The curve of all trials has a band if there is
    an interval of its EER; bands of all curves would hide each other.
    """
    chosen = choices(trials)
    everything, curves = np.ones(len(trials), dtype=bool), {}
    for name in ("all", *chosen, "3s", "1.5s"):
        metrics = report["verification"][name]
        if metrics["eer"] is not None:
            mask, interval = chosen.get(name, everything), metrics["eer_ci"]
            values = scores.get(name, scores["full"])[mask], trials.targets[mask]
            label = f"{name.replace('_', ' ')}: EER {percent(metrics['eer'])}"
            label += f" ({' to '.join(map(percent, interval))})" if interval else ""
            curves[label] = [make_det(*values, trials.sides("speaker") if interval and not curves else None)]
    if not curves:
        return
    save_figure(det_figure(curves, f"{report['title']}: detection errors"), out / f"det.{kind}")
    threshold = report["verification"]["all"]["threshold"]
    rates = rates_at(scores["full"], trials.targets, threshold)
    thresholds = {"EER threshold of these trials": Threshold(threshold, *rates)}
    draw_scores(out / f"scores.{kind}", scores["full"], trials.targets, thresholds, f"{report['title']}: scores")
