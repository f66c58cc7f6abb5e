"""Demo of both tasks on synthetic speech: speakers that are recognized, and a voice that reads a sentence aloud.

python -m utils.demo
python -m utils.demo --out runs/second --preset configs/speaker-small.yaml

Shows and runs the README's commands one after the other, and ends with a table. Finished downloads, features and
trainings are not repeated, and a training that was stopped resumes; another preset needs another --out or --voice-out
folder. The exit code is that of the command that failed.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from utils import cli
from utils.files import read_json
from utils.lists import DEFAULT_PROTOCOL, read_speakers
from utils.packed import is_packed, shipped_model

SYNTHETIC = (
    "All voices are synthetic (espeak-ng). Real ones are harder; and the shipped model, calibrated to real ones, gives "
    "these ratios that are too high."
)
SENTENCE = "This sentence was spoken by a small computer program."  # not in the training set
STAGES = """
download: download.py --dataset demo --root {root}
preprocess: preprocess.py --dataset demo --raw {root}/demo --out {data}
train: train_tacomamba.py --task speaker --data {data} --config {preset} --out {out} --resume auto
evaluate: test.py evaluate --checkpoint {out} --data {data} --out {out}/report
download voice: download.py --dataset demo-voice --root {root}
preprocess voice: preprocess.py --dataset demo-voice --raw {root}/demo-voice --units phoneme --out {voice_data}
train voice: train_tacomamba.py --task tts --data {voice_data} --config {voice_preset} --out {voice_out} --resume auto
evaluate voice: test.py evaluate --checkpoint {voice_out} --data {voice_data} --mcd --out {voice_out}/report
synthesize: test.py synthesize --checkpoint {voice_out} --text {text} --out {voice_out}/sentence.wav \
--picture {voice_out}/sentence.png
"""


def stages(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yields names and commands: `STAGES`, then those that take recordings of three speakers who were held out.

    The last two ask the shipped model, if there is one: about two recordings of one speaker, and of two.
    """
    values = {name: shlex.quote(str(value)) for name, value in {**vars(args), "text": SENTENCE}.items()}
    for line in STAGES.split("\n")[1:-1]:
        name, _, command = line.partition(": ")
        yield name, shlex.split(command.format_map(values))
    store = args.out / "speakers.safetensors"
    store.unlink(missing_ok=True)  # it may be of another model
    model = ["--checkpoint", str(args.out), "--store", str(store)]
    speakers = read_speakers(args.data / "protocols" / DEFAULT_PROTOCOL / "heldout_speakers.txt")[:3]
    chapters = [sorted((args.root / "demo" / "LibriSpeech" / "demo" / speaker).iterdir()) for speaker in speakers]
    firsts = [sorted(first.glob("*.flac")) for first, *_ in chapters]
    for speaker, recordings in zip(speakers, firsts, strict=True):
        yield "enroll", ["test.py", "enroll", *model, "--name", speaker, *map(str, recordings[:3])]
    probe = str(max(chapters[-1][-1].glob("*.flac")))
    yield "identify", ["test.py", "identify", *model, probe]
    if is_packed(shipped_model("speaker")):
        yield from (("verify", ["test.py", "verify", probe, str(firsts[place][0])]) for place in (-1, 0))


def run_command(words: list[str], stdout: int | None = None) -> tuple[int, str]:
    """Runs a program; returns its exit code (128 + n after signal n), and its output if `stdout` is a pipe."""
    # In a session of its own it gets no signal from the terminal, only ours: a training that gets two does not save.
    process = subprocess.Popen(words, stdout=stdout, text=True, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    output, _ = process.communicate()
    return (process.returncode if process.returncode >= 0 else 128 - process.returncode), output or ""


def shipped_answers(outputs: list[str]) -> list[tuple[str, str]]:
    """Labels and values of what the shipped model says; one row without it."""
    labels = "shipped model, one speaker", "shipped model, two speakers"
    return list(zip(labels, outputs, strict=False)) or [("shipped model", "none in this checkout")]


def table(out: Path, voice_out: Path) -> Iterator[tuple[str, str]]:
    """Yields labels and values: the metrics of both reports, and the files to look at and to listen to."""
    from utils.tts.report import SYSTEMS, TIMES

    report, voice = (read_json(folder / "report" / "report.json") for folder in (out, voice_out))
    for part in ("utterance", "chapter"):
        found = report["identification"][part]
        yield f"identification accuracy by {part}", f"{found['accuracy']:.1%} of {found['n']} recordings"
    for condition, label in (("all", "all trials"), ("cross_chapter", "across chapters")):
        found = report["verification"][condition]
        low, high = found["eer_ci"]
        yield f"equal error rate, {label}", f"{found['eer']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    for system, label in SYSTEMS.items():
        yield f"MCD, {label}", f"{voice[system]['mcd']:.2f} dB"
    yield "duration bias", f"{voice['duration']['bias']:+.1%} over {voice['utterances']} texts not trained on"
    for part, times in voice["real_time_factor"].items():
        yield TIMES[part], f"{times['cpu']:.3f} s of CPU per second of speech"
    for path in [*out.glob("report/*.png"), *voice_out.glob("report/*.png"), voice_out / "sentence.png"]:
        yield "picture", str(path)
    yield "sentence, spoken by the model", f"{SENTENCE} ({voice_out / 'sentence.wav'})"


def build_parser() -> cli.Parser:
    """The flags of the demo."""
    parser = cli.Parser(prog="python -m utils.demo", description=__doc__)
    for flag, default, text in (
        ("--root", "data/raw", "folder of raw corpora"),
        ("--data", "data/processed/demo", "features of the recognizer"),
        ("--out", "runs/demo", "run folder of the recognizer"),
        ("--preset", "configs/speaker-tiny.yaml", "configuration of the recognizer"),
        ("--voice-data", "data/processed/demo-voice", "features of the voice"),
        ("--voice-out", "runs/demo-voice", "run folder of the voice"),
        ("--voice-preset", "configs/tts-tiny.yaml", "configuration of the voice"),
    ):
        parser.add_argument(flag, type=Path, default=Path(default), help=text)
    return parser


def _demo(args: argparse.Namespace) -> int:
    seconds: dict[str, float] = {}
    kept: dict[str, list[str]] = {"identify": [], "verify": []}
    for name, words in stages(args):
        words = [os.path.relpath(sys.executable), *words]
        print(f"\n== {name}\n$ {shlex.join(words)}", flush=True)
        started = time.monotonic()
        code, output = run_command(words, subprocess.PIPE if name in kept else None)
        if code:
            print(f"error: {name} ended with exit code {code}; the same command resumes", file=sys.stderr)
            return code
        kept.get(name, []).append(output.strip())
        seconds[name] = seconds.get(name, 0) + time.monotonic() - started
    times = ((f"wall time, {name}", f"{spent:.1f} s") for name, spent in seconds.items())
    rows = (*times, *table(args.out, args.voice_out), *shipped_answers(kept["verify"]))
    print("", *(f"{label:<41}{value}" for label, value in rows), sep="\n")
    print(f"identified:\n{kept['identify'][0]}\n{SYNTHETIC}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(_demo, build_parser().parse_args()))
