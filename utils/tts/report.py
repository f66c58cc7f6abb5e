"""Reports of text-to-mel evaluations: metrics beside those of copy-synthesis, audio and pictures."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.commands import REPORT, UTTERANCES, counted
from utils.files import write_json, write_text
from utils.plots import FORMATS, percent
from utils.tts import plots
from utils.tts.asr import ErrorCounts
from utils.tts.evaluate import Judged, Measured, Sample, SynthesisEvaluation
from utils.tts.speech_metrics import PitchErrors, bootstrap_ratio
from utils.wav import wav_file

DURATIONS, AUDIO = "durations", "samples"
SYSTEMS = {"synthesis": "synthesis", "copy_synthesis": "copy-synthesis"}
TIMES = {"text": "RTF, text", "acoustic_model": "RTF, acoustic model", "vocoder": "RTF, vocoder", "whole": "RTF, total"}
Interval = Callable[..., tuple[float, float] | None]  # of numerators and denominators, see `bootstrap_ratio`
_PITCH = ("f0_rmse_hz", "f0_rmse_cents", "voicing_error", "voiced_frames")


def build_synthesis_report(
    evaluation: SynthesisEvaluation, about: dict[str, Any], bootstrap: int, seed: int
) -> dict[str, Any]:
    """Builds the content of report.json; `about` describes the model and the command.

    `synthesis` and `copy_synthesis` hold the same metrics: `mcd` in dB, F0, `cer` and `wer` with their kinds of errors;
    null for a reason in `reasons`. Rates and biases are fractions; an error rate can exceed 1. An interval `*_ci` holds
    95 % of `bootstrap` samples of the utterances; it is null for a single utterance.
    """
    judged, interval = evaluation.judged, partial(bootstrap_ratio, n=bootstrap, seed=seed)
    unknown: Counter[str] = sum((one.unknown for one in judged), Counter())
    synthesis = _system_metrics([one.synthesis for one in judged], interval)
    reasons = dict(evaluation.reasons)
    if synthesis["voiced_frames"] == 0:
        reasons["synthesis_f0"] = "no frame is voiced both in the synthesis and in the recording"
    return {
        "title": evaluation.title,
        "utterances": len(judged),
        "speakers": len({one.row.speaker for one in judged}),
        "seconds": evaluation.recipe.seconds(sum(one.row.frames for one in judged)),
        "synthesis": synthesis,
        "copy_synthesis": _system_metrics([one.copy for one in judged], interval),
        "duration": _duration_metrics(judged, interval),
        "mel_l1": _teacher_forced(judged),
        "real_time_factor": _real_time_factors(evaluation),
        "truncated": sum(one.truncated for one in judged),
        "unknown_symbols": dict(sorted(unknown.items())),
        "reasons": reasons,
        "source": evaluation.source,
        "warnings": evaluation.warnings,
        **about,
    }


def _real_time_factors(evaluation: SynthesisEvaluation) -> dict[str, dict[str, float]]:
    """Seconds per second of speech, of each part and of all from text to audio."""
    seconds = evaluation.recipe.seconds(sum(one.synthesis.frames for one in evaluation.judged))
    clocks = evaluation.clocks.items()
    factors = {part: {"cpu": clock.cpu / seconds, "wall": clock.wall / seconds} for part, clock in clocks}
    return {**factors, "whole": {kind: sum(one[kind] for one in factors.values()) for kind in ("cpu", "wall")}}


def _system_metrics(measured: Sequence[Measured], interval: Interval) -> dict[str, Any]:
    metrics: dict[str, Any] = {"mcd": None, "mcd_ci": None}
    distortions = [one.distortion for one in measured if one.distortion is not None]
    if distortions:
        sums, steps = zip(*distortions, strict=True)
        metrics = {"mcd": sum(sums) / sum(steps), "mcd_ci": interval(sums, steps)}
    pitches = [one.pitch for one in measured if one.pitch is not None]
    metrics |= PitchErrors.total(pitches).metrics() if pitches else dict.fromkeys(_PITCH)
    transcripts = [one.transcript for one in measured if one.transcript is not None]
    metrics |= _error_rates("cer", [one.characters for one in transcripts], interval)
    return metrics | _error_rates("wer", [one.words for one in transcripts], interval)


def _error_rates(name: str, counts: Sequence[ErrorCounts], interval: Interval) -> dict[str, Any]:
    """An error rate pooled over utterances, its interval, and the rates of its kinds."""
    total = ErrorCounts.total(counts) if counts else None
    if total is None or not total.length:
        return dict.fromkeys((name, f"{name}_ci", *(f"{name}_{kind}" for kind in ErrorCounts._fields)))
    bounds = interval([one.errors for one in counts], [one.length for one in counts])
    shares = {f"{name}_{kind}": getattr(total, kind) / total.length for kind in ErrorCounts._fields[:3]}
    return {name: total.errors / total.length, f"{name}_ci": bounds, **shares, f"{name}_length": total.length}


def _duration_metrics(judged: Sequence[Judged], interval: Interval) -> dict[str, Any]:
    """Bias of the total length, and mean absolute error of the lengths, as shares of the true ones."""
    predicted, true = _lengths(judged)
    return {
        "bias": float(predicted.sum() / true.sum() - 1),
        "bias_ci": interval(predicted - true, true),
        "error": float(np.abs(predicted / true - 1).mean()),
    }


def _lengths(judged: Sequence[Judged]) -> np.ndarray:
    """Predicted and true frames of utterances: (2, n)."""
    return np.array([(one.synthesis.frames, one.row.frames) for one in judged], dtype=np.float64).T


def _teacher_forced(judged: Sequence[Judged]) -> float | None:
    """Mean error over the frames of all utterances that have one."""
    pairs = [(one.mel_l1, one.row.frames) for one in judged if one.mel_l1 is not None]
    return sum(error * frames for error, frames in pairs) / sum(frames for _, frames in pairs) if pairs else None


def synthesis_table(report: dict[str, Any]) -> str:
    """Formats a report as text: synthesis beside copy-synthesis, then the metrics of synthesis alone."""
    systems = [report[system] for system in SYSTEMS]
    lines = [f"{'':<26}" + "".join(f"{name:<36}" for name in SYSTEMS.values())]
    for label, key, show in _ROWS:
        if any(metrics[key] is not None for metrics in systems):
            lines.append(f"{label:<26}" + "".join(f"{_with_interval(metrics, key, show):<36}" for metrics in systems))
    lines += [f"{_MISSING[key]:<26}{reason}" for key, reason in report["reasons"].items()]
    lines += ["", *_synthesis_lines(report)]
    counts = f"{counted(report['utterances'], 'utterance')} of {counted(report['speakers'], 'speaker')}, "
    counts += f"{report['seconds']:.0f} s"
    cut = f"; {report['truncated']} cut at the limit on their length" if report["truncated"] else ""
    return "\n".join([*(line.rstrip() for line in lines), "", counts + cut])


def _synthesis_lines(report: dict[str, Any]) -> list[str]:
    duration, l1 = report["duration"], report["mel_l1"]
    bias = _with_interval(duration, "bias", lambda rate: f"{100 * rate:+.2f} %")
    lines = [
        f"{'duration bias':<26}{bias}",
        f"{'duration error':<26}{percent(duration['error'])} per utterance",
        f"{'teacher-forced mel L1':<26}{'-' if l1 is None else f'{l1:.3f} (natural log)'}",
    ]
    for part, times in report["real_time_factor"].items():
        lines.append(f"{TIMES[part]:<26}{times['cpu']:.3f} in CPU time, {times['wall']:.3f} in wall time")
    return lines


def _with_interval(metrics: dict[str, Any], key: str, show: Callable[[float], str]) -> str:
    if metrics[key] is None:
        return "-"
    interval = metrics.get(f"{key}_ci")
    return show(metrics[key]) + (f" ({' to '.join(show(bound) for bound in interval)})" if interval else "")


# Label, metric, and its format.
_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("MCD", "mcd", lambda value: f"{value:.2f} dB"),
    ("F0 RMSE", "f0_rmse_hz", lambda value: f"{value:.1f} Hz"),
    ("F0 RMSE", "f0_rmse_cents", lambda value: f"{value:.0f} cents"),
    ("voicing error", "voicing_error", percent),
    ("CER", "cer", percent),
    ("WER", "wer", percent),
    ("  words inserted", "wer_insertions", percent),
    ("  words deleted", "wer_deletions", percent),
)
_MISSING = {
    "mcd": "MCD",
    "f0": "F0",
    "synthesis_f0": "F0 of synthesis",
    "copy_f0": "F0 of copy-synthesis",
    "asr": "CER and WER",
}


def write_synthesis_report(
    out: Path, report: dict[str, Any], evaluation: SynthesisEvaluation, pictures: str = "png"
) -> None:
    """Writes report, utterances, audio and pictures into `out`, after removing those of an earlier evaluation.

    `pictures` is their format. `report.json` is written last: a folder that has it is complete.
    """
    for name in (REPORT, UTTERANCES, *(f"{DURATIONS}.{kind}" for kind in FORMATS)):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / AUDIO, ignore_errors=True)
    lines = (json.dumps(_utterance(one, evaluation), ensure_ascii=False) + "\n" for one in evaluation.judged)
    write_text(out / UTTERANCES, "".join(lines))
    for sample in evaluation.samples:
        _write_sample(out / AUDIO, sample, evaluation, pictures)
    predicted, true = _lengths(evaluation.judged) * evaluation.recipe.seconds(1)
    plots.draw_durations(out / f"{DURATIONS}.{pictures}", true, predicted, f"{evaluation.title}: lengths")
    write_json(out / REPORT, report)


def _utterance(one: Judged, evaluation: SynthesisEvaluation) -> dict[str, Any]:
    """A line of utterances.jsonl."""
    return {
        "utterance": one.row.utterance,
        "speaker": one.row.speaker,
        "text": one.row.text,
        "seconds": evaluation.recipe.seconds(one.row.frames),
        "predicted_seconds": evaluation.recipe.seconds(one.synthesis.frames),
        "truncated": one.truncated,
        "unknown_symbols": dict(sorted(one.unknown.items())),
        "mel_l1": one.mel_l1,
        **{name: _measured(measured) for name, measured in zip(SYSTEMS, (one.synthesis, one.copy), strict=True)},
    }


def _measured(measured: Measured) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    if measured.distortion is not None:
        metrics["mcd"] = measured.distortion.total / measured.distortion.steps
    if measured.pitch is not None:
        metrics |= measured.pitch.metrics()
    if measured.transcript is not None:
        text, characters, words = measured.transcript
        metrics |= {"heard": text, "characters": characters._asdict(), "words": words._asdict()}
    return metrics


def _write_sample(folder: Path, sample: Sample, evaluation: SynthesisEvaluation, pictures: str) -> None:
    recipe, name, spoken = evaluation.recipe, sample.row.utterance, sample.spoken
    for system, audio in (("synthesis", sample.synthesis), ("copy", sample.copy)):
        with wav_file(folder / f"{name}.{system}.wav", recipe.sample_rate) as write:
            write(audio)
    shown = spoken.mel, spoken.alignment, spoken.symbols, recipe, name, sample.recording
    plots.draw_speech(folder / f"{name}.{pictures}", *shown)
