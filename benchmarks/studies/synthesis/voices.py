"""Two voices in one model: a corpus of two speakers, sentences spoken by both, judged by an independent encoder."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.synthesis.runs import (
    DONE,
    SPLITS,
    Training,
    evaluate,
    evaluation_of,
    machine,
    planned_steps,
    require_unseen,
    run_script,
    train,
)
from benchmarks.studies.synthesis.systems import SYSTEMS
from utils.corpus.layouts import Utterance, read_corpus
from utils.errors import UserError
from utils.files import read_json, sha256_text, write_json, write_text

if TYPE_CHECKING:
    from utils.features.store import FeatureStore, Row
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.text_lists import TextLists

PART = "voices"
REFERENCES = 20  # recordings that a voice is known by
JUDGE = Path(__file__).with_name("judge.py")


def voice_name(folder: Path) -> str:
    """Name of the speaker of a folder in LJSpeech layout, without a version: LJSpeech-1.1 is LJSpeech."""
    return folder.resolve().name.partition("-")[0]


def make_corpus(folders: Sequence[Path], out: Path) -> None:
    """Links the recordings of folders in LJSpeech layout into one corpus in LibriSpeech layout, with their texts.

    Making it again changes nothing. `UserError` if two voices have one name, or a recording no text.
    """
    names = [voice_name(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"two voices must have two names, not {' and '.join(names)}")
    for name, folder in zip(names, folders, strict=True):
        chapters: dict[str, list[Utterance]] = defaultdict(list)
        for utterance in read_corpus(folder, "ljspeech"):
            if utterance.text is None:
                raise UserError(f"{utterance.path} in {folder} has no text")
            chapters[utterance.chapter].append(utterance)
        for chapter, utterances in chapters.items():
            _link_chapter(folder, out / name / chapter, utterances)


def _link_chapter(raw: Path, chapter: Path, utterances: Sequence[Utterance]) -> None:
    chapter.mkdir(parents=True, exist_ok=True)
    lines = []
    for utterance in utterances:
        audio = (raw / utterance.path).resolve()
        link = chapter / f"{utterance.utterance}{audio.suffix}"
        if not link.exists():
            link.unlink(missing_ok=True)  # one that leads nowhere
            link.symlink_to(audio)
        lines.append(f"{utterance.utterance} {utterance.text}\n")
    write_text(chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt", "".join(lines))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains one model on the voices, speaks held-out sentences in each, and lets the judge identify the speaker.

    The result is kept in OUT/results/voices/SYSTEM.json.
    """
    from utils.features.store import FeatureStore
    from utils.tts.text_lists import read_text_lists

    _embed(args.judge_python, [])  # before an hour of training
    folder = args.out / PART
    data = folder / "data"
    make_corpus(args.voices, folder / "corpus")
    words = ("--dataset", "librispeech", "--task", "tts", "--recipe", "hifigan-22k", "--units", args.voice_units)
    run_script("preprocess.py", data, *words, "--raw", folder / "corpus")
    flags, inputs = (*SYSTEMS[args.voice_system], "--voice", args.voice_kind), ()
    if args.speaker_encoder is not None:
        encoder = args.speaker_encoder.resolve()
        flags += ("--speaker-encoder", str(encoder))
        inputs = (encoder / "best.pt" if encoder.is_dir() else encoder,)
    name = f"{args.voice_system}-{args.voice_kind}"
    one = Training(PART, name, 0, args.config_voices, flags, args.cpu_minutes_voices, data, inputs)
    run = train(args, one, planned_steps(args, one))
    report = evaluate(args, run / "best.pt", evaluation_of(run), data)
    require_unseen(report, run)
    store, lists = FeatureStore.open(data), read_text_lists(data / "protocols" / "default")
    heldout = [store.rows[store.index[name]] for split in SPLITS for name in getattr(lists, split)]
    rows = sentences_to_speak(heldout, store, lists, args.limit or args.voice_sentences)
    texts = [row.text for row in rows]
    said_by = references(heldout, Path(store.meta["raw"]), texts) if args.voice_kind == "embedding" else None
    spoken = _speak(args, run / "best.pt", run.with_name(f"{run.name}-spoken"), texts, said_by)
    recordings = recordings_of(store, lists)
    found = {
        "system": name,
        "checkpoint": str(run / "best.pt"),
        "steps": read_json(run / DONE)["steps"],
        "parameters": read_json(run / "run.json")["parameters"],
        "sentences": texts,
        **compare(_embed(args.judge_python, [*spoken, *recordings]), spoken, recordings),
        "report": report,
        "measured": machine(),
    }
    write_json(args.out / "results" / PART / f"{name}.json", found)
    return found


def sentences_to_speak(heldout: Sequence[Row], store: FeatureStore, lists: TextLists, number: int) -> list[Row]:
    """Utterances whose texts are in no training utterance, of each speaker in turn, drawn with a fixed seed."""
    trained = {store.rows[store.index[name]].text for name in lists.train}
    new = [row for row in heldout if row.text not in trained]
    order = np.random.default_rng(0).permutation(len(new))
    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for place in order:
        by_speaker[new[place].speaker].append(new[place])
    turns = sorted(
        (turn, speaker, row) for speaker, rows in sorted(by_speaker.items()) for turn, row in enumerate(rows)
    )
    return [row for *_, row in turns[:number]]


