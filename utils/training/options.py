"""The flags that describe a model and its training, shared by the scripts that build one; free of torch."""

from __future__ import annotations

import argparse
import math
from typing import Any

from utils import cli

MODELS = ("tacomamba", "xvector", "ecapa")
MIXERS = ("mamba", "mamba2", "attention", "lstm", "conv")
DEFAULT_STATE = {"mamba": 16, "mamba2": 64}


def _two_or_more(text: str) -> int:
    """argparse type: batch norm has no variance over a single sample."""
    value = cli.positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, not {value}")
    return value


def _not_negative(text: str) -> float:
    """argparse type: a number from 0 on."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return value


def _decay(text: str) -> float:
    """argparse type: a number from 0 to just below 1."""
    value = cli.fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError("must be below 1: an average that decays by nothing learns nothing")
    return value


def _angle(text: str) -> float:
    """argparse type: an angle in radians from 0 to a right one."""
    value = float(text)
    if not 0 <= value <= math.pi / 2:
        raise argparse.ArgumentTypeError(f"must lie between 0 and pi / 2, not {text}")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the speaker model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=MODELS, default="tacomamba", help="encoder family")
    group.add_argument("--mixer", choices=MIXERS, default="mamba2", help="sequence mixer of tacomamba")
    group.add_argument(
        "--causal",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let tacomamba see the past only, so that it can stream",
    )
    group.add_argument("--d-model", type=cli.positive_int, default=192, help="channels of the residual stream")
    group.add_argument("--n-layers", type=cli.positive_int, default=4, help="blocks of tacomamba")
    group.add_argument("--d-state", type=cli.positive_int, help="state size N (default: 16 for mamba, 64 for mamba2)")
    group.add_argument("--expand", type=cli.positive_int, default=2, help="inner channels of a mixer per channel")
    group.add_argument("--headdim", type=cli.positive_int, default=64, help="channels of a head: mamba2, attention")
    group.add_argument(
        "--mlp-ratio", type=_not_negative, default=0.0, help="hidden channels of an MLP per channel; 0 for none"
    )
    group.add_argument("--dropout", type=cli.fraction, default=0.0, help="dropout on each residual branch")
    group.add_argument("--subsampling", type=cli.positive_int, default=2, help="mel frames per encoder frame")
    group.add_argument(
        "--pooled-channels", type=cli.positive_int, default=512, help="channels that are pooled over time"
    )
    group.add_argument("--embedding-dim", type=cli.positive_int, default=192, help="size of a speaker embedding")
    group.add_argument("--channels", type=cli.positive_int, default=512, help="channels of ecapa")
    group.add_argument(
        "--normalise",
        choices=("auto", "global", "utterance"),
        default="auto",
        help="statistics taken off the features: the training set's, or the utterance's mean too; "
        "auto is global for a causal encoder and utterance otherwise",
    )


def model_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about model flags that contradict each other."""
    problems = []
    tacomamba = args.model == "tacomamba"
    if args.causal and not tacomamba:
        problems.append(f"--causal: {args.model} has no causal form; use --model tacomamba")
    if args.causal and args.normalise == "utterance":
        problems.append("--causal and --normalise utterance contradict: a stream has no utterance mean yet")
    if tacomamba and args.mixer == "mamba2" and args.expand * args.d_model % args.headdim:
        problems.append(f"--headdim {args.headdim} must divide --expand x --d-model = {args.expand * args.d_model}")
    if tacomamba and args.mixer == "attention" and (args.d_model % args.headdim or args.headdim % 2):
        problems.append(f"--headdim {args.headdim} must be even and divide --d-model {args.d_model}")
    if tacomamba and args.mixer == "lstm" and not args.causal and args.expand * args.d_model % 2:
        problems.append("--expand x --d-model must be even for a bidirectional lstm")
    if args.model == "ecapa" and args.channels % 8:
        problems.append(f"--channels {args.channels} must be a multiple of 8")
    return problems


