"""A hundred hard sentences, evaluated on their audio: words inserted and omitted beyond those of copy-synthesis.

Copy-synthesis twice: of held-out recordings, which are the same voice with other texts, and of espeak-ng's speech,
which is another voice with the same texts.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.studies.synthesis.runs import evaluate, evaluation_of, machine
from utils.cli import progress
from utils.errors import UserError
from utils.files import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from utils.features.recipe import MelRecipe
    from utils.tts.asr import Transcriber
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.vocoder import Vocoder

    Speak = Callable[[str], "Spoken"]

CATEGORIES = ("repeats", "numbers", "long", "twisters", "abbreviations", "words", "questions", "lists", "odd")
ESPEAK, ESPEAK_VOICE, ESPEAK_RATE, ESPEAK_PITCH = "espeak-ng", "en-us", 165, 50
PEAK = 0.5  # of espeak-ng's samples, which are soft, for a vocoder that learned a louder voice
REPEAT = 4  # words that are heard again although the text does not have them again


class Sentence(NamedTuple):
    """A line of the list; `number` counts from 1."""

    number: int
    category: str
    text: str


class Spoken(NamedTuple):
    """The audio (n,) of a sentence, a flag if it was cut, and the symbols that the model cannot speak."""

    samples: np.ndarray
    truncated: bool
    unknown: dict[str, int]


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


def repeated_words(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Counts runs of `REPEAT` words that the transcript has more often than the text.

    A passage of REPEAT + k words that is said once too often counts k + 1.
    """
    counts = [Counter(zip(*(words[start:] for start in range(REPEAT)), strict=False)) for words in (wanted, heard)]
    return sum(times - max(1, counts[0][run]) for run, times in counts[1].items() if times > max(1, counts[0][run]))


def measure(args: argparse.Namespace, name: str, checkpoint: Path, evaluation: Path) -> dict[str, Any]:
    """Speaks and judges all sentences with one model; the result is kept in OUT/results/hard/NAME.json.

    `evaluation` is where the model's evaluation on held-out clips lies, or will: what copy-synthesis loses there.
    espeak-ng's speech, through the same vocoder, is a result of its own.
    """
    from utils.text.frontend import VERSION
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.vocoder import load_vocoder

    if name == ESPEAK:
        raise UserError(f"no model can have the name {ESPEAK}, which is reserved for the comparison")
    if args.asr is None:
        raise UserError("hard sentences are judged by a recognizer: give --asr")
    sentences = read_sentences(args.sentences)[: args.limit]
    report = evaluate(args, checkpoint, evaluation)
    synthesizer = Synthesizer.load(checkpoint, "cpu")
    vocoder = load_vocoder(str(args.vocoder), synthesizer.recipe)
    espeak = {"voice": ESPEAK_VOICE, "rate": ESPEAK_RATE, "pitch": ESPEAK_PITCH, "front_end_version": VERSION}
    speakers = {
        ESPEAK: (espeak, functools.partial(_by_espeak, synthesizer.recipe, vocoder)),
        name: ({"model": synthesizer.model_hash}, functools.partial(_by_model, synthesizer, vocoder)),
    }
    lines: dict[str, list[dict[str, Any]]] = {}
    for speaker, (what, speak) in speakers.items():
        by = {**what, "vocoder": vocoder.name, "asr": str(args.asr)}
        lines[speaker] = _judged(args, speaker, by, speak, sentences, synthesizer.recipe.sample_rate)
        found = {
            "system": speaker,
            "checkpoint": str(checkpoint) if speaker == name else None,
            "by": by,
            **summary(lines[speaker], report["copy_synthesis"], lines[ESPEAK]),
            "measured": machine(),
        }
        write_json(args.out / "results" / "hard" / f"{speaker}.json", found)
    return found


def _by_model(synthesizer: Synthesizer, vocoder: Vocoder, text: str) -> Spoken:
    spoken = synthesizer.speak(text)
    return Spoken(vocoder(spoken.mel), spoken.truncated, dict(spoken.unknown))


