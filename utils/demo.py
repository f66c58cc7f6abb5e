"""The whole pipeline on synthetic speech: corpus, features, training, report, and a voice that is recognised.

python -m utils.demo
python -m utils.demo --out runs/second --preset configs/speaker-small.yaml

Every command is shown before it runs, to be copied and changed. A stage that is finished is not repeated, one that was
interrupted is continued; deleting the --out folder starts anew. The exit code is that of the stage that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import cli
from utils.cli import UserError
from utils.corpus.records import RECORD
from utils.files import read_json, sha256_file, sha256_text, write_json, write_text
from utils.protocol import DEFAULT_PROTOCOL

ENROLLED = 3  # voices among which the closing recording is identified
RECORDINGS = 3  # of each of them
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Stage:
    """Commands that are run in order, and what decides whether they still must be.

    `commands` are the words after `python`; `inputs` are files whose content the result follows from, `outputs` what
    must exist afterwards. `anew` is removed first, unless the same stage was interrupted and its scripts go on from
    there. The last command's standard output is also kept as the file `stdout`, if there is one.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    anew: tuple[Path, ...] = ()
    stdout: Path | None = None

    def key(self) -> str:
        """Changes with the commands and with the content of the inputs."""
        missing = [str(path) for path in self.inputs if not path.is_file()]
        if missing:
            raise UserError(f"the stage {self.name} needs {', '.join(missing)}, and the stages before it made none")
        return sha256_text(json.dumps([self.commands, [sha256_file(path) for path in self.inputs]]))


class StageFailed(Exception):
    """A stage ended with an exit code that is not 0."""

    def __init__(self, stage: Stage, code: int) -> None:
        super().__init__(f"the stage {stage.name} ended with exit code {code}")
        self.code = code


