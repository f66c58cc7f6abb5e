"""The training loop of every task: one process or many, full or mixed precision, resumable."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

from utils.cli import progress
from utils.errors import UserError
from utils.training.checkpoints import CheckpointStore
from utils.training.distributed import Ranks
from utils.training.loading import Batches, loading_errors
from utils.training.meter import Averages, Meter
from utils.training.options import TrainingOptions
from utils.training.random_state import random_state, restore_random_state, seed_everything
from utils.training.runlog import RunLog
from utils.training.stopping import StopSignals
from utils.training.task import Task
from utils.training.update import StepResult, Update

TRAINING_FORMAT = 3
COUNTERS = ("samples", "best", "skipped", "bad_in_a_row")  # of a run, kept under these names in checkpoints


class Trainer:
    """Trains `task.model` for `options.steps` steps, writing logs and checkpoints into `directory`.

    `training` of a checkpoint holds: `format`; `samples`, the global samples consumed; `best`, the least score so far;
    `skipped` and `bad_in_a_row`, counts of bad steps; states of `optimizer` and `scaler`; `random`, the generators of
    every rank; and with an average of the weights, which is then `model` of the checkpoint, its number of `updates`
    and the `model` that is trained. The learning rate and other schedules are functions of the step.
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
        if ranks.rank:  # rank 0 continues with the generators that initialized the weights
            seed_everything(options.seed, ranks.rank)

    def _check_batches(self) -> None:
        """Raises UserError unless every share has a sample, and every micro-batch of all ranks two, for batch norm."""
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
        with contextlib.closing(log), contextlib.closing(bar), StopSignals(self.ranks.is_main) as signals:
            with loading_errors():
                left = self.options.steps - self.step
                batches = Batches(self.task, self.options, self.ranks, self.samples, left)
                with contextlib.closing(batches):
                    number = self._loop(batches, log, bar, signals)
            if not number:
                log.finish(self.config, self.metrics)
        return 128 + number if number else 0

    def _loop(self, batches: Batches, log: RunLog, bar: Any, signals: StopSignals) -> int:
        """Trains; returns the number of the signal that ended it, or 0."""
        options, alone = self.options, self.ranks.world == 1
        meter, averages = Meter(self.ranks.device), Averages()
        while self.step < options.steps:
            places = self.task.order.batch(self.samples)
            with meter.waiting():
                parts = batches.of_step(lambda: alone and signals.number > 0)
            if parts is None:
                self._save(log, is_validated=False)
                return signals.number
            result = self.update(parts, places, self.step, signals.number)
            self.step, self.samples = self.step + 1, places.stop
            meter.add(result.frames)
            if not result.problem:
                averages.add(result.values)
            is_save = self._is_due(options.save_every)
            is_valid = self._is_due(options.valid_every or options.save_every)
            if is_save or is_valid or result.problem or self.step % options.log_every == 0:
                values = result.values if result.problem else averages.read()
                values = {**values, **self._schedule(), **meter.read(options.steps - self.step)}
                self._log(log, bar, values | (self._validate(log) if is_valid else {}), result)
            self._count_problem(result)
            # All ranks must stop at the same step, so a signal counts once it has reached all, in the next step.
            stop = signals.number if alone else result.signal
            if is_save or is_valid or stop:
                self._save(log, is_validated=is_valid, is_resumable=is_save or stop > 0)
                meter.restart()  # the speed leaves out validation and saving
            bar.update()
            if stop:
                return stop
        return 0

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.options.steps

    def _schedule(self) -> dict[str, float]:
        """Values of the last step that depend on its number alone."""
        step = self.step - 1
        return {"lr": self.update.learning_rate(step), **self.task.schedule(step), "samples": self.samples}

    def _log(self, log: RunLog, bar: Any, values: dict[str, float], result: StepResult) -> None:
        """Logs `values`, which are means since the last line, and the exact loss of the last step."""
        line = {"loss": values["loss"], "loss_hex": result.values["loss"].hex(), **values}
        if result.problem:
            names = [self.task.utterance(place) for place in result.suspects]
            line |= {"skipped": result.problem, "utterances": names}
        log.write(self.step, line)
        if self.ranks.is_main:
            bar.write(f"step {self.step}/{self.options.steps}  {_shown(line)}")

    def _count_problem(self, result: StepResult) -> None:
        self.bad_in_a_row = self.bad_in_a_row + 1 if result.problem else 0
        self.skipped += bool(result.problem)
        if self.bad_in_a_row >= self.options.max_bad_steps:
            names = ", ".join(self.task.utterance(place) for place in result.suspects[:5])
            raise UserError(
                f"the loss or gradient was not finite in {self.bad_in_a_row} steps in a row, most recently the "
                f"{result.problem} of step {self.step} (utterances {names} ...): try a smaller --lr. "
                "These steps have changed no weights"
            )

    def _validate(self, log: RunLog) -> dict[str, float]:
        """The task's metrics, and its pictures and sounds, with the average of the weights if there is one."""
        state = random_state(self.ranks.device)
        self.model.eval()
        with self.update.with_average():
            self.metrics = self.task.validate(self.ranks)
            if self.ranks.is_main:
                self.task.show(log, self.step)
        restore_random_state(state, self.ranks.device)
        return self.metrics

    def _save(self, log: RunLog, is_validated: bool, is_resumable: bool = True) -> None:
        """Writes `last.pt` if `is_resumable`, `best.pt` if the score is the best; returns when all ranks are done."""
        log.sync()
        states = self.ranks.gather(random_state(self.ranks.device))
        self.ranks.on_main(lambda: self._write_checkpoints(states if is_resumable else None, is_validated))

    def _write_checkpoints(self, states: list[dict[str, Any]] | None, is_validated: bool) -> None:
        usable = self._usable()
        if not all(tensor.isfinite().all() for tensor in usable["model"].values()):
            raise UserError(f"the weights after step {self.step} are not finite and are not saved; try a smaller --lr")
        score = self.metrics.get(self.task.score_name, -self.step)  # without validation the newest is the best
        if (is_validated and score < self.best) or not self.store.has_best():
            self.best = score if is_validated else self.best
            self.store.save_best(usable)
        if states is not None:
            self.store.save_last({**usable, "training": self._state(states)})

    def _usable(self) -> dict[str, Any]:
        """Content of a checkpoint that use of the model needs."""
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
        """Content of a checkpoint that only a resumed run needs."""
        average = self.update.average
        return {
            "format": TRAINING_FORMAT,
            **{name: getattr(self, name) for name in COUNTERS},
            "optimizer": self.update.optimizer.state_dict(),
            "scaler": self.update.scaler.state_dict(),
            "random": states,
            **({"updates": average.n_averaged, "model": self.model.state_dict()} if average else {}),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continues from a `last.pt`; `UserError` if it belongs to another run."""
        require_resumable(checkpoint)
        self._require_same_run(checkpoint)
        training, update = checkpoint["training"], self.update
        self.model.load_state_dict(training.get("model", checkpoint["model"]))
        if update.average:
            update.average.module.load_state_dict(checkpoint["model"])
            update.average.n_averaged.copy_(training["updates"])
        update.optimizer.load_state_dict(training["optimizer"])
        update.scaler.load_state_dict(training["scaler"])
        self.step, self.metrics = checkpoint["step"], checkpoint["metrics"]
        self.task.restore(checkpoint)
        for name in COUNTERS:
            setattr(self, name, training[name])
        if self.ranks.rank < len(training["random"]):
            restore_random_state(training["random"][self.ranks.rank], self.ranks.device)
        else:
            seed_everything(self.options.seed, self.ranks.rank, self.step)

    def _require_same_run(self, checkpoint: dict[str, Any]) -> None:
        different = _differences(checkpoint, self.task.description())
        if different:
            raise UserError(f"the checkpoint to resume from was trained with other {', '.join(different)}")


def require_resumable(checkpoint: dict[str, Any]) -> None:
    """`UserError` unless a checkpoint holds the state of a training, as this version writes it."""
    training = checkpoint.get("training")
    if training is None:
        raise UserError("a run resumes from last.pt or an older one, last-1.pt: best.pt holds no optimizer state")
    if training.get("format") != TRAINING_FORMAT:
        raise UserError(
            "the checkpoint to resume from was written by another version of this program: resume it with that "
            "version, or begin a new run with another --out"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of values of `now` that differ in `before`, of dictionaries with the entries that differ."""
    found = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            entries = [f"{key} {old.get(key)} there, {value[key]} here" for key in value if old.get(key) != value[key]]
            found += [f"{name} ({'; '.join(entries)})"] if entries else []
        elif old != value:
            found.append(name)
    return found


def _shown(line: dict[str, Any]) -> str:
    """A log line for people: without the hexadecimal loss, and with the time left as h:mm."""
    words = []
    for name, value in line.items():
        if name == "eta_s":
            minutes, seconds = divmod(round(value), 60)
            words.append(f"eta {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
        elif name != "loss_hex":
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(words)
