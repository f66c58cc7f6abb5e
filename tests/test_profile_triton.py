"""What the host code of the Triton backend allocates, predicted on tensors without data, against counts by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from test_engine import conv_inputs, scan_inputs
from test_ssd import ssd_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

from models.engine import interface
from models.engine.triton.launch import cdiv, next_power_of_2
from utils.profiling.kernels import WITHOUT_KERNELS
from utils.profiling.storages import Storages

FLOAT = 4


@pytest.fixture(autouse=True)
def without_triton(monkeypatch):
    """An import of triton, as of a package that is not installed, fails."""
    monkeypatch.setitem(sys.modules, "triton", None)


def buffers(op, inputs, **switches):
    """Floats that forward and backward have at a time beyond their arguments, results and what is saved."""
    found = []
    fakes = FakeTensorMode()
    leaves = {name: fakes.from_tensor(value).requires_grad_() for name, value in inputs.items()}
    with fakes, Storages() as live:
        live.follow(leaves.values())
        out = getattr(interface, op)(**leaves, **switches, backend=WITHOUT_KERNELS)
        y = out[0] if isinstance(out, tuple) else out
        found.append(live.peak.total - live.live)
        dy = torch.empty_like(y)
        live.restart()
        gradients = torch.autograd.grad(y, list(leaves.values()), dy, retain_graph=True)
        found.append(live.peak.total - live.live)
        assert [value.shape for value in gradients] == [value.shape for value in leaves.values()]
    return [size / FLOAT for size in found]


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


def test_the_convolution():
    inputs = without(conv_inputs(2, 70, 24, 4), "seq_idx", "initial_state")
    taps = 24 * 4  # the other way round
    parts = 2 * 2  # of up to 64 frames, of two rows
    sums, total = parts * 5 * 24, 5 * 24  # of the gradients of 4 taps and of the bias
    assert buffers("causal_conv", inputs, silu=True) == [taps, taps + sums + total]


def test_the_selective_scan():
    d, n = 64, 16
    inputs = without(scan_inputs(2, 70, d, n), "seq_idx", "initial_state")
    scratch = 2 * 4 * (64 // 4) * 16 * n  # rows, blocks of 16 channels; the states before 16 tiles of 4 frames
    parts = 2 * (2 * 4 * 70 * n)  # of the gradients of B and C, for each block
    of_rows = 2 * d * n + 2 * (2 * d)  # of the gradients of A, D and the bias
    total = 2 * 70 * n  # of B, or C
    assert buffers("selective_scan", inputs, dt_softplus=True) == [0, scratch + parts + of_rows + total]


def test_the_selective_scan_in_segments():
    d, n = 64, 16
    inputs = without(scan_inputs(1, 600, d, n), "seq_idx", "initial_state")
    carried = 2 * (d * n + d)  # after the two first of three segments of 256 frames
    scratch, parts = 3 * 4 * (64 // 4) * 16 * n, 2 * (4 * 600 * n)
    of_segments, total = 3 * (d * n + 2 * d), 600 * n
    assert buffers("selective_scan", inputs, dt_softplus=True) == [
        carried,
        carried + scratch + parts + of_segments + total,
    ]


def test_the_state_space_duality():
    b, h, p, n, Q, chunks = 2, 4, 16, 64, 32, 2
    inputs = without(ssd_inputs(b, 40, h, p, n), "seq_idx", "initial_state")
    groups = inputs["B"].shape[2]
    of_frames, of_chunks = b * h * chunks * Q, b * h * chunks
    decays, states = 6 * of_frames + 2 * of_chunks, b * chunks * h * p * n
    sums = 3 * of_frames + 3 * of_chunks + 2 * (of_frames + of_chunks)  # the last for each of two blocks of states
    scores = b * h * chunks * Q * Q
    shared = 2 * (b * (h // groups) * 40 * groups * n) + b * 40 * groups * n  # dB and dC of each head, and a sum
    ends = 2 * b * h * p * n  # the last state, and the gradient of the first
    backward = decays + 2 * states + ends + sums + scores + shared
    assert buffers("ssd", inputs, dt_softplus=True) == [decays + states, backward]


def test_sizes_as_triton_has_them():
    assert [cdiv(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert [next_power_of_2(n) for n in (1, 2, 3, 16, 17)] == [1, 2, 4, 16, 32]
