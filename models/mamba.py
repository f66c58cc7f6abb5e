"""Mamba and Mamba-2 mixers with the state-dict keys and shapes of mamba-ssm's `Mamba` and `Mamba2`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.engine.backends import resolve
from models.engine.interface import causal_conv, selective_scan, ssd

NO_STEP = -1e4  # a raw step size whose softplus is 0, and its gradient too


class MixerState(NamedTuple):
    """All that a mixer remembers: enough to go on as if the sequence had never been cut."""

    conv: Tensor  # (B, K - 1, channels): the last inputs of the convolution
    ssm: Tensor  # (B, D, N), of Mamba-2 (B, H, P, N): the state of the recurrence


def length_mask(lengths: Tensor, length: int) -> Tensor:
    """True on valid frames: (B,) -> (B, length)."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


class StateSpaceMixer(nn.Module):
    """What Mamba and Mamba-2 share: padding, packing, state. Both are causal: (B, L, d_model) -> (B, L, d_model)."""

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
        """x (B, L, d_model) -> y of the same shape; with `return_state` also the state after the last valid frame.

        lengths (B,): later frames are right padding; they reach neither other frames nor the state, and what comes out
        at them means nothing. seq_idx (B, L), int32: numbers the sequences that are packed into a row one after the
        other. state: that which an earlier call returned, to go on from there.
        """
        valid = None if lengths is None else length_mask(lengths, x.shape[1]).unsqueeze(-1)
        if valid is not None:
            x = x.masked_fill(~valid, 0.0)  # a product would keep NaN, and padding may hold anything
        y, conv_input, ssm = self.mix(x, valid, seq_idx, state)
        if not return_state:
            return y
        return y, MixerState(self._conv_state(conv_input, lengths, state), ssm)

    def mix(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixer itself: the output, the convolution's input, the last state; valid (B, L, 1)."""
        raise NotImplementedError

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """The next frame, (B, d_model), or the next few, (B, L, d_model), of a stream."""
        if x.ndim == 3:
            return self(x, state=state, return_state=True)
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state

    def initial_state(self, batch: int) -> MixerState:
        """The state before the first frame: zeros."""
        weight = self.conv1d.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        conv = weight.new_zeros(batch, weight.shape[2] - 1, weight.shape[0])
        return MixerState(conv, weight.new_zeros(batch, *self.state_shape, dtype=wide))

    def convolve(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """SiLU of the causal convolution of x (B, L, channels), and x as the convolution saw it."""
        if valid is not None and self.in_proj.bias is not None:
            x = x.masked_fill(~valid, 0.0)  # without a bias it is 0 there already
        before = None if state is None else state.conv.to(x.dtype)
        weight = self.conv1d.weight.squeeze(1)
        return causal_conv(x, weight, self.conv1d.bias, before, seq_idx, silu=True, backend=backend), x

    def _conv_state(self, x: Tensor, lengths: Tensor | None, state: MixerState | None) -> Tensor:
        """The last K - 1 valid inputs of the convolution, zeros or the old state's where there are fewer."""
        before = self.conv1d.weight.shape[2] - 1
        if lengths is None and x.shape[1] >= before:
            return x[:, x.shape[1] - before :]
        old = x.new_zeros(x.shape[0], before, x.shape[2]) if state is None else state.conv.to(x.dtype)
        x = torch.cat([old, x], dim=1)
        if lengths is None:
            return x[:, x.shape[1] - before :]
        index = lengths.unsqueeze(1) + torch.arange(before, device=x.device)  # frame t stands at t + before
        return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


class Mamba(StateSpaceMixer):
    """Mamba mixer (Gu and Dao 2023, figure 3)."""

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
        bias: bool = False,
        conv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        d_inner = expand * d_model
        super().__init__(d_model, 2 * d_inner, d_inner, d_conv, bias, conv_bias, backend)
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(d_model / 16)
        self.state_shape = d_inner, d_state
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias = nn.Parameter(_initial_dt_bias(d_inner, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        _exempt_from_decay(self.A_log, self.D, self.dt_proj.bias)

    def mix(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `StateSpaceMixer.mix`."""
        backend = resolve(self.backend, self.name, x.device.type)
        x, gate = self.in_proj(x).chunk(2, dim=-1)  # (B, L, d_inner) each
        u, conv_input = self.convolve(x, valid, seq_idx, state, backend)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        with torch.autocast(u.device.type, enabled=False):
            weight = self.dt_proj.weight
            dt = F.linear(dt.to(weight.dtype), weight)  # (B, L, d_inner); the bias is added inside the scan
            A = -self.A_log.exp()
        if valid is not None:
            dt = dt.masked_fill(~valid, NO_STEP)
        before = None if state is None else state.ssm
        y, ssm = selective_scan(
            u, dt, A, B, C, self.D, gate, self.dt_proj.bias, before, seq_idx, dt_softplus=True, backend=backend
        )
        return self.out_proj(y), conv_input, ssm


class Mamba2(StateSpaceMixer):
    """Mamba-2 mixer (Dao and Gu 2024, figure 6)."""

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
        bias: bool = False,
        conv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        d_inner = expand * d_model
        if d_inner % headdim:
            raise ValueError(f"expand * d_model = {d_inner} must be a multiple of headdim = {headdim}")
        heads = d_inner // headdim
        if heads % ngroups:
            raise ValueError(f"the number of heads, {heads}, must be a multiple of ngroups = {ngroups}")
        convolved = d_inner + 2 * ngroups * d_state
        super().__init__(d_model, d_inner + convolved + heads, convolved, d_conv, bias, conv_bias, backend)
        self.d_inner, self.d_state, self.headdim, self.ngroups = d_inner, d_state, headdim, ngroups
        self.state_shape = heads, headdim, d_state
        self.dt_bias = nn.Parameter(_initial_dt_bias(heads, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(d_inner, d_inner // ngroups)
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        _exempt_from_decay(self.A_log, self.D, self.dt_bias)

    def mix(
        self, x: Tensor, valid: Tensor | None, seq_idx: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `StateSpaceMixer.mix`."""
        backend = resolve(self.backend, self.name, x.device.type)
        states, heads = self.ngroups * self.d_state, len(self.A_log)
        gate, xBC, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * states, heads], dim=-1)
        xBC, conv_input = self.convolve(xBC, valid, seq_idx, state, backend)
        x, B, C = xBC.split([self.d_inner, states, states], dim=-1)
        if valid is not None:
            dt = dt.masked_fill(~valid, NO_STEP)
        y, ssm = ssd(
            x.unflatten(-1, (heads, self.headdim)),
            dt.to(self.dt_bias.dtype),
            -self.A_log.exp(),
            B.unflatten(-1, (self.ngroups, self.d_state)),
            C.unflatten(-1, (self.ngroups, self.d_state)),
            self.D,
            self.dt_bias,
            None if state is None else state.ssm,
            seq_idx,
            dt_softplus=True,
            backend=backend,
        )
        return self.out_proj(self.norm(y.flatten(2), gate)), conv_input, ssm


class GatedRMSNorm(nn.Module):
    """RMSNorm(x * silu(gate)) over groups of channels, as Mamba-2 ends: (B, L, D), (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, group_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.group_size, self.eps = group_size, eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x * F.silu(gate)
        normal = F.rms_norm(x.unflatten(-1, (-1, self.group_size)), (self.group_size,), eps=self.eps)
        return normal.flatten(-2) * self.weight


def _initial_dt_bias(size: int, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high], in frames (Gu and Dao 2023, section 3.6)."""
    dt = torch.exp(torch.rand(size) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def _exempt_from_decay(*parameters: nn.Parameter) -> None:
    """Marks parameters that the optimizer must not pull towards zero: that would change the model's time scales."""
    for parameter in parameters:
        parameter.no_weight_decay = True
