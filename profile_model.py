"""Shows the memory of a model by layer: parameters, outputs, and tensors saved for the backward pass.

python profile_model.py --config configs/speaker-tiny.yaml
python profile_model.py --config configs/tts-tiny.yaml --depth 2
python profile_model.py --mixer mamba2 --d-model 256 --n-layers 8 --batch-size 64 --frames 300 --depth 3
python profile_model.py --model ecapa --json
python profile_model.py --task tts --model tacotron2 --crop-seconds 6 --symbols 90

It measures training steps on the CPU with random features and symbols. `--config` takes the files of
train_tacomamba.py unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.config import Config, option, options
from models.speaker import SpeakerConfig, SpeakerModel
from models.tts import MODELS, TextToMelConfig
from utils import cli
from utils.errors import ExitCode
from utils.features.recipe import DEFAULT_RECIPE, RECIPES
from utils.profiling import Layer, StepMemory, layer_table, profile_layers, profile_step, step_table
from utils.tasks import TASKS, flags_of_other_tasks
from utils.text.vocabulary import SPECIAL, VOCABULARIES
from utils.training.options import TrainingOptions
from utils.training.update import AMP_DTYPES, parameter_groups

SYMBOLS_PER_SECOND = 15  # of read English, characters or phonemes


@dataclass(frozen=True)
class StepOptions(Config):
    """The profiled training step."""

    title = "training step"

    batch_size: int = option(32, "samples in a step", least=1)
    batch_frames: int | None = option(None, "mel frames in a step, which replace --batch-size", least=1)
    crop_seconds: float = option(2.0, "length of a sample in seconds", above=0)
    frames: int | None = option(None, "length of a sample in mel frames, which replaces --crop-seconds", least=1)
    speakers: int = option(1000, "training speakers", least=1)
    amp: str = option("off", "mixed precision of the forward pass", choices=("off", *AMP_DTYPES))


@dataclass(frozen=True)
class TextStepOptions(Config):
    """The texts and voices of the profiled step of text to mel."""

    title = "texts and voices"

    symbols: int | None = option(None, f"symbols of a sample (default: {SYMBOLS_PER_SECOND} per second)", least=1)
    speaker_dim: int = option(192, "size of the embeddings of --voice embedding", least=1)


def build_parser(argv: Sequence[str] | None = None) -> cli.Parser:
    """The flags of this script, those of the task that `argv` names."""
    task = TASKS[cli.peek(argv, "--task", "speaker", TASKS)]
    parser = cli.Parser(description=__doc__)
    trained_with = [field.name for config in (TrainingOptions, *task.option_classes()) for field in options(config)]
    parser.add_config(ignored=[*trained_with, "data", "protocol", "out"])
    parser.add_argument("--task", choices=tuple(TASKS), default="speaker", help="what the model is for")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default=DEFAULT_RECIPE[task.name], help="mel recipe")
    parser.add_options(StepOptions, *([TextStepOptions] if task.name == "tts" else []), task.model_config)
    parser.elsewhere = flags_of_other_tasks(task.name, symbols="tts", speaker_dim="tts")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--depth", type=cli.non_negative_int, metavar="N", help="levels of modules in the table (default: all)"
    )
    output.add_argument(
        "--json", action=argparse.BooleanOptionalAction, default=False, help="print one JSON object instead of tables"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, profiles, returns the exit code."""
    parser = build_parser(argv)
    args = parser.parse_args(argv)
    (config,) = parser.read_options(args, TASKS[args.task].model_config, also=_problems(args))
    return cli.run(lambda args: _profile(args, config), args, notes=True)


def _problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.json and args.depth is not None:
        problems.append("--depth shortens the table; the output of --json always has every row")
    frames = _frames(args)
    if frames < 1:
        problems.append(f"--crop-seconds {args.crop_seconds:g} is too short for one frame of {args.recipe}")
    elif args.task == "tts" and _symbols(args) > frames:
        problems.append(f"--symbols {args.symbols} is too many for {frames} mel frames: each symbol needs one")
    return problems


