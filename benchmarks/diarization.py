"""Error rates of `test.py timeline` on conversations made of recordings of single people.

    python benchmarks/diarization.py --raw CORPORA --split speechocean762 train-clean-100 --speakers test.txt \\
        --noise-folder CORPORA/speakers_more/noise --out conversations
    python benchmarks/diarization.py --raw CORPORA --split speechocean762 train-clean-100 --speakers test.txt \\
        --noise-folder CORPORA/speakers_more/noise --out others --embeddings resemblyzer \\
        --threshold 0.6 --same-threshold 0.9

Five conversations of each number of people, 2 to 5, all of one split, and each at two levels of noise: two minutes of
turns of 1 to 10 s, of which three tenths begin 0.5 to 2 s before the end of the one before, and the others 0.1 to 1.5 s
after it. Pauses of more than 0.3 s in the recordings are shortened, so that a turn is speech from its start to its end.
Other recordings of the people, and of two who are not there, are enrolled for the rates with names. --hour joins the
conversations to an hour, and measures time and memory of test.py timeline with one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from benchmarks.pretrained import RATE, SYSTEMS, as_recognizer  # noqa: E402
from utils import cli  # noqa: E402
from utils.corpus.layouts import read_corpus  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.features.audio import load_audio  # noqa: E402
from utils.features.degrade import active_power, add_noise  # noqa: E402
from utils.features.sounds import SoundFolder  # noqa: E402
from utils.files import read_text, write_json, write_text  # noqa: E402
from utils.speaker.timeline.segments import Errors, Segment, errors, to_rttm  # noqa: E402

PEOPLE = (2, 3, 4, 5)
NOISES = (20, 10)  # dB of speech over noise
SECONDS = 120.0
ENROLLED, STRANGERS = 3, 2  # recordings of each person, and people who do not speak
TURN, OVERLAP, GAP = (1.0, 10.0), (0.5, 2.0), (0.1, 1.5)  # s
OVERLAPPING = 0.3
ACTIVE = 30.0  # dB below the loud parts of a recording where its pauses begin
PAUSE = 0.3  # s that are left of a pause
COLLAR = 0.25
CASES = {  # name -> (whether the number of people is given, whether they are enrolled)
    "number given": (True, False),
    "number found": (False, False),
    "number given, names": (True, True),
    "number found, names": (False, True),
}


class Conversation(NamedTuple):
    """A synthetic conversation: files by level of noise, true segments, and recordings to enroll of each person."""

    name: str
    files: dict[int, Path]
    segments: list[Segment]
    enrolled: dict[str, list[Path]]


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="FOLDER", help="folder of the corpora, arranged as LibriSpeech")
    add("--split", nargs="+", required=True, metavar="NAME", help="splits; a conversation is of one of them")
    add("--speakers", type=Path, required=True, metavar="FILE", help="speakers to take, one per line")
    add("--noise-folder", type=Path, required=True, metavar="FOLDER", help="folder of noises")
    add("--each", type=cli.positive_int, default=5, metavar="N", help="conversations of each number of people")
    add("--seed", type=cli.non_negative_int, default=0, metavar="N", help="seed of the conversations")
    add("--checkpoint", default="speaker", metavar="MODEL", help="recognizer: checkpoint, run folder or packed model")
    add("--embeddings", choices=SYSTEMS, help="pretrained recognizer to take instead (default: the checkpoint)")
    for flag in ("--threshold", "--same-threshold"):
        add(flag, type=cli.fraction, metavar="X", help="as of test.py timeline; needed with --embeddings")
    add("--bootstrap", type=cli.positive_int, default=1000, metavar="N", help="draws of the conversations")
    add("--hour", action=argparse.BooleanOptionalAction, default=False, help="measure an hour instead")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder of the conversations and of results.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Makes the conversations, scores the timelines, and prints the table."""
    return cli.run(_hour if (args := build_parser().parse_args(argv)).hour else _score, args)


def make_conversations(args: argparse.Namespace) -> list[Conversation]:
    """Writes the conversations under OUT as WAV and RTTM."""
    speakers = set(read_text(args.speakers).split())
    recordings: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for item in read_corpus(args.raw, "librispeech", args.split):
        if item.speaker in speakers:
            recordings[item.split][item.speaker].append(args.raw / item.path)
    noises = SoundFolder(args.noise_folder)
    made = []
    for count in PEOPLE:
        for number in range(args.each):
            split = args.split[number % len(args.split)]
            if len(recordings[split]) < count:
                raise UserError(f"{split} has {len(recordings[split])} of the speakers; {count} are needed")
            rng = np.random.default_rng([args.seed, count, number])
            made.append(_make(f"{count}-{number}", recordings, split, count, noises, rng, args.out))
    return made


