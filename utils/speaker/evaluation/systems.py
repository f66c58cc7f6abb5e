"""What evaluations record about the systems that they are of: models, training costs, and flags that differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.files import shown

Report = dict[str, Any]

# Flags that change no score.
_ASIDE = ("out", "resume", "checkpoint", "evaluations", "bootstrap", "json", "format", "keep_features")


def models_of(report: Report) -> list[dict[str, Any]]:
    """The models of an evaluation, or of those that were pooled into it."""
    return report.get("models", [report.get("model")])


def system_labels(systems: Sequence[Sequence[Path]]) -> list[str]:
    """Short names of systems: what differs in the paths of their first evaluations, and the number of seeds."""
    names = [list(folders[0].parts) for folders in systems]
    for end in (0, -1):
        while min(map(len, names)) > 1 and len({name[end] for name in names}) == 1:
            for name in names:
                name.pop(end)
    seeds = [f" ({len(folders)} seeds)" if len(folders) > 1 else "" for folders in systems]
    return [shown("/".join(name)) + number for name, number in zip(names, seeds, strict=True)]


def facts_of(reports: Sequence[Report]) -> dict[str, Any]:
    """Names, parameters, steps and training costs of the models of a system's evaluations; None for what none recorded.

    The CPU time is the mean of the models, the rest is their highest.
    """
    models = [model for report in reports for model in models_of(report) if model]
    trainings = [model.get("training", {}) for model in models]
    return {
        "model": ", ".join(dict.fromkeys(model["name"] for model in models)),
        "parameters": _over(models, "parameters", max),
        "steps": _over(trainings, "steps", max),
        "cpu_s": _over(trainings, "cpu_s", lambda values: sum(values) / len(values)),
        "memory_mib": _over(trainings, "memory_mib", max),
    }


def _over(dictionaries: Sequence[dict[str, Any]], name: str, combine: Callable[[list[Any]], Any]) -> Any:
    values = [each[name] for each in dictionaries if each.get(name) is not None]
    return combine(values) if values else None


def differing_flags(systems: Sequence[Sequence[Report]]) -> dict[str, list[list[Any] | None]]:
    """Flags whose values differ between systems -> the values of each system; None where none are recorded.

    Those of trainings are named --flag, those of evaluations "evaluate --flag".
    """
    found = [_flags(reports) for reports in systems]
    names = dict.fromkeys(name for flags in found for name in sorted(flags))
    rows = {name: [flags.get(name) for flags in found] for name in names}
    return {name: row for name, row in rows.items() if len({repr(values) for values in row if values is not None}) > 1}


def _flags(reports: Sequence[Report]) -> dict[str, list[Any]]:
    """Flags of a system -> their distinct values in the order of its evaluations."""
    models = [model for report in reports for model in models_of(report) if model]
    sets = [("--", model.get("training", {}).get("flags")) for model in models]
    sets += [("evaluate --", report.get("config")) for report in reports]
    flags: dict[str, list[Any]] = {}
    for prefix, given in sets:
        for name, value in (given or {}).items():
            values = flags.setdefault(prefix + name.replace("_", "-"), []) if name not in _ASIDE else []
            if value not in values:
                values.append(value)
    return flags