def references(heldout: Sequence[Row], raw: Path, texts: Sequence[str]) -> dict[str, list[str]]:
    """For each speaker the reference recordings, one per text: held-out ones of another text."""
    found: dict[str, list[str]] = {}
    for speaker in sorted({row.speaker for row in heldout}):
        own = [row for row in heldout if row.speaker == speaker]
        turns = deque(own[place] for place in np.random.default_rng(2).permutation(len(own)))
        found[speaker] = []
        for text in texts:
            other = next((row for row in turns if row.text != text), None)
            if other is None:
                raise UserError(f"{speaker} has no held-out recording of another text than {text!r}")
            found[speaker].append(str(raw / other.path))
            turns.rotate(-1)
    return found


Labelled = dict[Path, tuple[str, str]]  # audio file -> kind ("spoken", "reference", "recording"), voice


def _speak(
    args: argparse.Namespace,
    checkpoint: Path,
    folder: Path,
    texts: Sequence[str],
    said_by: dict[str, list[str]] | None = None,
) -> Labelled:
    """Speaks every text in every voice of a checkpoint into files; existing files are of the same model.

    `said_by` has the recording that each text takes the voice from; without it the checkpoint knows the voices.
    """
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.vocoder import load_vocoder
    from utils.wav import wav_file

    synthesizer: Synthesizer = Synthesizer.load(checkpoint, "cpu")
    vocoder = load_vocoder(str(args.vocoder), synthesizer.recipe)
    folder = folder / f"{synthesizer.model_hash[:8]}-{Path(vocoder.name).name}"
    files: Labelled = {}
    for speaker in synthesizer.speakers:
        for number, text in enumerate(texts, start=1):
            voice = speaker if said_by is None else said_by[speaker][number - 1]
            path = folder / f"{speaker}-{number:02d}-{sha256_text(f'{voice} {text}')[:8]}.wav"
            files[path] = ("spoken", speaker)
            if not path.exists():
                audio = vocoder(synthesizer.speak(text, voice).mel)
                with wav_file(path, synthesizer.recipe.sample_rate) as write:
                    write(audio)
    return files


def recordings_of(store: FeatureStore, lists: TextLists) -> Labelled:
    """`REFERENCES` training recordings of each voice as its reference, and the held-out ones as a check."""
    raw, draw = Path(store.meta["raw"]), np.random.default_rng(1)
    trained = [store.rows[store.index[name]] for name in lists.train]
    files: Labelled = {}
    for speaker in sorted({row.speaker for row in trained}):
        own = [row for row in trained if row.speaker == speaker]
        for place in draw.permutation(len(own))[:REFERENCES]:
            files[raw / own[place].path] = ("reference", speaker)
    for split in SPLITS:
        rows = (store.rows[store.index[name]] for name in getattr(lists, split))
        files.update((raw / row.path, ("recording", row.speaker)) for row in rows)
    return files


def _embed(python: str, files: Sequence[Path]) -> dict[Path, NDArray[np.float64]]:
    """Unit-normalized embeddings (e,) by the judge, in a process of its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        order, answer = Path(folder) / "files.json", Path(folder) / "embeddings.json"
        write_json(order, [str(path.absolute()) for path in files])
        # -P: modules beside the worker must not stand in for packages of the same name.
        command = [python, "-P", str(JUDGE), str(order), str(answer)]
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            raise UserError(f"--judge-python {python} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise UserError(f"the judge failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        values = json.loads(answer.read_text(encoding="utf-8"))
    return {path: np.asarray(value) / np.linalg.norm(value) for path, value in zip(files, values, strict=True)}


def compare(embeddings: dict[Path, NDArray], spoken: Labelled, recordings: Labelled) -> dict[str, Any]:
    """For each voice the cosines to the mean of its own references and to the nearest other voice's.

    `voices` has the spoken sentences, `recordings` the real ones that were held back: what a perfect model would get.
    """
    labels = {**spoken, **recordings}
    own: dict[str, list[NDArray]] = defaultdict(list)
    for path, (kind, speaker) in labels.items():
        if kind == "reference":
            own[speaker].append(embeddings[path])
    means = {speaker: np.mean(parts, axis=0) for speaker, parts in own.items()}
    means = {speaker: mean / np.linalg.norm(mean) for speaker, mean in means.items()}

    def rows(kind: str, speaker: str) -> list[dict[str, Any]]:
        paths = [path for path, label in labels.items() if label == (kind, speaker)]
        return [{"file": str(path), **_cosines(embeddings[path], means, speaker)} for path in paths]

    lines = {kind: {speaker: rows(kind, speaker) for speaker in means} for kind in ("spoken", "recording")}
    return {
        "references": {speaker: len(parts) for speaker, parts in own.items()},
        "voices": {speaker: _figures(part) for speaker, part in lines["spoken"].items() if part},
        "recordings": {speaker: _figures(part) for speaker, part in lines["recording"].items() if part},
        "similarities": lines["spoken"],
    }


def _cosines(embedding: NDArray, means: dict[str, NDArray], speaker: str) -> dict[str, float]:
    wrong = max(float(embedding @ mean) for name, mean in means.items() if name != speaker)
    return {"right": float(embedding @ means[speaker]), "wrong": wrong}


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    right, wrong = (np.array([row[name] for row in rows]) for name in ("right", "wrong"))
    return {
        "n": len(rows),
        "right": float(right.mean()),
        "wrong": float(wrong.mean()),
        "closer_to_right": int((right > wrong).sum()),
        "smallest_margin": float((right - wrong).min()),
    }
