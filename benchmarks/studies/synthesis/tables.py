"""Markdown tables of benchmarks/studies/text_to_mel.py, from the files in OUT/results alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.grid import markdown
from benchmarks.studies.synthesis.systems import NAMES, SEES_THE_PAST, SYSTEMS
from utils.files import read_json

NOT_INTELLIGIBLE = 0.6  # a CER from which speech is called so
COPY_IS_FINE = 0.3  # a CER of copy-synthesis up to which the recognizer and the vocoder are not to blame
SIZES = 0.1  # by which parameters of systems that are compared may differ

Result = dict[str, Any]


def tables(results: Path) -> str:
    """All tables that have results, as one document."""
    parts = [make(read_results(results / part)) for part, make in TABLES.items() if (results / part).is_dir()]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_results(folder: Path) -> list[Result]:
    """The files of a part in the order of the systems, then of the seeds."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    order = list(SYSTEMS)
    place = {name: number for number, name in enumerate(order)}
    return sorted(found, key=lambda one: (place.get(one["system"], len(order)), one["system"], one.get("seed", 0)))


def table_a(results: list[Result]) -> str:
    """A row per system, its seeds beside each other; no error rate of a recognizer, which would be taken for a rank."""
    by_system: dict[str, list[Result]] = defaultdict(list)
    for one in results:
        by_system[one["system"]].append(one)
    header = ["system", "parameters", "steps", "CPU min", "frames per CPU s", "mel L1", "MCD, dB"]
    header += ["duration bias", "stopped at the limit", "RTF, CPU"]
    copies = [one["report"]["copy_synthesis"]["mcd"] for one in results]
    notes = [
        f"Seeds {_join(sorted({one['seed'] for one in results}), ' / ')}; {_evaluated(results)}.",
        "mel L1: teacher-forced, natural log. All but Tacotron 2 are told the recordings' durations, and their pitches "
        "if they draw harmonics; "
        + " and ".join(NAMES[name] for name in SEES_THE_PAST)
        + " are shown the true frames before each: compare it within each kind only.",
        f"MCD with DTW, free-running; copy-synthesis {min(copies):.2f}. Warping flatters speech that is much too long: "
        "read it beside the duration bias. RTF: CPU time of the acoustic model.",
    ]
    table = markdown.table(header, [_row_a(name, runs) for name, runs in by_system.items()])
    return _section("Table A: equal CPU time", table, [*notes, *_sizes(results), _conditions(results)])


def _row_a(name: str, runs: list[Result]) -> list[str]:
    def each(show: Callable[[Result], str]) -> str:
        return _join([show(one) for one in runs], " / ")

    return [
        NAMES[name],
        f"{runs[0]['parameters'] / 1e6:.2f} M",
        each(lambda one: str(one["steps"])),
        each(lambda one: f"{one['cpu_minutes']:.1f}"),
        each(lambda one: f"{one['frames_per_cpu_s']:.0f}"),
        each(lambda one: f"{one['report']['mel_l1']:.3f}"),
        each(lambda one: f"{one['report']['synthesis']['mcd']:.2f}"),
        each(lambda one: f"{100 * one['report']['duration']['bias']:+.1f} %"),
        each(lambda one: str(one["report"]["truncated"])),
        each(lambda one: f"{one['report']['real_time_factor']['acoustic_model']['cpu']:.3f}"),
    ]


def table_b(results: list[Result]) -> str:
    """A row per run, with intervals over utterances, beside copy-synthesis."""
    header = ["system", "seed", "parameters", "steps", "CPU min", "CER [95 %]", "WER", "words inserted, left out"]
    header += ["MCD, dB [95 %]", "voicing errors", "duration bias [95 %]", "stopped at the limit"]
    rows = [_row_b(one) for one in results]
    copy = results[0]["report"]["copy_synthesis"]
    spectrum = _interval(copy, "mcd", _plain)
    rows.append(["copy-synthesis", "", "", "", "", *_error_rates(copy), spectrum, _voicing(copy), "", ""])
    notes = [f"{_evaluated(results)[0].upper()}{_evaluated(results)[1:]}.", *intelligible(results), *_sizes(results)]
    return _section("Table B: longer, two systems", markdown.table(header, rows), [*notes, _conditions(results)])


def _row_b(one: Result) -> list[str]:
    report = one["report"]
    return [
        NAMES[one["system"]],
        str(one["seed"]),
        f"{one['parameters'] / 1e6:.2f} M",
        str(one["steps"]),
        f"{one['cpu_minutes']:.1f}",
        *_error_rates(report["synthesis"]),
        _interval(report["synthesis"], "mcd", _plain),
        _voicing(report["synthesis"]),
        _interval(report["duration"], "bias", lambda value: f"{100 * value:+.1f} %"),
        str(report["truncated"]),
    ]


def _voicing(figures: dict[str, Any]) -> str:
    """Rate of frames voiced in one only: it shows blurred harmonics, which HiFi-GAN turns into whispering."""
    return "–" if figures["voicing_error"] is None else _percent(figures["voicing_error"])


def _error_rates(figures: dict[str, Any]) -> list[str]:
    if figures["cer"] is None:
        return ["–", "–", "–"]
    kinds = f"{_percent(figures['wer_insertions'])}, {_percent(figures['wer_deletions'])}"
    return [_interval(figures, "cer", _percent), _percent(figures["wer"]), kinds]


