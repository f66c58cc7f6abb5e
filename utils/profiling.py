"""Where a model's memory goes: per layer in the forward pass, and over a whole training step.

Sizes are those of tensor storages in bytes, counted while the real computation runs on the CPU. What a kernel
allocates and frees inside one operator is not seen, and an allocator's rounding is not included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


@dataclass(frozen=True)
class Layer:
    """One module, its submodules included.

    `output_bytes` is the size of the tensors it returns, over all calls. `saved_bytes` is the size of the storages that
    autograd keeps, at the end of the forward pass, from operations inside it: each storage once, at the module that
    saved it first, and without parameters and buffers, which live anyway. `own_saved_bytes` leaves out the submodules.
    """

    name: str
    kind: str
    parameters: int
    calls: int
    output_bytes: int
    saved_bytes: int
    own_saved_bytes: int


@dataclass(frozen=True)
class StepMemory:
    """Bytes alive in a training step that is not the first: `resident` before it, and the peak of each phase.

    `resident` is parameters, buffers, optimizer state and the batch; gradients are freed before the forward pass.
    """

    parameters: int
    buffers: int
    batch: int
    optimizer_state: int
    gradients: int
    forward_peak: int
    backward_peak: int
    optimizer_peak: int

    @property
    def resident(self) -> int:
        """Bytes that live through the whole step."""
        return self.parameters + self.buffers + self.batch + self.optimizer_state

    @property
    def peak(self) -> int:
        """The largest of the three phases."""
        return max(self.forward_peak, self.backward_peak, self.optimizer_peak)

    def to_dict(self) -> dict[str, int]:
        """All figures as plain values."""
        return {**asdict(self), "resident": self.resident, "peak": self.peak}


class _LayerHooks:
    """Knows which module is running, and writes down what it returns and what autograd saves from it."""

    def __init__(self, model: nn.Module) -> None:
        self.running: list[str] = [""]
        self.calls: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.kept: dict[int, tuple[int, str, int]] = {}  # what autograd holds: storage, module, bytes
        self.state = {storage_key(tensor) for tensor in state_tensors(model)}
        self.handles = []
        for name, module in model.named_modules():
            self.handles += [
                module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name)),
                module.register_forward_hook(self._finish(name), always_call=True),
            ]

    def _finish(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.running.pop()
            self.calls[name] = self.calls.get(name, 0) + 1
            self.outputs[name] = self.outputs.get(name, 0) + sum(tensor.nbytes for tensor in tensors_in(output))

        return hook

    def pack(self, tensor: Tensor) -> Tensor:
        """The hook on tensors that autograd saves: it holds what this returns, for as long as the graph lives."""
        packed = tensor.detach()  # an output would otherwise hold the graph that holds it
        if storage_key(tensor) not in self.state:
            size = tensor.untyped_storage().nbytes()
            self.kept[id(packed)] = storage_key(tensor), self.running[-1], size
            weakref.finalize(packed, self.kept.pop, id(packed))  # a graph that leads nowhere is freed at once
        return packed

    def saved(self) -> dict[str, int]:
        """Bytes that are held now, each storage at the module that saved it first."""
        sums: dict[str, int] = {}
        seen = set()
        for storage, name, size in self.kept.values():
            if storage not in seen:
                seen.add(storage)
                sums[name] = sums.get(name, 0) + size
        return sums

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def profile_layers(model: nn.Module, forward: Callable[[], Any]) -> list[Layer]:
    """Runs `forward()`, from a batch to a loss by way of `model`; a row per module in the order of `named_modules`.

    The first row, with an empty name, is the model itself; what `forward` does around the model counts there.
    """
    hooks = _LayerHooks(model)
    try:
        with torch.autograd.graph.saved_tensors_hooks(hooks.pack, lambda tensor: tensor):
            loss = forward()  # holds the graph, and with it what was saved
            saved = hooks.saved()
            del loss
    finally:
        hooks.remove()
    rows = []
    for name, module in model.named_modules():
        inside = [size for other, size in saved.items() if is_inside(other, name)]
        parameters = sum(parameter.numel() for parameter in module.parameters())
        counted = hooks.calls.get(name, 0), hooks.outputs.get(name, 0), sum(inside), saved.get(name, 0)
        rows.append(Layer(name, type(module).__name__, parameters, *counted))
    return rows


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, from those given and those that operators make inside it.

    `live` is the present sum, `peak` the largest since `restart`.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in tensors:
            self._follow(tensor)

    def restart(self) -> None:
        """Forgets the peak so far."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage_key(tensor)
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key)
        self.live += storage.nbytes() - self._sizes.get(key, 0)  # a known storage may have been resized
        self._sizes[key] = storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def profile_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    loss: Callable[[], Tensor],
    before_update: Callable[[], Any] = lambda: None,
) -> StepMemory:
    """Runs two training steps and measures the second, when the optimizer's state exists.

    `loss()` is the forward pass from `batch`, any nesting of tensors, to a scalar; `before_update` runs between
    backward and update (clipping, say).
    """
    peaks = {}
    live = LiveStorages([*state_tensors(model), *tensors_in(batch)])
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with live:
            live.restart()
            value = loss()
            peaks["forward"] = live.peak
            live.restart()
            value.backward()
            peaks["backward"] = live.peak
            live.restart()
            before_update()
            optimizer.step()
            peaks["optimizer"] = live.peak
        del value
    states = [tensors_in(state) for state in optimizer.state.values()]
    return StepMemory(
        parameters=unique_bytes(model.parameters()),
        buffers=unique_bytes(model.buffers()),
        batch=unique_bytes(tensors_in(batch)),
        optimizer_state=unique_bytes(tensor for state in states for tensor in state),
        gradients=unique_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        forward_peak=peaks["forward"],
        backward_peak=peaks["backward"],
        optimizer_peak=peaks["optimizer"],
    )


def storage_key(tensor: Tensor) -> int:
    """Names the storage behind a tensor for as long as it lives; views share it."""
    return tensor.untyped_storage()._cdata


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def state_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    return sum({storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def is_inside(name: str, ancestor: str) -> bool:
    """Whether module `name` is `ancestor` or one of its submodules, by their dotted names."""
    return ancestor in ("", name) or name.startswith(f"{ancestor}.")


def layer_table(layers: list[Layer], depth: int | None = None) -> str:
    """The rows as text, names indented by their level; modules deeper than `depth` are left out, not lost."""
    lines = [("layer", "kind", "parameters", "calls", "output MiB", "saved MiB")]
    for layer in layers:
        level = layer.name.count(".") + 1 if layer.name else 0
        if depth is not None and level > depth:
            continue
        name = "  " * level + layer.name.rpartition(".")[2] if level else "(model)"
        sizes = (f"{size / MIB:,.2f}" for size in (layer.output_bytes, layer.saved_bytes))
        lines.append((name, layer.kind, f"{layer.parameters:,}", str(layer.calls), *sizes))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def step_table(step: StepMemory) -> str:
    """The figures of a training step as text, in MiB."""
    figures = [
        ("parameters", step.parameters),
        ("buffers", step.buffers),
        ("batch", step.batch),
        ("optimizer state", step.optimizer_state),
        ("gradients", step.gradients),
        ("peak of forward", step.forward_peak),
        ("peak of backward", step.backward_peak),
        ("peak of optimizer", step.optimizer_peak),
        ("peak of the step", step.peak),
    ]
    return "\n".join(f"{name:<18}{size / MIB:>12,.2f} MiB" for name, size in figures)
