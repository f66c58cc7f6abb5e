"""The training loop of every task: one process or many, full or mixed precision, resumable."""

from __future__ import annotations

import argparse
import math
import random
import signal
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from utils.checkpoint import BEST, LAST, save_checkpoint
from utils.cli import UserError, progress
from utils.features.recipe import MelRecipe, require_same
from utils.training.distributed import Ranks
from utils.training.runlog import RunLog
from utils.training.sampling import PlaceBatches
from utils.training.schedule import warmup_cosine

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Task(Protocol):
    """What a task plugs into the loop."""

    name: str
    model: nn.Module  # forward(**inputs) -> {"loss_sum", "count", ...}: scalars, summed over the rank's share
    dataset: Dataset  # item number = place of the sample in the run
    score_name: str  # the entry of `validate`'s result that is to become small

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """A batch of the dataset's items: tensors with the batch as first dimension (B, ...)."""

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments at a step: the batch, and what changes with the step."""

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch, for the log's speed."""

    def validate(self, device: torch.device) -> dict[str, float]:
        """Figures of the model, in eval mode, on held-back data; empty if there are none."""

    def description(self) -> dict[str, Any]:
        """What a checkpoint must hold so that the model can be used: plain values."""


class Meter:
    """Speed since its making."""

    def __init__(self) -> None:
        self._steps = self._frames = 0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, frames: int) -> None:
        """Counts one step of so many frames over all ranks."""
        self._steps, self._frames = self._steps + 1, self._frames + frames

    def read(self) -> dict[str, float]:
        """Frames per second of wall time, and seconds of this process's CPU time per step."""
        return {
            "frames_per_s": self._frames / (time.perf_counter() - self._wall),
            "cpu_s_per_step": (time.process_time() - self._cpu) / self._steps,
        }


