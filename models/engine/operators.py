"""Differentiable operators of torch whose arguments are the fields of a NamedTuple of `models.engine.inputs`.

They are opaque to torch.compile and torch.export, and differentiable once: their backward passes, operators as well,
have no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from models.engine.inputs import ConvInputs, Inputs

SCHEMA_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}
Work = Callable[[Any, bool, str], int]

# Of each operator, for tools that see its tensors only: its kind of inputs, and the bytes of its buffers; where these
# are not stated, what forward and backward do, as functions of the same arguments.
KINDS: dict[str, type] = {}
WORK: dict[str, Work] = {}
BODIES: dict[str, Callable[..., Any]] = {}


def define(
    name: str,
    kind: type[Inputs],
    forward: Callable[..., Any],
    allocate: Callable[..., Any],
    backward: Callable[..., tuple[Tensor, ...]],
    device_types: str | None = None,
    work: Work | None = lambda inputs, is_backward, device: 0,
) -> Callable[[Inputs], Any]:
    """Registers `tacomamba::NAME` and `tacomamba::NAME_backward`; returns the operator as a function of its inputs.

    A convolution has forward(inputs) -> y and backward(inputs, dy). A scan has a final state, and with `keep` it saves
    something for backward: forward(inputs, keep) -> (y, state, saved), of which the returned function gives the first
    two, and backward(inputs, dy, dstate, saved) with dstate None where nothing depends on the state.

    `backward` returns the tensors of `empty_gradients`, filled. `allocate` has the arguments of `forward` and returns
    tensors like its results, for tracing. `work(inputs, is_backward, device)`: about the most bytes of buffers that
    either has at a time on a type of device, beyond its arguments and results; None if both run on fake tensors, where
    these buffers can be seen.
    """
    KINDS[f"tacomamba::{name}"] = kind
    if work is not None:
        WORK[f"tacomamba::{name}"] = work
    is_scan, size = kind is not ConvInputs, len(kind._fields)
    forward_schema, backward_schema = _schemas(kind, is_scan)

    def flat(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(kind(*arguments[:size]), *arguments[size:])

    def operator(suffix: str, schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        options = {"mutates_args": (), "device_types": device_types, "schema": schema}
        defined = torch.library.custom_op(f"tacomamba::{name}{suffix}", flat(body), **options)
        defined.register_fake(flat(fake))
        if work is None:
            BODIES[f"tacomamba::{name}{suffix}"] = flat(body)
        return defined

    forward_operator = operator("", forward_schema, forward, allocate)
    backward_operator = operator("_backward", backward_schema, backward, lambda inputs, *_: empty_gradients(inputs))

    def save(ctx: Any, inputs: tuple, output: Any) -> None:
        *tensors, ctx.switch = inputs[:size]
        saved = output[2:] if is_scan else ()
        ctx.save_for_backward(*tensors, *saved)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # read once: activation checkpointing refuses a second time
        tensors, saved = tensors[: size - 1], tensors[size - 1 :]
        dy = torch.zeros_like(tensors[0]) if dy is None else dy
        gradients = backward_operator(*tensors, ctx.switch, dy, *others[:1], *saved)
        present = (None if v is None else g for v, g in zip(tensors[:-1], gradients, strict=True))
        return *present, *[None] * (3 if is_scan else 2)

    forward_operator.register_autograd(differentiate, setup_context=save)
    if is_scan:
        return lambda inputs: forward_operator(*inputs, needs_gradient(inputs))[:2]
    return lambda inputs: forward_operator(*inputs)


def _schemas(kind: type[Inputs], is_scan: bool) -> tuple[str, str]:
    hints = get_type_hints(kind)
    arguments = ", ".join(f"{SCHEMA_TYPES[hints[field]]} {field}" for field in kind._fields)
    gradients = ", ".join(["Tensor"] * (len(kind._fields) - 2))
    if not is_scan:
        return f"({arguments}) -> Tensor", f"({arguments}, Tensor dy) -> ({gradients})"
    return (
        f"({arguments}, bool keep) -> (Tensor, Tensor, Tensor)",
        f"({arguments}, Tensor dy, Tensor? dstate, Tensor saved) -> ({gradients})",
    )


def work_bytes(operator: Any, arguments: tuple, device: str) -> int:
    """Bytes of the buffers that an operator of `define` states for a type of device; 0 for any other."""
    name = operator._schema.name
    work = WORK.get(name.removesuffix("_backward"))
    return 0 if work is None else work(inputs_of(operator, arguments), name.endswith("_backward"), device)


def inputs_of(operator: Any, arguments: tuple) -> Any:
    """The inputs among the arguments of an operator that `define` made."""
    kind = KINDS[operator._schema.name.removesuffix("_backward")]
    return kind(*arguments[: len(kind._fields)])


def needs_gradient(inputs: Inputs) -> bool:
    """Returns whether a backward pass may follow: without one, an operator keeps nothing for it."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs[:-2])


def empty_gradients(inputs: Inputs) -> tuple[Tensor, ...]:
    """Allocates the gradients of all tensors but seq_idx, contiguous; of no elements where the input is None."""
    like = inputs[0]
    return tuple(
        like.new_empty(0) if v is None else torch.empty_like(v, memory_format=torch.contiguous_format)
        for v in inputs[:-2]
    )
