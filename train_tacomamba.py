"""Trains a speaker recognizer or text to mel, in one process or many.

python train_tacomamba.py --task speaker --data data/processed/demo --config configs/speaker-tiny.yaml --out runs/demo
python train_tacomamba.py --task speaker --data data/processed/demo --out runs/demo --resume auto
python train_tacomamba.py --task tts --data data/processed/ljspeech --config configs/tts-small.yaml --out runs/voice
torchrun --nproc-per-node 2 train_tacomamba.py --task speaker --data data/processed/demo --out runs/two --batch-size 32

Writes OUT/best.pt (lowest validation error, to use), OUT/last.pt (to resume from), OUT/last-1.pt (the one before it),
log.jsonl, config.yaml, run.json, and TensorBoard's scalars, pictures and sounds. Exit codes: 0 done, 2 bad input,
128 + n if signal n stopped the run, which is saved first; a second signal ends it at once. One process at a time may
train in OUT.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils import cli
from utils.checkpoint import BEST, load_checkpoint
from utils.device import keep_few_compiled_operations, keep_freed_memory
from utils.errors import ExitCode, UserError
from utils.features.store import FeatureStore
from utils.files import shown
from utils.lists import DEFAULT_PROTOCOL
from utils.locks import LOCK, only_writer
from utils.speaker.training.initial import encoder_flags
from utils.speaker.training.task import SpeakerTask
from utils.tasks import TASKS, flags_of_other_tasks
from utils.training import distributed
from utils.training.checkpoints import CheckpointStore
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.runlog import write_run_record
from utils.training.trainer import Trainer, require_resumable


def build_parser(argv: Sequence[str] | None = None) -> cli.Parser:
    """The flags of this script, those of the task that `argv` names."""
    task = TASKS[cli.peek(argv, "--task", "speaker", TASKS)]
    parser = cli.Parser(description=__doc__)
    parser.add_config()
    data = parser.add_argument_group("data")
    data.add_argument("--task", choices=tuple(TASKS), default="speaker", help="what to train")
    data.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder that preprocess.py wrote")
    help = "protocol of the data, which defines the splits"
    data.add_argument("--protocol", default=DEFAULT_PROTOCOL, metavar="NAME", help=help)
    help = "run folder; empty or new, except with --resume"
    data.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=help)
    parser.add_options(TrainingOptions, task.model_config, *task.option_classes())
    if (init := cli.peek(argv, "--init")) and task is SpeakerTask:
        with contextlib.suppress(UserError, OSError):  # which the task raises again
            parser.set_defaults(**encoder_flags(init))
    parser.elsewhere = flags_of_other_tasks(task.name)
    parser.may_change.add("data")  # a folder may have moved; the training data are compared by their hash
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, trains, returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words)
    args = parser.parse_args(words)
    task = TASKS[args.task]
    is_locked = os.path.exists(args.out / LOCK)  # perhaps by a running process, which is then what to report
    training, config, *options = parser.read_options(
        args,
        TrainingOptions,
        task.model_config,
        *task.option_classes(),
        also=[] if is_locked else _problems_of_out(args),
    )
    parser.report(task.problems(config, training, options))
    return cli.run(lambda args: _train(args, words, parser, training, config, options), args, notes=True)


def _problems_of_out(args: argparse.Namespace) -> list[str]:
    if not os.path.exists(args.out):  # Path.exists raises for a folder that must not be looked into
        return []
    if not args.out.is_dir():
        return [f"--out {args.out} is a file, not a folder"]
    if args.tensorboard and shown(args.out) != str(args.out):
        return [f"TensorBoard cannot write into {args.out}, whose name is not UTF-8: add --no-tensorboard"]
    if args.resume == "off" and _names(args.out) - {LOCK}:
        return [f"{args.out} is not empty: resume its run with --resume auto, or begin a new one with another --out"]
    return []


def _names(folder: Path) -> set[str]:
    """What is in a folder; nothing if that may not be read, which is reported when the folder is used."""
    with contextlib.suppress(OSError):
        return {path.name for path in folder.iterdir()}
    return set()


def _train(
    args: argparse.Namespace, words: Sequence[str], parser: cli.Parser, training: TrainingOptions, *configs: Any
) -> int:
    keep_freed_memory()
    keep_few_compiled_operations()
    if training.threads:
        torch.set_num_threads(training.threads)
    ranks = distributed.join(training.device)
    try:
        with contextlib.ExitStack() as stack:
            ranks.on_main(lambda: _claim(args, stack))
            code = _fit(args, words, parser, ranks, training, *configs)
            ranks.wait()  # a rank that leaves early would close connections in use
        return code
    finally:
        distributed.leave()


def _claim(args: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """Keeps other processes out of the run folder; `UserError` if one is there, or has left a run in the meantime."""
    stack.enter_context(only_writer(args.out))
    for problem in _problems_of_out(args):
        raise UserError(problem)


def _fit(
    args: argparse.Namespace,
    words: Sequence[str],
    parser: cli.Parser,
    ranks: Ranks,
    training: TrainingOptions,
    config: Any,
    options: Any,
) -> int:
    resumed = ranks.on_main(lambda: _checkpoint_to_resume(args.out, training))
    flags = cli.plain_arguments(args)
    if resumed is not None:
        require_resumable(resumed)
        _require_same_flags(resumed["config"], flags, parser)
    store = FeatureStore.open(args.data)
    torch.manual_seed(training.seed)
    folder = args.data / "protocols" / args.protocol
    task = TASKS[args.task](store, folder, config, training, options, is_new=resumed is None)
    trainer = Trainer(task, training, flags, args.out, ranks)
    if resumed is not None:
        trainer.restore(resumed)
    if trainer.step >= training.steps:
        trained = args.out if training.resume == "auto" else training.resume
        if ranks.is_main:
            print(f"{trained} is already trained to step {trainer.step}")
        return ExitCode.DONE
    if ranks.is_main:
        if training.resume not in ("auto", "off"):
            trainer.store.begin_from(Path(training.resume), trainer.step)
        _write_records(args, flags, task, trainer.step, ranks)
    code = trainer.fit()
    if ranks.is_main:
        print(_next_step(args, task.score_name) if code == ExitCode.DONE else _how_to_resume(words, trainer.step))
    return code


def _how_to_resume(words: Sequence[str], step: int) -> str:
    """The sentence after a stopped run: the command with `--resume auto`."""
    resumed = [word for word in words if not word.startswith("--resume=")]
    while "--resume" in resumed:
        place = resumed.index("--resume")
        del resumed[place : place + 2]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    start = ["python"] if ranks == 1 else ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
    command = [*start, os.path.relpath(__file__), *resumed, "--resume", "auto"]
    return f"saved step {step}; continue with: {shlex.join(command)}"


def _next_step(args: argparse.Namespace, score: str) -> str:
    """The lines after a finished run: the best checkpoint, and the command that evaluates it."""
    best = load_checkpoint(args.out)
    rated = f", {score} {best['metrics'][score]:.4g}" if score in best["metrics"] else ""
    script = Path(os.path.relpath(__file__)).with_name("test.py")
    command = [
        "python",
        script,
        "evaluate",
        "--checkpoint",
        args.out,
        "--data",
        args.data,
        "--out",
        args.out / "report",
    ]
    if args.protocol != DEFAULT_PROTOCOL:
        command += ["--protocol", args.protocol]
    return f"best step {best['step']}{rated}: {args.out / BEST}\nnext: {shlex.join(map(str, command))}"


def _checkpoint_to_resume(out: Path, training: TrainingOptions) -> dict[str, Any] | None:
    if training.resume == "off":
        return None
    if training.resume == "auto":
        return CheckpointStore(out, training.keep_last).newest()
    return load_checkpoint(Path(training.resume))


def _require_same_flags(before: dict[str, Any], now: dict[str, Any], parser: cli.Parser) -> None:
    """`UserError` if a flag that affects the results differs; a flag that the checkpoint lacks had its default."""
    different = []
    for name in sorted((before.keys() | now.keys()) - parser.may_change):
        default = parser.get_default(name)
        old, new = (flags.get(name, default) for flags in (before, now))
        if old != new:
            different.append(f"{cli.flag_name(name)} ({old} there, {new} here)")
    if different:
        raise UserError(f"the checkpoint to resume from was trained with other {', '.join(different)}")


def _write_records(args: argparse.Namespace, flags: dict[str, Any], task: Any, step: int, ranks: Ranks) -> None:
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    print(
        f"{parameters:,} parameters, {len(task.speakers)} speakers, {len(task.dataset.items)} utterances, "
        f"{ranks.world} x {ranks.device.type}, from step {step}"
    )
    cli.save_config(args.out / "config.yaml", args)
    facts = {"parameters": parameters, "ranks": ranks.world, "device": str(ranks.device), "started_from_step": step}
    write_run_record(args.out, flags, facts)


if __name__ == "__main__":
    sys.exit(main())