def _make(
    name: str,
    recordings: Mapping[str, Mapping[str, Sequence[Path]]],
    split: str,
    count: int,
    noises: SoundFolder,
    rng: np.random.Generator,
    out: Path,
) -> Conversation:
    import soundfile

    order = {person: list(rng.permutation(paths)) for part in recordings.values() for person, paths in part.items()}
    people = [str(person) for person in rng.permutation(list(recordings[split]))[:count]]
    others = [person for person in order if person not in people]
    listening = [str(person) for person in rng.permutation(others)[:STRANGERS]]
    speech = {person: _speech(order[person][ENROLLED:], rng) for person in people}
    samples, segments = _converse(speech, rng)
    noise = noises.piece(len(samples), RATE, rng)
    files = {}
    for level in NOISES:
        mixed = add_noise(samples, noise, level)
        files[level] = out / f"{name}-{level}.wav"
        files[level].parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(files[level], mixed * min(1.0, 0.99 / np.abs(mixed).max()), RATE, subtype="PCM_16")
        write_text(files[level].with_suffix(".rttm"), to_rttm(segments, files[level].stem))
    enrolled = {person: order[person][:ENROLLED] for person in people + listening}
    return Conversation(name, files, segments, enrolled)


def _speech(paths: Iterable[Path], rng: np.random.Generator) -> np.ndarray:
    """What a person has to say: recordings without their pauses, up to two minutes, at a random level."""
    parts: list[np.ndarray] = []
    for path in paths:
        parts.append(_without_pauses(load_audio(path, RATE)))
        if sum(map(len, parts)) > SECONDS * RATE:
            break
    speech = np.concatenate(parts)
    return speech * np.float32(0.05 * 10 ** (rng.uniform(-3, 3) / 20) / np.sqrt(active_power(speech)))


def _without_pauses(samples: np.ndarray) -> np.ndarray:
    """Speech from its first to its last loud part, with pauses of at most `PAUSE`."""
    hop = RATE // 100
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    power = np.convolve(np.square(frames).mean(axis=1), np.ones(5) / 5, "same")
    loud = np.flatnonzero(power > np.percentile(power, 95) * 10 ** (-ACTIVE / 10))
    kept = np.zeros(len(frames), dtype=bool)
    for first, after in zip(loud, [*loud[1:], loud[-1] + 1], strict=True):
        kept[first : min(after, first + round(100 * PAUSE))] = True
    return frames[kept].ravel()


def _converse(speech: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[Segment]]:
    """Samples and true segments: everybody has a turn, and then whoever has something left to say."""
    samples = np.zeros(round((SECONDS + 2 * TURN[1]) * RATE), dtype=np.float32)
    segments: list[Segment] = []
    left, silent, end = dict(speech), list(speech), 0.5
    while end < SECONDS:
        last = segments[-1] if segments else Segment(0, 0, "")
        ready = [person for person, rest in left.items() if person != last.speaker and len(rest) >= RATE]
        if not ready:
            break
        person = silent.pop(0) if silent else str(rng.choice(ready))
        said = left[person][: round(rng.uniform(*TURN) * RATE)]
        left[person] = left[person][len(said) :]
        shortest = min(len(said) / RATE, last.end - last.start)
        overlap = rng.random() < OVERLAPPING
        shift = -min(rng.uniform(*OVERLAP), shortest / 2) if overlap else rng.uniform(*GAP)
        start = round((end + shift) * RATE)
        samples[start : start + len(said)] += said
        segments.append(Segment(start / RATE, (start + len(said)) / RATE, person))
        end = segments[-1].end
    return samples[: round((end + 0.5) * RATE)], segments


def _score(args: argparse.Namespace) -> None:
    import torch

    from utils.speaker.timeline.diarization import timeline_of
    from utils.speaker.timeline.listening import listen

    torch.set_num_threads(1)
    recognizer, thresholds = _recognizer(args), (args.threshold, args.same_threshold)
    results = []
    for conversation in cli.progress(make_conversations(args), unit="conversation"):
        store = _enroll(recognizer, conversation)
        count = len({segment.speaker for segment in conversation.segments})
        for level, path in conversation.files.items():
            frames = listen(recognizer, path)
            for case, (is_given, is_named) in CASES.items():
                number, people = count if is_given else None, store if is_named else None
                timeline = timeline_of(frames, recognizer, people, number, *thresholds)
                scored = [
                    errors(conversation.segments, timeline.segments, collar, is_named) for collar in (COLLAR, 0.0)
                ]
                about = {"conversation": conversation.name, "people": count, "noise": level, "case": case}
                overlaps = _overlaps(conversation.segments, timeline.overlaps)
                results.append({**about, "errors": scored, "found": len(timeline.people), "overlaps": overlaps})
    rows = [{**row, "errors": [vars(each) for each in row["errors"]]} for row in results]
    write_json(args.out / "results.json", {"arguments": cli.plain_arguments(args), "results": rows})
    print(_table(results, args.bootstrap, args.seed))


