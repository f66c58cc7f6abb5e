"""test.py evaluate and pool: figures of a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from utils import cli
from utils.commands.command import add_command, print_json
from utils.protocol import DEFAULT_PROTOCOL

_EVALUATE = """Measure a model by its task; writes report.json, pictures, what was judged, and config.yaml.

python test.py evaluate --checkpoint runs/demo --data data/processed/demo --out evaluation
python test.py evaluate --checkpoint runs/demo --trials trials.txt --audio-root data/raw --out evaluation
python test.py evaluate --checkpoint runs/demo --identification train.txt test.txt --audio-root data/raw --out report
python test.py evaluate --checkpoint runs/voice --data data/processed/ljspeech --vocoder griffin-lim --out evaluation

A speaker recogniser: with --data, stored features and their protocol: trials of the held-out speakers, and the
classifier's answers on the identification lists. With --audio-root, raw audio that was never preprocessed: a trial list
(`1|0 path path`), or two lists of `speaker path` lines: each speaker of the first is enrolled, each recording of the
second identified.

Text to mel: the texts of lists of --data are spoken, and measured beside their recordings sent through the same
vocoder: mel-cepstral distortion, pitch, length, time; with --asr also what a speech recogniser understands.
"""

_RECOGNITION_FLAGS = ("audio_root", "trials", "identification")
_SYNTHESIS_FLAGS = ("split", "vocoder", "asr", "limit")


def add_evaluation(commands: Any) -> None:
    """Adds the two subcommands."""
    _add_evaluate(commands)
    _add_pool(commands)


def _add_evaluate(commands: Any) -> None:
    parser = add_command(commands, "evaluate", _evaluate, _EVALUATE, _evaluate_problems)
    stored = parser.add_argument_group("stored features")
    stored.add_argument("--data", type=Path, help="folder that preprocess.py wrote")
    stored.add_argument("--protocol", help=f"which of its protocols (default: {DEFAULT_PROTOCOL})")
    raw = parser.add_argument_group("raw audio")
    raw.add_argument("--audio-root", type=Path, help="folder that the paths in the lists start from")
    raw.add_argument("--trials", type=Path, help="list of `1|0 path path` lines")
    raw.add_argument(
        "--identification", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="lists of `speaker path` lines"
    )
    tts = parser.add_argument_group("text to mel")
    tts.add_argument(
        "--split", nargs="+", choices=("train", "valid", "test"), help="lists of texts, judged together (default: test)"
    )
    tts.add_argument(
        "--vocoder", help="griffin-lim, or the file or folder of a HiFi-GAN checkpoint (default: griffin-lim)"
    )
    tts.add_argument("--asr", type=Path, metavar="FOLDER", help="faster-whisper model that says what it understands")
    tts.add_argument("--limit", type=cli.positive_int, help="at most so many utterances")
    _add_report_arguments(parser)


def _add_pool(commands: Any) -> None:
    description = "Report several evaluations as one, such as the folds of a cross-validation."
    parser = add_command(commands, "pool", _pool, description, model=False)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION", help="--out folders of evaluate")
    _add_report_arguments(parser)


def _add_report_arguments(parser: cli.Parser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--out", type=Path, required=True, help="folder for the report and its pictures")
    group.add_argument(
        "--bootstrap", type=cli.positive_int, default=1000, help="draws of speakers or utterances for an interval"
    )
    group.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the draws")


def _evaluate_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about flags that contradict each other."""
    problems = []
    raw = {"--trials": args.trials, "--identification": args.identification, "--audio-root": args.audio_root}
    given = [flag for flag, value in raw.items() if value is not None]
    if args.data is not None:
        problems += [f"--data and {flag} contradict: stored features have their own lists" for flag in given]
    elif not given:
        problems.append("nothing to evaluate on: give --data, or --audio-root with --trials or --identification")
    elif given == ["--audio-root"]:
        problems.append("--audio-root needs --trials or --identification")
    elif args.audio_root is None:
        problems.append(f"{' and '.join(given)} need --audio-root, the folder that the paths start from")
    if args.protocol is not None and args.data is None:
        problems.append("--protocol needs --data")
    return problems


def _evaluate(args: argparse.Namespace) -> None:
    from utils.checkpoint import load_checkpoint
    from utils.evaluation.report import CONFIG, require_out

    require_out(args.out)
    task = load_checkpoint(args.checkpoint)["task"]
    foreign = _RECOGNITION_FLAGS if task == "tts" else _SYNTHESIS_FLAGS
    given = [f"--{name.replace('_', '-')}" for name in foreign if getattr(args, name) is not None]
    if given:
        raise cli.UserError(f"{args.checkpoint} holds a model for {task}, which knows nothing of {' and '.join(given)}")
    if task == "tts":
        _evaluate_synthesis(args)
    else:
        _evaluate_recognition(args)
    cli.save_config(args.out / CONFIG, args)


def _evaluate_recognition(args: argparse.Namespace) -> None:
    from utils.evaluation.evaluate import evaluate_audio, evaluate_features
    from utils.evaluation.recognizer import SpeakerRecognizer

    recognizer = SpeakerRecognizer.load(args.checkpoint, args.device, args.backend)
    if args.data is not None:
        evaluation = evaluate_features(recognizer, args.data, args.protocol or DEFAULT_PROTOCOL)
    else:
        lists = tuple(args.identification) if args.identification else None
        evaluation = evaluate_audio(recognizer, args.audio_root, args.trials, lists)
    _finish(args, evaluation, recognizer.description(args.checkpoint))


def _evaluate_synthesis(args: argparse.Namespace) -> None:
    from utils.evaluation.synthesis import evaluate_synthesis
    from utils.evaluation.synthesis_report import build_synthesis_report, synthesis_table, write_synthesis_report
    from utils.synthesis.synthesizer import Synthesizer

    synthesizer = Synthesizer.load(args.checkpoint, args.device, args.backend)
    evaluation = evaluate_synthesis(
        synthesizer,
        args.data,
        args.protocol or DEFAULT_PROTOCOL,
        args.split or ["test"],
        args.vocoder or "griffin-lim",
        args.asr,
        args.limit,
        args.seed,
    )
    about = {**synthesizer.description(args.checkpoint), "config": cli.plain_arguments(args)}
    report = build_synthesis_report(evaluation, about, args.bootstrap, args.seed)
    write_synthesis_report(args.out, report, evaluation)
    _show(args, report, synthesis_table(report))


def _pool(args: argparse.Namespace) -> None:
    from utils.evaluation.pooled import pool, read_evaluation
    from utils.evaluation.report import REPORT, require_out
    from utils.files import read_json

    evaluations = [read_evaluation(folder) for folder in args.evaluations]
    reports = [read_json(folder / REPORT) for folder in args.evaluations]
    models = [model for report in reports for model in report.get("models", [report.get("model")])]
    require_out(args.out)
    names = " and ".join(sorted({model["name"] for model in models}))
    _finish(args, pool(f"{names}, {len(evaluations)} evaluations pooled", evaluations), {"models": models})


def _finish(args: argparse.Namespace, evaluation: Any, about: dict[str, Any]) -> None:
    """Writes and prints the report."""
    from utils.evaluation.report import build_report, table, write_report

    about = {**about, "config": cli.plain_arguments(args)}
    report = build_report(evaluation, about, args.bootstrap, args.seed)
    write_report(args.out, report, evaluation)
    _show(args, report, table(report))


def _show(args: argparse.Namespace, report: dict[str, Any], shown: str) -> None:
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print_json(report)
    else:
        print(f"{report['title']}\n\n{shown}\n\nreport and pictures: {args.out}")
