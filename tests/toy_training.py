"""A task small enough to train on two ranks in a second, for the real loop; run by tests as a program and in process.

    torchrun --nproc-per-node 2 tests/toy_training.py SCENARIOS.json

SCENARIOS is a list of objects with the keys `out`, `flags` (of the training loop) and `task` (arguments of `ToyTask`).
Each is trained in turn; rank r leaves OUT/ranks/r.pt with the exit code or the error, the weights, the last gradients,
the places it trained on by step, and the items it evaluated.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from root import ROOT
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))

from models.norm import BatchNorm  # noqa: E402
from models.speaker import SpeakerConfig  # noqa: E402
from models.speaker.losses import AAMSoftmax  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.training import distributed  # noqa: E402
from utils.training.checkpoints import CheckpointStore  # noqa: E402
from utils.training.options import TrainingOptions  # noqa: E402
from utils.training.sampling import make_order  # noqa: E402
from utils.training.trainer import Trainer  # noqa: E402

ITEMS, CHANNELS, CLASSES = 37, 4, 5
FLAGS = ["--batch-size", "8", "--log-every", "1", "--save-every", "5", "--no-tensorboard", "--device", "cpu"]


class ToyModel(nn.Module):
    """Mean over time, a hidden layer, AAM-softmax, all in float64 (or float32)."""

    def __init__(self, normed: bool, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(CHANNELS, 16)
        self.norm = BatchNorm(16) if normed else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = AAMSoftmax(SpeakerConfig(embedding_dim=16, margin=0.1), CLASSES)

    def forward(self, x: Tensor, lengths: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """x (b, t, CHANNELS), zeros beyond `lengths` (b,), labels (b,)."""
        pooled = self.hidden(x.sum(1) / lengths[:, None])
        loss_sum, _ = self.classifier(self.dropout(self.norm(pooled).tanh()), labels, 1.0)
        return {"loss_sum": loss_sum, "count": torch.tensor(len(labels))}


class ToyTask:
    """A `utils.training.task.Task` on sequences of 3 to 20 frames.

    `poison` are items full of NaN, `stop` = [step, rank] gets a SIGTERM before that step's forward pass, `evaluated`
    items make a validation, a `broken` model has an infinite weight, and of two places one is `stuck` for ten minutes
    and one `unreadable`.
    """

    name, score_name, is_slow_to_load = "toy", "valid_loss", False

    def __init__(
        self,
        options: TrainingOptions,
        rank: int,
        normed: bool = True,
        dropout: float = 0.0,
        wide: bool = True,
        poison: tuple[int, ...] = (),
        stop: tuple[int, int] = (-1, 0),
        evaluated: int = 5,
        broken: bool = False,
        stuck: int = -1,
        unreadable: int = -1,
    ) -> None:
        torch.manual_seed(options.seed)
        self.dtype = torch.float64 if wide else torch.float32
        self.model = ToyModel(normed, dropout).to(self.dtype)
        if broken:
            self.model.hidden.weight.data[0, 0] = torch.inf
        draw = np.random.default_rng(0)
        self.labels = draw.integers(CLASSES, size=ITEMS)
        lengths = draw.integers(3, 21, size=ITEMS)
        self.items = [draw.normal(size=(n, CHANNELS)) + k for n, k in zip(lengths, self.labels, strict=True)]
        for item in poison:
            self.items[item][:] = np.nan
        self.order = make_order(lengths, options)
        self.dataset = self
        self.rank, self.stop, self.evaluated = rank, tuple(stop), evaluated
        self.stuck, self.unreadable = stuck, unreadable
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[list[int]] = []

    def __getitem__(self, place: int) -> int:
        if place == self.stuck:
            time.sleep(600)
        if place == self.unreadable:
            raise UserError(f"item {place} cannot be read: for a reason")
        return place

    def collate(self, places: list[int]) -> dict[str, Tensor]:
        return self._batch(places, [self.order[place] for place in places])

    def _batch(self, places: list[int], items: list[int]) -> dict[str, Tensor]:
        sequences = [torch.from_numpy(self.items[item]).to(self.dtype) for item in items]
        x = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        return {
            "x": x,
            "lengths": lengths,
            "labels": torch.from_numpy(self.labels[items]),
            "places": torch.tensor(places),
        }

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        self.trained.append((step, batch["places"].tolist()))
        if self.stop == (step, self.rank):
            os.kill(os.getpid(), signal.SIGTERM)
        return {name: batch[name] for name in ("x", "lengths", "labels")}

    def schedule(self, step: int) -> dict[str, float]:
        return {}

    def frames(self, batch: dict[str, Tensor]) -> int:
        return int(batch["lengths"].sum())

    def utterance(self, place: int) -> str:
        return f"item-{self.order[place]}"

    @torch.no_grad()
    def validate(self, ranks: distributed.Ranks) -> dict[str, float]:
        items = list(ranks.share(self.evaluated))
        self.validated.append(items)
        sums = torch.zeros(2, dtype=torch.float64)
        if items:
            batch = self._batch(items, items)
            outputs = self.model(batch["x"], batch["lengths"], batch["labels"])
            sums = torch.stack([outputs["loss_sum"].double(), outputs["count"].double()])
        total, count = ranks.sum(sums).tolist()
        return {"valid_loss": total / count, "valid_items": count} if count else {}

    def show(self, log: Any, step: int) -> None:
        """Logs nothing."""

    def description(self) -> dict[str, Any]:
        return {"items": {"count": ITEMS}}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        pass

    def attachments(self) -> dict[str, Any]:
        return {}


def train(scenario: dict[str, Any], ranks: distributed.Ranks) -> dict[str, Any]:
    """Runs one scenario on this rank, as train_tacomamba.py does."""
    out = Path(scenario["out"])
    parser = cli.Parser()
    parser.add_options(TrainingOptions)
    args = parser.parse_args([*FLAGS, *scenario["flags"]])
    (options,) = parser.read_options(args, TrainingOptions)
    resumed = ranks.on_main(CheckpointStore(out, options.keep_last).newest) if options.resume == "auto" else None
    task = ToyTask(options, ranks.rank, **scenario.get("task", {}))
    trainer = Trainer(task, options, cli.plain_arguments(args), out, ranks)
    if resumed is not None:
        trainer.restore(resumed)
    result: dict[str, Any] = {"code": None, "error": ""}
    try:
        result["code"] = trainer.fit()
    except UserError as error:
        result["error"] = str(error)
    result |= {"is_group": ranks.is_group, "step": trainer.step, "trained": task.trained, "validated": task.validated}
    result["weights"] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    result["gradients"] = {name: tensor.grad for name, tensor in trainer.model.named_parameters()}
    (out / "ranks").mkdir(parents=True, exist_ok=True)
    torch.save(result, out / "ranks" / f"{ranks.rank}.pt")
    return result


def main(path: str) -> None:
    ranks = distributed.join("cpu")
    for scenario in json.loads(Path(path).read_text(encoding="utf-8")):
        train(scenario, ranks)
    distributed.leave()


if __name__ == "__main__":
    main(sys.argv[1])
