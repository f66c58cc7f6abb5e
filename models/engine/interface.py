"""The operations of Mamba and Mamba-2, each with interchangeable backends.

`causal_conv`, `selective_scan` and `ssd` compute the same with every backend, to rounding; `models.engine.reference`
defines what. Shape letters: B batch, L length, D channels, N state size, H heads, P channels of a head, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from models.engine import Unsupported, conv, decomposed, mamba_ssm, reference
from models.engine import selective_scan as torch_scan
from models.engine import ssd as torch_ssd
from models.engine.native import ops as native

CONVOLUTIONS = {
    "torch": conv.causal_conv,
    "native": native.causal_conv,
    "mamba_ssm": mamba_ssm.causal_conv,
    "decomposed": decomposed.causal_conv,
}
SELECTIVE_SCANS = {
    "torch": torch_scan.selective_scan,
    "native": native.selective_scan,
    "mamba_ssm": mamba_ssm.selective_scan,
    "decomposed": decomposed.selective_scan,
}
SSDS = {
    "torch": torch_ssd.ssd,
    "native": torch_ssd.ssd,  # made of matrix products, which torch's library does best
    "mamba_ssm": mamba_ssm.ssd,
    "decomposed": decomposed.ssd,
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
    """Depth-wise causal convolution, then SiLU if asked: y_t = bias + sum over k of weight_k x_{t - K + 1 + k}.

    x (B, L, D), weight (D, K), bias (D,), initial_state (B, K-1, D): the frames before x, zeros if None;
    seq_idx (B, L): frames of another number count as zeros. Returns (B, L, D) in x's dtype.
    """
    return _run(CONVOLUTIONS, backend, x, weight, bias, initial_state, seq_idx, silu=silu)


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

    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t,   y_t = (C_t h_t + D u_t) silu(z_t), Delta = softplus(dt + dt_bias)

    u, dt, z (B, L, D); A (D, N) negative; B, C (B, L, N); D, dt_bias (D,); initial_state (B, D, N);
    seq_idx (B, L): where it changes, a new sequence starts from zeros. A Delta of 0 leaves the state as it is.
    Returns y (B, L, D) in u's dtype and the last state (B, D, N), at least float32 as all decays and states are.
    """
    if u.shape[1] == 1:
        return reference.selective_scan(u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dt_softplus=dt_softplus)
    tensors = u, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx
    return _run(SELECTIVE_SCANS, backend, *tensors, dt_softplus=dt_softplus)


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

    x (B, L, H, P); dt (B, L, H); A (H,) negative; B, C (B, L, G, N) with G dividing H; D, dt_bias (H,);
    initial_state (B, H, P, N); seq_idx (B, L). Returns y (B, L, H, P) in x's dtype and the last state (B, H, P, N).
    """
    if x.shape[1] == 1:
        return reference.ssd(x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus=dt_softplus)
    return _run(SSDS, backend, x, dt, A, B, C, D, dt_bias, initial_state, seq_idx, dt_softplus=dt_softplus)


def _run(implementations: dict[str, Callable[..., Any]], backend: str, *tensors: Tensor | None, **options: bool) -> Any:
    """Calls a backend's implementation, or torch's where the backend cannot compute this very call."""
    try:
        return implementations[backend](*tensors, **options)
    except Unsupported:
        return implementations["torch"](*tensors, **options)
