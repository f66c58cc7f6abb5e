"""Sections of the benchmark: measurements of one cell, inside the cell's own process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.grid import measure, systems
from benchmarks.grid.cases import scan_inputs
from benchmarks.grid.measure import Meter, Pass
from benchmarks.grid.plan import CASES, is_checked

if TYPE_CHECKING:
    from benchmarks.grid.cells import Cell

ONCE_S = 0.02  # CPU seconds a frame of the batch: a slower first pass is not repeated, being far from the fastest


def run(cell: Cell, folder: Path | None, meter: Meter) -> dict[str, Any]:
    """The results of `cell`."""
    return SECTIONS[cell["section"]](cell, folder, meter)


def _mixer(cell: Cell, folder: Path | None, meter: Meter) -> dict[str, Any]:
    """Forward and backward of one mixer: time, memory, a sample of the results."""
    errors = _check(systems.SYSTEMS[cell["system"]], folder) if is_checked(cell) else {}
    chunk = _best_chunk(cell, folder, meter)
    module = systems.build(cell["system"], cell["d_model"], folder, chunk)
    Pass(module, 1, min(cell["length"], 256), cell["d_model"])()  # loads and compiles what is made on first use
    one = Pass(module, cell["batch"], cell["length"], cell["d_model"])
    one.clear()
    start = time.process_time()
    peak = meter.peak_memory(one)
    first = time.process_time() - start
    slow = first > ONCE_S * cell["length"]
    times = measure.spread([first]) if slow else meter.times(one)
    results = {} if slow else measure.sample(one, one())
    one.clear()
    kept = measure.kept_for_backward(one)
    return {"cpu_s": times, "peak": peak, "kept": kept, "chunk": chunk, "sample": results, "errors": errors}


def _best_chunk(cell: Cell, folder: Path | None, meter: Meter) -> int | None:
    """The fastest chunk size of a peer that has a choice, of those that give numbers; tried on some 8192 frames."""
    chunks = systems.SYSTEMS[cell["system"]].chunks
    batch = min(cell["batch"], max(1, 8192 // cell["length"]))
    best: dict[int, float] = {}
    for chunk in chunks:
        one = Pass(
            systems.build(cell["system"], cell["d_model"], folder, chunk), batch, cell["length"], cell["d_model"]
        )
        with meter.limited():
            one()
        if all(gradient.isfinite().all() for gradient in one.gradients().values()):
            best[chunk] = meter.times(one)["median"]
            if best[chunk] > 1.3 * min(best.values()):  # larger ones only get slower
                break
    return min(best, key=best.__getitem__, default=chunks[0] if chunks else None)


def _check(system: systems.System, folder: Path | None) -> dict[str, float | None]:
    """Errors of output and gradients against the sequential reference in float64, at a small shape."""
    shape = batch, length, d_model = 2, 256, 64
    one = Pass(systems.build(system.name, d_model, folder, 64 if system.chunks else None), *shape)
    truth = Pass(systems.reference_mixer(system.mixer, d_model), *shape)
    truth.module.load_state_dict(systems.weights(system.mixer, d_model))
    truth.module.double()
    truth.x = truth.x.detach().double().requires_grad_()
    truth.gradient = truth.gradient.double()
    y, y_truth = one(), truth()
    got = one.gradients()
    errors = {name: _error(got[name], gradient) for name, gradient in truth.gradients().items()}
    return {"y": _error(y, y_truth), **errors}


def _error(got: Tensor | None, truth: Tensor) -> float | None:
    return 1.0 if got is None else measure.relative_error(got, truth)


def _errors(cell: Cell, folder: Path | None, meter: Meter) -> dict[str, Any]:
    """Errors of the scan alone against the sequential loop on the same inputs cast up to float64, by case."""
    from models.engine import interface, reference

    system = systems.SYSTEMS[cell["system"]]
    name = "selective_scan" if system.mixer == "mamba" else "ssd"
    errors = {}
    for case in CASES:
        inputs = scan_inputs(system.mixer, case, cell["length"])
        got = _outputs_and_gradients(getattr(interface, name), inputs, {"backend": system.backend})
        wide = {key: tensor.double() for key, tensor in inputs.items()}
        truth = _outputs_and_gradients(getattr(reference, name), wide, {})
        errors[case] = {key: measure.relative_error(got[key], truth[key]) for key in truth}
    return {"errors": errors}


def _outputs_and_gradients(scan: Any, inputs: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in inputs.items()}
    y, state = scan(**leaves, **options)
    draw = torch.Generator().manual_seed(2)
    gradient = torch.randn(y.shape, generator=draw).to(y.dtype)
    y.backward(gradient)
    return {"y": y.detach(), "state": state.detach(), **{f"d{key}": leaf.grad for key, leaf in leaves.items()}}


def _step(cell: Cell, folder: Path | None, meter: Meter) -> dict[str, Any]:
    """A stream frame by frame: bytes of its state, CPU time per frame, and the same frames at once."""
    module = systems.build(cell["system"], cell["d_model"]).eval()
    frames = torch.randn(cell["batch"], cell["length"], cell["d_model"], generator=torch.Generator().manual_seed(1))
    state = module.initial_state(cell["batch"])
    sizes = set()

    def stream() -> None:
        nonlocal state
        for frame in frames.unbind(1):
            _, state = module.step(frame, state)
        sizes.add(sum(tensor.nbytes for tensor in state))

    with torch.no_grad():
        with meter.limited():
            stream()
            module(frames)
        one_by_one, at_once = meter.times(stream), meter.times(lambda: module(frames))
    return {"state": sorted(sizes), "step_s": one_by_one, "whole_s": at_once}


def _threads(cell: Cell, folder: Path | None, meter: Meter) -> dict[str, Any]:
    """Wall time of forward and backward of one mixer; only idle cores give it a meaning."""
    one = Pass(systems.build(cell["system"], cell["d_model"]), cell["batch"], cell["length"], cell["d_model"])
    with meter.limited():
        one()
    return {"wall_s": meter.times(one, time.perf_counter)}


def _training_step(cell: Cell, folder: Path | None, meter: Meter) -> dict[str, Any]:
    """One optimizer step of a stack of mixers that classifies sequences: time and peak memory."""
    from models.engine.backends import set_backend
    from models.stack import MixerStack, StackConfig

    torch.manual_seed(0)
    system = systems.SYSTEMS[cell["system"]]
    sizes = {name: cell[name] for name in ("d_model", "n_layers", "d_state")}
    stack = MixerStack(StackConfig(mixer=system.mixer, **sizes), causal=True)
    set_backend(stack, system.backend)
    head = nn.Linear(cell["d_model"], 100)
    optimizer = torch.optim.AdamW([*stack.parameters(), *head.parameters()], lr=1e-4)
    x = torch.randn(cell["batch"], cell["length"], cell["d_model"])
    lengths = torch.full((cell["batch"],), cell["length"])
    labels = torch.randint(100, (cell["batch"],))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=cell["bf16"]):
            loss = nn.functional.cross_entropy(head(stack(x, lengths).mean(1)).float(), labels)
        loss.backward()
        optimizer.step()

    peak = meter.peak_memory(step)
    return {"cpu_s": meter.times(step), "peak": peak}


SECTIONS = {
    "mixers": _mixer,
    "errors": _errors,
    "length": _mixer,
    "step": _step,
    "threads": _threads,
    "bf16": _training_step,
    "malloc": _mixer,
    "end-to-end": _training_step,
}
