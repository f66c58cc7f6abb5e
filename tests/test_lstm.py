"""The LSTM under autocast, on whatever CPU this is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from models.lstm import LSTM


@pytest.mark.parametrize("packed", [None, (9, 6), (9, 9)])  # oneDNN takes packed sequences of equal lengths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_float32(dtype, packed, seed):
    """Outputs, states and gradients, within 8 roundings of the largest, also where oneDNN has no such kernel."""
    torch.manual_seed(seed)
    lstm, x = LSTM(12, 8, batch_first=True), torch.randn(2, 9, 12)
    state = torch.randn(1, 2, 8).to(dtype), torch.randn(1, 2, 8).to(dtype)

    def run(enabled):
        leaf = x.clone().requires_grad_()
        given = pack_padded_sequence(leaf, torch.tensor(packed), batch_first=True) if packed else leaf
        with torch.autocast("cpu", dtype, enabled=enabled):
            y, last = lstm(given, None if packed else state if enabled else tuple(part.float() for part in state))
        y = y.data if packed else y
        return (
            y,
            *last,
            *torch.autograd.grad(y.float().square().sum() + last[1].float().sum(), [leaf, *lstm.parameters()]),
        )

    for got, want in zip(run(True), run(False), strict=True):
        assert (got.float() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


def test_without_autocast_it_is_torchs():
    torch.manual_seed(0)
    ours, x = LSTM(5, 4, batch_first=True), torch.randn(3, 7, 5)
    theirs = nn.LSTM(5, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x)[0], theirs(x)[0])