class Runner:
    """Runs stages as subprocesses and remembers the finished ones in a JSON file, with their wall times.

    `kept` are the names of the stages that this runner did not have to repeat.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.stages: dict[str, dict[str, Any]] = read_json(record) if record.exists() else {}
        self.kept: set[str] = set()

    def run(self, stage: Stage) -> None:
        """Runs `stage` unless it is finished; raises `StageFailed`."""
        before = self.stages.get(stage.name, {})
        key = stage.key()
        same = before.get("key") == key
        if same and before["finished"] and all(path.exists() for path in stage.outputs):
            self.kept.add(stage.name)
            print(f"\n== {stage.name}: finished earlier, in {before['seconds']:.1f} s", flush=True)
            return
        print(f"\n== {stage.name}", flush=True)
        continued = same and not before["finished"]
        spent = before["seconds"] if continued else 0.0
        if not continued:
            for path in stage.anew:
                path.unlink(missing_ok=True)
        self._note(stage, key, spent, finished=False)
        started = time.monotonic()
        try:
            self._run_commands(stage)
        except BaseException:
            self._note(stage, key, spent + time.monotonic() - started, finished=False)
            raise
        self._note(stage, key, spent + time.monotonic() - started, finished=True)

    def seconds(self, name: str) -> float:
        """Wall time of a stage, that of its interrupted runs included."""
        return self.stages[name]["seconds"]

    def _run_commands(self, stage: Stage) -> None:
        for number, words in enumerate(stage.commands, start=1):
            print(f"$ {shlex.join([_python(), *words])}", flush=True)
            keep = stage.stdout if number == len(stage.commands) else None
            code, output = run_command([sys.executable, *words], capture=keep is not None)
            if code:
                raise StageFailed(stage, code)
            if keep is not None:
                write_text(keep, output)
        missing = [str(path) for path in stage.outputs if not path.exists()]
        if missing:
            raise UserError(f"the stage {stage.name} ended well and yet did not make {', '.join(missing)}")

    def _note(self, stage: Stage, key: str, seconds: float, finished: bool) -> None:
        self.stages[stage.name] = {"key": key, "seconds": round(seconds, 3), "finished": finished}
        write_json(self.record, self.stages)


def run_command(words: Sequence[str], capture: bool) -> tuple[int, str]:
    """Runs a program to its end; its exit code (128 + n after signal n) and, with `capture`, its standard output.

    Captured output is printed too, when the program has ended. Signals that would stop us are handed to the program,
    once each (its own session keeps the terminal from sending a Ctrl-C too): a training saves what it has, and then we
    end with its exit code.
    """
    running: list[subprocess.Popen] = []

    def hand_on(number: int, frame: Any) -> None:
        for process in running:
            process.send_signal(number)

    handlers = {number: signal.signal(number, hand_on) for number in STOP_SIGNALS}
    try:
        output = subprocess.PIPE if capture else None
        running.append(subprocess.Popen(words, stdout=output, text=True, start_new_session=True))
        printed = running[0].communicate()[0] or ""
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(printed, end="", flush=True)
    code = running[0].returncode
    return (code if code >= 0 else 128 - code), printed


def _python() -> str:
    """The interpreter as one would type it here."""
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative


def speaker_stages(args: argparse.Namespace) -> Iterator[Stage]:
    """The stages of speaker recognition; each is made when those before it are done, so it can look at their files."""
    corpus, data, out = args.root / "demo" / "LibriSpeech", args.data, args.out
    spoken = corpus / "demo" / RECORD
    protocol, best = data / "protocols" / DEFAULT_PROTOCOL / "protocol.json", out / "best.pt"
    yield Stage(
        "download",
        (("download.py", "--dataset", "demo", "--root", str(args.root)),),
        outputs=(spoken,),
    )
    yield Stage(
        "preprocess",
        (("preprocess.py", "--dataset", "demo", "--raw", str(corpus.parent), "--out", str(data)),),
        inputs=(spoken,),
        outputs=(data / "meta.json", protocol),
    )
    train = ("train_tacomamba.py", "--task", "speaker", "--data", str(data), "--config", str(args.preset))
    yield Stage(
        "train",
        ((*train, "--out", str(out), "--resume", "auto"),),
        inputs=(args.preset, data / "meta.json", protocol),
        outputs=(best,),
        anew=tuple(sorted(out.glob("last*.pt"))),
    )
    report = out / "report"
    yield Stage(
        "evaluate",
        (("test.py", "evaluate", "--checkpoint", str(best), "--data", str(data), "--out", str(report)),),
        inputs=(best,),
        outputs=(report / "report.json",),
    )
    yield from _enrolment_stages(corpus.parent, protocol.parent, best, out)


def _enrolment_stages(raw: Path, protocol: Path, best: Path, out: Path) -> Iterator[Stage]:
    """Enrols held-out voices from one chapter and identifies a recording of another chapter by one of them."""
    voices = held_out_recordings(raw, protocol)
    names = list(voices)[:ENROLLED]
    store = out / "voices.safetensors"
    enroll = ("test.py", "enroll", "--checkpoint", str(best), "--store", str(store), "--replace")
    chosen = {name: voices[name][0][:RECORDINGS] for name in names}
    yield Stage(
        "enroll",
        tuple((*enroll, "--name", name, *map(str, paths)) for name, paths in chosen.items()),
        inputs=(best, *(path for paths in chosen.values() for path in paths)),
        outputs=(store,),
        anew=(store,),
    )
    asked = voices[names[-1]][1][-1]
    identify = ("test.py", "identify", "--checkpoint", str(best), "--store", str(store), "--json", str(asked))
    answer = out / "identification.json"
    yield Stage("identify", (identify,), inputs=(best, store, asked), outputs=(answer,), stdout=answer)


def held_out_recordings(raw: Path, protocol: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Speakers that the protocol holds out, sorted, with the recordings of their first and of their last chapter."""
    from utils.corpus.layouts import read_corpus
    from utils.protocol import read_speakers

    chapters: dict[str, dict[str, list[Path]]] = {name: {} for name in read_speakers(protocol / "heldout_speakers.txt")}
    for utterance in read_corpus(raw, "librispeech"):
        if utterance.speaker in chapters:
            chapters[utterance.speaker].setdefault(utterance.chapter, []).append(raw / utterance.path)
    voices = {}
    for name, recordings in sorted(chapters.items()):
        if len(recordings) > 1:
            voices[name] = recordings[min(recordings)], recordings[max(recordings)]
    if not voices:
        raise UserError(f"no speaker that {protocol} holds out has two chapters in {raw}")
    return voices


