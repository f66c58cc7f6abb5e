"""From embeddings to answers: cosines, normalized by a cohort, calibrated, and decided at thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.speaker.scoring.calibration import Calibration
from utils.speaker.scoring.cohort import Cohort, normalize
from utils.speaker.scoring.operating import OperatingPoints
from utils.speaker.scoring.validation import Recordings, Validation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scoring:
    """What a checkpoint holds beside encoder and back end; each of it may be missing.

    Two recordings are compared by their cosine, normalized by the `cohort`, and by the log-likelihood ratio that the
    `calibration` makes of it. `operating_points` are thresholds of plain cosines, to name somebody.
    """

    cohort: Cohort | None = None
    calibration: Calibration | None = None
    operating_points: OperatingPoints | None = None

    @classmethod
    def fit(cls, cohort: Cohort | None, validation: Validation) -> Self:
        """Fits calibration and thresholds to validation speakers; without them if there are too few."""
        return cls(cohort, Calibration.fit(validation, cls(cohort).scores), OperatingPoints.fit(validation))

    @property
    def name(self) -> str:
        """The name of the scores: `s-norm` or `cosine`."""
        return "cosine" if self.cohort is None else "s-norm"

    def scores(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> Floats:
        """Cosines (n, m) of unit-normalized embeddings (n, d) and (m, d), normalized by the cohort."""
        cosines = first.astype(np.float64) @ second.T.astype(np.float64)
        if self.cohort is None:
            return cosines
        return normalize(cosines, self.cohort.statistics(first)[:, :, None], self.cohort.statistics(second)[:, None])

    def llrs(self, first: Recordings, second: Recordings) -> Floats | None:
        """Log-likelihood ratios (n, m) of n recordings with m others; None without a calibration."""
        if self.calibration is None:
            return None
        scores = self.scores(first.embeddings, second.embeddings)
        return self.calibration(scores, first.seconds[:, None], second.seconds)

    def of_trials(
        self, embeddings: NDArray[np.float32], trials: Sequence[tuple[bool, int, int]]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores before calibration, and whether they are targets, (t,) each, of trials (target, place, place)."""
        targets, first, second = zip(*trials, strict=True)
        return self.scores(embeddings, embeddings)[first, second], np.array(targets)

    def to_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The entries of a checkpoint."""
        return {name: value.to_tensors() for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_tensors`."""
        kinds = {"cohort": Cohort, "calibration": Calibration, "operating_points": OperatingPoints}
        return cls(**{name: kind.from_tensors(content[name]) for name, kind in kinds.items() if name in content})


GROUPS = tuple(field.name for field in fields(Scoring))
"""The entries of a checkpoint that are a scoring's."""
