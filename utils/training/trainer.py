"""The training loop of every task: one process or many, full or mixed precision, resumable."""

from __future__ import annotations

import contextlib
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils.cli import progress
from utils.errors import UserError
from utils.features.recipe import MelRecipe, require_same
from utils.training.checkpoints import CheckpointStore
from utils.training.distributed import Ranks
from utils.training.meter import Meter
from utils.training.options import TrainingOptions
from utils.training.random_state import random_state, restore_random_state, seed_everything
from utils.training.runlog import RunLog
from utils.training.sampling import ShareBatches
from utils.training.stopping import StopSignals, ignore_stop_signals
from utils.training.task import Task
from utils.training.update import StepResult, Update

TRAINING_FORMAT = 3


class Trainer:
    """Trains `task.model` for `options.steps` steps, writing logs and checkpoints into `directory`.

    `training` of a checkpoint holds: `format`; `samples`, the global samples consumed; `best`, the least score so far;
    `skipped` and `bad_in_a_row`, counts of bad steps; states of `optimizer` and `scaler`; `random`, the generators of
    every rank; and with an average of the weights its number of `updates` and the `model` that is trained, because
    `model` of the checkpoint is the average then. Learning rate and margin are functions of the step.
    """

    def __init__(
        self, task: Task, options: TrainingOptions, config: dict[str, Any], directory: Path, ranks: Ranks
    ) -> None:
        self.task, self.options, self.config, self.directory, self.ranks = task, options, config, directory, ranks
        self._check_batches()
        self.update = Update(task, options, ranks)
        self.model = self.update.model
        self.store = CheckpointStore(directory, options.keep_last)
        self.step = self.samples = 0
        self.skipped = self.bad_in_a_row = 0
        self.best = math.inf
        self.metrics: dict[str, float] = {}
        if ranks.rank:  # rank 0 goes on with the generators that made the weights
            seed_everything(options.seed, ranks.rank)

    def _check_batches(self) -> None:
        """Every share needs a sample, and batch norm two in a micro-batch of all ranks."""
        world, parts, smallest = self.ranks.world, self.options.accumulate, self.task.order.smallest_batch
        if smallest < max(world * parts, 2 * parts):
            raise UserError(
                f"a step may have only {smallest} samples, too few for {world} ranks x --accumulate {parts}: "
                "raise --batch-size or --batch-frames"
            )

    def fit(self) -> int:
        """Trains to the last step, or to the first signal; returns 0, or 128 + the signal's number."""
        log = RunLog(self.directory, self.ranks.is_main, self.step, self.options.tensorboard)
        bar = progress(total=self.options.steps, initial=self.step, unit="step")
        with contextlib.closing(log), contextlib.closing(bar), StopSignals() as signals:
            number = self._loop(log, bar, signals)
        return 128 + number if number else 0

    def _loop(self, log: RunLog, bar: Any, signals: StopSignals) -> int:
        """The number of the signal that ended it, or 0."""
        options = self.options
        batches, meter = iter(self._loader()), Meter(self.ranks.device)
        while self.step < options.steps:
            places = self.task.order.batch(self.samples)
            result = self.update(meter.timed(islice(batches, options.accumulate)), places, self.step, signals.number)
            self.step, self.samples = self.step + 1, places.stop
            meter.add(result.frames)
            is_due = self.step % options.save_every == 0 or self.step == options.steps
            if is_due or result.problem or self.step % options.log_every == 0:
                values = {**result.values, "samples": self.samples, **meter.read(options.steps - self.step)}
                self._log(log, bar, values | (self._validate(log) if is_due else {}), result)
            self._count_problem(result)
            # Several ranks must stop at one step, so a signal counts once all have heard of it, in the next step.
            stop = result.signal if self.ranks.world > 1 else signals.number
            if is_due or stop:
                self._save(log, is_validated=is_due)
            if is_due:
                meter.restart()  # the speed is that of the steps
            bar.update()
            if stop:
                return stop
        return 0

    def _log(self, log: RunLog, bar: Any, values: dict[str, float], result: StepResult) -> None:
        line = {"loss": values["loss"], "loss_hex": values["loss"].hex(), **values}
        if result.problem:
            names = [self.task.utterance(place) for place in result.suspects]
            line |= {"skipped": result.problem, "utterances": names}
        log.write(self.step, line)
        if self.ranks.is_main:
            bar.write(f"step {self.step}/{self.options.steps}  {_shown(line)}")

    def _count_problem(self, result: StepResult) -> None:
        self.bad_in_a_row = self.bad_in_a_row + 1 if result.problem else 0
        self.skipped += bool(result.problem)
        if self.bad_in_a_row == self.options.max_bad_steps:
            names = ", ".join(self.task.utterance(place) for place in result.suspects[:5])
            raise UserError(
                f"the loss or the gradient of {self.bad_in_a_row} steps in a row was not finite, last the "
                f"{result.problem} of step {self.step} (utterances {names} ...): try a smaller --lr; "
                "the last checkpoint is from before these steps or unchanged by them"
            )

    def _validate(self, log: RunLog) -> dict[str, float]:
        """The task's figures, with the average of the weights where there is one, and its pictures and sounds."""
        state = random_state(self.ranks.device)
        self.model.eval()
        with self._weights_to_use():
            self.metrics = self.task.validate(self.ranks)
            if self.ranks.is_main:
                self.task.show(log, self.step)
        restore_random_state(state, self.ranks.device)
        return self.metrics

    def _weights_to_use(self) -> contextlib.AbstractContextManager[None]:
        return self.update.with_average()

    def _save(self, log: RunLog, is_validated: bool) -> None:
        """`best.pt` where the score is the best so far, and `last.pt`; returns on all ranks when they are there."""
        log.sync()
        states = self.ranks.gather(random_state(self.ranks.device))
        self.ranks.on_main(lambda: self._write_checkpoints(states, is_validated))

    def _write_checkpoints(self, states: list[dict[str, Any]], is_validated: bool) -> None:
        usable = self._usable()
        if not all(tensor.isfinite().all() for tensor in usable["model"].values()):
            raise UserError(f"the weights after step {self.step} are not finite and are not saved; try a smaller --lr")
        score = self.metrics.get(self.task.score_name, -self.step)  # without validation the newest is the best
        if (is_validated and score < self.best) or not self.store.has_best():
            self.best = score if is_validated else self.best
            self.store.save_best(usable)
        self.store.save_last({**usable, "training": self._state(states)})

    def _usable(self) -> dict[str, Any]:
        """What a checkpoint holds for those who use it."""
        average = self.update.average
        return {
            "task": self.task.name,
            "step": self.step,
            "config": self.config,
            "metrics": self.metrics,
            "model": (average.module if average else self.model).state_dict(),
            **self.task.description(),
            **self.task.attachments(),
        }

    def _state(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """What a checkpoint holds beside that to go on from."""
        average = self.update.average
        return {
            "format": TRAINING_FORMAT,
            "samples": self.samples,
            "best": self.best,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "optimizer": self.update.optimizer.state_dict(),
            "scaler": self.update.scaler.state_dict(),
            "random": states,
            **({"updates": average.n_averaged, "model": self.model.state_dict()} if average else {}),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from a `last.pt`; `UserError` if it holds another model or other settings of the optimizer."""
        self._require_same_run(checkpoint)
        training, update = checkpoint["training"], self.update
        self.model.load_state_dict(training.get("model", checkpoint["model"]))
        if update.average:
            update.average.module.load_state_dict(checkpoint["model"])
            update.average.n_averaged.copy_(training["updates"])
        update.optimizer.load_state_dict(training["optimizer"])
        update.scaler.load_state_dict(training["scaler"])
        self.step, self.samples, self.metrics = checkpoint["step"], training["samples"], checkpoint["metrics"]
        self.best, self.skipped, self.bad_in_a_row = (training[name] for name in ("best", "skipped", "bad_in_a_row"))
        if self.ranks.rank < len(training["random"]):
            restore_random_state(training["random"][self.ranks.rank], self.ranks.device)
        else:
            seed_everything(self.options.seed, self.ranks.rank, self.step)

    def _require_same_run(self, checkpoint: dict[str, Any]) -> None:
        training = checkpoint.get("training")
        if training is None:
            raise UserError("only last.pt and those before it can be resumed: best.pt holds no optimizer")
        if training.get("format") != TRAINING_FORMAT:
            raise UserError(
                "the checkpoint to resume from was written by another version of this program, which alone can resume "
                "it: begin a new run with another --out"
            )
        description = self.task.description()
        require_same(
            MelRecipe.from_dict(checkpoint["recipe"]),
            MelRecipe.from_dict(description["recipe"]),
            "the checkpoint to resume from",
            "the features",
        )
        different = [name for name in description if checkpoint.get(name) != description[name]]
        if different:
            raise UserError(f"the checkpoint to resume from was trained with other {', '.join(different)}")

    def _loader(self) -> DataLoader:
        options, ranks = self.options, self.ranks
        left = options.steps - self.step
        return DataLoader(
            self.task.dataset,
            batch_sampler=ShareBatches(
                self.task.order, self.samples, left, ranks.rank, ranks.world, options.accumulate
            ),
            collate_fn=self.task.collate,
            num_workers=options.workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=ranks.device.type == "cuda",
            generator=torch.Generator(),  # or it would take a number from the global one
        )


def _shown(line: dict[str, Any]) -> str:
    """A log line for people: what a machine reads, less the hexadecimal loss, and the time left as h:mm:ss."""
    words = []
    for name, value in line.items():
        if name == "eta_s":
            minutes, seconds = divmod(round(value), 60)
            words.append(f"eta {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
        elif name != "loss_hex":
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(words)
