"""Where log-likelihood ratios are decided: by the prior and the costs of errors."""

from __future__ import annotations

import math

PRIOR, COST_FALSE_ACCEPT = 0.5, 1.0  # unless other ones are given


def llr_threshold(prior: float = PRIOR, cost_false_accept: float = COST_FALSE_ACCEPT) -> float:
    """The least log-likelihood ratio at which "same speaker" is expected to cost no more than "different speakers".

    `prior` is the probability of the same speaker, `cost_false_accept` the cost of a false accept as a multiple of that
    of a false reject.
    """
    return math.log(cost_false_accept) + math.log1p(-prior) - math.log(prior)
