"""The flags of the training loop that all tasks share; free of torch."""

from __future__ import annotations

import argparse
import math

from utils import cli


def _two_or_more(text: str) -> int:
    """argparse type: batch norm has no variance over a single sample."""
    value = cli.positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, not {value}")
    return value


def not_negative(text: str) -> float:
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


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the loop that all tasks share."""
    _add_batch_arguments(parser.add_argument_group("batches"))
    group = parser.add_argument_group("optimization")
    group.add_argument("--steps", type=cli.positive_int, default=1000, help="optimizer steps in all")
    group.add_argument("--lr", type=cli.positive_float, default=1e-3, help="peak learning rate of AdamW")
    group.add_argument("--weight-decay", type=not_negative, default=0.05, help="decoupled weight decay of matrices")
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
        "--valid-utterances", type=cli.positive_int, default=400, help="at most so many utterances in a validation"
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
        help="write TensorBoard's scalars, and pictures and sounds there and as files of the run",
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
        help="compile the model with torch.compile, which takes minutes at first; not for text to mel",
    )
    group.add_argument(
        "--checkpoint-layers",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute each layer again for the backward pass: less memory, more time",
    )
