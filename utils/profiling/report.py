"""All that is said of one or several training steps: predicted, measured, what fits; as text, values and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from utils.files import write_json, write_text
from utils.plots import save_figure
from utils.profiling.case import Case
from utils.profiling.fits import MIB, Fits, what_fits
from utils.profiling.lengths import Curves, mixer_curves
from utils.profiling.measure import measure
from utils.profiling.page import page
from utils.profiling.pictures import mixers_figure, profile_figure
from utils.profiling.step import Profile, predict
from utils.profiling.tables import fits_text, layer_csv, layer_table, peak_table


@dataclass(frozen=True)
class Report:
    """Profiles side by side, each with its label, and what was asked besides: bytes measured, what fits, curves."""

    labels: list[str]
    profiles: list[Profile]
    measured: list[int] | None = None
    fits: list[Fits] | None = None
    mixers: Curves | None = None

    @classmethod
    def of(cls, cases: list[Case], labels: list[str], memory: int | None, is_measured: bool, with_mixers: bool) -> Self:
        """Predicts, and measures and solves what is asked; the mixers with the first case."""
        return cls(
            labels,
            [predict(case) for case in cases],
            [measure(case) for case in cases] if is_measured else None,
            None if memory is None else [what_fits(case, memory) for case in cases],
            mixer_curves(cases[0]) if with_mixers else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values: of a single profile, its own; of several, a list of those."""
        found = []
        for number, profile in enumerate(self.profiles):
            entry = {"label": self.labels[number], **profile.to_dict()}
            if self.measured is not None:
                entry["measured_bytes"] = self.measured[number]
                entry["error"] = profile.predicted / self.measured[number] - 1
            if self.fits is not None:
                entry["fits"] = self.fits[number].to_dict()
            found.append(entry)
        mixers = {} if self.mixers is None else {"mixers": self.mixers}
        return {**found[0], **mixers} if len(found) == 1 else {"profiles": found, **mixers}

    def text(self, depth: int | None) -> str:
        """Tables of the layers, of the peaks, and what was asked."""
        parts = [
            f"{_title(label, profile)}\n{layer_table(profile.layers, depth)}"
            for label, profile in zip(self.labels, self.profiles, strict=True)
        ]
        parts.append(peak_table(self.profiles, self.labels))
        for label, *answers in zip(self.labels, *self._answers(), strict=True):
            parts += [f"{label}: {answer}" for answer in answers]
        return "\n\n".join(parts)

    def write(self, folder: Path) -> None:
        """Writes profile.json, profile.csv, profile.html and profile.png, and mixers.png if they were compared."""
        write_json(folder / "profile.json", self.to_dict())
        write_text(folder / "profile.csv", layer_csv(self.profiles, self.labels))
        write_text(folder / "profile.html", page(self))
        save_figure(profile_figure(self), folder / "profile.png")
        if self.mixers is not None:
            save_figure(mixers_figure(self.mixers), folder / "mixers.png")

    def _answers(self) -> list[list[str]]:
        found = []
        if self.measured is not None:
            pairs = zip(self.profiles, self.measured, strict=True)
            found.append([measured_text(profile, measured) for profile, measured in pairs])
        if self.fits is not None:
            found.append([fits_text(fits) for fits in self.fits])
        return found


def _title(label: str, profile: Profile) -> str:
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in profile.case.shown().items())
    return f"{label}: one training step: {sizes}"


def measured_text(profile: Profile, measured: int) -> str:
    """Predicted, measured, and the error."""
    sizes = f"predicted {profile.predicted / MIB:,.2f} MiB, measured {measured / MIB:,.2f} MiB"
    return f"{sizes}: {100 * (profile.predicted / measured - 1):+.2f} %."
