"""Predicts the memory of a training step, by layer and over time, and what fits into a GPU, before any is allocated.

python profile_model.py --config configs/speaker-tiny.yaml
python profile_model.py --config configs/tts-tiny.yaml --depth 2 --measure
python profile_model.py --config configs/speaker-base.yaml --device cuda --amp bf16 --gpu-mem 24GiB --out profiles/base
python profile_model.py --config configs/speaker-tiny.yaml --config configs/speaker-small.yaml
python profile_model.py --mixer mamba --d-model 512 --n-layers 3 --d-state 32 --batch-size 8 --frames 2185 --mixers \\
    --out profiles/mixers
python profile_model.py --task tts --model tacotron2 --seconds 6 --symbols 90 --json

The step is that of the training loop, on random features and symbols. `--config` takes the files of train_tacomamba.py
unchanged; several are compared. OUT gets profile.json, profile.csv, profile.html and profile.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import Config, option, options
from utils import cli
from utils.errors import ExitCode
from utils.features.recipe import DEFAULT_RECIPE, RECIPES
from utils.tasks import TASKS, flags_of_other_tasks
from utils.training.options import TrainingOptions

SYMBOLS_PER_SECOND = 15  # of read English, characters or phonemes
UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


def _of_training(name: str) -> Any:
    """The option of the training loop."""
    field = next(field for field in options(TrainingOptions) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True)
class StepOptions(Config):
    """The profiled training step."""

    title = "training step"

    batch_size: int = _of_training("batch_size")
    batch_frames: int | None = option(None, "mel frames in a step, which replace --batch-size", least=1)
    crop_seconds: float = option(2.0, "length of a sample in seconds", above=0, most=86_400)
    seconds: float | None = option(None, "the same, which replaces --crop-seconds", above=0, most=86_400)
    frames: int | None = option(None, "length of a sample in mel frames, which replaces both", least=1)
    speakers: int = option(1000, "training speakers", least=1)
    amp: str = _of_training("amp")
    ema: float = _of_training("ema")
    accumulate: int = _of_training("accumulate")
    checkpoint_layers: bool = _of_training("checkpoint_layers")
    backend: str = _of_training("backend")
    device: str = option(
        "auto",
        "device to predict for, which need not exist here; auto is the CPU; on cuda, --backend auto is triton",
        choices=("auto", "cpu", "cuda"),
    )


@dataclass(frozen=True)
class TextStepOptions(Config):
    """The texts and voices of the profiled step of text to mel."""

    title = "texts and voices"

    symbols: int | None = option(None, f"symbols of a sample (default: {SYMBOLS_PER_SECOND} per second)", least=1)
    speaker_dim: int = option(192, "size of the embeddings of --voice embedding", least=1)


def memory_size(text: str) -> int:
    """argparse type: bytes, such as 24GiB."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"must be a size such as 24GiB, in {', '.join(UNITS)}, not {text!r}")
    return round(float(found[1]) * UNITS[found[2]])


def build_parser(argv: Sequence[str] | None = None) -> cli.Parser:
    """The flags of this script, those of the task that `argv` names."""
    task = TASKS[cli.peek(argv, "--task", "speaker", TASKS)]
    parser = cli.Parser(description=__doc__)
    trained_with = {field.name for config in (TrainingOptions, *task.option_classes()) for field in options(config)}
    own = {field.name for field in options(StepOptions)}
    parser.add_config(ignored=[*(trained_with - own), "data", "protocol", "out"])
    parser.add_argument("--task", choices=tuple(TASKS), default="speaker", help="what the model is for")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default=DEFAULT_RECIPE[task.name], help="mel recipe")
    parser.add_options(StepOptions, *([TextStepOptions] if task.name == "tts" else []), task.model_config)
    parser.elsewhere = flags_of_other_tasks(task.name, symbols="tts", speaker_dim="tts")
    asked = parser.add_argument_group("questions")
    help = "say which batch, and which length, fits into this memory, such as 24GiB; on a CPU, that of tensors"
    asked.add_argument("--gpu-mem", type=memory_size, metavar="SIZE", help=help)
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    asked.add_argument("--measure", **switch, help="also run the step, and compare")
    asked.add_argument("--mixers", **switch, help="also compare all mixers at 1, 8 and 64 times the length")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the files")
    output.add_argument(
        "--depth", type=cli.non_negative_int, metavar="N", help="levels of modules in the table (default: all)"
    )
    output.add_argument("--json", **switch, help="print one JSON object instead of tables")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, profiles, returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    jobs = []
    for one in _with_one_config(words):
        parser = build_parser(one)
        args = parser.parse_args(one)
        own = [TextStepOptions] if args.task == "tts" else []
        chosen = parser.read_options(args, StepOptions, *own, TASKS[args.task].model_config, also=_problems(args))
        jobs.append((args, chosen[-1]))
    return cli.run(lambda _: _profile(jobs), jobs[0][0], notes=True)


