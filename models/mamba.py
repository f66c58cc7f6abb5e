"""Mamba and Mamba-2 mixers with the state-dict keys and shapes of mamba-ssm's `Mamba` and `Mamba2`.

Their mathematics is in `models/engine/reference.py`; shape letters as in `models/engine/interface.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.engine.backends import resolve
from models.engine.interface import causal_conv, selective_scan, ssd
from models.engine.reference import without_autocast
from models.padding import length_mask

NO_STEP = -1e4  # a raw step size whose softplus is 0, as is its gradient


class MixerState(NamedTuple):
    """The whole memory of a mixer: a sequence that continues from it is as if it had never been cut."""

    conv: Tensor  # (b, k-1, channels): the last inputs of the convolution
    ssm: Tensor  # (b, d, n), for Mamba-2 (b, h, p, n): the state of the recurrence


class StateSpaceMixer(nn.Module):
    """The common part of Mamba and Mamba-2: padding, packing, state. Both are causal, (b, l, d_model) to the same."""

    name: str  # of the mixer, for the backends
    state_shape: tuple[int, ...]  # of the recurrence's state, without the batch

    def __init__(
        self, d_model: int, projected: int, convolved: int, d_conv: int, bias: bool, conv_bias: bool, backend: str
    ) -> None:
        super().__init__()
        self.backend = backend
        self.in_proj = nn.Linear(d_model, projected, bias=bias)
        self.conv1d = nn.Conv1d(convolved, convolved, d_conv, groups=convolved, bias=conv_bias)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: MixerState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, MixerState]:
        """Maps x (b, l, d_model) to y of the same shape; with `return_state` also to the state after the last frame.

        lengths (b,): later frames are right padding, which affects neither other frames nor the state; the output there
        is meaningless. seq_idx (b, l), int32: numbers the sequences that are packed into a row one after the other.
        state: from an earlier call, to continue there.
        """
        valid = None if lengths is None else length_mask(lengths, x.shape[1]).unsqueeze(-1)
        if valid is not None:
            x = x.masked_fill(~valid, 0.0)  # a product would keep NaN, which padding may contain
        y, conv_input, ssm = self.mix(x, valid, seq_idx, state)
        if not return_state:
            return y
        return y, MixerState(self._conv_state(conv_input, lengths, state), ssm)

    def mix(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the output, the convolution's input, and the last state of the recurrence; valid (b, l, 1)."""
        raise NotImplementedError

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Processes the next frame, (b, d_model), or the next few, (b, l, d_model), of a stream."""
        if x.ndim == 3:
            return self(x, state=state, return_state=True)
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state

    def initial_state(self, batch: int) -> MixerState:
        """Returns the state before the first frame: zeros."""
        weight = self.conv1d.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        conv = weight.new_zeros(batch, weight.shape[2] - 1, weight.shape[0])
        return MixerState(conv, weight.new_zeros(batch, *self.state_shape, dtype=wide))

    def convolve(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Returns SiLU of the causal convolution of x (b, l, channels), and its input: x with padding set to zero."""
        if valid is not None and self.in_proj.bias is not None:
            x = x.masked_fill(~valid, 0.0)  # without a bias it is 0 there already
        before = None if state is None else state.conv.to(x.dtype)
        weight = self.conv1d.weight.squeeze(1)
        return causal_conv(x, weight, self.conv1d.bias, before, seq_idx, silu=True, backend=backend), x

    def _conv_state(self, x: Tensor, lengths: Tensor | None, state: MixerState | None) -> Tensor:
        """Returns the last k-1 valid inputs of the convolution, zeros or the old state's where there are fewer."""
        before = self.conv1d.weight.shape[2] - 1
        if lengths is None and x.shape[1] >= before:
            return x[:, x.shape[1] - before :].clone()  # a slice would keep all of x
        old = x.new_zeros(x.shape[0], before, x.shape[2]) if state is None else state.conv.to(x.dtype)
        x = torch.cat([old, x], dim=1)
        if lengths is None:
            return x[:, x.shape[1] - before :].clone()
        index = lengths.unsqueeze(1) + torch.arange(before, device=x.device)  # frame t is at index t + before
        return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


