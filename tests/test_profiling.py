"""The profiler against modules whose bytes and FLOPs can be counted by hand, on real tensors and on fake ones."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils.profiling.fakes import pretending
from utils.profiling.layers import Modules, is_inside
from utils.profiling.step import timeline
from utils.profiling.storages import PURPOSES, Storages
from utils.profiling.tables import folded, layer_table

FLOAT = 4


@pytest.fixture(params=["real", "fake"], autouse=True)
def tensors(request):
    """Every test runs on real tensors, and on tensors without data."""
    with pretending("cpu") if request.param == "fake" else contextlib.nullcontext():
        yield


def rows_of(model, *inputs, loss=torch.Tensor.sum, backward=False):
    with Modules(model) as modules:
        value = loss(model(*inputs))
        if backward:
            value.backward()
    return {row.name: row for row in modules.rows()}


def test_linear_saves_its_input_and_not_its_weight():
    model = nn.Linear(8, 16)
    row = rows_of(model, torch.randn(5, 8, requires_grad=True))[""]
    assert (row.kind, row.parameters, row.calls) == ("Linear", 8 * 16 + 16, 1)
    assert row.output_bytes == 5 * 16 * FLOAT
    assert row.saved_bytes == row.own_saved_bytes == 5 * 8 * FLOAT


def test_chain_counts_each_shared_storage_once():
    """A ReLU saves its output, which the next layer saves as its input: one storage, counted at the ReLU."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Identity())
    rows = rows_of(model, torch.randn(5, 8))
    assert [rows[name].saved_bytes for name in "0123"] == [5 * 8 * FLOAT, 5 * 16 * FLOAT, 0, 0]
    assert [rows[name].output_bytes for name in "0123"] == [5 * n * FLOAT for n in (16, 16, 4, 4)]
    assert rows[""].saved_bytes == 5 * (8 + 16) * FLOAT
    assert rows[""].own_saved_bytes == 0


def test_inplace_relu_saves_the_storage_that_it_overwrote():
    rows = rows_of(nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4)), torch.randn(5, 8))
    assert [rows[name].saved_bytes for name in "012"] == [5 * 8 * FLOAT, 5 * 16 * FLOAT, 0]


def test_views_of_one_storage_are_counted_once_and_in_full():
    class Slices(nn.Module):
        def forward(self, x):
            y = x * 2
            return y[:, :1] * y[:, 1:2] + y.view(-1, 2, 5)[:, 0, :1].exp()

    rows = rows_of(Slices(), torch.randn(6, 10, requires_grad=True))
    # all of y (three views of it), and the result of exp; the 2 is no tensor.
    assert rows[""].saved_bytes == (6 * 10 + 6) * FLOAT
    assert rows[""].output_bytes == 6 * FLOAT


def test_nothing_is_saved_without_gradients_or_for_results_nobody_uses():
    model = nn.Linear(8, 16).requires_grad_(False)
    assert rows_of(model, torch.randn(5, 8))[""].saved_bytes == 0

    class Wasteful(nn.Module):
        def forward(self, x):
            (x * x).exp()
            return x.sum()

    assert rows_of(Wasteful(), torch.randn(5, 8, requires_grad=True))[""].saved_bytes == 0


def test_saved_by_a_custom_function_and_by_the_loss_are_seen():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x * x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] * gradient

    class Inner(nn.Module):
        def forward(self, x):
            return Cube.apply(x)

    model = nn.Sequential(Inner())
    x = torch.randn(7, 3, requires_grad=True)
    rows = rows_of(model, x, loss=lambda y: y.square().sum())
    assert rows["0"].saved_bytes == 21 * FLOAT
    assert rows[""].own_saved_bytes == 21 * FLOAT  # the square outside saves the model's output
    assert rows[""].saved_bytes == 42 * FLOAT


def test_module_called_twice_and_shared_parameters():
    layer = nn.Linear(8, 8)
    rows = rows_of(nn.Sequential(layer, layer), torch.randn(5, 8))
    assert list(rows) == ["", "0"]
    assert (rows["0"].calls, rows["0"].output_bytes) == (2, 2 * 5 * 8 * FLOAT)
    assert rows[""].parameters == 72


def test_hooks_are_gone_after_a_failure():
    model = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(RuntimeError):
        rows_of(model, torch.randn(5, 7))
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks and not model._forward_hooks


def test_live_storages_follow_birth_death_and_views():
    with Storages() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        a.add_(1)
        assert (live.live, live.peak.total) == (4000, 4000)
        del a
        assert live.live == 4000  # the view holds it
        c = b + 1
        del b
        assert (live.live, live.peak.total) == (4000, 8000)
        live.restart()
        del c
        assert (live.live, live.peak.total) == (0, 0)


def test_purposes_and_the_allocator_of_cuda():
    with Storages(device="cuda") as live:
        weight = torch.zeros(1000)  # 4,000 bytes, of which CUDA allocates 4,096
        live.follow([weight], "parameters")
        kept = weight * 2
        live.save(kept)
        live.save(weight)  # stays a parameter
        kept + 1
    parts = dict(zip(PURPOSES, live.peak.parts, strict=True))
    assert parts == dict.fromkeys(PURPOSES, 0) | {"parameters": 4096, "saved": 4096, "temporaries": 4096}
    assert live.peak.total == 3 * 4096 and live.live == 2 * 4096


