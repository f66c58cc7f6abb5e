"""The operations of the Triton backend, which import triton when they are called."""

from __future__ import annotations

from torch import Tensor

from models.engine.inputs import ConvInputs, ScanInputs, SSDInputs
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


def ssd(inputs: SSDInputs) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2, whose products run in x's dtype; see `interface.ssd`.

    The last state is in float32. Products of float32 are exact where torch.get_float32_matmul_precision() is "highest",
    as it is unless set otherwise, and TF32 elsewhere. Raises Unsupported for float64, more than 256 states or channels
    of a head, and tensors that are not on a CUDA device.
    """
    require("SSD", inputs, "x")
    from models.engine.triton.ssd import ssd

    return ssd(inputs)
