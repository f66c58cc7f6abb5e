"""Uses and evaluates a trained model: a speaker recognizer, or text to mel.

python test.py evaluate --checkpoint runs/demo --data data/processed/demo --out runs/demo/evaluation
python test.py evaluate --checkpoint runs/demo --trials trials.txt --audio-root data/raw/librispeech --out report
python test.py pool fold0 fold1 fold2 fold3 --out pooled
python test.py compare one/report other/report --out comparison
python test.py enroll --store people.safetensors --name Ada ada1.flac ada2.wav
python test.py enroll --store people.safetensors --folder recordings
python test.py identify --store people.safetensors unknown.flac
python test.py identify --store people.safetensors --window 3 meeting.flac
python test.py identify --store people.safetensors --stream meeting.flac
python test.py timeline --store people.safetensors --out meeting meeting.flac
python test.py people --store people.safetensors list
python test.py verify a.flac b.flac
python test.py verify --prior 0.01 --cost-false-accept 10 a.flac b.flac
python test.py embed --checkpoint runs/demo a.flac b.flac --out embeddings.safetensors
python test.py pack --checkpoint runs/demo --data data/processed/demo --out packed --report report
python test.py export --checkpoint runs/demo --format onnx --out demo.onnx
python test.py export --checkpoint runs/causal --streaming --out stream.onnx
python test.py synthesize --checkpoint runs/voice --text "Good morning." --out morning.wav

A checkpoint is a file (best.pt), a run folder, a packed model, or the name of one in pretrained/; enroll, identify,
timeline, verify, embed and export take pretrained/speaker by default. Audio is any file that libsndfile reads, or
ffmpeg for M4A and the like, at any sample rate. Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from utils import cli
from utils.commands import CONFIG, add_command, add_report_arguments, report_folder
from utils.errors import UserError
from utils.lists import DEFAULT_PROTOCOL
from utils.speaker import commands as speaker
from utils.tts import commands as tts

_EVALUATE = """Evaluate a model on its task, and write report.json, pictures, results of single items, and config.yaml.

python test.py evaluate --checkpoint runs/demo --data data/processed/demo --out evaluation
python test.py evaluate --checkpoint runs/demo --trials trials.txt --audio-root data/raw --out evaluation
python test.py evaluate --checkpoint runs/demo --identification train.txt test.txt --audio-root data/raw --out report
python test.py evaluate --checkpoint runs/demo --data data/processed/audio --conditions noise,cut --out evaluation
python test.py evaluate --checkpoint runs/voice --data data/processed/ljspeech --vocoder griffin-lim --out evaluation

A speaker recognizer: --data evaluates on stored features and their protocol, by trials of the held-out speakers and
identification of the training speakers. --audio-root evaluates on raw audio, by a trial list (`1|0 path path`) or two
lists of `speaker path` lines, of which the first enrolls speakers and the second has recordings to identify.
--conditions scores the trials again with both recordings degraded, and with either one: the same way every time.
errors.txt lists whom identification took for whom, the most frequent error first.

Text to mel: texts of --data are synthesized and compared with their recordings, sent through the same vocoder: by
length and time, with --mcd by mel-cepstral distortion and pitch, and with --asr by the errors of a speech recognizer.
"""

TASKS = {"speaker": speaker, "tts": tts}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_evaluate(commands)
    for task in TASKS.values():
        task.add_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, runs the subcommand, returns the exit code."""
    args = build_parser().parse_args(argv)
    args.check(args)
    return cli.run(args.body, args)


def _add_evaluate(commands: Any) -> None:
    parser = add_command(commands, "evaluate", _evaluate, _EVALUATE, _evaluate_problems)
    stored = parser.add_argument_group("stored features")
    stored.add_argument("--data", type=Path, metavar="FOLDER", help="folder that preprocess.py wrote")
    stored.add_argument("--protocol", metavar="NAME", help=f"protocol of the data (default: {DEFAULT_PROTOCOL})")
    for task in TASKS.values():
        task.add_evaluate_arguments(parser)
    add_report_arguments(parser)


def _evaluate_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about flags that contradict each other."""
    problems = []
    raw = {"--trials": args.trials, "--identification": args.identification, "--audio-root": args.audio_root}
    given = [flag for flag, value in raw.items() if value is not None]
    if args.data is not None:
        problems += [f"--data and {flag} contradict each other: stored features have their own lists" for flag in given]
    elif not given:
        problems.append("nothing to evaluate: give --data, or --audio-root with --trials or --identification")
    elif given == ["--audio-root"]:
        problems.append("--audio-root needs --trials or --identification")
    elif args.audio_root is None:
        problems.append(f"{' and '.join(given)} need --audio-root, the folder that the paths start from")
    elif args.conditions is not None and args.trials is None:
        problems.append("--conditions needs --trials, whose recordings it degrades")
    if args.keep_features is not None and args.trials is None:
        problems.append("--keep-features needs --trials")
    if args.protocol is not None and args.data is None:
        problems.append("--protocol needs --data")
    if args.cohort_top is not None and args.cohort is None:
        problems.append("--cohort-top needs --cohort")
    if args.cohort is not None and args.back_end is False:
        problems.append(
            "--no-back-end and --cohort contradict each other: the embeddings of the cohort come from the back end"
        )
    if args.cohort is not None and args.s_norm is False:
        problems.append("--no-s-norm and --cohort contradict each other: a cohort is what scores are normalized by")
    return problems


def _evaluate(args: argparse.Namespace) -> None:
    from utils.checkpoint import load_checkpoint

    with report_folder(args.out):
        task = load_checkpoint(args.checkpoint)["task"]
        foreign = [name for other, module in TASKS.items() if other != task for name in _own_flags(module)]
        given = [cli.flag_name(name) for name in foreign if getattr(args, name) is not None]
        if given:
            raise UserError(f"{args.checkpoint} holds a model for {task}, which has no use for {' and '.join(given)}")
        TASKS[task].evaluate(args)
        cli.save_config(args.out / CONFIG, args)


def _own_flags(task: Any) -> list[str]:
    """The flags of `evaluate` that only this task has."""
    parser = cli.Parser(add_help=False)
    task.add_evaluate_arguments(parser)
    return list(vars(parser.parse_args([])))


if __name__ == "__main__":
    sys.exit(main())