def test_flops_of_a_linear_layer_and_of_its_gradients():
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    rows = rows_of(model, torch.randn(5, 8), backward=True)
    products = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4
    assert [rows[name].forward_flops for name in "01"] == list(products)
    # Both weights have a gradient, and the first layer's output; the input has none.
    assert [rows[name].backward_flops for name in "01"] == [products[0], 2 * products[1]]
    assert rows[""].forward_flops == sum(products) and rows[""].own_backward_flops == 0


class Stack(nn.Module):
    """Two layers, each recomputed in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh()) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def test_checkpointed_layers_keep_their_inputs_and_compute_again():
    rows = rows_of(Stack(), torch.randn(5, 8), backward=True)
    assert rows[""].own_saved_bytes == rows[""].saved_bytes == 2 * 5 * 8 * FLOAT  # the inputs of both
    product = 2 * 5 * 8 * 8
    assert rows[""].forward_flops == 2 * product
    assert [rows[f"layers.{n}.0"].backward_flops for n in (0, 1)] == [2 * product, 3 * product]
    assert [rows[f"layers.{n}"].calls for n in (0, 1)] == [1, 1]


def test_temporaries_are_what_a_layer_frees_again():
    class Detour(nn.Module):
        def forward(self, x):
            return (x + 1 + 2 + 3).sum()

    rows = rows_of(nn.Sequential(Detour()), torch.randn(1000))
    # Two sums at a time, and at the end a number: 8,000 bytes, of which 4 stay.
    assert rows["0"].temporary_bytes == 2 * 1000 * FLOAT - FLOAT


def test_a_step_by_hand():
    """1 x 1000 through a bias-free 1000 x 1000 layer, so that everything else is small beside the weight."""
    model = nn.Linear(1000, 1000, bias=False)
    weight, vector = 1000 * 1000 * FLOAT, 1000 * FLOAT
    x = torch.randn(1, 1000)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    modules = Modules(model)
    modules.storages.follow(model.parameters(), "parameters")
    modules.storages.follow([x], "inputs")
    for _ in range(2):
        modules.restart()
        optimizer.zero_grad(set_to_none=True)
        with modules:
            model(x).sum().backward()
            optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values()]
        modules.storages.follow(state, "optimizer")
    storages = modules.storages
    parts = dict(zip(PURPOSES, storages.peak.parts, strict=True))
    assert (parts["parameters"], parts["gradients"], parts["inputs"]) == (weight, weight, vector)
    assert parts["optimizer"] == 2 * weight + FLOAT  # two moments and a step count
    assert storages.phase_peaks["forward"] == 3 * weight + 2 * vector + 2 * FLOAT  # input, output, sum, step count
    assert 4 * weight < storages.phase_peaks["backward"] < 4 * weight + 5 * vector
    assert storages.peak.phase == "update" and 0 < parts["temporaries"] <= 2 * weight
    assert storages.peak.total == sum(storages.peak.parts) == max(storages.phase_peaks.values())


def test_a_model_trains_as_before_after_profiling():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    rows_of(model, torch.randn(3, 4), backward=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_timeline_keeps_the_highest_moments_and_the_phases():
    width = len(PURPOSES)
    totals = [1, 9, 2, 3, 8, 4, 5, 7, 6, 1]
    phases = ["forward"] * 5 + ["backward"] * 5
    history = memoryview(b"".join(n.to_bytes(8, "little") + bytes(8 * (width - 1)) for n in totals)).cast("q")
    moments = timeline(history, phases, points=3)
    assert [(moment.operator, moment.phase, sum(moment.parts)) for moment in moments] == [
        (1, "forward", 9),
        (4, "forward", 8),
        (7, "backward", 7),
        (8, "backward", 6),
    ]


def test_layers_that_repeat_are_one_row_of_sums():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 8))
    rows = rows_of(blocks, torch.randn(5, 8))
    found = [(row.level, row.name, row.kind, row.count) for row in folded(list(rows.values()))]
    inside = [(2, "0", "Linear", 3), (2, "1", "Tanh", 3)]
    assert found == [(0, "", "Sequential", 1), (1, "0-2", "Sequential", 3), *inside, (1, "3", "Linear", 1)]
    table = layer_table(list(rows.values()))
    assert "0-2 (3 x)" in table and "216" in table  # 3 x (8 x 8 + 8) parameters
    assert len(layer_table(list(rows.values()), depth=0).splitlines()) == 2
    top = [row for row in folded(list(rows.values())) if row.level == 1]
    assert sum(row.sums["saved_bytes"] for row in top) == rows[""].saved_bytes == 4 * 5 * 8 * FLOAT


def test_names_inside_others():
    assert is_inside("a.b", "a") and is_inside("a", "a") and is_inside("a", "") and not is_inside("ab", "a")
