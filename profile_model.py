"""Show where a model's memory goes: parameters, outputs and what is kept for backward, layer by layer.

python profile_model.py --config configs/speaker-tiny.yaml
python profile_model.py --config configs/tts-tiny.yaml --depth 2
python profile_model.py --mixer mamba2 --d-model 256 --n-layers 8 --batch-size 64 --frames 300 --depth 3
python profile_model.py --model ecapa --json
python profile_model.py --task tts --model tacotron2 --crop-seconds 6 --symbols 90

Two training steps are run on the CPU, on random features and symbols, to measure them. `--config` takes the files of
train_tacomamba.py as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import train_tacomamba
from utils import cli
from utils.errors import ExitCode
from utils.features.recipe import DEFAULT_RECIPE, RECIPES
from utils.speaker.options import (
    add_speaker_model_arguments,
    speaker_model_config,
    speaker_model_problems,
)
from utils.training.model_options import add_model_arguments, flags_of_other_families, flags_of_other_tasks
from utils.tts.options import add_tts_model_arguments, tts_model_config, tts_problems

if TYPE_CHECKING:
    from torch import nn

    from utils.profiling import Layer, StepMemory

SYMBOLS_PER_SECOND = 15  # of read English, characters or phonemes


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_config(other=train_tacomamba.build_parser())
    parser.add_argument("--task", choices=tuple(DEFAULT_RECIPE), default="speaker", help="what the model is for")
    step = parser.add_argument_group("training step")
    step.add_argument("--batch-size", type=cli.positive_int, default=32, help="samples in a step")
    step.add_argument(
        "--batch-frames", type=cli.positive_int, help="mel frames in a step, in whole samples, over --batch-size"
    )
    step.add_argument("--crop-seconds", type=cli.positive_float, default=2.0, help="length of a sample in seconds")
    step.add_argument("--frames", type=cli.positive_int, help="length of a sample in mel frames, over --crop-seconds")
    step.add_argument(
        "--speakers",
        type=cli.positive_int,
        default=1000,
        help="those that the classifier, or --voice table, tells apart",
    )
    step.add_argument("--recipe", choices=sorted(RECIPES), help="mel recipe (default: the task's)")
    step.add_argument(
        "--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision of the forward pass"
    )
    add_model_arguments(parser)
    add_speaker_model_arguments(parser)
    add_tts_model_arguments(parser)
    _add_text_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--depth", type=cli.non_negative_int, help="levels of modules in the table (default: all)")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts of text to mel")
    group.add_argument(
        "--symbols", type=cli.positive_int, help=f"symbols of a sample (default: {SYMBOLS_PER_SECOND} a second)"
    )


OWN_FLAGS = {
    "speaker": (add_speaker_model_arguments,),
    "tts": (add_tts_model_arguments, _add_text_arguments),
}


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, profiles, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.recipe = args.recipe or DEFAULT_RECIPE[args.task]
    parser.report([*_problems(args), *flags_of_other_families(args, parser)])
    return cli.run(_profile, args)


def _problems(args: argparse.Namespace) -> list[str]:
    problems = speaker_model_problems(args) if args.task == "speaker" else tts_problems(args)
    problems += flags_of_other_tasks(args, OWN_FLAGS)
    if args.json and args.depth is not None:
        problems.append("--depth shortens the table; --json always holds every row")
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


def _profile(args: argparse.Namespace) -> int:
    import torch

    from utils.profiling import profile_layers, profile_step
    from utils.training.update import AMP_DTYPES, parameter_groups

    torch.manual_seed(0)
    config, model, batch = _speaker_step(args) if args.task == "speaker" else _tts_step(args)
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


def _speaker_step(args: argparse.Namespace) -> tuple[dict[str, Any], nn.Module, dict[str, Any]]:
    """The configuration of a speaker model, the model, and arguments of its forward pass."""
    import torch

    from models.speaker import build_speaker_model

    config = speaker_model_config(args, RECIPES[args.recipe].n_mels)
    samples, frames = _samples(args), _frames(args)
    batch = {
        "mel": torch.randn(samples, frames, config["n_mels"]),
        "lengths": torch.full((samples,), frames),
        "labels": torch.arange(samples) % args.speakers,
        "margin": 0.2,
    }
    return config, build_speaker_model(config, args.speakers), batch


def _tts_step(args: argparse.Namespace) -> tuple[dict[str, Any], nn.Module, dict[str, Any]]:
    """The configuration of a text-to-mel model, the model, and arguments of its forward pass."""
    import torch

    from models.tts import build_text_to_mel
    from utils.speaker.recognizer import SpeakerRecognizer
    from utils.text.vocabulary import SPECIAL, VOCABULARIES

    speaker_dim = 0
    if args.voice == "embedding":
        speaker_dim = SpeakerRecognizer.load(args.speaker_encoder, "cpu").model_config["embedding_dim"]
    config = tts_model_config(args, RECIPES[args.recipe].n_mels, args.speakers, speaker_dim)
    samples, frames, symbols = _samples(args), _frames(args), _symbols(args)
    size = len(VOCABULARIES["phoneme"])
    voices = {
        "none": None,
        "table": torch.arange(samples) % args.speakers,
        "embedding": torch.randn(samples, speaker_dim),
    }
    batch = {
        "tokens": torch.randint(len(SPECIAL), size, (samples, symbols)),
        "token_lengths": torch.full((samples,), symbols),
        "mel": torch.randn(samples, frames, config["n_mels"]),
        "mel_lengths": torch.full((samples,), frames),
        "speaker": voices[args.voice],
    }
    return config, build_text_to_mel(config, size), batch


def _shown(args: argparse.Namespace) -> dict[str, Any]:
    """What was profiled, in words and figures."""
    own = {"speakers": args.speakers} if args.task == "speaker" else {"symbols": _symbols(args), "voice": args.voice}
    return {"task": args.task, "batch_size": _samples(args), "frames": _frames(args), **own, "amp": args.amp}


def _as_json(shown: dict[str, Any], config: dict[str, Any], layers: list[Layer], step: StepMemory) -> str:
    rows = [vars(layer) for layer in layers]
    content = {**shown, "model_config": config, "parameters": layers[0].parameters}
    return json.dumps({**content, "layers": rows, "step_bytes": step.to_dict()}, indent=2)


def _as_text(shown: dict[str, Any], layers: list[Layer], step: StepMemory, depth: int | None) -> str:
    from utils.profiling import layer_table, step_table

    title = "One training step: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
    return f"{layer_table(layers, depth)}\n\n{title}\n{step_table(step)}"


if __name__ == "__main__":
    sys.exit(main())
