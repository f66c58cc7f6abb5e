"""The flags of the speaker task and of its models; free of torch."""

from __future__ import annotations

import argparse
import math
from typing import Any

from utils import cli
from utils.training.model_options import family_problems, stack_config, stack_problems


def _angle(text: str) -> float:
    """argparse type: an angle in radians from 0 to a right one."""
    value = float(text)
    if not 0 <= value <= math.pi / 2:
        raise argparse.ArgumentTypeError(f"must lie between 0 and pi / 2, not {text}")
    return value


def add_speaker_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the speaker model beside those that all models have."""
    group = parser.add_argument_group("speaker model")
    group.add_argument(
        "--causal",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let tacomamba see the past only, so that it can stream",
    )
    group.add_argument("--subsampling", type=cli.positive_int, default=2, help="mel frames per encoder frame")
    group.add_argument(
        "--pooled-channels", type=cli.positive_int, default=512, help="channels that are pooled over time"
    )
    group.add_argument("--embedding-dim", type=cli.positive_int, default=192, help="size of a speaker embedding")
    group.add_argument("--channels", type=cli.positive_int, default=512, help="channels of ecapa")
    group.add_argument(
        "--normalize",
        choices=("auto", "global", "utterance"),
        default="auto",
        help="statistics taken off the features: the training set's, or the utterance's mean too; "
        "auto is global for a causal encoder and utterance otherwise",
    )


def speaker_model_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about model flags that contradict each other."""
    problems = family_problems(args, "speaker")
    tacomamba = args.model == "tacomamba"
    if args.causal and not tacomamba:
        problems.append(f"--causal: {args.model} has no causal form; use --model tacomamba")
    if args.causal and args.normalize == "utterance":
        problems.append("--causal and --normalize utterance contradict: a stream has no utterance mean yet")
    if tacomamba:
        problems += stack_problems(args, args.mixer, args.causal, args.expand)
    if args.model == "ecapa" and args.channels % 8:
        problems.append(f"--channels {args.channels} must be a multiple of 8")
    return problems


def speaker_model_config(args: argparse.Namespace, n_mels: int) -> dict[str, Any]:
    """The plain dictionary that `models.build_speaker_model` builds from and a checkpoint keeps."""
    normalize = args.normalize
    if normalize == "auto":
        normalize = "global" if args.causal else "utterance"
    names = ("causal", "subsampling", "pooled_channels", "embedding_dim", "channels")
    own = {name: getattr(args, name) for name in names}
    return {**stack_config(args), **own, "normalize": normalize, "n_mels": n_mels}


def add_speaker_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the speaker task: what a training sample is and how its loss is shaped."""
    group = parser.add_argument_group("speaker task")
    group.add_argument(
        "--crop-seconds", type=cli.positive_float, default=2.0, help="length of a training crop in seconds"
    )
    group.add_argument("--margin", type=_angle, default=0.2, help="angular margin of AAM-softmax in radians")
    group.add_argument(
        "--margin-warmup", type=cli.fraction, default=0.3, help="share of the steps over which the margin grows from 0"
    )
    group.add_argument("--noise-share", type=cli.fraction, default=0.0, help="share of the crops that get made noise")
    group.add_argument(
        "--noise-snr", type=float, nargs=2, default=[5.0, 30.0], metavar=("LOW", "HIGH"), help="its range of SNR in dB"
    )
    group.add_argument("--frequency-masks", type=cli.non_negative_int, default=2, help="SpecAugment masks over mels")
    group.add_argument("--frequency-width", type=cli.non_negative_int, default=10, help="largest such mask in channels")
    group.add_argument("--time-masks", type=cli.non_negative_int, default=2, help="SpecAugment masks over time")
    group.add_argument("--time-width", type=cli.non_negative_int, default=20, help="largest such mask in frames")


def speaker_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about flags of the speaker task that make no sense."""
    low, high = args.noise_snr
    problems = [] if low <= high else [f"--noise-snr {low:g} {high:g}: the first must not be above the second"]
    if args.batch_frames and args.model != "tacomamba":
        problems.append(f"--batch-frames: {args.model} has batch norm over frames, which would count the padding")
    return problems