def _by_espeak(recipe: MelRecipe, vocoder: Vocoder, text: str) -> Spoken:
    """Copy-synthesis of espeak-ng's speech for the text as the model reads it."""
    import numpy as np
    import soundfile

    from utils.espeak import synthesize
    from utils.features.audio import load_audio
    from utils.features.mel import MelExtractor
    from utils.text.frontend import split_sentences

    sentence = {"text": " ".join(split_sentences(text)), "rate": ESPEAK_RATE, "pitch": ESPEAK_PITCH}
    rate, (samples,) = synthesize({"voice": ESPEAK_VOICE, "sentences": [sentence]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        soundfile.write(path, samples * (PEAK / max(1, np.abs(samples.astype(np.int64)).max())), rate)
        audio = load_audio(path, recipe.sample_rate)
    return Spoken(vocoder(MelExtractor(recipe)(audio)), False, {})


def _judged(
    args: argparse.Namespace, name: str, by: dict[str, Any], speak: Speak, sentences: Sequence[Sentence], rate: int
) -> list[dict[str, Any]]:
    """A line for each sentence.

    Each is kept as soon as it is judged, and its audio in OUT/hard/NAME/; those there already are not spoken again by
    the same speaker, vocoder and recognizer.
    """
    from utils.tts.asr import Transcriber

    path = args.out / "hard" / name / "sentences.jsonl"
    judged = {line["text"]: line for line in _read_lines(path) if line["by"] == by}
    missing = [sentence for sentence in sentences if sentence.text not in judged]
    transcriber = Transcriber.load(args.asr) if missing else None
    for sentence in progress(missing, unit="sentence", desc=name):
        judged[sentence.text] = {**_judge(sentence, speak(sentence.text), rate, transcriber, path.parent), "by": by}
        _append(path, judged[sentence.text])
    return [judged[sentence.text] for sentence in sentences]


def _judge(sentence: Sentence, spoken: Spoken, rate: int, transcriber: Transcriber, folder: Path) -> dict[str, Any]:
    from utils.tts.asr import comparable, judge
    from utils.wav import wav_file

    with wav_file(folder / f"{sentence.number:03d}.wav", rate) as write:
        write(spoken.samples)
    heard = judge(sentence.text, transcriber(spoken.samples, rate))
    return {
        **sentence._asdict(),
        "seconds": len(spoken.samples) / rate,
        "truncated": spoken.truncated,
        "unknown_symbols": spoken.unknown,
        "heard": heard.text,
        "words": heard.words._asdict(),
        "characters": heard.characters._asdict(),
        "repeated": repeated_words(comparable(sentence.text).split(), comparable(heard.text).split()),
    }


def summary(
    lines: Sequence[dict[str, Any]], copy_synthesis: dict[str, Any], same_texts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Metrics of each category and of all, with the errors per word expected from copy-synthesis of held-out clips.

    `insertions` and `deletions` are words; `*_beyond` is what exceeds the rate of copy-synthesis times the words of
    the text, and negative where there are fewer. `with_*` are sentences where that is more than a word, `beyond_*`
    those of them where `same_texts`, another voice's lines of the same sentences, have less by more than a word, too.
    """
    rates = {kind: copy_synthesis[f"wer_{kind}"] for kind in ("insertions", "deletions")}
    pairs = zip(lines, same_texts, strict=True)
    sentences = [{**line, **_beyond(line["words"], rates, same["words"])} for line, same in pairs]
    found = [name for name in CATEGORIES if any(line["category"] == name for line in sentences)]
    groups = {name: _figures([line for line in sentences if line["category"] == name]) for name in found}
    reference = {"rates": rates, "words": copy_synthesis["wer_length"], "wer": copy_synthesis["wer"]}
    return {"reference": reference, "categories": {**groups, "all": _figures(sentences)}, "sentences": sentences}


def _beyond(words: dict[str, int], rates: dict[str, float], same: dict[str, int]) -> dict[str, float]:
    beyond = {f"{kind}_beyond": words[kind] - rate * words["length"] for kind, rate in rates.items()}
    return {**beyond, **{f"{kind}_beyond_same": words[kind] - same[kind] for kind in rates}}


def _figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    words = {name: sum(line["words"][name] for line in lines) for name in lines[0]["words"]}
    beyond = {name: sum(line[name] for line in lines) for name in ("insertions_beyond", "deletions_beyond")}
    return {
        "sentences": len(lines),
        "seconds": sum(line["seconds"] for line in lines),
        **words,
        **beyond,
        **_sentences_with("insertions", lines),
        **_sentences_with("deletions", lines),
        "wer": (words["substitutions"] + words["insertions"] + words["deletions"]) / words["length"],
        "truncated": sum(line["truncated"] for line in lines),
        "with_repeats": sum(line["repeated"] > 0 for line in lines),
        "unheard": sum(not line["heard"] for line in lines),
    }


def _sentences_with(kind: str, lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    found = [line for line in lines if line[f"{kind}_beyond"] > 1]
    return {f"with_{kind}": len(found), f"beyond_{kind}": sum(line[f"{kind}_beyond_same"] > 1 for line in found)}


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        # A line that a crash cut short must not swallow the next one.
        file.write(("\n" if whole and not whole.endswith("\n") else "") + json.dumps(line, ensure_ascii=False) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file that may have been truncated."""
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