def _frames(args: argparse.Namespace) -> int:
    recipe = RECIPES[args.recipe]
    return args.frames or recipe.frames(round(args.crop_seconds * recipe.sample_rate))


def _samples(args: argparse.Namespace) -> int:
    return max(1, args.batch_frames // _frames(args)) if args.batch_frames else args.batch_size


def _symbols(args: argparse.Namespace) -> int:
    seconds = RECIPES[args.recipe].seconds(_frames(args))
    return args.symbols or max(1, round(SYMBOLS_PER_SECOND * seconds))


def _profile(args: argparse.Namespace, config: Config) -> int:
    torch.manual_seed(0)
    sizes = {"n_speakers": args.speakers, "speaker_dim": args.speaker_dim} if args.task == "tts" else {}
    config = dataclasses.replace(config, n_mels=RECIPES[args.recipe].n_mels, **sizes)
    model, batch = (_speaker_step if args.task == "speaker" else _tts_step)(args, config)
    model.train()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", AMP_DTYPES.get(args.amp), enabled=args.amp != "off"):
            outputs = model(**batch)
        return outputs["loss_sum"] / outputs["count"]

    layers = profile_layers(model, loss)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05))
    step = profile_step(model, optimizer, batch, loss, lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0))
    shown = _shown(args)
    print(_as_json(shown, config, layers, step) if args.json else _as_text(shown, layers, step, args.depth))
    return ExitCode.DONE


def _speaker_step(args: argparse.Namespace, config: SpeakerConfig) -> tuple[nn.Module, dict[str, Any]]:
    """A speaker model, and arguments of its forward pass."""
    samples, frames = _samples(args), _frames(args)
    batch = {
        "mel": torch.randn(samples, frames, config.n_mels),
        "lengths": torch.full((samples,), frames),
        "labels": torch.arange(samples) % args.speakers,
        "margin_share": 1.0,
    }
    return SpeakerModel(config, args.speakers), batch


def _tts_step(args: argparse.Namespace, config: TextToMelConfig) -> tuple[nn.Module, dict[str, Any]]:
    """A text-to-mel model, and arguments of its forward pass."""
    samples, frames, symbols = _samples(args), _frames(args), _symbols(args)
    size = len(VOCABULARIES["phoneme"])
    voices = {
        "none": None,
        "table": torch.arange(samples) % args.speakers,
        "embedding": torch.randn(samples, args.speaker_dim),
    }
    batch = {
        "tokens": torch.randint(len(SPECIAL), size, (samples, symbols)),
        "token_lengths": torch.full((samples,), symbols),
        "mel": torch.randn(samples, frames, config.n_mels),
        "mel_lengths": torch.full((samples,), frames),
        "speaker": voices[args.voice],
    }
    return MODELS[config.model](config, size), batch


def _shown(args: argparse.Namespace) -> dict[str, Any]:
    """The sizes of the profiled step, by name."""
    own = {"speakers": args.speakers} if args.task == "speaker" else {"symbols": _symbols(args), "voice": args.voice}
    return {"task": args.task, "batch_size": _samples(args), "frames": _frames(args), **own, "amp": args.amp}


def _as_json(shown: dict[str, Any], config: Config, layers: list[Layer], step: StepMemory) -> str:
    rows = [vars(layer) for layer in layers]
    content = {**shown, "model_config": config.to_dict(), "parameters": layers[0].parameters}
    return json.dumps({**content, "layers": rows, "step_bytes": step.to_dict()}, indent=2)


def _as_text(shown: dict[str, Any], layers: list[Layer], step: StepMemory, depth: int | None) -> str:
    title = "One training step: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
    return f"{layer_table(layers, depth)}\n\n{title}\n{step_table(step)}"


if __name__ == "__main__":
    sys.exit(main())