def _with_one_config(words: Sequence[str]) -> list[list[str]]:
    """The command line of each `--config` by itself."""
    places = [place for place, word in enumerate(words) if word == "--config" or word.startswith("--config=")]
    found = []
    for kept in places or [-1]:
        others = {place + more for place in places if place != kept for more in (0, words[place] == "--config")}
        found.append([word for place, word in enumerate(words) if place not in others])
    return found


def _problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.json and args.depth is not None:
        problems.append("--depth shortens the table; the output of --json always has every row")
    if args.mixers and args.out is None:
        problems.append("--mixers draws a picture: it needs --out FOLDER")
    if args.mixers and args.model != "tacomamba":
        problems.append(f"--mixers is for --model tacomamba, not for --model {args.model}")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        problems.append(f"--out {args.out} is a file, not a folder")
    frames = _frames(args)
    if frames < 1:
        flag, seconds = ("--seconds", args.seconds) if args.seconds else ("--crop-seconds", args.crop_seconds)
        problems.append(f"{flag} {seconds:g} is too short for one frame of {args.recipe}")
    elif args.task == "tts" and _symbols(args) > frames:
        problems.append(f"--symbols {args.symbols} is too many for {frames} mel frames: each symbol needs one")
    if _samples(args) < 2 * args.accumulate:  # as in training: batch norm has no variance over a single sample
        problems.append(f"--accumulate {args.accumulate} is too much for the {_samples(args)} samples of a step")
    return problems


def _frames(args: argparse.Namespace) -> int:
    recipe = RECIPES[args.recipe]
    return args.frames or recipe.frames(round((args.seconds or args.crop_seconds) * recipe.sample_rate))


def _samples(args: argparse.Namespace) -> int:
    return max(1, args.batch_frames // _frames(args)) if args.batch_frames else args.batch_size


def _symbols(args: argparse.Namespace) -> int:
    seconds = RECIPES[args.recipe].seconds(_frames(args))
    return getattr(args, "symbols", None) or max(1, round(SYMBOLS_PER_SECOND * seconds))


def case_of(args: argparse.Namespace, config: Config) -> Any:
    """The `utils.profiling.case.Case` of parsed flags and the model's configuration."""
    from utils.profiling.case import Case

    recipe = RECIPES[args.recipe]
    sizes = {"n_speakers": args.speakers, "speaker_dim": args.speaker_dim} if args.task == "tts" else {}
    names = ("amp", "ema", "accumulate", "checkpoint_layers", "backend")
    return Case(
        task=args.task,
        config=dataclasses.replace(config, n_mels=recipe.n_mels, **sizes),
        training=TrainingOptions(**{name: getattr(args, name) for name in names}),
        recipe=recipe,
        samples=_samples(args),
        frames=_frames(args),
        symbols=_symbols(args),
        speakers=args.speakers,
        device="cuda" if args.device == "cuda" else "cpu",
    )


def _profile(jobs: list[tuple[argparse.Namespace, Config]]) -> int:
    from utils.profiling.report import Report

    args = jobs[0][0]
    labels = [str(one.config.stem) if one.config else args.model for one, _ in jobs]
    labels = labels if len(set(labels)) == len(labels) else [str(one.config) for one, _ in jobs]
    cases = [case_of(*job) for job in jobs]
    report = Report.of(cases, labels, args.gpu_mem, is_measured=args.measure, with_mixers=args.mixers)
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.text(args.depth))
    if args.out is not None:
        report.write(args.out)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
