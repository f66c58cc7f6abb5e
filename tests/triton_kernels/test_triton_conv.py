"""The convolution in Triton."""

from __future__ import annotations

import pytest
import torch
from agreement import BOUNDS, error, kernels, on
from judge import cast, results
from test_engine import conv_inputs

from models.engine import Unsupported

# Rows, frames, channels and taps; what is left out.
CASES = [
    ((2, 7, 40, 4), ()),
    ((1, 1, 9, 4), ("seq_idx",)),
    ((1, 65, 8, 3), ("bias", "initial_state")),
    ((1, 70, 130, 4), ()),
    ((1, 66, 8, 1), ("seq_idx",)),
    ((2, 5, 9, 8), ()),
]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("sizes", "missing"), CASES)
def test_it_equals_the_definition(sizes, missing, dtype, device):
    """Tiles that end anywhere, states, packed rows; SiLU in all but one."""
    inputs = {name: value for name, value in conv_inputs(*sizes).items() if name not in missing}
    inputs = cast(inputs, dtype, "x", "initial_state") | {"silu": sizes[3] != 3}
    assert error("causal_conv", inputs, device) < BOUNDS[dtype]


def test_parts_of_wider_tensors_are_read_where_they_are(device):
    """Slices as of a projection, frames that are the same one, and channels that are not neighbors."""
    inputs = conv_inputs(2, 20, 16, 4)
    wider = torch.randn(2, 20, 40)
    for x in (wider[..., 3:19], wider[:, :1, :16].expand(2, 20, 16), wider[:, :16].transpose(1, 2)[:, :20]):
        assert error("causal_conv", inputs | {"x": x, "silu": True}, device) < BOUNDS[torch.float32]


def test_every_run_gives_the_same_bits(device):
    first, second = (results(on(device, "causal_conv"), conv_inputs(2, 40, 24, 4)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_it_cannot_compute_is_left_to_another_backend(device):
    inputs = {name: value.to(device) for name, value in conv_inputs(1, 5, 4, 9).items()}
    with pytest.raises(Unsupported, match="at most 8 taps, not 9"):
        kernels("causal_conv")(**inputs)
    with pytest.raises(Unsupported, match="32 and 16-bit floats, but x is torch.float64"):
        kernels("causal_conv")(**inputs | {"x": inputs["x"].double()})
