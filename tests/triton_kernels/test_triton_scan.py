"""The selective scan in Triton."""

from __future__ import annotations

import pytest
import torch
from agreement import BOUNDS, error, kernels, on
from judge import cast, results
from test_engine import hard_cases, scan_inputs
from torch import Tensor

from models.engine import Unsupported
from models.engine.triton import selective_scan
from models.engine.triton.launch import INTERPRETED

# Rows, frames, channels and states; what is left out.
CASES = [
    ((2, 7, 40, 16), ()),
    ((1, 1, 9, 3), ("seq_idx",)),
    ((1, 65, 8, 5), ("seq_idx", "z", "D")),
    ((1, 150, 20, 1), ("dt_bias", "initial_state")),
    ((1, 12, 5, 33), ()),
    ((1, 10, 9, 64), ("D",)),
    ((1, 9, 10, 256), ("z",)),
]


def given(sizes: tuple[int, ...], *missing: str) -> dict[str, Tensor]:
    inputs = {name: value for name, value in scan_inputs(*sizes).items() if name not in missing}
    return inputs | {"dt_softplus": True}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("sizes", "missing"), CASES)
def test_it_equals_the_definition(sizes, missing, dtype, device):
    """Tiles and chunks that end anywhere, any number of states, packed rows. Steps are in float32, as in a model."""
    inputs = cast(given(sizes, *missing), dtype, "u", "z", "B", "C")
    assert error("selective_scan", inputs, device) < BOUNDS[dtype]


def test_steps_may_be_rounded_as_well(device):
    inputs = cast(given((1, 20, 8, 4)), torch.bfloat16, "u", "dt", "z", "B", "C")
    assert error("selective_scan", inputs, device) < BOUNDS[torch.bfloat16]


def test_steps_without_softplus_and_decays_to_nothing(device):
    inputs = given((1, 40, 8, 4), "dt_bias") | {"dt_softplus": False}
    inputs["dt"] = torch.rand(1, 40, 8) * torch.tensor([0.0, 1e-3, 1.0, 1e3]).repeat(10)[:, None]
    assert error("selective_scan", inputs, device) < BOUNDS[torch.float32]


@pytest.mark.parametrize("missing", [(), ("seq_idx", "z", "initial_state")])
def test_rows_in_segments(missing, device, monkeypatch):
    """Where rows and channels are few, programs share a row: three segments, the last of them short."""
    monkeypatch.setattr(selective_scan, "SHORTEST", selective_scan.SAVE)
    inputs = given((2, 150, 8, 4), *missing)
    plan = selective_scan._plan(selective_scan.ScanInputs(**inputs), selective_scan.BACKWARD)
    assert plan.segments == 3
    assert error("selective_scan", inputs, device) < BOUNDS[torch.float32]


@pytest.mark.parametrize("case", ["slow, constant", "slow, random", "hard"])
def test_precision_over_many_frames(case, device):
    """3e-6 of the maximum where states last: without their dither, decays lose 5e-6 by rounding.

    A GPU's powers of two are approximate, to 2^-22: they may err alike in all of 1,000 frames, by 3e-4 in the end.
    """
    length = 1000
    dt, A = hard_cases(length)[case]
    draw = torch.Generator().manual_seed(4)
    inputs = {name: torch.randn(1, length, size, generator=draw) for name, size in (("u", 4), ("B", 4), ("C", 4))}
    inputs |= {"dt": dt[:1, :, :4], "A": A[:4, :4]}
    bound = 3e-4 if "slow" in case and not INTERPRETED else 3e-6
    assert error("selective_scan", inputs, device) < bound


def test_zero_steps_keep_the_state_to_the_last_bit(device):
    inputs = given((2, 40, 6, 4), "seq_idx")
    inputs["dt"] = torch.full_like(inputs["dt"], -1e4)
    got = results(on(device, "selective_scan"), inputs)
    assert torch.equal(got["output 1"], inputs["initial_state"].detach())


def test_small_steps_are_as_exact_as_large_ones(device):
    """Steps of 3e-5 to 20: each state is one step times its input, to 1e-6 of itself; so are gradients of dt."""
    raw = torch.linspace(-10, 20, 61)
    inputs = {"u": torch.ones(61, 1, 1), "dt": raw[:, None, None], "A": torch.full((1, 1), -1e-30)}
    inputs |= {"B": torch.ones(61, 1, 1), "C": torch.zeros(61, 1, 1), "dt_softplus": True}
    leaf = inputs["dt"].to(device).requires_grad_()
    _, state = kernels("selective_scan")(
        **{n: v.to(device) if n != "dt_softplus" else v for n, v in inputs.items()} | {"dt": leaf}
    )
    (gradient,) = torch.autograd.grad(state.sum(), leaf)
    torch.testing.assert_close(state.detach().cpu().double().flatten(), raw.double().exp().log1p(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.cpu().double().flatten(), raw.double().sigmoid(), rtol=1e-6, atol=0)


def test_parts_of_wider_tensors_are_read_where_they_are(device):
    """Slices as of a projection, and channels that are not neighbors, which are copied."""
    inputs = given((2, 20, 16, 4))
    wider, projected = torch.randn(2, 20, 40), torch.randn(2, 20, 11)
    inputs |= {"u": wider[..., 3:19], "z": wider[..., 19:35], "B": projected[..., 3:7], "C": projected[..., 7:]}
    inputs["dt"] = (torch.randn(2, 16, 20) - 3).transpose(1, 2)
    assert error("selective_scan", inputs, device) < BOUNDS[torch.float32]


def test_every_run_gives_the_same_bits(device):
    first, second = (results(on(device, "selective_scan"), given((2, 70, 24, 16))) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_it_cannot_compute_is_left_to_another_backend(device):
    inputs = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in given((1, 5, 4, 257)).items()}
    with pytest.raises(Unsupported, match="at most 256 states, not 257"):
        kernels("selective_scan")(**inputs)
    with pytest.raises(Unsupported, match="32 and 16-bit floats, but dt is torch.float64"):
        kernels("selective_scan")(**inputs | {"dt": inputs["dt"].double()})
