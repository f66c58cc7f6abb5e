"""What a report says about log-likelihood ratios: their metrics, and columns of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.plots import percent
from utils.speaker.evaluation.metrics import P_TARGETS, act_dcf, cllr, min_cllr, rates_at
from utils.speaker.scoring.decision import llr_threshold

HEAD = f"{'Cllr':>9}{'min':>7}{'actDCF .01':>12}{'.05':>8}{'false rejects':>15}{'accepts':>10}"
_COSTS = ("cllr", "min_cllr", *(f"act_dcf_{p}" for p in P_TARGETS))


def ratio_metrics(llrs: NDArray[np.float32] | None = None, targets: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Metrics of log-likelihood ratios (n,), nulls without; those of `operating_point` are at equal priors and costs.

    `targets` (n,) must have both kinds.
    """
    if llrs is None:
        return dict.fromkeys((*_COSTS, "operating_point"))
    rejected, accepted = rates_at(llrs, targets, llr_threshold())
    point = {"llr_threshold": llr_threshold(), "false_rejection": rejected, "false_acceptance": accepted}
    costs = cllr(llrs, targets), min_cllr(llrs, targets), *(act_dcf(llrs, targets, p) for p in P_TARGETS)
    return {**dict(zip(_COSTS, costs, strict=True)), "operating_point": point}


def columns(metrics: dict[str, Any]) -> str:
    """The columns below `HEAD`; older reports do not have all of them."""
    point = metrics.get("operating_point") or {}
    rates = [point.get(f"false_{kind}") for kind in ("rejection", "acceptance")]
    shown = ["-" if cost is None else f"{cost:.3f}" for cost in map(metrics.get, _COSTS)]
    shown += ["-" if rate is None else percent(rate) for rate in rates]
    return "".join(f"{text:>{width}}" for text, width in zip(shown, (9, 7, 12, 8, 15, 10), strict=True))


def lines(verification: dict[str, dict[str, Any]]) -> list[str]:
    """The part of the table on log-likelihood ratios, if there are any; rejects and accepts are at equal costs."""
    rows = [f"{name:<15}{columns(each)}" for name, each in verification.items() if each.get("cllr") is not None]
    return ["", f"{'calibration':<15}{HEAD}", *rows] if rows else []
