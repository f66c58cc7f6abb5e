"""The flags of a model that all tasks share: its family, and the stack of mixers; free of torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils import cli
from utils.training.options import not_negative

MODELS = {"speaker": ("tacomamba", "xvector", "ecapa"), "tts": ("tacomamba", "tacotron2")}
MIXERS = ("mamba", "mamba2", "attention", "lstm", "conv")
# Flags of one family each that say what kind of model it is: beside another family they would not come true. Sizes are
# not among them, so that one line of flags can serve several families.
FAMILY_FLAGS = {
    "tacomamba": ("mixer", "encoder_mixer", "decoder", "pitch"),
    "tacotron2": ("guided_attention",),
}
DEFAULT_STATE = {"mamba": 16, "mamba2": 64}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the model family and of its mixers."""
    group = parser.add_argument_group("model")
    models = tuple(dict.fromkeys(name for names in MODELS.values() for name in names))
    told = "; ".join(f"{task}: {', '.join(names)}" for task, names in MODELS.items())
    group.add_argument("--model", choices=models, default="tacomamba", help=f"model family ({told})")
    group.add_argument("--mixer", choices=MIXERS, default="mamba2", help="sequence mixer of tacomamba")
    group.add_argument("--d-model", type=cli.positive_int, default=192, help="channels of the residual stream")
    group.add_argument("--n-layers", type=cli.positive_int, default=4, help="blocks of tacomamba (tts: of its decoder)")
    group.add_argument("--d-state", type=cli.positive_int, help="state size N (default: 16 for mamba, 64 for mamba2)")
    group.add_argument("--expand", type=cli.positive_int, default=2, help="inner channels of a mixer per channel")
    group.add_argument("--headdim", type=cli.positive_int, default=64, help="channels of a head: mamba2, attention")
    group.add_argument(
        "--mlp-ratio", type=not_negative, default=0.0, help="hidden channels of an MLP per channel; 0 for none"
    )
    group.add_argument("--dropout", type=cli.fraction, default=0.0, help="dropout on each residual branch")


def stack_problems(args: argparse.Namespace, mixer: str, causal: bool, expand: int) -> list[str]:
    """Sentences about sizes that a stack of this mixer, with `expand` inner channels a channel, cannot have."""
    problems = []
    if mixer == "mamba2" and expand * args.d_model % args.headdim:
        problems.append(f"--headdim {args.headdim} must divide {expand} x --d-model = {expand * args.d_model}")
    if mixer == "attention" and (args.d_model % args.headdim or args.headdim % 2):
        problems.append(f"--headdim {args.headdim} must be even and divide --d-model {args.d_model}")
    if mixer == "lstm" and not causal and expand * args.d_model % 2:
        problems.append(f"{expand} x --d-model must be even for a bidirectional lstm")
    return problems


def family_problems(args: argparse.Namespace, task: str) -> list[str]:
    """A sentence if the model is of another task."""
    if args.model in MODELS[task]:
        return []
    return [f"--model {args.model} is not for --task {task}, which has {', '.join(MODELS[task])}"]


def flags_of_other_families(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """A sentence for each flag that was set and that is only for models of another family than `args.model`."""
    return [
        f"--{name.replace('_', '-')} is for --model {family}, not for --model {args.model}"
        for family, names in FAMILY_FLAGS.items()
        for name in names
        if family != args.model and family in MODELS[args.task] and getattr(args, name) != parser.get_default(name)
    ]


def flags_of_other_tasks(
    args: argparse.Namespace, own_flags: Mapping[str, Sequence[Callable[[argparse.ArgumentParser], None]]]
) -> list[str]:
    """A sentence for each flag that was set and that `args.task` knows nothing of; a task's flags by who adds them."""
    problems = []
    for task, adds in own_flags.items():
        if task == args.task:
            continue
        others = cli.Parser(add_help=False)
        for add in adds:
            add(others)
        names = vars(others.parse_args([]))
        changed = [name for name, default in names.items() if getattr(args, name) != default]
        problems += [f"--{name.replace('_', '-')} is for --task {task}, not for --task {args.task}" for name in changed]
    return problems


def stack_config(args: argparse.Namespace) -> dict[str, Any]:
    """The shared part of a model's configuration."""
    names = ("model", "mixer", "d_model", "n_layers", "expand", "headdim", "mlp_ratio", "dropout")
    config = {name: getattr(args, name) for name in names}
    return {**config, "d_state": state_size(args, args.mixer)}


def state_size(args: argparse.Namespace, mixer: str) -> int:
    """State size N of a mixer; 64 for those that have none, which do not look at it."""
    return args.d_state or DEFAULT_STATE.get(mixer, 64)
