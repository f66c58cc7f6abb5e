"""One optimizer step over a global batch: micro-batches, ranks, mixed precision, and steps to skip."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from utils.device import use_backend
from utils.errors import UserError
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.schedule import warmup_cosine
from utils.training.task import Task

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """Result of one step, the same on every rank.

    `values` holds the loss and other outputs of the model per `count`; `frames` are those of all ranks. `problem` is
    "loss" or "gradient" if that was not finite and the step was skipped; then `suspects` are the places whose samples
    are not finite, or all places if every sample is finite. `signal` is the number of a stop signal that any rank
    received.
    """

    values: dict[str, float]
    frames: float
    problem: str | None
    suspects: list[int]
    signal: int


class Update:
    """Model, optimizer, scaler and average, and the step that changes them.

    The loss of a step is the sum over the global batch divided by the global count, so that ranks and micro-batches
    change only the order of sums. Batch norm is the exception: it sees one micro-batch of all ranks.
    """

    def __init__(self, task: Task, options: TrainingOptions, ranks: Ranks) -> None:
        self.task, self.options, self.ranks = task, options, ranks
        self.model = task.model.to(ranks.device)
        self.average = _moving_average(self.model, options.ema) if options.ema else None
        prepare_model(self.model, options, ranks.device)
        self.wrapped = DistributedDataParallel(self.model) if ranks.is_group else self.model
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, options.weight_decay), lr=options.lr)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.amp == "fp16")
        self._wide = torch.float32 if ranks.device.type == "mps" else torch.float64  # MPS has no float64

    def __call__(self, batches: Sequence[dict[str, Tensor]], places: range, step: int, signal: int) -> StepResult:
        """Step number `step` (from 0) on this rank's micro-batches of the batch at `places`."""
        self._set_learning_rate(step)
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # a bad batch would spoil running statistics
        self.wrapped.train()
        self.optimizer.zero_grad(set_to_none=True)
        names, totals = self._accumulate(batches, step, signal)
        result = self._read(names, totals.tolist(), self._gradient_norm(names, totals).item())
        if result.problem is None:
            self.scaler.step(self.optimizer)
            if self.average:
                self.average.update_parameters(self.model)
        else:
            torch._foreach_copy_(list(self.model.buffers()), buffers)
            result.suspects.extend(self._suspects(batches, places))
        self.scaler.update()
        return result

    @contextlib.contextmanager
    def with_average(self) -> Iterator[None]:
        """Gives the model the weights of the moving average, if there is one, within the block."""
        own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()} if self.average else None
        if own:
            self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            if own:
                self.model.load_state_dict(own)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        options = self.options
        return options.lr * warmup_cosine(step, options.steps, options.warmup, options.final_lr)

    def _set_learning_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

    def _accumulate(self, batches: Sequence[dict[str, Tensor]], step: int, signal: int) -> tuple[list[str], Tensor]:
        """Adds up gradients; returns names and global sums (micro-batches, names + world).

        The named sums are followed by the stop signal of each rank. Gradients are those of the loss as if every
        micro-batch had the first one's count.
        """
        parts, world = self.options.accumulate, self.ranks.world
        totals: list[Tensor] = []
        for micro, batch in enumerate(batches):
            synchronized = world == 1 or micro == parts - 1
            with contextlib.nullcontext() if synchronized else self.wrapped.no_sync():
                outputs = self._forward(batch, step)
                names = sorted(outputs)
                totals.append(self._sum_over_ranks([outputs[name] for name in names], signal))
                count = totals[0][names.index("count")] * parts
                # DDP averages gradients over ranks; times the number of ranks that is a sum.
                loss = outputs["loss_sum"] * (world / count).to(outputs["loss_sum"].dtype)
                self.scaler.scale(loss).backward()
        return names, torch.stack(totals)

    def _forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        device = self.ranks.device
        frames = torch.tensor(float(self.task.frames(batch)), device=device)
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(device.type, AMP_DTYPES.get(self.options.amp), enabled=self.options.amp != "off"):
            outputs = self.wrapped(**self.task.inputs(batch, step))
        return {**outputs, "frames": frames}

    def _sum_over_ranks(self, values: list[Tensor], signal: int) -> Tensor:
        signals = torch.zeros(self.ranks.world, dtype=self._wide, device=self.ranks.device)
        signals[self.ranks.rank] = signal
        return self.ranks.sum(torch.cat([torch.stack([value.detach().to(self._wide) for value in values]), signals]))

    def _gradient_norm(self, names: list[str], totals: Tensor) -> Tensor:
        """Scales the gradients to their true size and clips them; returns their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.model.parameters())
        counts = totals[:, names.index("count")]
        if len(counts) > 1:
            correction = counts[0] * len(counts) / counts.sum()
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, correction.to(gradients[0].dtype))
        return nn.utils.clip_grad_norm_(parameters, self.options.clip)

    def _read(self, names: list[str], totals: list[list[float]], norm: float) -> StepResult:
        sums = {name: sum(row[number] for row in totals) for number, name in enumerate(names)}
        count, frames = sums.pop("count"), sums.pop("frames")
        values = {name.removesuffix("_sum"): total / count if count else math.nan for name, total in sums.items()}
        values["grad_norm"] = norm
        problem = "loss" if not math.isfinite(values["loss"]) else None if math.isfinite(norm) else "gradient"
        return StepResult(values, frames, problem, [], int(max(totals[-1][len(names) :])))

    def _suspects(self, batches: Sequence[dict[str, Tensor]], places: range) -> list[int]:
        """The places of samples that are not finite, on any rank; all places if there are none."""
        found = []
        for micro, batch in enumerate(batches):
            share = self.ranks.micro_batch(places, micro, len(batches))
            for tensor in batch.values():
                rows = (~tensor.isfinite()).flatten(1).any(1) if tensor.ndim > 1 else ~tensor.isfinite()
                found += [share[row] for row in rows.nonzero().flatten().tolist()]
        return sorted(set(sum(self.ranks.gather(found), []))) or list(places)


def _moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of weights and running statistics (Polyak and Juditsky 1992).

    After n updates the decay is at most (1 + n) / (10 + n), so that initial weights fade soon. Integers are copied.
    """

    def update(averages: list[Tensor], sources: list[Tensor], count: Tensor) -> None:
        if averages[0].is_floating_point():
            n = int(count)
            torch._foreach_lerp_(averages, sources, 1 - min(decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averages, sources)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def prepare_model(model: nn.Module, options: TrainingOptions, device: torch.device) -> None:
    """Applies options that change how a model is computed: backend, recomputed layers, compilation."""
    use_backend(model, options.backend, device)
    if options.checkpoint_layers:
        stacks = [module for module in model.modules() if hasattr(module, "checkpoint_layers")]
        if not stacks:
            raise UserError("--checkpoint-layers: this model has no layers that can be recomputed")
        for stack in stacks:
            stack.checkpoint_layers = True
    if options.compile:
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(1))
        except Exception as error:  # compilers differ in what they raise
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"--compile does not work here: {reason}") from error
        model.compile()  # in place: the names of the weights stay


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, gains and parameters marked `no_weight_decay`."""
    decayed, exempt = [], []
    for parameter in model.parameters():
        free = parameter.ndim < 2 or getattr(parameter, "no_weight_decay", False)
        (exempt if free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
