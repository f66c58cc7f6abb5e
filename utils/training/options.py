"""The options of the training loop, which all tasks share."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import Config, option
from utils.cli import DeviceOptions


@dataclass(frozen=True)
class BatchOptions(Config):
    """The samples of an optimizer step."""

    title = "batches"

    # At least 2: batch norm has no variance over a single sample.
    batch_size: int = option(32, "samples in a step, over all ranks and micro-batches", least=2)
    batch_frames: int | None = option(
        None,
        "padded mel frames in a step, over all ranks and micro-batches; replaces --batch-size by batches of complete "
        "utterances of similar length",
        least=1,
    )
    accumulate: int = option(1, "micro-batches into which a rank splits its share of a step, to save memory", least=1)


@dataclass(frozen=True)
class OptimizerOptions(Config):
    """AdamW and its schedule."""

    title = "optimization"

    steps: int = option(1000, "number of optimizer steps", least=1, may_change=True)
    lr: float = option(1e-3, "peak learning rate of AdamW", above=0)
    weight_decay: float = option(0.05, "decoupled weight decay of matrices", least=0)
    warmup: float = option(0.1, "share of the steps with rising learning rate", least=0, most=1)
    final_lr: float = option(0.01, "last learning rate as a share of the peak", least=0, most=1)
    clip: float = option(5.0, "largest norm of the gradient", above=0)
    ema: float = option(
        0.0,
        "decay of a moving average of the weights, which replaces them in validation and best.pt; 0 for none",
        least=0,
        below=1,
    )
    amp: str = option("off", "mixed precision", choices=("off", "bf16", "fp16"))
    max_bad_steps: int = option(
        20,
        "the run stops after this many steps in a row with a loss or gradient that is not finite; each is skipped",
        least=1,
        may_change=True,
    )
    seed: int = option(0, "seed of weights, order of samples, crops and augmentation", least=0)


@dataclass(frozen=True)
class RunOptions(Config):
    """Logs, checkpoints and validations of a run."""

    title = "run"

    log_every: int = option(10, "steps between log lines", least=1, may_change=True)
    save_every: int = option(200, "steps between checkpoints", least=1, may_change=True)
    valid_every: int | None = option(
        None, "steps between validations (default: --save-every)", least=1, may_change=True
    )
    valid_utterances: int = option(400, "largest number of utterances in a validation", least=1)
    keep_last: int = option(2, "resumable checkpoints to keep, beside best.pt", least=1, may_change=True)
    resume: str = option(
        "off",
        "auto resumes from the newest intact checkpoint in OUT if there is one; a path resumes from that file",
        metavar="{auto,off,PATH}",
        may_change=True,
    )
    tensorboard: bool = option(
        True, "write TensorBoard's scalars, pictures and sounds, the last two also as files", may_change=True
    )


@dataclass(frozen=True)
class MachineOptions(DeviceOptions):
    """The use of the machine, which changes results by rounding only."""

    title = "machine"

    threads: int = option(0, "CPU threads of torch; 0 for its own choice", least=0, most=1024, may_change=True)
    workers: int | None = option(
        None,
        "processes that load data; 0 for none (default: 1 for a store of audio, whose features are made on the fly, "
        "else 0)",
        least=0,
        may_change=True,
    )
    compile: bool = option(
        False,
        "compile the model with torch.compile, which takes minutes at the start",
        may_change=True,
    )
    checkpoint_layers: bool = option(
        False, "recompute each layer in the backward pass: less memory, more time", may_change=True
    )


@dataclass(frozen=True)
class TrainingOptions(BatchOptions, OptimizerOptions, RunOptions, MachineOptions):
    """All options of the loop."""
