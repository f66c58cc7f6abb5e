"""Show where a speaker model's memory goes: parameters, outputs and what is kept for backward, layer by layer.

python profile_model.py --config configs/speaker-tiny.yaml
python profile_model.py --mixer mamba2 --d-model 256 --n-layers 8 --batch-size 64 --frames 300 --depth 3
python profile_model.py --model ecapa --json

Two training steps are run on the CPU, on random features, to measure them. `--config` takes the files of
train_tacomamba.py as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import train_tacomamba
from utils import cli
from utils.features.recipe import DEFAULT_RECIPE, RECIPES
from utils.training.model_options import add_model_arguments
from utils.training.speaker_options import (
    add_speaker_model_arguments,
    speaker_model_config,
    speaker_model_problems,
)

if TYPE_CHECKING:
    from utils.profiling import Layer, StepMemory


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_config(other=train_tacomamba.build_parser())
    step = parser.add_argument_group("training step")
    step.add_argument("--batch-size", type=cli.positive_int, default=32, help="samples in a step")
    step.add_argument("--crop-seconds", type=cli.positive_float, default=2.0, help="length of a sample in seconds")
    step.add_argument("--frames", type=cli.positive_int, help="length of a sample in mel frames, over --crop-seconds")
    step.add_argument(
        "--speakers", type=cli.positive_int, default=1000, help="speakers that the classifier tells apart"
    )
    step.add_argument("--recipe", choices=sorted(RECIPES), default=DEFAULT_RECIPE["speaker"], help="mel recipe")
    step.add_argument(
        "--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision of the forward pass"
    )
    add_model_arguments(parser)
    add_speaker_model_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--depth", type=cli.non_negative_int, help="levels of modules in the table (default: all)")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, profiles, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report(_problems(args))
    return cli.run(_profile, args)


def _problems(args: argparse.Namespace) -> list[str]:
    problems = speaker_model_problems(args)
    if args.json and args.depth is not None:
        problems.append("--depth shortens the table; --json always holds every row")
    if _frames(args) < 1:
        problems.append(f"--crop-seconds {args.crop_seconds:g} is too short for one frame of {args.recipe}")
    return problems


def _frames(args: argparse.Namespace) -> int:
    recipe = RECIPES[args.recipe]
    return args.frames or recipe.frames(round(args.crop_seconds * recipe.sample_rate))


def _profile(args: argparse.Namespace) -> int:
    import torch

    from models import build_speaker_model
    from utils.profiling import profile_layers, profile_step
    from utils.training.update import AMP_DTYPES, parameter_groups

    torch.manual_seed(0)
    config = speaker_model_config(args, RECIPES[args.recipe].n_mels)
    model = build_speaker_model(config, args.speakers).train()
    frames = _frames(args)
    batch = {
        "mel": torch.randn(args.batch_size, frames, config["n_mels"]),
        "lengths": torch.full((args.batch_size,), frames),
        "labels": torch.arange(args.batch_size) % args.speakers,
    }

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", AMP_DTYPES.get(args.amp), enabled=args.amp != "off"):
            outputs = model(**batch, margin=0.2)
        return outputs["loss_sum"] / args.batch_size

    layers = profile_layers(model, loss)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05))
    step = profile_step(model, optimizer, batch, loss, lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0))
    shown = {"batch_size": args.batch_size, "frames": frames, "speakers": args.speakers, "amp": args.amp}
    print(_as_json(shown, config, layers, step) if args.json else _as_text(shown, layers, step, args.depth))
    return cli.ExitCode.DONE


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
