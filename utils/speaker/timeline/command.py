"""The subcommand of test.py for who spoke when: a table, RTTM, JSON and a picture."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.commands import add_command, counted, print_json
from utils.files import shown, write_json, write_text
from utils.speaker.people.commands import load_recognizer

if TYPE_CHECKING:
    from utils.speaker.timeline.diarization import Timeline

_TIMELINE = """Show who spoke when in a recording, with the names of enrolled people or as speaker 1, 2, and so on.

python test.py timeline meeting.flac
python test.py timeline meeting.flac --store people.safetensors --out meeting
python test.py timeline interview.mp3 --speakers 2 --json

Where two people seem to speak at once, both have a segment. --out writes timeline.rttm, timeline.json and timeline.png.
"""
RTTM, JSON, PICTURE = "timeline.rttm", "timeline.json", "timeline.png"


def add_commands(commands: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(commands, "timeline", _timeline, _TIMELINE, _problems, shipped=True)
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="a recording of several people")
    help = "store of enrolled people, who are named (default: nobody is)"
    parser.add_argument("--store", type=Path, metavar="FILE", help=help)
    help = "number of people who speak, or auto, to find out up to 10"
    parser.add_argument("--speakers", type=_number, default="auto", metavar="N", help=help)
    default = "that of identify for recordings as long as the windows of speech that voices are made of"
    help = f"least cosine of a voice and an enrollment for the voice to get its name (default: {default})"
    parser.add_argument("--threshold", type=cli.cosine, metavar="X", help=help)
    default = "that of identify by the seconds of the shorter one, for one person if either has a name, else for 10"
    help = f"least cosine of two voices for them to be one person's, with --speakers auto (default: {default})"
    parser.add_argument("--same-threshold", type=cli.cosine, metavar="X", help=help)
    help = "folder for the timeline as RTTM, JSON and a picture (default: none is written)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=help)


def _number(text: str) -> str:
    """argparse type: a number of people, or auto; the word, because configurations keep it."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be auto, or a whole number from 1 on, not {text!r}")
    return text


def _problems(args: argparse.Namespace) -> list[str]:
    problems = ["--threshold is for names: it needs --store"] * (args.threshold is not None and args.store is None)
    is_given = args.same_threshold is not None and args.speakers != "auto"
    return problems + ["--same-threshold finds the number of people: it is for --speakers auto"] * is_given


def _timeline(args: argparse.Namespace) -> None:
    from utils.locks import only_writer
    from utils.speaker.people.enrollment import EnrollmentStore
    from utils.speaker.timeline.diarization import make_timeline
    from utils.speaker.timeline.picture import draw_timeline
    from utils.speaker.timeline.segments import to_rttm

    recognizer = load_recognizer(args, args.audio)
    store = None if args.store is None else EnrollmentStore.load(args.store, recognizer.model_hash)
    number = None if args.speakers == "auto" else int(args.speakers)
    with only_writer(args.out) if args.out is not None else contextlib.nullcontext():
        timeline = make_timeline(recognizer, args.audio, store, number, args.threshold, args.same_threshold)
        content = _content(timeline, args, recognizer.model_hash)
        if args.out is not None:
            write_text(args.out / RTTM, to_rttm(timeline.segments, shown(args.audio.stem)))
            write_json(args.out / JSON, content)
            draw_timeline(args.out / PICTURE, timeline, shown(args.audio.name))
    if args.json:
        print_json(content)
    else:
        print(_table(timeline, args.audio))


def _content(timeline: Timeline, args: argparse.Namespace, model_hash: str) -> dict[str, Any]:
    """The timeline as plain values."""
    return {
        "audio": str(args.audio),
        "seconds": round(timeline.seconds, 3),
        "model_hash": model_hash,
        "store": None if args.store is None else str(args.store),
        "people": [
            {
                "name": person.name,
                "seconds": round(person.seconds, 3),
                "identification": person.identification and person.identification.to_dict(),
            }
            for person in timeline.people
        ],
        "segments": [segment._asdict() for segment in timeline.segments],
        "overlaps": [{"start": start, "end": end} for start, end in timeline.overlaps],
    }


def _table(timeline: Timeline, audio: Path) -> str:
    """A line for each segment, and one for each person."""
    if not timeline.people:
        return f"{audio}: nobody speaks in {timeline.seconds:.1f} s"
    lines = [f"{segment.start:8.2f} {segment.end:8.2f}  {segment.speaker}" for segment in timeline.segments]
    lines.append(f"\n{audio}: {counted(len(timeline.people), 'voice')} in {timeline.seconds:.1f} s")
    for person in timeline.people:
        found = person.identification
        best = f" (best {found.best} {found.score:.3f}, threshold {found.threshold:.3f})" if found else ""
        lines.append(f"{person.name}: {person.seconds:.1f} s{best}")
    return "\n".join(lines)
