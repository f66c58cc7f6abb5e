"""A hundred hard sentences, judged on their audio: words inserted and left out beyond what copy-synthesis shows."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.synthesis.runs import evaluate, evaluation_of, machine
from utils.cli import UserError, progress
from utils.files import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from utils.evaluation.asr import Transcriber
    from utils.synthesis.synthesizer import Synthesizer
    from utils.synthesis.vocoder import Vocoder

CATEGORIES = ("repeats", "numbers", "long", "twisters", "abbreviations", "words", "questions", "lists", "odd")
REPEAT = 4  # words that are heard again although the text does not have them again


class Sentence(NamedTuple):
    """A line of the list; `number` counts from 1."""

    number: int
    category: str
    text: str


def read_sentences(path: Path) -> list[Sentence]:
    """The lines `category|text` of a file; `UserError` for any that is not one."""
    sentences = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        category, _, text = line.partition("|")
        if category not in CATEGORIES or not text.strip():
            raise UserError(f"line {number} of {path} is not `category|text` with one of {', '.join(CATEGORIES)}")
        sentences.append(Sentence(number, category, text.strip()))
    if not sentences:
        raise UserError(f"{path} is empty")
    return sentences


def repeated_words(wanted: Sequence[str], heard: Sequence[str], size: int = REPEAT) -> int:
    """How often a run of `size` words is heard again beyond the times that the text has it.

    A passage of size + k words that is said once too often counts k + 1.
    """
    counts = [Counter(zip(*(words[start:] for start in range(size)), strict=False)) for words in (wanted, heard)]
    return sum(times - max(1, counts[0][run]) for run, times in counts[1].items() if times > max(1, counts[0][run]))


def measure(args: argparse.Namespace, name: str, checkpoint: Path, evaluation: Path) -> dict[str, Any]:
    """Speaks and judges all sentences with one model; the result is kept in OUT/results/hard/NAME.json.

    `evaluation` is where the model's evaluation on held-out clips lies, or will: what copy-synthesis loses there.

    Each sentence is kept as soon as it is judged, and its audio in OUT/hard/NAME/; those there already are not spoken
    again by the same model, vocoder and recogniser.
    """
    from utils.evaluation.asr import Transcriber
    from utils.synthesis.synthesizer import Synthesizer
    from utils.synthesis.vocoder import load_vocoder

    if args.asr is None:
        raise UserError("hard sentences are judged by a recogniser: give --asr")
    sentences = read_sentences(args.sentences)[: args.limit]
    report = evaluate(args, checkpoint, evaluation)
    synthesizer = Synthesizer.load(checkpoint, "cpu")
    vocoder = load_vocoder(str(args.vocoder), synthesizer.recipe)
    by = {"model": synthesizer.model_hash, "vocoder": vocoder.name, "asr": str(args.asr)}
    path = args.out / "hard" / name / "sentences.jsonl"
    judged = {line["text"]: line for line in _read_lines(path) if line["by"] == by}
    missing = [sentence for sentence in sentences if sentence.text not in judged]
    transcriber = Transcriber.load(args.asr) if missing else None
    for sentence in progress(missing, unit="sentence", desc=name):
        judged[sentence.text] = {**_judge(sentence, synthesizer, vocoder, transcriber, path.parent), "by": by}
        _append(path, judged[sentence.text])
    found = {
        "system": name,
        "checkpoint": str(checkpoint),
        "by": by,
        **summary([judged[sentence.text] for sentence in sentences], report["copy_synthesis"]),
        "measured": machine(),
    }
    write_json(args.out / "results" / "hard" / f"{name}.json", found)
    return found


def _judge(
    sentence: Sentence, synthesizer: Synthesizer, vocoder: Vocoder, transcriber: Transcriber, folder: Path
) -> dict[str, Any]:
    import soundfile

    from utils.evaluation.asr import comparable, judge

    spoken = synthesizer.speak(sentence.text)
    audio, rate = vocoder(spoken.mel), synthesizer.recipe.sample_rate
    with atomic_write(folder / f"{sentence.number:03d}.wav") as file:
        soundfile.write(file, audio, rate, format="WAV", subtype="PCM_16")
    heard = judge(sentence.text, transcriber(audio, rate))
    return {
        **sentence._asdict(),
        "seconds": len(audio) / rate,
        "truncated": spoken.truncated,
        "unknown_symbols": dict(spoken.unknown),
        "heard": heard.text,
        "words": heard.words._asdict(),
        "characters": heard.characters._asdict(),
        "repeated": repeated_words(comparable(sentence.text).split(), comparable(heard.text).split()),
    }


def summary(lines: Sequence[dict[str, Any]], copy_synthesis: dict[str, Any]) -> dict[str, Any]:
    """Figures of each category and of all, with what copy-synthesis of held-out clips lets expect per word.

    `insertions` and `deletions` are words; `*_beyond` is what exceeds the rate of copy-synthesis times the words of
    the text, and negative where there are fewer. `with_*` are sentences where that is more than a word.
    """
    rates = {kind: copy_synthesis[f"wer_{kind}"] for kind in ("insertions", "deletions")}
    sentences = [{**line, **_beyond(line["words"], rates)} for line in lines]
    found = [name for name in CATEGORIES if any(line["category"] == name for line in sentences)]
    groups = {name: _figures([line for line in sentences if line["category"] == name]) for name in found}
    reference = {"rates": rates, "words": copy_synthesis["wer_length"], "wer": copy_synthesis["wer"]}
    return {"reference": reference, "categories": {**groups, "all": _figures(sentences)}, "sentences": sentences}


def _beyond(words: dict[str, int], rates: dict[str, float]) -> dict[str, float]:
    return {f"{kind}_beyond": words[kind] - rate * words["length"] for kind, rate in rates.items()}


def _figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    words = {name: sum(line["words"][name] for line in lines) for name in lines[0]["words"]}
    beyond = {name: sum(line[name] for line in lines) for name in ("insertions_beyond", "deletions_beyond")}
    return {
        "sentences": len(lines),
        "seconds": sum(line["seconds"] for line in lines),
        **words,
        **beyond,
        "with_insertions": sum(line["insertions_beyond"] > 1 for line in lines),
        "with_deletions": sum(line["deletions_beyond"] > 1 for line in lines),
        "wer": (words["substitutions"] + words["insertions"] + words["deletions"]) / words["length"],
        "truncated": sum(line["truncated"] for line in lines),
        "with_repeats": sum(line["repeated"] > 0 for line in lines),
        "unheard": sum(not line["heard"] for line in lines),
    }


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        # A line that a crash cut short must not swallow the next one.
        file.write(("\n" if whole and not whole.endswith("\n") else "") + json.dumps(line, ensure_ascii=False) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may have been cut short."""
    lines = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def models(args: argparse.Namespace) -> list[tuple[str, Path, Path]]:
    """Name, checkpoint and evaluation of the models to speak with: those of --checkpoint, else those of table B.

    `UserError` if one was not trained yet.
    """
    if args.checkpoint:
        return [(name, path, args.out / "hard" / f"{name}-evaluation") for name, path in args.checkpoint]
    found = []
    for system in args.systems_b:
        path = args.out / "results" / "table-b" / f"{system}-seed{args.seeds_b[0]}.json"
        if not path.exists():
            raise UserError(f"{path} is missing: --parts table-b comes before hard, or name models with --checkpoint")
        checkpoint = Path(read_json(path)["checkpoint"])
        found.append((system, checkpoint, evaluation_of(checkpoint.parent)))
    return found