def summary(runner: Runner, out: Path) -> str:
    """The closing table: wall times, figures, pictures, and who was identified."""
    lines = ["stage         wall time"]
    for name in runner.stages:
        kept = "  (earlier)" if name in runner.kept else ""
        lines.append(f"{name:<12}{runner.seconds(name):>9.1f} s{kept}")
    lines.append(f"{'all':<12}{sum(map(runner.seconds, runner.stages)):>9.1f} s")
    report = read_json(out / "report" / "report.json")
    lines += ["", *_figures(report)]
    pictures = sorted((out / "report").glob("*.png"))
    lines += ["", *(f"picture: {path}" for path in pictures)]
    (result,) = read_json(out / "identification.json")["results"]
    spoken = Path(result["audio"]).parent.parent.name
    scores = ", ".join(f"{item['name']} {item['score']:.2f}" for item in result["scores"])
    lines += [
        "",
        f"recording:  {result['audio']}",
        f"            by voice {spoken}, never trained on, enrolled from another chapter",
        f"identified: {result['name']} (cosines: {scores}; from {result['threshold']:.2f} on it is the speaker)",
        "",
        "All voices here are synthetic (espeak-ng): the figures show that the pipeline works, not how well on people.",
    ]
    return "\n".join(lines)


def _figures(report: dict[str, Any]) -> Iterator[str]:
    for part in ("utterance", "chapter"):
        figures = report["identification"][part]
        shown = figures.get("reason")
        if figures["accuracy"] is not None:
            shown = f"{100 * figures['accuracy']:.1f} % of {figures['n']} recordings"
        yield f"identification accuracy by {part:<12}{shown}"
    for condition, label in (("all", "all trials"), ("cross_chapter", "across chapters")):
        figures = report["verification"][condition]
        shown = figures.get("reason")
        if figures["eer"] is not None:
            shown = f"{100 * figures['eer']:.1f} %"
            if figures["eer_ci"]:
                shown += " (95 % interval {:.1f} to {:.1f} %)".format(*(100 * bound for bound in figures["eer_ci"]))
            shown += f", {figures['targets']} target and {figures['nontargets']} other trials of unseen voices"
        yield f"equal error rate, {label:<21}{shown}"


def build_parser() -> cli.Parser:
    """The flags of the demo."""
    parser = cli.Parser(prog="python -m utils.demo", description=__doc__)
    group = parser.add_argument_group("places")
    group.add_argument("--root", type=Path, default=Path("data/raw"), help="folder of raw corpora")
    group.add_argument("--data", type=Path, default=Path("data/processed/demo"), help="folder of the features")
    group.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder: model, report, wall times")
    parser.add_argument(
        "--preset", type=Path, default=Path("configs/speaker-tiny.yaml"), help="configuration of the training"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stages, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report([] if args.preset.is_file() else [f"--preset {args.preset} is not a file"])
    return cli.run(_demo, args)


def _demo(args: argparse.Namespace) -> int:
    runner = Runner(args.out / "stages.json")
    try:
        for stage in speaker_stages(args):
            runner.run(stage)
    except StageFailed as failure:
        print(f"error: {failure}; the same command goes on from there", file=sys.stderr)
        return failure.code
    print(f"\n{summary(runner, args.out)}")
    return cli.ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