def model_config(args: argparse.Namespace, n_mels: int) -> dict[str, Any]:
    """The plain dictionary that `models.build_speaker_model` builds from and a checkpoint keeps."""
    normalise = args.normalise
    if normalise == "auto":
        normalise = "global" if args.causal else "utterance"
    return {
        "model": args.model,
        "mixer": args.mixer,
        "causal": args.causal,
        "d_model": args.d_model,
        "n_layers": args.n_layers,
        "d_state": args.d_state or DEFAULT_STATE.get(args.mixer, 64),
        "expand": args.expand,
        "headdim": args.headdim,
        "mlp_ratio": args.mlp_ratio,
        "dropout": args.dropout,
        "subsampling": args.subsampling,
        "pooled_channels": args.pooled_channels,
        "embedding_dim": args.embedding_dim,
        "channels": args.channels,
        "normalise": normalise,
        "n_mels": n_mels,
    }


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
    group.add_argument(
        "--valid-utterances", type=cli.positive_int, default=400, help="at most so many utterances in a validation"
    )


def speaker_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about flags of the speaker task that make no sense."""
    low, high = args.noise_snr
    problems = [] if low <= high else [f"--noise-snr {low:g} {high:g}: the first must not be above the second"]
    if args.batch_frames and args.model != "tacomamba":
        problems.append(f"--batch-frames: {args.model} has batch norm over frames, which would count the padding")
    return problems


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the loop that all tasks share."""
    _add_batch_arguments(parser.add_argument_group("batches"))
    group = parser.add_argument_group("optimisation")
    group.add_argument("--steps", type=cli.positive_int, default=1000, help="optimiser steps in all")
    group.add_argument("--lr", type=cli.positive_float, default=1e-3, help="peak learning rate of AdamW")
    group.add_argument("--weight-decay", type=_not_negative, default=0.05, help="decoupled weight decay of matrices")
    group.add_argument("--warmup", type=cli.fraction, default=0.1, help="share of the steps with rising learning rate")
    group.add_argument("--final-lr", type=cli.fraction, default=0.01, help="last learning rate as a share of the peak")
    group.add_argument("--clip", type=cli.positive_float, default=5.0, help="largest norm of the gradient")
    group.add_argument(
        "--ema",
        type=_decay,
        default=0.0,
        help="decay of the average of the weights that is used then; 0 for none",
    )
    group.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision")
    group.add_argument(
        "--max-bad-steps",
        type=cli.positive_int,
        default=20,
        help="steps in a row whose loss or gradient is not finite, and which are skipped, before the run stops",
    )
    group.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of weights, order, crops and masks")
    _add_run_arguments(parser.add_argument_group("run"))
    _add_machine_arguments(parser.add_argument_group("machine"))


def _add_batch_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch-size", type=_two_or_more, default=32, help="samples in a step, over all ranks and micro-batches"
    )
    group.add_argument(
        "--batch-frames",
        type=cli.positive_int,
        help="padded mel frames in a step, over all ranks and micro-batches: trains on whole utterances in batches "
        "of like length, and --batch-size does not count",
    )
    group.add_argument(
        "--accumulate",
        type=cli.positive_int,
        default=1,
        help="micro-batches that a rank makes of its share of a step, to save memory",
    )


def _add_run_arguments(run: argparse._ArgumentGroup) -> None:
    run.add_argument("--log-every", type=cli.positive_int, default=10, help="steps between log lines")
    run.add_argument(
        "--save-every", type=cli.positive_int, default=200, help="steps between checkpoints and validations"
    )
    run.add_argument(
        "--keep-last", type=cli.positive_int, default=2, help="checkpoints to go on from that are kept, beside best.pt"
    )
    run.add_argument(
        "--resume",
        default="off",
        metavar="{auto,off,PATH}",
        help="auto goes on from the newest whole checkpoint in OUT if there is one; a path goes on from that file",
    )
    run.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write TensorBoard scalars, pictures and sounds",
    )


def _add_machine_arguments(group: argparse._ArgumentGroup) -> None:
    cli.add_device_arguments(group)
    group.add_argument(
        "--threads", type=cli.non_negative_int, default=0, help="CPU threads of torch; 0 leaves its choice"
    )
    group.add_argument("--workers", type=cli.non_negative_int, default=0, help="processes that load data; 0 for none")
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compile the model with torch.compile, which takes minutes at first",
    )
    group.add_argument(
        "--checkpoint-layers",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute each layer again for the backward pass: less memory, more time",
    )
