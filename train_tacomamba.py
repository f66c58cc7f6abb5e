"""Train a speaker recognizer or text to mel, on one process or many.

python train_tacomamba.py --task speaker --data data/processed/demo --config configs/speaker-tiny.yaml --out runs/demo
python train_tacomamba.py --task speaker --data data/processed/demo --out runs/demo --resume auto
python train_tacomamba.py --task tts --data data/processed/ljspeech --config configs/tts-small.yaml --out runs/voice
torchrun --nproc-per-node 2 train_tacomamba.py --task speaker --data data/processed/demo --out runs/two --batch-size 32

Writes OUT/best.pt (lowest validation error, to use), OUT/last.pt (to go on from) and OUT/last-1.pt (the one before),
log.jsonl, config.yaml, run.json, and TensorBoard's scalars, pictures and sounds. Exit codes: 0 done, 2 bad input,
128 + n when signal n stopped the run after saving it; a second signal ends it at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.device import keep_few_compiled_operations, keep_freed_memory
from utils.errors import ExitCode
from utils.lists import DEFAULT_PROTOCOL
from utils.speaker import options as speaker_options
from utils.training import options
from utils.training.model_options import add_model_arguments, flags_of_other_families, flags_of_other_tasks
from utils.tts import options as tts_options

if TYPE_CHECKING:
    from utils.features.store import FeatureStore
    from utils.training.distributed import Ranks
    from utils.training.task import Task

OWN_FLAGS = {
    "speaker": (speaker_options.add_speaker_arguments, speaker_options.add_speaker_model_arguments),
    "tts": (tts_options.add_tts_model_arguments,),
}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_config()
    data = parser.add_argument_group("data")
    data.add_argument("--task", choices=("speaker", "tts"), default="speaker", help="what to train")
    data.add_argument("--data", type=Path, required=True, help="folder that preprocess.py wrote")
    data.add_argument("--protocol", default=DEFAULT_PROTOCOL, help="which of the data's protocols gives the splits")
    data.add_argument("--out", type=Path, required=True, help="run folder; not empty only with --resume")
    options.add_training_arguments(parser)
    add_model_arguments(parser)
    speaker_options.add_speaker_arguments(parser)
    speaker_options.add_speaker_model_arguments(parser)
    tts_options.add_tts_model_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, trains, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report([*_problems(args), *flags_of_other_families(args, parser)])
    return cli.run(_train, args, notes=True)


def _problems(args: argparse.Namespace) -> list[str]:
    if args.task == "speaker":
        problems = [*speaker_options.speaker_model_problems(args), *speaker_options.speaker_problems(args)]
    else:
        problems = tts_options.tts_problems(args)
    if args.task == "tts" and args.compile:
        problems.append("--compile is for --task speaker: g++ 12 fails on what torch.compile makes of text to mel")
    problems += flags_of_other_tasks(args, OWN_FLAGS)
    if args.resume == "off" and args.out.is_dir() and any(args.out.iterdir()):
        problems.append(f"{args.out} is not empty: --resume auto goes on with the run there, another --out starts anew")
    if args.out.exists() and not args.out.is_dir():
        problems.append(f"--out {args.out} is a file, not a folder")
    return problems


def _train(args: argparse.Namespace) -> int:
    import torch

    from utils.training import distributed

    keep_freed_memory()
    keep_few_compiled_operations()
    if args.threads:
        torch.set_num_threads(args.threads)
    ranks = distributed.join(args.device)
    try:
        code = _fit(args, ranks)
        ranks.wait()  # one that leaves earlier closes connections that others still use
        return code
    finally:
        distributed.leave()


def _fit(args: argparse.Namespace, ranks: Ranks) -> int:
    import torch

    from utils.features.store import FeatureStore
    from utils.training.trainer import Trainer

    resumed = ranks.on_main(lambda: _checkpoint_to_resume(args))
    store = FeatureStore.open(args.data)
    torch.manual_seed(args.seed)
    task = _task(args, store, is_new=resumed is None)
    config = cli.plain_arguments(args)
    trainer = Trainer(task, args, config, args.out, ranks)
    if resumed is not None:
        trainer.restore(resumed)
    if trainer.step >= args.steps:
        print(f"{args.out} is trained to step {trainer.step} already")
        return ExitCode.DONE
    if ranks.is_main:
        if args.resume not in ("auto", "off"):
            trainer.store.begin_from(Path(args.resume))
        trainer.store.sweep()
        _write_records(args, config, task, trainer.step, ranks)
    return trainer.fit()


def _task(args: argparse.Namespace, store: FeatureStore, is_new: bool) -> Task:
    """What is to be trained, freshly initialized; one that is not new is to be restored from a checkpoint."""
    folder = args.data / "protocols" / args.protocol
    if args.task == "speaker":
        from utils.speaker.protocol import read_protocol
        from utils.speaker.task import SpeakerTask

        return SpeakerTask(store, read_protocol(folder), args)
    from utils.tts.task import TextToMelTask
    from utils.tts.text_lists import read_text_lists

    return TextToMelTask(store, read_text_lists(folder), args, is_new)


def _checkpoint_to_resume(args: argparse.Namespace) -> dict[str, Any] | None:
    from utils.checkpoint import load_checkpoint
    from utils.training.checkpoints import CheckpointStore

    if args.resume == "off":
        return None
    if args.resume == "auto":
        return CheckpointStore(args.out, args.keep_last).newest()
    return load_checkpoint(Path(args.resume))


def _write_records(args: argparse.Namespace, config: dict[str, Any], task: Any, step: int, ranks: Ranks) -> None:
    from utils.training.runlog import write_run_record

    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    print(
        f"{parameters:,} parameters, {len(task.speakers)} speakers, {len(task.dataset.items)} utterances, "
        f"{ranks.world} x {ranks.device.type}, from step {step}"
    )
    cli.save_config(args.out / "config.yaml", args)
    facts = {"parameters": parameters, "ranks": ranks.world, "device": str(ranks.device), "started_from_step": step}
    write_run_record(args.out, config, facts)


if __name__ == "__main__":
    sys.exit(main())
