"""What a task plugs into the training loop."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from utils.training.distributed import Ranks
from utils.training.runlog import RunLog
from utils.training.sampling import Order


class Task(Protocol):
    """A model, its samples and its figures; everything else is the loop's.

    The model's forward takes `inputs(...)` and returns scalars summed over the samples it was given: `loss_sum`, the
    `count` that the loss is divided by (samples or frames, summed over all ranks), and what else is to be logged per
    count. No loss may be a mean over one rank's share.
    """

    name: str
    model: nn.Module
    dataset: Dataset  # item number = place of the sample in the run
    order: Order
    score_name: str  # the entry of `validate`'s result that is to become small

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """A batch of the dataset's items: tensors with the batch as first dimension (B, ...)."""

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments at a step: the batch, and what changes with the step."""

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch, without padding, for the log's speed."""

    def utterance(self, place: int) -> str:
        """The id of the utterance at a place, for the log of steps that were skipped."""

    def validate(self, ranks: Ranks) -> dict[str, float]:
        """Figures of the model, in eval mode, on held-back data; empty if there are none.

        Called on every rank; each evaluation item is computed on one of them, and the result is the same on all.
        """

    def show(self, log: RunLog, step: int) -> None:
        """Puts pictures and sounds of the model as last validated into the log; called on the main rank only."""

    def description(self) -> dict[str, Any]:
        """What a checkpoint must hold so that the model can be used: plain values, which a resumed run must share."""

    def attachments(self) -> dict[str, Any]:
        """What else a checkpoint holds to be used, tensors among it."""
