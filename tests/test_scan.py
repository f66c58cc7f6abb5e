"""The state-space mathematics against a sequential float64 loop written from the papers' recurrences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.scan import causal_conv, selective_scan, ssd


def reference_scan(u, dt, A, B, C, D, state):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = C_t h_t + D u_t, one frame after the other."""
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)
        state = decay * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, 1), state


def reference_ssd(x, dt, A, B, C, D, state):
    """The same with one decay per head and groups of heads that share B and C."""
    per_group = x.shape[2] // B.shape[2]
    outputs = []
    for t in range(x.shape[1]):
        B_t = B[:, t].repeat_interleave(per_group, 1)
        C_t = C[:, t].repeat_interleave(per_group, 1)
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B_t[:, :, None, :]
        state = torch.exp(dt[:, t] * A)[..., None, None] * state + drive
        outputs.append((state * C_t[:, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(outputs, 1), state


def scan_inputs(length, dtype=torch.float64, strong=False):
    generator = torch.Generator().manual_seed(length)
    batch, channels, states = 2, 6, 4

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = F.softplus(draw(batch, length, channels) - (0 if strong else 3))
    A = -torch.arange(1.0, states + 1, dtype=torch.float64).repeat(channels, 1) * (4 if strong else 1)
    inputs = (draw(batch, length, channels), dt, A, draw(batch, length, states), draw(batch, length, states))
    inputs += (draw(channels), draw(batch, channels, states))
    return [tensor.to(dtype) for tensor in inputs]


def ssd_inputs(length, dtype=torch.float64, strong=False):
    generator = torch.Generator().manual_seed(length)
    batch, heads, size, groups, states = 2, 4, 3, 2, 5

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = F.softplus(draw(batch, length, heads) - (0 if strong else 3))
    A = -torch.linspace(1, 16, heads, dtype=torch.float64)
    inputs = (draw(batch, length, heads, size), dt, A)
    inputs += (draw(batch, length, groups, states), draw(batch, length, groups, states))
    inputs += (draw(heads), draw(batch, heads, size, states))
    return [tensor.to(dtype) for tensor in inputs]


CASES = pytest.mark.parametrize(
    ("function", "reference", "make"),
    [(selective_scan, reference_scan, scan_inputs), (ssd, reference_ssd, ssd_inputs)],
    ids=["mamba", "mamba2"],
)


def with_gradients(function, inputs):
    """Outputs and the gradients of a fixed random projection of both outputs with respect to every input."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    y, state = function(*inputs)
    generator = torch.Generator().manual_seed(7)
    loss = sum((out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in (y, state))
    return [y, state, *torch.autograd.grad(loss, inputs)]


def assert_close(results, expected, bound):
    for result, want in zip(results, expected, strict=True):
        assert torch.isfinite(result).all()
        assert (result.double() - want).abs().max() <= bound * want.abs().max()


@CASES
@pytest.mark.parametrize("length", [1, 31, 64, 65, 150])
def test_equals_the_recurrence_in_float64(function, reference, make, length):
    inputs = make(length)
    assert_close(with_gradients(function, inputs), with_gradients(reference, inputs), 1e-12)


@CASES
@pytest.mark.parametrize("strong", [False, True])
def test_float32_stays_within_1e5_of_float64_on_a_long_sequence(function, reference, make, strong):
    """Bound 2e-5 of the maximum, output and every gradient, L = 1600, where a cumsum scan is 79 % off."""
    inputs = make(1600, torch.float32, strong)
    expected = with_gradients(reference, [tensor.double() for tensor in inputs])
    assert_close(with_gradients(function, inputs), expected, 2e-5)


@CASES
def test_a_sequence_continued_from_its_state_equals_the_whole(function, reference, make):
    u, dt, A, B, C, D, state = make(100)
    whole, final = function(u, dt, A, B, C, D, state)
    first, middle = function(u[:, :37], dt[:, :37], A, B[:, :37], C[:, :37], D, state)
    second, last = function(u[:, 37:], dt[:, 37:], A, B[:, 37:], C[:, 37:], D, middle)
    assert_close([torch.cat([first, second], 1), last], [whole, final], 1e-12)


@CASES
def test_zero_steps_leave_the_state(function, reference, make):
    u, dt, A, B, C, D, state = make(40)
    _, final = function(u, torch.zeros_like(dt), A, B, C, D, state)
    assert torch.equal(final, state)


@CASES
def test_autocast_does_not_lower_the_precision_of_the_recurrence(function, reference, make):
    u, dt, A, B, C, D, state = make(90, torch.float32)
    plain, _ = function(u, dt, A, B, C, D)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, final = function(u, dt, A, B, C, D)
    assert mixed.dtype == torch.float32 and final.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_causal_conv_equals_torch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 1, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight, bias, groups=5).transpose(1, 2)
    assert torch.allclose(causal_conv(x, weight, bias), expected, atol=1e-13)
    assert torch.allclose(causal_conv(x, weight, None), expected - bias, atol=1e-13)
