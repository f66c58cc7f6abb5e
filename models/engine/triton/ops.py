"""The operations of the Triton backend, which import triton when they are called."""

from __future__ import annotations

from torch import Tensor

from models.engine.inputs import ConvInputs, ScanInputs
from models.engine.triton.launch import require


def causal_conv(inputs: ConvInputs) -> Tensor:
    """Depthwise causal convolution of up to 8 taps; see `interface.causal_conv`.

    Raises Unsupported for more taps, for float64, and for tensors that are not on a CUDA device.
    """
    require("causal convolution", inputs, "x")
    from models.engine.triton.conv import causal_conv

    return causal_conv(inputs)


def selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba with its gate; see `interface.selective_scan`.

    u, dt, z, B and C in any of the kernels' dtypes; the last state is in float32. Raises Unsupported for float64, more
    than 256 states, and tensors that are not on a CUDA device.
    """
    require("selective scan", inputs, "u", "dt", "z", "B", "C")
    from models.engine.triton.selective_scan import selective_scan

    return selective_scan(inputs)
