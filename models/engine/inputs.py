"""The inputs of the three operations: their names, shapes and defaults, which all backends share.

Shape letters: b batch, l length, d channels, n state size, h heads, p channels of a head, g groups, k taps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor


class ConvInputs(NamedTuple):
    """Inputs of `interface.causal_conv`, annotated with their shapes."""

    x: Annotated[Tensor, "b l d"]
    weight: Annotated[Tensor, "d k"]
    bias: Annotated[Tensor | None, "d"] = None
    initial_state: Annotated[Tensor | None, "b k-1 d"] = None
    seq_idx: Annotated[Tensor | None, "b l"] = None
    silu: bool = False


class ScanInputs(NamedTuple):
    """Inputs of `interface.selective_scan`, annotated with their shapes."""

    u: Annotated[Tensor, "b l d"]
    dt: Annotated[Tensor, "b l d"]
    A: Annotated[Tensor, "d n"]
    B: Annotated[Tensor, "b l n"]
    C: Annotated[Tensor, "b l n"]
    D: Annotated[Tensor | None, "d"] = None
    z: Annotated[Tensor | None, "b l d"] = None
    dt_bias: Annotated[Tensor | None, "d"] = None
    initial_state: Annotated[Tensor | None, "b d n"] = None
    seq_idx: Annotated[Tensor | None, "b l"] = None
    dt_softplus: bool = False


class SSDInputs(NamedTuple):
    """Inputs of `interface.ssd`, annotated with their shapes; g divides h."""

    x: Annotated[Tensor, "b l h p"]
    dt: Annotated[Tensor, "b l h"]
    A: Annotated[Tensor, "h"]
    B: Annotated[Tensor, "b l g n"]
    C: Annotated[Tensor, "b l g n"]
    D: Annotated[Tensor | None, "h"] = None
    dt_bias: Annotated[Tensor | None, "h"] = None
    initial_state: Annotated[Tensor | None, "b h p n"] = None
    seq_idx: Annotated[Tensor | None, "b l"] = None
    dt_softplus: bool = False


# All three end with seq_idx, the one tensor without a gradient, and a switch.
Inputs = TypeVar("Inputs", ConvInputs, ScanInputs, SSDInputs)

AXES = {
    kind: {
        name: hint.__metadata__[0].split()
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if hint is not bool
    }
    for kind in (ConvInputs, ScanInputs, SSDInputs)
}


class Operations(NamedTuple):
    """A backend's operations, each as a function of its inputs."""

    causal_conv: Callable[[ConvInputs], Tensor]
    selective_scan: Callable[[ScanInputs], tuple[Tensor, Tensor]]
    ssd: Callable[[SSDInputs], tuple[Tensor, Tensor]]


def check_shapes(inputs: Inputs) -> None:
    """Raises ValueError unless the tensors have the shapes of their annotations, with one size for each letter."""
    sizes = {"k-1": inputs.weight.shape[-1] - 1} if isinstance(inputs, ConvInputs) else {}
    for (name, axes), tensor in zip(AXES[type(inputs)].items(), inputs, strict=False):
        if tensor is None:
            continue
        shape = tensor.shape
        if len(axes) != len(shape) or tuple(map(sizes.setdefault, axes, shape)) != shape:
            expected = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
            raise ValueError(f"{name} has shape {tuple(shape)} where ({expected}) is needed")
    if sizes.get("h", 0) % sizes.get("g", 1):
        raise ValueError(f"the number of groups, {sizes['g']}, must divide the number of heads, {sizes['h']}")


def cast(inputs: Inputs, dtype: torch.dtype, *names: str) -> Inputs:
    """Converts the named fields to `dtype`, where they are present."""
    present = {name: v for name in names if (v := getattr(inputs, name)) is not None}
    changed = {name: v.to(dtype) for name, v in present.items() if v.dtype != dtype}
    return inputs._replace(**changed) if changed else inputs