class Mamba(StateSpaceMixer):
    """Mamba mixer (Gu and Dao 2023, figure 3).

    dt_rank: None gives ceil(d_model / 16). dt_min, dt_max, dt_init_floor: the range of the initial step sizes, in
    frames. Raises ValueError for sizes below 1 and an empty range.
    """

    name = "mamba"

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        _require_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank)
        d_inner = expand * d_model
        super().__init__(d_model, 2 * d_inner, d_inner, d_conv, bias, conv_bias, backend)
        self.d_state, self.dt_rank = d_state, dt_rank
        self.state_shape = d_inner, d_state
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        self.dt_proj.bias = nn.Parameter(_initial_dt_bias(d_inner, dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        _exempt_from_decay(self.A_log, self.D, self.dt_proj.bias)

    def mix(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implements `StateSpaceMixer.mix`."""
        backend = resolve(self.backend, self.name, x.device.type)
        x, gate = self.in_proj(x).chunk(2, dim=-1)  # (b, l, d) each
        u, conv_input = self.convolve(x, valid, seq_idx, state, backend)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        with without_autocast(u.device.type):
            weight = self.dt_proj.weight
            dt = F.linear(dt.to(weight.dtype), weight)  # (b, l, d); the bias is added inside the scan
            A = -self.A_log.exp()
        if valid is not None:
            dt = dt.masked_fill(~valid, NO_STEP)
        before = None if state is None else state.ssm
        y, ssm = selective_scan(
            u, dt, A, B, C, self.D, gate, self.dt_proj.bias, before, seq_idx, dt_softplus=True, backend=backend
        )
        return self.out_proj(y), conv_input, ssm


class Mamba2(StateSpaceMixer):
    """Mamba-2 mixer (Dao and Gu 2024, figure 6).

    dt_min, dt_max, dt_init_floor: the range of the initial step sizes, in frames. Raises ValueError for sizes below 1,
    an empty range, and a headdim or ngroups that does not divide the channels or the heads.
    """

    name = "mamba2"

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        _require_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        _require_positive(headdim=headdim, ngroups=ngroups)
        d_inner = expand * d_model
        if d_inner % headdim:
            raise ValueError(f"headdim {headdim} must divide expand x d_model = {d_inner}")
        heads = d_inner // headdim
        if heads % ngroups:
            raise ValueError(f"ngroups {ngroups} must divide expand x d_model / headdim = {heads}")
        convolved = d_inner + 2 * ngroups * d_state
        super().__init__(d_model, d_inner + convolved + heads, convolved, d_conv, bias, conv_bias, backend)
        self.d_inner, self.d_state, self.headdim, self.ngroups = d_inner, d_state, headdim, ngroups
        self.state_shape = heads, headdim, d_state
        self.dt_bias = nn.Parameter(_initial_dt_bias(heads, dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(d_inner, d_inner // ngroups)
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        _exempt_from_decay(self.A_log, self.D, self.dt_bias)

    def mix(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implements `StateSpaceMixer.mix`."""
        backend = resolve(self.backend, self.name, x.device.type)
        states, heads = self.ngroups * self.d_state, len(self.A_log)
        gate, xBC, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * states, heads], dim=-1)
        xBC, conv_input = self.convolve(xBC, valid, seq_idx, state, backend)
        x, B, C = xBC.split([self.d_inner, states, states], dim=-1)
        if valid is not None:
            dt = dt.masked_fill(~valid, NO_STEP)
        y, ssm = ssd(
            rearrange(x, "b l (h p) -> b l h p", h=heads),
            dt.to(self.dt_bias.dtype),
            -self.A_log.exp(),
            rearrange(B, "b l (g n) -> b l g n", g=self.ngroups),
            rearrange(C, "b l (g n) -> b l g n", g=self.ngroups),
            self.D,
            self.dt_bias,
            None if state is None else state.ssm,
            seq_idx,
            dt_softplus=True,
            backend=backend,
        )
        y = rearrange(y, "b l h p -> b l (h p)")
        return self.out_proj(self.norm(y, gate)), conv_input, ssm


class GatedRMSNorm(nn.Module):
    """RMSNorm(x * silu(gate)) over groups of channels, the end of Mamba-2: (b, l, d), (b, l, d) -> (b, l, d)."""

    def __init__(self, dim: int, group_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.group_size = group_size

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x * F.silu(gate)
        normal = F.rms_norm(x.unflatten(-1, (-1, self.group_size)), (self.group_size,), eps=1e-5)
        return normal.flatten(-2) * self.weight


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} {size} must be at least 1")


def _initial_dt_bias(size: int, dt_min: float, dt_max: float, floor: float) -> Tensor:
    """Draws biases whose softplus is log-uniform in [dt_min, dt_max] and at least `floor`, in frames.

    Gu and Dao 2023, section 3.6. Raises ValueError for an empty range.
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min {dt_min} must be positive and at most dt_max = {dt_max}")
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(size) * (high - low) + low).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def _exempt_from_decay(*parameters: nn.Parameter) -> None:
    """Marks parameters that weight decay must not pull toward zero: that would change the model's time scales."""
    for parameter in parameters:
        parameter.no_weight_decay = True
