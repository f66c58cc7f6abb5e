"""The interface between a task and the training loop."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from utils.training.distributed import Ranks
from utils.training.runlog import RunLog
from utils.training.sampling import Order


class Task(Protocol):
    """A model, its samples and its metrics; everything else belongs to the loop.

    The model's forward takes `inputs(...)` and returns scalars summed over its samples: `loss_sum`; `count`, of samples
    or frames, whose sum over all ranks divides the loss; and others to be logged per count. No loss may be a mean over
    one rank's share.
    """

    name: str
    model: nn.Module
    dataset: Dataset  # indexed by the place of a sample in the run
    order: Order
    score_name: str  # the entry of `validate`'s result to minimize
    is_slow_to_load: bool  # a sample takes about as long as its part of a step

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """A batch of the dataset's items: tensors with the batch as first dimension, (b, ...)."""

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments at a step: the batch, and values that change with the step."""

    def schedule(self, step: int) -> dict[str, float]:
        """Values that change with the step alone, for the log."""

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch, without padding, for the speed in the log."""

    def utterance(self, place: int) -> str:
        """The id of the utterance at a place, for the log of skipped steps."""

    def validate(self, ranks: Ranks) -> dict[str, float]:
        """Metrics of the model, in eval mode, on validation data; empty without such data.

        Called on every rank; each item is computed on one of them, and the result is the same on all.
        """

    def show(self, log: RunLog, step: int) -> None:
        """Logs pictures and sounds of the last validation; called on the main rank only."""

    def description(self) -> dict[str, Any]:
        """Plain values in a checkpoint that use of the model needs, and that a resumed run must share."""

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes from a checkpoint what `attachments` put there and a validation made."""

    def attachments(self) -> dict[str, Any]:
        """Further content of a checkpoint that use of the model needs, such as tensors."""
