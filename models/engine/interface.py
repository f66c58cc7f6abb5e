"""The operations of Mamba and Mamba-2, each with interchangeable backends.

`causal_conv`, `selective_scan` and `ssd` compute the same with every backend, to rounding; `models.engine.reference`
is their definition. Shape letters: b batch, l length, d channels, n state size, h heads, p channels of a head,
g groups, k taps. Of more than one frame, all three raise ValueError for shapes that do not fit together.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.engine import Unsupported, conv, decomposed, mamba_ssm, reference
from models.engine import selective_scan as torch_scan
from models.engine import ssd as torch_ssd
from models.engine.inputs import ConvInputs, Inputs, Operations, ScanInputs, SSDInputs, check_shapes
from models.engine.native import ops as native
from models.engine.triton import ops as triton

IMPLEMENTATIONS = {
    "torch": Operations(conv.causal_conv, torch_scan.selective_scan, torch_ssd.ssd),
    # SSD consists of matrix products, which torch's library does best.
    "native": Operations(native.causal_conv, native.selective_scan, torch_ssd.ssd),
    "triton": Operations(triton.causal_conv, triton.selective_scan, triton.ssd),
    "mamba_ssm": Operations(mamba_ssm.causal_conv, mamba_ssm.selective_scan, mamba_ssm.ssd),
    "decomposed": Operations(decomposed.causal_conv, decomposed.selective_scan, decomposed.ssd),
}


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    silu: bool = False,
    backend: str = "torch",
) -> Tensor:
    """Depthwise causal convolution, then SiLU if requested: y_t = bias + sum over j < k of weight_j x_{t-k+1+j}.

    x (b, l, d), weight (d, k), bias (d,); initial_state (b, k-1, d): the frames before x, zeros if None;
    seq_idx (b, l): frames before a change of it count as zeros from there on. Returns (b, l, d) in x's dtype.
    """
    inputs = ConvInputs(x, weight, bias, initial_state, seq_idx, silu)
    return _run(backend, "causal_conv", inputs) if x.shape[0] and x.shape[1] else reference.causal_conv(*inputs)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Selective scan of Mamba (Gu and Dao 2023, equations 2a, 2b, algorithm 2).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = (C_t h_t + D u_t) silu(z_t),
    delta = softplus(dt + dt_bias), in frames; without dt_softplus, delta = dt + dt_bias, which must not be negative

    u, dt, z (b, l, d); A (d, n) negative; B, C (b, l, n); D, dt_bias (d,); initial_state (b, d, n);
    seq_idx (b, l): where it changes, a new sequence starts from zeros. A delta of 0 leaves the state as it is.
    Returns y (b, l, d) in u's dtype and the last state (b, d, n), at least float32 as all decays and states are.
    """
    inputs = ScanInputs(u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus)
    if not u.shape[0] or u.shape[1] <= 1:
        return reference.selective_scan(*inputs)
    return _run(backend, "selective_scan", inputs)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """State-space duality of Mamba-2 (Dao and Gu 2024, section 6): `selective_scan` with one decay for a whole head.

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t^T,   y_t = h_t C_t + D x_t,   delta as in `selective_scan`

    x (b, l, h, p); dt (b, l, h); A (h,) negative; B, C (b, l, g, n) with g dividing h; D, dt_bias (h,);
    initial_state (b, h, p, n); seq_idx (b, l). Returns y (b, l, h, p) in x's dtype and the last state (b, h, p, n),
    at least float32.
    """
    inputs = SSDInputs(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus)
    if not x.shape[0] or x.shape[1] <= 1:
        return reference.ssd(*inputs)
    return _run(backend, "ssd", inputs)


def _run(backend: str, operation: str, inputs: Inputs) -> Any:
    """Calls a backend's implementation, or torch's where the backend cannot compute this particular call."""
    check_shapes(inputs)
    if inputs.seq_idx is not None:
        inputs = inputs._replace(seq_idx=reference.numbered(inputs.seq_idx))
    try:
        return getattr(IMPLEMENTATIONS[backend], operation)(inputs)
    except Unsupported:
        return getattr(IMPLEMENTATIONS["torch"], operation)(inputs)