def intelligible(results: Sequence[Result]) -> list[str]:
    """A note where every system's CER exceeds `NOT_INTELLIGIBLE`, and copy-synthesis shows that this is theirs."""
    rates = [one["report"]["synthesis"]["cer"] for one in results]
    copy = results[0]["report"]["copy_synthesis"]["cer"]
    if None in (copy, *rates) or min(rates) <= NOT_INTELLIGIBLE:
        return []
    if copy > COPY_IS_FINE:
        return [f"Copy-synthesis has a CER of {_percent(copy)}: the vocoder or the recognizer says nothing here."]
    return [f"**Not intelligible at this budget**: every CER exceeds {NOT_INTELLIGIBLE:.0%}, copy-synthesis is fine."]


def table_hard(results: list[Result]) -> str:
    """A row per system and category: words inserted and omitted, and their excess over copy-synthesis."""
    header = ["system", "category", "sentences", "words", "inserted", "beyond", "sentences with them"]
    header += ["not by espeak-ng", "left out", "beyond", "sentences with them", "not by espeak-ng"]
    header += ["WER", "with a repeat", "cut off", "nothing heard"]
    rows = [
        _row_hard(NAMES.get(one["system"], one["system"]), category, figures)
        for one in results
        for category, figures in one["categories"].items()
    ]
    reference = results[0]["reference"]
    notes = [
        f"Beyond: more words than copy-synthesis of {reference['words']} words of held-out clips lets expect "
        f"({_percent(reference['rates']['insertions'])} inserted, {_percent(reference['rates']['deletions'])} left "
        "out); sentences where that is more than one word; those of them where it is also more than one word beyond "
        "copy-synthesis of espeak-ng's speech of the same sentence. With a repeat: sentences in which four words in a "
        "row are heard once more than the text has them.",
        "Of speech that it cannot understand Whisper makes up words, and says them again and again.",
        f"Judged on audio by {_join(sorted({one['by']['asr'] for one in results}), ', ')}.",
    ]
    return _section("Hard sentences", markdown.table(header, rows), notes)


def _row_hard(name: str, category: str, figures: dict[str, Any]) -> list[str]:
    counts = [str(figures[key]) for key in ("sentences", "length")]
    for kind in ("insertions", "deletions"):
        counts += [str(figures[kind]), f"{figures[f'{kind}_beyond']:+.1f}", str(figures[f"with_{kind}"])]
        counts.append(str(figures[f"beyond_{kind}"]))
    marks = [str(figures[key]) for key in ("with_repeats", "truncated", "unheard")]
    return [name, category, *counts, _percent(figures["wer"]), *marks]


def table_voices(results: list[Result]) -> str:
    """A row per voice: cosines of the judge to the right and to the wrong voice, of speech and of real recordings."""
    header = ["model", "voice", "sentences", "right voice", "wrong voice", "nearer to the right one", "least margin"]
    rows = []
    for one in results:
        for kind, name in (("voices", one["system"]), ("recordings", "real recordings")):
            rows += [_row_voice(name, voice, figures) for voice, figures in one[kind].items()]
    references = results[0]["references"]
    notes = [
        "Cosine of Resemblyzer's embedding to the mean of "
        f"{_join([f'{count} recordings of {voice}' for voice, count in references.items()], ', ')}."
    ]
    return _section("Two voices in one model", markdown.table(header, rows), notes)


def _row_voice(name: str, voice: str, figures: dict[str, Any]) -> list[str]:
    means = [f"{figures[key]:.3f}" for key in ("right", "wrong")]
    share = f"{figures['closer_to_right']} of {figures['n']}"
    return [name, voice, str(figures["n"]), *means, share, f"{figures['smallest_margin']:+.3f}"]


TABLES: dict[str, Callable[[list[Result]], str]] = {
    "table-a": table_a,
    "table-b": table_b,
    "hard": table_hard,
    "voices": table_voices,
}


def _section(title: str, table: str, notes: Sequence[str]) -> str:
    return f"### {title}\n\n{table}\n\n" + "\n".join(notes)


def _sizes(results: Sequence[Result]) -> list[str]:
    """A note where the sizes of the systems differ by more than they should."""
    sizes = [one["parameters"] for one in results]
    return [f"Parameters differ by {max(sizes) / min(sizes) - 1:.0%}."] if max(sizes) > (1 + SIZES) * min(sizes) else []


def _evaluated(results: Sequence[Result]) -> str:
    """Number of clips that were judged, and the vocoder."""
    report = results[0]["report"]
    source = report["source"]
    clips = f"{report['utterances']} clips ({report['seconds']:.0f} s) never trained on"
    return f"{clips}, best checkpoints by the validation list, vocoder {Path(source['vocoder']).name}"


def _conditions(results: Sequence[Result]) -> str:
    """Budget and machine of the runs."""
    allowed = sorted({one["minutes_allowed"] for one in results if one["minutes_allowed"] is not None})
    budget = f"{_join(allowed, ', ')} CPU minutes of training steps allowed" if allowed else "as many steps as shown"
    first = results[0]
    machine = f"{first['measured']['processor']}, one thread, {first['measured']['date'][:10]}"
    return f"Training: {budget}; mixed precision {_join(sorted({one['amp'] for one in results}), ', ')}; {machine}."


def _join(values: Iterable[Any], mark: str) -> str:
    return mark.join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _interval(figures: dict[str, Any], key: str, show: Callable[[float], str]) -> str:
    bounds = figures[f"{key}_ci"]
    return show(figures[key]) + (f" [{show(bounds[0])}, {show(bounds[1])}]" if bounds else "")
