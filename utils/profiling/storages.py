"""Storages of tensors that live while operators run, real or fake: bytes by what they are for, peak, and history.

Sizes are those of storages. What an operator allocates and frees inside it is not seen: `utils.profiling.hidden` has
formulas, but for operators of the engine that can be run once more to be watched.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.engine.operators import BODIES
from utils.profiling.hidden import hidden_bytes

# What the bytes of a step are for, in the order in which pictures stack them.
PURPOSES = ("parameters", "buffers", "average", "optimizer", "inputs", "gradients", "saved", "temporaries")
ROUNDING = {"cpu": 1, "cuda": 512}  # bytes; of the caching allocator (pytorch, c10/cuda/CUDACachingAllocator.cpp)
TEMPORARY = PURPOSES.index("temporaries")
SAVED = PURPOSES.index("saved")


@dataclass
class Peak:
    """The largest sum of live bytes: in total, for each of `PURPOSES`, and the phase and layer where it stood."""

    total: int = 0
    parts: list[int] = field(default_factory=lambda: [0] * len(PURPOSES))
    phase: str = ""
    layer: str = ""


class Storages(TorchDispatchMode):
    """Follows the storages of given tensors and of all results of operators within the block.

    `where` names the phase and the layer that an operator runs in. `device`: the type that
    the allocator and the operators are of. `observe` is called with each operator, its arguments and its result.
    """

    def __init__(
        self,
        where: Callable[[], tuple[str, str]] = lambda: ("", ""),
        device: str = "cpu",
        observe: Callable[..., None] = lambda *_: None,
    ) -> None:
        super().__init__()
        self.where, self.device, self.observe = where, device, observe
        self.rounding = ROUNDING[device]
        self.live, self.parts = 0, [0] * len(PURPOSES)
        self._storages: dict[int, tuple[int, int]] = {}  # a storage's bytes and purpose
        self.restart()

    def restart(self) -> None:
        """Forgets the peak and the history."""
        self.peak, self.phase_peaks = Peak(), {}
        self.highest = 0  # of any moment since a layer set it
        self.history, self.phases = array("q"), []

    def follow(self, tensors: Iterable[Tensor], purpose: str = "temporaries") -> None:
        """Counts storages from now on until they die; those known already get another purpose."""
        for tensor in tensors:
            self._follow(tensor, PURPOSES.index(purpose))

    def save(self, tensor: Tensor) -> None:
        """Counts a temporary storage as saved for backward."""
        if self._storages.get(storage_key(tensor), (0, 0))[1] == TEMPORARY:
            self._follow(tensor, SAVED)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._follow(tensor, None)
        body = BODIES.get(func._schema.name)
        work = self._watched(body, args) if body else hidden_bytes(func, args, result, self.device)
        self._note(work)
        self.observe(func, args, kwargs, result)
        return result

    def _watched(self, body: Callable[..., Any], args: tuple) -> int:
        """The most bytes that a function has at a time beyond its arguments and results."""
        inside = Storages(device=self.device)
        inside.follow(tensors_in(args))
        with inside:
            results = body(*args)  # they live until the end
            work = inside.peak.total - inside.live
        del results
        return work

    def _follow(self, tensor: Tensor, purpose: int | None) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self.rounding) * self.rounding
        known = self._storages.get(key)
        if known is None:
            weakref.finalize(storage, self._forget, key)
        else:
            self._add(known[1], -known[0])  # it may have been resized
        purpose = purpose if purpose is not None else TEMPORARY if known is None else known[1]
        self._storages[key] = size, purpose
        self._add(purpose, size)

    def _add(self, purpose: int, size: int) -> None:
        self.live += size
        self.parts[purpose] += size

    def _forget(self, key: int) -> None:
        size, purpose = self._storages.pop(key)
        self._add(purpose, -size)

    def _note(self, work: int) -> None:
        """Records the moment at the end of an operator that has `work` bytes besides its tensors."""
        total = self.live + work
        self.highest = max(self.highest, total)
        phase, layer = self.where()
        self.history.extend(self.parts)
        self.history[-len(PURPOSES) + TEMPORARY] += work
        self.phases.append(phase)
        self.phase_peaks[phase] = max(self.phase_peaks.get(phase, 0), total)
        if total > self.peak.total:
            parts = self.history[-len(PURPOSES) :].tolist()
            self.peak = Peak(total, parts, phase, layer)


def storage_key(tensor: Tensor) -> int:
    """Identifies the storage of a tensor while it lives; views share it."""
    return tensor.untyped_storage()._cdata


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(nested, Tensor):
        return [nested]
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each counted once."""
    return sum({storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
