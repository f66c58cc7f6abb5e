"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from utils.files import write_json, write_text
from utils.plots import save_figure
from utils.profiling.page import page
from utils.profiling.pictures import mixers_figure, profile_figure
from utils.profiling.report import Report
from utils.profiling.tables import layer_csv


def write(report: Report, folder: Path) -> None:
    """Writes profile.json, profile.csv, profile.html and profile.png, and mixers.png if they were compared."""
    write_json(folder / "profile.json", report.to_dict())
    write_text(folder / "profile.csv", layer_csv(report.profiles, report.labels))
    write_text(folder / "profile.html", page(report))
    save_figure(profile_figure(report), folder / "profile.png")
    if report.mixers is not None:
        save_figure(mixers_figure(report.mixers), folder / "mixers.png")