def _recognizer(args: argparse.Namespace) -> Any:
    from utils.speaker.recognizer import SpeakerRecognizer

    if args.embeddings:
        if None in (args.threshold, args.same_threshold):
            raise UserError(f"--embeddings {args.embeddings} needs --threshold and --same-threshold: it has none")
        return as_recognizer(args.embeddings, SYSTEMS[args.embeddings]())
    recognizer = SpeakerRecognizer.load(args.checkpoint, "cpu")
    known = sorted(set(recognizer.speakers) & set(read_text(args.speakers).split()))
    if known:
        raise UserError(f"the recognizer was trained on {', '.join(known)} of {args.speakers}")
    return recognizer


def _enroll(recognizer: Any, conversation: Conversation) -> Any:
    from utils.speaker.people.enrollment import EnrollmentStore

    store = EnrollmentStore("", "")
    for person, paths in conversation.enrolled.items():
        samples = [load_audio(path, RATE) for path in paths]
        mels = [recognizer.mel_of_samples(path, values) for path, values in zip(paths, samples, strict=True)]
        store.enroll(person, recognizer.embed_mels(mels), sum(map(len, samples)) / RATE)
    return store


def _overlaps(reference: Sequence[Segment], found: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Seconds in which two people speak: in truth, found, and both; places found, and how many of them are true."""
    times = np.arange(0, max(segment.end for segment in reference), 0.01)
    true = sum(((segment.start <= times) & (times < segment.end)).astype(int) for segment in reference) > 1
    parts = [true[(start <= times) & (times < end)] for start, end in found]
    return {
        "true": 0.01 * float(true.sum()),
        "found": sum(end - start for start, end in found),
        "both": 0.01 * float(sum(part.sum() for part in parts)),
        "places": len(parts),
        "true_places": sum(bool(part.any()) for part in parts),
    }


def _table(results: Sequence[dict[str, Any]], draws: int, seed: int) -> str:
    """Error rates by number of people and level of noise, and of all with the interval over conversations."""
    groups = {f"{count} people, {level} dB": {"people": count, "noise": level} for count in PEOPLE for level in NOISES}
    rows = [[name, *(_rate(_of(results, case=case, **group)) for case in CASES)] for name, group in groups.items()]
    by_case = {case: _of(results, case=case) for case in CASES}
    rows.append(["all", *(f"{_rate(part)} ({_interval(part, draws, seed)})" for part in by_case.values())])
    rows.append(["all: missed, false alarm, confusion", *map(_parts, by_case.values())])
    rows.append(["all, without a collar", *(_rate(part, 1) for part in by_case.values())])
    right = {case: sum(row["found"] == row["people"] for row in part) for case, part in by_case.items()}
    rows.append(["right number of people", *(f"{right[case]} of {len(part)}" for case, part in by_case.items())])
    given = by_case["number given"]
    sums = {name: sum(row["overlaps"][name] for row in given) for name in given[0]["overlaps"]}
    note = (
        f"Overlap: {sums['true'] / _total(given, 1).speech:.1%} of the speech. Marked: {sums['places']} places, of "
        f"which {sums['true_places']} have some; by time, precision {sums['both'] / max(sums['found'], 0.01):.2f} "
        f"and recall {sums['both'] / sums['true']:.2f}."
    )
    return table(["diarization error rate", *CASES], rows) + "\n\n" + note


def _of(results: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in results if all(row[name] == value for name, value in wanted.items())]


def _total(rows: Iterable[dict[str, Any]], collar: int = 0) -> Errors:
    return sum((row["errors"][collar] for row in rows), Errors(0, 0, 0, 0))


def _rate(rows: Iterable[dict[str, Any]], collar: int = 0) -> str:
    return f"{100 * _total(rows, collar).rate:.1f} %"


def _parts(rows: Iterable[dict[str, Any]]) -> str:
    total = _total(rows)
    return ", ".join(f"{100 * part / total.speech:.1f}" for part in (total.missed, total.false_alarm, total.confusion))


def _interval(rows: Sequence[dict[str, Any]], draws: int, seed: int) -> str:
    """The 95 % interval of the rate over draws of the conversations, each with all its levels of noise."""
    names = sorted({row["conversation"] for row in rows})
    totals = np.array([list(vars(_total(_of(rows, conversation=name))).values()) for name in names])
    drawn = totals[np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))].sum(axis=1)
    low, high = np.quantile(drawn[:, :3].sum(axis=1) / drawn[:, 3], [0.025, 0.975])
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _hour(args: argparse.Namespace) -> None:
    import soundfile

    parts = [load_audio(path, RATE) for made in make_conversations(args) for path in made.files.values()]
    path = args.out / "hour.wav"
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        written = 0
        while written < 3600 * RATE:
            part = parts.pop(0)
            parts.append(part)
            file.write(part[: 3600 * RATE - written])
            written += len(part)
    command = [sys.executable, ROOT / "test.py", "timeline", path, "--checkpoint", args.checkpoint, "--device", "cpu"]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **one})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"test.py timeline ended with exit code {process.returncode}")
    print(f"an hour: {usage.ru_utime + usage.ru_stime:.0f} s of CPU time, at most {usage.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
