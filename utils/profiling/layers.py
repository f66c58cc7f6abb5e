"""What each module of a model costs in a training step: outputs, tensors saved for backward, temporaries, FLOPs."""

from __future__ import annotations

import bisect
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from utils.profiling.flops import flops_of
from utils.profiling.storages import Storages, storage_key, tensors_in

FORWARD, BACKWARD, UPDATE = PHASES = ("forward", "backward", "update")
current_node: Callable[[], Any] = torch._C._current_autograd_node
next_number: Callable[[], int] = torch.autograd._get_sequence_nr


@dataclass(frozen=True)
class Layer:
    """One module; all fields but `own_...` include its submodules.

    `output_bytes` is the size of the tensors that it returns in all calls. `saved_bytes` is the size of the storages
    that autograd keeps at the end of the forward pass for operations inside the module: each storage once, at the
    module that saved it first, without parameters and buffers; inputs of a checkpointed module count at its parent.
    `temporary_bytes` is the most that a call had in the forward pass beyond what lived at its beginning or its end.
    FLOPs are those of products, convolutions and scans; recomputed ones count as backward.
    """

    name: str
    kind: str
    parameters: int
    calls: int
    output_bytes: int
    saved_bytes: int
    own_saved_bytes: int
    temporary_bytes: int
    forward_flops: int
    backward_flops: int
    own_forward_flops: int
    own_backward_flops: int


class _Call(NamedTuple):
    """A module that runs: live bytes and the highest sum when it began, and whether autograd will run it again."""

    name: str
    live: int = 0
    highest: int = 0
    is_checkpointed: bool = False


class Modules:
    """Watches a model's modules, and says in which of them, and in which phase, an operator runs.

    An operator of the backward pass belongs to the module whose forward pass made its autograd node: nodes are numbered
    in the order in which they are made.
    """

    def __init__(self, model: nn.Module, device: str = "cpu") -> None:
        self.model = model
        self.storages = Storages(self.where, device, self._observe)
        self.state = {storage_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._running = [_Call("")]
        self._numbers, self._names = [0], [""]  # from which node on a module makes the nodes
        self._handles: list[Any] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.restart()

    def restart(self) -> None:
        """Forgets all of the steps before."""
        self.calls, self.outputs, self.temporaries = Counter(), Counter(), Counter()
        self.flops: Counter[tuple[str, str]] = Counter()
        self._kept: dict[Any, tuple[int, str, int]] = {}  # saved tensors that still live: storage, module, bytes
        self.saved: Counter[str] | None = None  # bytes, at the end of the first forward pass
        self._has_ended = False
        self.storages.restart()

    def __enter__(self) -> Self:
        for name, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._begin(name), with_kwargs=True),
                module.register_forward_hook(self._finish(name), always_call=True),
            ]
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook
                self._handles.append(hook(lambda owner: self.storages.follow([owner.grad], "gradients")))
        self._hooks.__enter__()
        self.storages.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.storages.__exit__(*problem)
        self._hooks.__exit__(*problem)
        while self._handles:
            self._handles.pop().remove()

    def where(self) -> tuple[str, str]:
        """The phase and the innermost module that is at work; "" for what surrounds the model."""
        node, inside = current_node(), self._running[-1].name
        if node is None:
            is_update = self._has_ended and len(self._running) == 1
            return UPDATE if is_update else FORWARD, inside
        self._end_forward()
        if len(self._running) == 1:  # else a module is recomputed
            inside = self._names[bisect.bisect_right(self._numbers, node._sequence_nr()) - 1]
        return BACKWARD, inside

    def _end_forward(self) -> None:
        self._has_ended = True
        if self.saved is None:
            self.saved = self._saved()

    def _begin(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
            is_checkpointed = False
            if current_node() is None:
                self._has_ended = False
                is_checkpointed = torch._C._autograd._top_saved_tensors_default_hooks(False)[0] != self._pack
                if is_checkpointed and not self._running[-1].is_checkpointed:
                    self._keep_inputs([*inputs, *named.values()])
            self._running.append(_Call(name, self.storages.live, self.storages.highest, is_checkpointed))
            self.storages.highest = self.storages.live
            self._numbered(name)

        return hook

    def _finish(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            call, most, after = self._running.pop(), self.storages.highest, self.storages.live
            self.storages.highest = max(most, call.highest)
            self._numbered(self._running[-1].name)
            if current_node() is None:
                self.calls[name] += 1
                self.outputs[name] += sum(tensor.nbytes for tensor in tensors_in(output))
                self.temporaries[name] = max(self.temporaries[name], most - max(call.live, after))

        return hook

    def _numbered(self, name: str) -> None:
        self._numbers.append(next_number())
        self._names.append(name)

    def _pack(self, tensor: Tensor) -> Tensor:
        """Hook on tensors that autograd saves: the graph keeps the result as long as it lives."""
        packed = tensor.detach()  # an output would keep the graph alive that keeps the output
        if storage_key(tensor) not in self.state:
            self._keep(tensor, id(packed), self._running[-1].name)
            weakref.finalize(packed, self._kept.pop, id(packed), None)  # unused graphs are freed at once
        return packed

    def _keep_inputs(self, values: list[Any]) -> None:
        """Counts the inputs of a checkpointed module, which keeps them itself and not by hooks."""
        for tensor in tensors_in(values):
            self._keep(tensor, (storage_key(tensor),), self._running[-1].name)
            weakref.finalize(tensor.untyped_storage(), self._kept.pop, (storage_key(tensor),), None)

    def _keep(self, tensor: Tensor, key: Any, name: str) -> None:
        self._kept[key] = storage_key(tensor), name, tensor.untyped_storage().nbytes()
        self.storages.save(tensor)

    def _saved(self) -> Counter[str]:
        """Bytes that are saved now, each storage at the module that saved it first."""
        first = {storage: (name, size) for storage, name, size in reversed(self._kept.values())}
        sums: Counter[str] = Counter()
        for name, size in first.values():
            sums[name] += size
        return sums

    def _observe(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if flops := flops_of(func, args, kwargs, result):
            phase, name = self.where()
            self.flops[phase, name] += flops

    def rows(self) -> list[Layer]:
        """A row per module in the order of `named_modules`; the first, with an empty name, is the model itself.

        Operations around the model, such as those of the loss, count there.
        """
        saved = self._saved() if self.saved is None else self.saved
        flops = {phase: {other: n for (p, other), n in self.flops.items() if p == phase} for phase in PHASES}
        return [self._row(name, module, saved, flops) for name, module in self.model.named_modules()]

    def _row(self, name: str, module: nn.Module, saved: Counter[str], flops: dict[str, dict[str, int]]) -> Layer:
        return Layer(
            name=name,
            kind=type(module).__name__,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            calls=self.calls[name],
            output_bytes=self.outputs[name],
            saved_bytes=_inside(saved, name),
            own_saved_bytes=saved[name],
            temporary_bytes=self.temporaries[name],
            forward_flops=_inside(flops[FORWARD], name),
            backward_flops=_inside(flops[BACKWARD], name),
            own_forward_flops=flops[FORWARD].get(name, 0),
            own_backward_flops=flops[BACKWARD].get(name, 0),
        )


def _inside(sums: dict[str, int], name: str) -> int:
    return sum(size for other, size in sums.items() if is_inside(other, name))


def is_inside(name: str, ancestor: str) -> bool:
    """True if module `name` is `ancestor` or one of its submodules, by their dotted names."""
    return ancestor in ("", name) or name.startswith(f"{ancestor}.")
