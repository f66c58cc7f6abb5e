"""Memory of a model: per layer in the forward pass, and over a training step.

Sizes are bytes of tensor storages, counted while the real computation runs on the CPU. Memory that a kernel allocates
and frees inside one operator does not count, nor does the rounding of an allocator.
"""

from __future__ import annotations

import weakref
from collections import Counter
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

    `output_bytes` is the size of the tensors that it returns in all calls. `saved_bytes` is the size of the storages
    that autograd keeps at the end of the forward pass for operations inside the module: each storage once, at the
    module that saved it first, without parameters and buffers. `own_saved_bytes` excludes the submodules.
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
    """Bytes in use in a training step after the first: the peak of each phase, and `resident`, between steps.

    Gradients are freed before the forward pass.
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
        """Bytes of parameters, buffers, batch and optimizer state."""
        return self.parameters + self.buffers + self.batch + self.optimizer_state

    @property
    def peak(self) -> int:
        """The largest of the three phases."""
        return max(self.forward_peak, self.backward_peak, self.optimizer_peak)

    def to_dict(self) -> dict[str, int]:
        """All sizes as plain values."""
        return {**asdict(self), "resident": self.resident, "peak": self.peak}


class _LayerHooks:
    """Records for each module the sizes of its outputs and of the storages that autograd saves in it."""

    def __init__(self, model: nn.Module) -> None:
        self.running: list[str] = [""]
        self.calls: Counter[str] = Counter()
        self.outputs: Counter[str] = Counter()
        self.kept: dict[int, tuple[int, str, int]] = {}  # saved tensors that still live: storage, module, bytes
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
            self.calls[name] += 1
            self.outputs[name] += sum(tensor.nbytes for tensor in tensors_in(output))

        return hook

    def pack(self, tensor: Tensor) -> Tensor:
        """Hook on tensors that autograd saves: the graph keeps the result as long as it lives."""
        packed = tensor.detach()  # an output would keep the graph alive that keeps the output
        if storage_key(tensor) not in self.state:
            size = tensor.untyped_storage().nbytes()
            self.kept[id(packed)] = storage_key(tensor), self.running[-1], size
            weakref.finalize(packed, self.kept.pop, id(packed))  # unused graphs are freed at once
        return packed

    def saved(self) -> dict[str, int]:
        """Bytes that are saved now, each storage at the module that saved it first."""
        first = {storage: (name, size) for storage, name, size in reversed(self.kept.values())}
        sums: Counter[str] = Counter()
        for name, size in first.values():
            sums[name] += size
        return sums

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def profile_layers(model: nn.Module, forward: Callable[[], Any]) -> list[Layer]:
    """Runs `forward()`, through `model` to a loss; returns a row per module in the order of `named_modules`.

    The first row, with an empty name, is the model itself; operations of `forward` around the model count there.
    """
    hooks = _LayerHooks(model)
    try:
        with torch.autograd.graph.saved_tensors_hooks(hooks.pack, lambda tensor: tensor):
            loss = forward()  # keeps the graph, and so the saved tensors
            saved = hooks.saved()
            del loss
    finally:
        hooks.remove()
    rows = []
    for name, module in model.named_modules():
        inside = [size for other, size in saved.items() if is_inside(other, name)]
        parameters = sum(parameter.numel() for parameter in module.parameters())
        counted = hooks.calls[name], hooks.outputs[name], sum(inside), saved[name]
        rows.append(Layer(name, type(module).__name__, parameters, *counted))
    return rows


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of living storages, of the given tensors and of results of operators within the block.

    `live` is the present sum, `peak` the largest since `restart`.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in tensors:
            self._follow(tensor)

    def restart(self) -> int:
        """Returns the peak so far and forgets it."""
        peak, self.peak = self.peak, self.live
        return peak

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

    `loss()` is the forward pass from `batch`, any nesting of tensors, to a scalar; `before_update`, such as clipping,
    runs between backward pass and update.
    """
    live = LiveStorages([*state_tensors(model), *tensors_in(batch)])
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with live:
            live.restart()
            value = loss()
            forward_peak = live.restart()
            value.backward()
            backward_peak = live.restart()
            before_update()
            optimizer.step()
            optimizer_peak = live.restart()
        del value
    return StepMemory(
        parameters=unique_bytes(model.parameters()),
        buffers=unique_bytes(model.buffers()),
        batch=unique_bytes(tensors_in(batch)),
        optimizer_state=unique_bytes(tensors_in(list(optimizer.state.values()))),
        gradients=unique_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        forward_peak=forward_peak,
        backward_peak=backward_peak,
        optimizer_peak=optimizer_peak,
    )


def storage_key(tensor: Tensor) -> int:
    """Identifies the storage of a tensor while it lives; views share it."""
    return tensor.untyped_storage()._cdata


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def state_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each counted once."""
    return sum({storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def is_inside(name: str, ancestor: str) -> bool:
    """True if module `name` is `ancestor` or one of its submodules, by their dotted names."""
    return ancestor in ("", name) or name.startswith(f"{ancestor}.")


def layer_table(layers: list[Layer], depth: int | None = None) -> str:
    """The rows as text, names indented by their level, without modules deeper than `depth`."""
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
    """The sizes of a training step as text, in MiB."""
    return "\n".join(f"{name.replace('_', ' '):<18}{size / MIB:>12,.2f} MiB" for name, size in step.to_dict().items())