class Trainer:
    """Trains `task.model` for `args.steps` steps, writing logs and checkpoints into `directory`."""

    def __init__(self, task: Task, args: argparse.Namespace, config: dict[str, Any], directory: Path, ranks: Ranks):
        self.task, self.args, self.config, self.directory, self.ranks = task, args, config, directory, ranks
        self.model = task.model.to(ranks.device)
        self.wrapped = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, args.weight_decay), lr=args.lr)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=args.amp == "fp16")
        self.step = 0
        self.best = math.inf
        self.metrics: dict[str, float] = {}
        self.signal: int | None = None

    def fit(self) -> int:
        """Trains to the last step, or to the first signal; returns 0, or 128 + the signal's number."""
        log = RunLog(self.directory, self.ranks.is_main, self.step, self.args.tensorboard)
        loader = self._loader()
        handlers = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        hidden = None if self.ranks.is_main else True  # None: hidden where stderr is no terminal
        bar = progress(total=self.args.steps, initial=self.step, unit="step", disable=hidden)
        try:
            self._loop(loader, log, bar)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            bar.close()
            log.close()
        return 128 + self.signal if self.signal else 0

    def _loop(self, loader: DataLoader, log: RunLog, bar: Any) -> None:
        random_states = _random_states()
        batches = iter(loader)  # takes a number from the global generator, so its state is put back
        _restore_random_states(random_states)
        meter = Meter()
        for batch in batches:
            values = self._train_step(batch)
            self.step += 1
            meter.add(self.task.frames(batch) * self.ranks.world)
            stop = self.signal is not None or self.step == self.args.steps  # read once: a signal may come in between
            to_save = stop or self.step % self.args.save_every == 0
            if to_save or self.step % self.args.log_every == 0:
                values.update(meter.read())
                if to_save:
                    values.update(self._validate())
                self._log(log, bar, values)
                if to_save:
                    self._save()
                meter = Meter()
            bar.update()
            if stop:
                break

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update; returns the global batch's loss and what else the model counted, per sample."""
        args, ranks = self.args, self.ranks
        factor = warmup_cosine(self.step, args.steps, args.warmup, args.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * factor
        self.wrapped.train()
        inputs = self.task.inputs({name: value.to(ranks.device) for name, value in batch.items()}, self.step)
        with torch.autocast(ranks.device.type, AMP_DTYPES.get(args.amp), enabled=args.amp != "off"):
            outputs = self.wrapped(**inputs)
        names = sorted(outputs)
        wide = torch.float32 if ranks.device.type == "mps" else torch.float64  # MPS has no float64
        totals = ranks.sum(torch.stack([outputs[name].detach().to(wide) for name in names]))
        totals = dict(zip(names, totals.tolist(), strict=True))
        count = totals.pop("count")
        if not math.isfinite(totals["loss_sum"]):
            raise UserError(f"the loss of step {self.step + 1} is {totals['loss_sum']}; try a smaller --lr")
        loss = outputs["loss_sum"] * (ranks.world / count)  # DDP averages gradients over ranks
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values = {name.removesuffix("_sum"): total / count for name, total in totals.items()}
        return {**values, "lr": args.lr * factor, "grad_norm": norm.item()}

    def _log(self, log: RunLog, bar: Any, values: dict[str, float]) -> None:
        line = {"loss": values["loss"], "loss_hex": values["loss"].hex(), **values}
        log.write(self.step, line)
        if self.ranks.is_main:
            shown = [f"{name} {value:.4g}" for name, value in line.items() if name != "loss_hex"]
            bar.write(f"step {self.step}/{self.args.steps}  " + "  ".join(shown))

    def _validate(self) -> dict[str, float]:
        """The task's figures, on the main rank; the others have none and wait in `_save`."""
        if self.ranks.is_main:
            random_states = _random_states()
            self.model.eval()
            self.metrics = self.task.validate(self.ranks.device)
            _restore_random_states(random_states)
        return self.metrics

    def _save(self) -> None:
        """`best.pt` to use where the score is the best so far, `last.pt` to go on from."""
        if self.ranks.is_main:
            self._write_checkpoints()
        self.ranks.from_main(torch.zeros(1, device=self.ranks.device))  # nobody runs ahead of the save

    def _write_checkpoints(self) -> None:
        usable = {
            "task": self.task.name,
            "step": self.step,
            "config": self.config,
            "metrics": self.metrics,
            "model": self.model.state_dict(),
            **self.task.description(),
        }
        score = self.metrics.get(self.task.score_name, -self.step)  # without validation the newest is the best
        if score < self.best or not (self.directory / BEST).exists():
            self.best = score
            save_checkpoint(self.directory / BEST, usable)
        training = {
            "samples": self.step * self.args.batch_size,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": _random_states(),
        }
        save_checkpoint(self.directory / LAST, {**usable, "training": training})

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from a `last.pt`; `UserError` if it holds another model or other settings of the optimiser."""
        if "training" not in checkpoint:
            raise UserError("only last.pt can be resumed: best.pt holds no optimiser")
        description = self.task.description()
        require_same(
            MelRecipe.from_dict(checkpoint["recipe"]),
            MelRecipe.from_dict(description["recipe"]),
            "the checkpoint to resume from",
            "the features",
        )
        different = [name for name in description if checkpoint.get(name) != description[name]]
        different += [
            f"--{name.replace('_', '-')} ({checkpoint['config'].get(name)} there, {value} here)"
            for name, value in self.config.items()
            if name in RESUME_MUST_EQUAL and checkpoint["config"].get(name) != value
        ]
        if different:
            raise UserError(f"the checkpoint to resume from was trained with other {', '.join(different)}")
        training = checkpoint["training"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.step, self.best, self.metrics = checkpoint["step"], training["best"], checkpoint["metrics"]
        _restore_random_states(training["random"])

    def _loader(self) -> DataLoader:
        batches = PlaceBatches(self.step, self.args.steps, self.args.batch_size, self.ranks.rank, self.ranks.world)
        return DataLoader(
            self.task.dataset,
            batch_sampler=batches,
            collate_fn=self.task.collate,
            num_workers=self.args.workers,
            worker_init_fn=_ignore_stop_signals,
        )

    def _stop(self, number: int, frame: Any) -> None:
        """Finishes the step in flight and saves; the second signal ends the process at once."""
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number


# A resumed run with another value of one of these would not be the same run; more --steps may be asked for.
RESUME_MUST_EQUAL = frozenset(
    "task batch_size lr weight_decay warmup final_lr clip amp seed crop_seconds margin margin_warmup "
    "noise_share noise_snr frequency_masks frequency_width time_masks time_width".split()
)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, gains and parameters marked `no_weight_decay`."""
    decayed, exempt = [], []
    for parameter in model.parameters():
        free = parameter.ndim < 2 or getattr(parameter, "no_weight_decay", False)
        (exempt if free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def _random_states() -> dict[str, Any]:
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _ignore_stop_signals(worker: int) -> None:
    """Loader workers are stopped by the trainer; a Ctrl-C reaches them too and would kill the batch in flight."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
