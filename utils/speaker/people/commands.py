"""The subcommands of test.py for recordings of people: embed, enroll, identify, and their store."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.commands import add_command, counted, print_json
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.speaker.people.enrollment import EnrollmentStore, Identification
    from utils.speaker.recognizer import SpeakerRecognizer

HOP = 1.0  # seconds between windows
_SHORTEST = 1.0  # s; the measure of speech needs so much
_CHECKED = 3.0  # seconds of the windows in which an entire recording is tested for several people
_MOST_CHECKED = 100  # of these windows, evenly spread, in a long recording
_SHARE = 0.1  # of these windows, and at least two, that a second name needs

_ENROLL = """Enroll a speaker: add the embeddings of recordings to a store; their mean is compared.

python test.py enroll --store people.safetensors --name Ada ada1.flac ada2.wav
python test.py enroll --store people.safetensors --name Ada --add ada3.flac
python test.py enroll --store people.safetensors --folder recordings

--folder enrolls everybody at once: it has one sub-folder of recordings for each person, named as the person is.
"""
_IDENTIFY = """Name the enrolled speaker who is speaking, or report that it is none of them.

python test.py identify --store people.safetensors unknown.flac
python test.py identify --store people.safetensors --window 3 --hop 1 meeting.flac
arecord -f S16_LE -r 16000 | python test.py identify --store people.safetensors --stream -

The candidates are listed from best to worst, with cosines and log-likelihood ratios of verification.

With --window each window of a recording is answered by itself; without it there is one answer for a recording, and a
warning if its windows name several people. With --stream windows are answered as soon as they are complete, of a file
or of raw PCM (mono, signed 16-bit, little-endian) on standard input, until it ends or Ctrl-C; a causal model answers
for all of it at the end.
"""
_PEOPLE = """List, remove or rename the speakers of a store, or export their embeddings.

