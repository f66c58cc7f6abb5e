"""An LSTM for mixed precision on any CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# The 16-bit types in which torch 2.13 calls oneDNN's LSTM, though oneDNN has none for this CPU.
MISSING = frozenset(
    dtype
    for dtype, name in _NAMES.items()
    if torch.backends.mkldnn.is_available() and not getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
)


class LSTM(nn.LSTM):
    """torch's LSTM (Hochreiter and Schmidhuber 1997); in float32 under an autocast for which this CPU has no kernel.

    So it is on x86 without AVX-512.
    """

    def forward(
        self, x: Tensor | PackedSequence, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        if x.data.device.type != "cpu" or not _falls_short():
            return super().forward(x, state)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float(), None if state is None else (state[0].float(), state[1].float()))


def _falls_short() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") in MISSING