python test.py people --store people.safetensors list
python test.py people --store people.safetensors remove Ada
python test.py people --store people.safetensors rename Ada "Ada Lovelace"
python test.py people --store people.safetensors export embeddings.safetensors
"""
ACTIONS = {"list": (), "remove": ("NAME",), "rename": ("NAME", "NEW"), "export": ("FILE",)}
"""What can be done with a store, and the words that it needs."""


def add_commands(commands: Any) -> None:
    """Adds the subcommands."""
    description = "Print or store the embedding of each recording, scaled to length 1."
    parser = add_command(commands, "embed", _embed, description, _embed_problems, shipped=True)
    _add_recordings(parser, "recordings")
    help = "safetensors file for the embeddings, instead of printing them"
    parser.add_argument("--out", type=Path, metavar="FILE", help=help)

    parser = add_command(commands, "enroll", _enroll, _ENROLL, _enroll_problems, shipped=True)
    _add_recordings(parser, "recordings of the one speaker", nargs="*")
    _add_store(parser, "store of enrolled speakers; created if missing")
    parser.add_argument("--name", metavar="NAME", help="the speaker's name")
    help = "folder with a sub-folder of recordings for each speaker, instead of --name and AUDIO"
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help=help)
    help = "replace the recordings of speakers who are enrolled already"
    parser.add_argument("--replace", action=argparse.BooleanOptionalAction, default=False, help=help)
    help = "add to the recordings of speakers who are enrolled already"
    parser.add_argument("--add", action=argparse.BooleanOptionalAction, default=False, help=help)

    parser = add_command(commands, "identify", _identify, _IDENTIFY, _identify_problems, shipped=True)
    _add_recordings(parser, "recordings, each judged by itself")
    _add_store(parser, "store of enrolled speakers")
    default = (
        "the checkpoint's, by the number of enrolled and the length, which names 3 %% of the strangers in validation"
    )
    add_threshold(parser, default)
    help = f"answer each window of this many seconds (default: the entire recording, with --stream {_CHECKED:g})"
    parser.add_argument("--window", type=cli.positive_float, metavar="SECONDS", help=help)
    help = f"seconds between the starts of windows (default: {HOP:g}, or the window if that is shorter)"
    parser.add_argument("--hop", type=cli.positive_float, metavar="SECONDS", help=help)
    help = "answer while one file, or raw PCM on standard input (-), is read; with --json one object a line"
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=False, help=help)
    help = "sample rate of raw PCM in Hz (default: that of the features, 16000)"
    parser.add_argument("--rate", type=cli.positive_int, metavar="N", help=help)

    parser = add_command(commands, "people", _people, _PEOPLE, _people_problems, model=False)
    _add_store(parser, "store of enrolled speakers")
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    help = "of remove: NAME; of rename: NAME NEW; of export: the safetensors FILE to write"
    parser.add_argument("words", nargs="*", metavar="WORD", help=help)


def _add_recordings(parser: cli.Parser, help: str, nargs: str = "+") -> None:
    parser.add_argument("audio", nargs=nargs, type=Path, metavar="AUDIO", help=help)


def _add_store(parser: cli.Parser, help: str) -> None:
    parser.add_argument("--store", type=Path, required=True, metavar="FILE", help=help)


def add_threshold(parser: cli.Parser, default: str) -> None:
    """Adds the flag that overrides the decisions of a checkpoint by a cosine."""
    help = f"least cosine of the same speaker (default: {default})"
    parser.add_argument("--threshold", type=cli.cosine, metavar="X", help=help)


def load_recognizer(args: argparse.Namespace, *recordings: Path) -> SpeakerRecognizer:
    """Loads the recognizer, unless one of the recordings that it is needed for is missing."""
    from utils.speaker.recognizer import SpeakerRecognizer

    missing = next((path for path in recordings if not path.exists()), None)
    if missing is not None:
        raise UserError(f"{missing} is missing; python download.py --dataset demo makes recordings to try")
    return SpeakerRecognizer.load(args.checkpoint, args.device, args.backend)


def _embed_problems(args: argparse.Namespace) -> list[str]:
    if args.out is not None and args.json:
        return ["--out and --json contradict each other: embeddings are either stored or printed"]
    return []


def _embed(args: argparse.Namespace) -> None:
    recognizer = load_recognizer(args, *args.audio)
    embeddings = recognizer.embed_files(args.audio)
    names = [str(path) for path in args.audio]
    if args.out is not None:
        from utils.speaker.embedding_file import write_embeddings

        write_embeddings(args.out, names, embeddings, recognizer.model_hash)
        print(f"wrote {counted(len(names), 'embedding')} of {embeddings.shape[1]} numbers to {args.out}")
    elif args.json:
        items = [{"audio": name, "embedding": row.tolist()} for name, row in zip(names, embeddings, strict=True)]
        print_json({"model_hash": recognizer.model_hash, "embeddings": items})
    else:
        for name, row in zip(names, embeddings, strict=True):
            print(name, *(f"{value:.6f}" for value in row))


def _enroll_problems(args: argparse.Namespace) -> list[str]:
    rule = "--add and --replace contradict each other: earlier recordings are kept or replaced"
    both = [rule] if args.add and args.replace else []
    if args.folder is not None:
        given = ["--name"] * (args.name is not None) + ["recordings"] * bool(args.audio)
        return both + [f"--folder and {what} contradict each other: its sub-folders have both" for what in given]
    problems = both + ["--name is missing (or --folder, which names everybody)"] * (args.name is None)
    problems += [] if args.audio else ["recordings of the speaker are missing"]
    counts = Counter(os.path.realpath(path) for path in args.audio)
    twice = sorted({str(path) for path in args.audio if counts[os.path.realpath(path)] > 1})
    return problems + [f"{path} is given twice: it would count twice in the mean" for path in twice]


def _enroll(args: argparse.Namespace) -> None:
    from utils.speaker.people.enrollment import EnrollmentStore, locked_store

    known = "add" if args.add else "replace" if args.replace else "refuse"
    people = {args.name: args.audio} if args.folder is None else _recordings_of_people(args.folder)
    recognizer = load_recognizer(args, *(path for paths in people.values() for path in paths))
    owner = recognizer.model_hash, recognizer.recipe.hash
    before = EnrollmentStore.begin(args.store, *owner)
    for name in people:
        before.check_name(name, known)
    embedded = {name: recognizer.embed_speech(paths) for name, paths in people.items()}
    with locked_store(args.store, *owner) as store:
        added = [store.enroll(name, rows, float(seconds.sum()), known) for name, (rows, seconds) in embedded.items()]
    if args.json:
        one = {"enrolled": asdict(added[0])} if args.folder is None else {"people": [asdict(each) for each in added]}
        print_json({"store": str(args.store), "model_hash": recognizer.model_hash, **one})
        return
    lines = [f"enrolled {each.name} from {counted(each.count, 'recording')}, {each.seconds:.1f} s" for each in added]
    print("\n".join(lines) + f"; {args.store} holds {counted(len(store.speakers), 'speaker')}")


def _recordings_of_people(folder: Path) -> dict[str, list[Path]]:
    """The recordings at any depth below each sub-folder; other files are counted on stderr, hidden ones left out."""
    from utils.corpus.layouts import is_audio

    if not folder.is_dir():
        raise UserError(f"--folder {folder} is not a folder")
    visible = [
        path for path in sorted(folder.rglob("*")) if not re.search(r"(^|/)\.", path.relative_to(folder).as_posix())
    ]
    people = {path.name: [] for path in visible if path.is_dir() and path.parent == folder}
    spelled = Counter(unicodedata.normalize("NFC", name) for name in people)
    if twice := [name for name, count in spelled.items() if count > 1]:
        raise UserError(f"--folder {folder} has two sub-folders named {twice[0]!r}, in different Unicode forms")
    ignored = 0
    for path in visible:
        if path.is_file():
            name = path.relative_to(folder).parts[0]
            if name in people and is_audio(path.name):
                people[name].append(path)
            else:
                ignored += 1
    if not people:
        raise UserError(f"--folder {folder} has no sub-folders")
    silent = next((name for name, recordings in people.items() if not recordings), None)
    if silent is not None:
        link = "; links below it are not followed" if (folder / silent).is_symlink() else ""
        raise UserError(f"{folder / silent} has no recordings{link}")
    if ignored:
        print(f"ignored {counted(ignored, 'file')} below {folder}: not audio, or not in a sub-folder", file=sys.stderr)
    return people


def _identify_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.stream and len(args.audio) > 1:
        problems.append("--stream follows one recording at a time")
    if args.rate is not None and not (args.stream and str(args.audio[0]) == "-"):
        problems.append("--rate is for raw PCM: it needs --stream -")
    window = _CHECKED if args.stream and args.window is None else args.window
    if window is None:
        return problems + ["--hop needs --window or --stream"] * (args.hop is not None)
    if window < _SHORTEST:
        problems.append(f"--window {window:g} is too short to tell speech from noise: at least {_SHORTEST:g} s")
    if args.hop is not None and args.hop > window:
        problems.append(f"--hop {args.hop:g} leaves gaps between windows of {window:g} s")
    return problems


def _identify(args: argparse.Namespace) -> None:
    from utils.speaker.people.enrollment import EnrollmentStore

    recognizer = load_recognizer(args, *(path for path in args.audio if not (args.stream and str(path) == "-")))
    answer = _Answerer(recognizer, EnrollmentStore.load(args.store, recognizer.model_hash), args.threshold)
    if args.stream:
        _identify_stream(args, recognizer, answer)
        return
    lines: list[tuple[dict[str, Any], Identification | None]] = []
    unusable: list[UserError] = []
    for path in cli.progress(args.audio, unit="file"):
        try:
            lines += _answers(args, answer, path)
        except UserError as error:
            unusable.append(error)
    if lines:
        _print_answers(args, recognizer, lines)
    if unusable:
        more = f"; {len(unusable) - 1} more of the {len(args.audio)} cannot be used" if len(unusable) > 1 else ""
        raise UserError(f"{unusable[0]}{more}")


def _answers(
    args: argparse.Namespace, answer: _Answerer, path: Path
) -> list[tuple[dict[str, Any], Identification | None]]:
    """What is known of a recording or of its windows, each with its answer."""
    if args.window is None:
        embeddings, seconds = answer.recognizer.embed_speech([path], disable=True)
        _warn_of_several(path, answer, seconds[0])
        return [({"audio": str(path)}, answer(embeddings[0], seconds[0]))]
    hop = min(HOP, args.window) if args.hop is None else args.hop
    found = answer.windows(path, args.window, hop)
    return [({"audio": str(path), "start": start, "end": end}, result) for start, end, result in found]


def _print_answers(
    args: argparse.Namespace,
    recognizer: SpeakerRecognizer,
    lines: Sequence[tuple[dict[str, Any], Identification | None]],
) -> None:
    if args.json:
        results = [_plain(about, result) for about, result in lines]
        print_json({"store": str(args.store), "model_hash": recognizer.model_hash, "results": results})
        return
    for about, result in lines:
        print(_shown(about, result))
        if args.window is None:
            print(_ranked(result), end="")


def _identify_stream(args: argparse.Namespace, recognizer: SpeakerRecognizer, answer: _Answerer) -> None:
    from utils.speaker.people.live import follow, leave_closed_output

    window = _CHECKED if args.window is None else args.window
    hop = min(HOP, window) if args.hop is None else args.hop

    def show(about: dict[str, Any], result: Identification | None) -> None:
        print(json.dumps(_plain(about, result)) if args.json else _shown(about, result), flush=True)

    try:
        follow(args.audio[0], args.rate, recognizer, answer, window, hop, show)
    except BrokenPipeError:
        leave_closed_output()


def _plain(about: dict[str, Any], result: Identification | None) -> dict[str, Any]:
    """Plain values of an answer for JSON."""
    return {**about, **(result.to_dict() if result else {"name": None})}


class _Answerer:
    """Answers for embeddings, by the people of a store and the threshold for their number and the length."""

    def __init__(self, recognizer: SpeakerRecognizer, store: EnrollmentStore, threshold: float | None) -> None:
        self.recognizer, self.store, self.wanted = recognizer, store, threshold
        store.require_people()  # these two refuse before the work
        self.threshold(1.0)

    def threshold(self, seconds: float) -> float:
        return self.recognizer.identification_threshold(self.wanted, seconds, len(self.store.speakers))

    def __call__(self, embedding: Any, seconds: float) -> Identification:
        return self.store.identify(embedding, self.threshold(seconds), self.recognizer.scoring, seconds)

    def windows(
        self, path: Path, window: float, hop: float, every: int = 1
    ) -> Iterator[tuple[float, float, Identification | None]]:
        """Start, end and answer of each window, or one of `every`; None where there is too little speech."""
        from utils.speaker.recognizer import MIN_SPEECH_SECONDS

        for each in self.recognizer.windows(path, window, hop, every=every):
            is_spoken = each.speech >= MIN_SPEECH_SECONDS
            yield each.start, each.end, self(each.embedding, each.seconds) if is_spoken else None


def _warn_of_several(path: Path, answer: _Answerer, seconds: float) -> None:
    """Warns on stderr if the windows of a recording name several people."""
    from utils.speaker.people.enrollment import UNKNOWN

    if seconds < 4 * _CHECKED or len(answer.store.speakers) < 2:
        return
    every = max(1, round(seconds / _CHECKED / _MOST_CHECKED))
    results = [result for _, _, result in answer.windows(path, _CHECKED, _CHECKED, every) if result]
    counts = Counter(result.name for result in results if result.name != UNKNOWN)
    enough = max(2, _SHARE * len(results))
    names = [f"{name} in {count}" for name, count in counts.most_common() if count >= enough]
    if len(names) > 1:
        found = f"of {len(results)} windows of {_CHECKED:g} s: {', '.join(names)}"
        print(f"warning: {path} has several people, {found}; timeline shows who speaks when", file=sys.stderr)


def _shown(about: dict[str, Any], result: Identification | None) -> str:
    """A line for a recording or a window."""
    where = f"{about['audio']} {about['start']:.1f}-{about['end']:.1f} s" if "start" in about else about["audio"]
    if result is None:
        return f"{where}: no speech"
    margin = "no other speaker" if result.margin is None else f"margin {result.margin:.3f}"
    best = f"best {result.best} {result.score:.3f}"
    return f"{where}: {result.name} ({best}, threshold {result.threshold:.3f}, {margin})"


def _ranked(result: Identification) -> str:
    """A line for each candidate: cosine, log-likelihood ratio, and name."""
    llrs = ["" if llr is None else f"  LLR {llr:6.2f}" for llr in result.llrs or [None] * len(result.scores)]
    return "".join(f"  {score:7.3f}{llr}  {name}\n" for (name, score), llr in zip(result.scores, llrs, strict=True))


def _people_problems(args: argparse.Namespace) -> list[str]:
    needed = ACTIONS[args.action]
    if len(args.words) == len(needed):
        return []
    return [f"{args.action} needs {' '.join(needed) or 'no word'}, and got {' '.join(args.words) or 'none'}"]


def _people(args: argparse.Namespace) -> None:
    from utils.speaker.embedding_file import write_embeddings
    from utils.speaker.people.enrollment import EnrollmentStore, locked_store

    if args.action in ("remove", "rename"):
        EnrollmentStore.load(args.store)  # refuses before a lock is left beside a store that is none
        with locked_store(args.store) as store:
            getattr(store, args.action)(*args.words)
    else:
        store = EnrollmentStore.load(args.store)
    if args.action == "export":
        names = [speaker.name for speaker in store.speakers]
        write_embeddings(args.words[0], names, store.embeddings, store.model_hash)
    if args.json:
        speakers = [asdict(speaker) for speaker in store.speakers]
        print_json({"store": str(args.store), "model_hash": store.model_hash, "speakers": speakers})
        return
    for each in store.speakers:
        print(f"{each.name}: {counted(each.count, 'recording')}, {each.seconds:.1f} s, enrolled {each.date}")
    print(f"{args.store} holds {counted(len(store.speakers), 'speaker')} of model {store.model_hash}")
