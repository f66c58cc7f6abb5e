"""The mixers under comparison: ours by backend, ours without a scan, and the peers, all with the same weights.

A system is named here without importing anything; `build` makes its module inside the process that measures it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

STATE = {"mamba": 16, "mamba2": 64}  # d_state of the grid; heads of Mamba-2 have 64 channels
CHUNKS = (32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the tables: `source` is the peer it comes from (benchmarks/peers.py), None if it is ours."""

    name: str
    mixer: str
    title: str
    source: str | None
    build: Callable[[System, int, Path | None, int | None], nn.Module]
    chunks: tuple[int, ...] = ()  # chunk sizes to choose the best from, cell by cell
    backend: str = "torch"

    @property
    def without_scan(self) -> bool:
        return self.name.startswith(("no-scan", "free-scan"))

    @property
    def is_peer(self) -> bool:
        return self.source is not None


def reference_mixer(mixer: str, d_model: int) -> nn.Module:
    """Our mixer around the sequential reference scan and torch's own convolution: the truth for all others."""
    import torch.nn.functional as F

    from models.engine import reference

    def convolve(x: Any, conv1d: Any) -> Any:
        weight, bias = conv1d.weight, conv1d.bias
        y = F.conv1d(x.transpose(1, 2), weight, bias, padding=weight.shape[2] - 1, groups=len(weight))
        return F.silu(y[:, :, : x.shape[1]].transpose(1, 2))

    scan = reference.selective_scan if mixer == "mamba" else reference.ssd
    return _mixer_around(mixer, d_model, lambda *inputs: scan(*inputs)[0], convolve)


def _ours(system: System, d_model: int, folder: Path | None, chunk: int | None) -> nn.Module:
    from models.mamba import Mamba, Mamba2

    return (Mamba if system.mixer == "mamba" else Mamba2)(d_model, backend=system.backend)


def _no_scan(system: System, d_model: int, folder: Path | None, chunk: int | None) -> nn.Module:
    if system.mixer == "mamba":
        return _mixer_around("mamba", d_model, lambda u, dt, A, B, C, D: u * D)
    return _mixer_around("mamba2", d_model, lambda x, dt, A, B, C, D: x * D[:, None])


def _free_scan(system: System, d_model: int, folder: Path | None, chunk: int | None) -> nn.Module:
    import torch

    class FreeScan(torch.autograd.Function):
        """As no scan, but with gradients of dt, B and C, so that the projections that make them have a backward."""

        @staticmethod
        def forward(ctx: Any, u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
            ctx.save_for_backward(A, D)
            ctx.d_state = B.shape[-1]
            return u * D

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            A, D = ctx.saved_tensors
            part = dy[..., : ctx.d_state]
            return dy * D, dy, torch.zeros_like(A), part, part, torch.zeros_like(D)

    return _mixer_around("mamba", d_model, FreeScan.apply)


def _engine_convolution(mixer: str) -> Callable[..., Any]:
    """SiLU of the causal convolution by the fastest backend of ours."""
    from models.engine.backends import resolve
    from models.engine.interface import causal_conv

    backend = resolve("auto", mixer, "cpu")
    return lambda x, conv1d: causal_conv(x, conv1d.weight.squeeze(1), conv1d.bias, silu=True, backend=backend)


def _mixer_around(
    mixer: str, d_model: int, scan: Callable[..., Any], convolve: Callable[..., Any] | None = None
) -> nn.Module:
    """Our mixer with `scan` (u or x, dt, A, B, C, D as in models.engine.reference) in place of its own."""
    import torch.nn.functional as F

    from models.mamba import Mamba, Mamba2

    convolve = convolve or _engine_convolution(mixer)

    class MambaAround(Mamba):
        def forward(self, x: Any) -> Any:
            x, gate = self.in_proj(x).chunk(2, dim=-1)
            u = convolve(x, self.conv1d)
            dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
            y = scan(u, F.softplus(self.dt_proj(dt)), -self.A_log.exp(), B, C, self.D)
            return self.out_proj(y * F.silu(gate))

    class Mamba2Around(Mamba2):
        def forward(self, x: Any) -> Any:
            states = self.ngroups * self.d_state
            sizes = [self.d_inner, self.d_inner + 2 * states, len(self.A_log)]
            gate, xBC, dt = self.in_proj(x).split(sizes, dim=-1)
            x, B, C = convolve(xBC, self.conv1d).split([self.d_inner, states, states], dim=-1)
            x = x.unflatten(-1, (-1, self.headdim))
            B, C = (part.unflatten(-1, (self.ngroups, self.d_state)) for part in (B, C))
            y = scan(x, F.softplus(dt + self.dt_bias), -self.A_log.exp(), B, C, self.D)
            return self.out_proj(self.norm(y.flatten(2), gate))

    return (MambaAround if mixer == "mamba" else Mamba2Around)(d_model)


def _mambapy(system: System, d_model: int, folder: Path, chunk: int | None) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=d_model, n_layers=1, d_state=STATE["mamba"]))


def _transformers(system: System, d_model: int, folder: Path, chunk: int | None) -> nn.Module:
    from utils.features.mel import import_torchaudio

    import_torchaudio()  # transformers imports it where it is installed, and it fails beside a CPU-only torch
    if system.mixer == "mamba":
        from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

        pscan = system.name == "transformers-mambapy"
        config = MambaConfig(hidden_size=d_model, state_size=STATE["mamba"], num_hidden_layers=1, use_mambapy=pscan)
        return MambaMixer(config, layer_idx=0)
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    heads = {"num_heads": 2 * d_model // 64, "head_dim": 64, "n_groups": 1}
    shape = {"hidden_size": d_model, "state_size": STATE["mamba2"], "num_hidden_layers": 1}
    return Mamba2Mixer(Mamba2Config(**shape, **heads, chunk_size=chunk), layer_idx=0)


def _mamba_minimal(system: System, d_model: int, folder: Path, chunk: int | None) -> nn.Module:
    model = _module(folder / "mamba-minimal" / "model.py")
    return model.MambaBlock(model.ModelArgs(d_model=d_model, n_layer=1, vocab_size=8, d_state=STATE["mamba"]))


def _mamba_tiny(system: System, d_model: int, folder: Path, chunk: int | None) -> nn.Module:
    model = _module(folder / "mamba-tiny" / "model.py")
    mode = "logcumsumexp" if system.name == "mamba-tiny-log" else "cumsum"
    arguments = {"n_layer": 1, "vocab_size": 8, "d_state": STATE["mamba"], "scan_mode": mode}
    return model.MambaBlock(model.ModelArgs(d_model=d_model, **arguments))


def _mamba2_minimal(system: System, d_model: int, folder: Path, chunk: int | None) -> nn.Module:
    model = _module(folder / "mamba2-minimal" / "mamba2.py")
    return model.Mamba2(model.Mamba2Config(d_model=d_model, n_layer=1, d_state=STATE["mamba2"], chunk_size=chunk))


def _mamba_ssm_scan(system: System, d_model: int, folder: Path, chunk: int | None) -> nn.Module:
    path = folder / "mamba" / "mamba_ssm" / "ops" / "selective_scan_interface.py"
    reference = _functions({path: ["selective_scan_ref"]})["selective_scan_ref"]

    def scan(u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
        u, dt, B, C = (tensor.transpose(1, 2) for tensor in (u, dt, B, C))
        return reference(u, dt, A, B, C, D).transpose(1, 2)

    return _mixer_around("mamba", d_model, scan)


def _mamba_ssm_minimal(system: System, d_model: int, folder: Path, chunk: int) -> nn.Module:
    path = folder / "mamba" / "mamba_ssm" / "modules" / "ssd_minimal.py"
    minimal = _functions({path: ["segsum", "ssd_minimal_discrete"]})["ssd_minimal_discrete"]

    def scan(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
        return minimal(x * dt.unsqueeze(-1), A * dt, B, C, chunk)[0] + x * D[:, None]

    return _mixer_around("mamba2", d_model, scan)


def _mamba_ssm_combined(system: System, d_model: int, folder: Path, chunk: int) -> nn.Module:
    triton = folder / "mamba" / "mamba_ssm" / "ops" / "triton"
    parts = {
        triton / "ssd_chunk_state.py": ["chunk_state_ref"],
        triton / "ssd_state_passing.py": ["state_passing_ref"],
        triton / "ssd_chunk_scan.py": ["chunk_scan_ref"],
        triton / "ssd_combined.py": ["ssd_chunk_scan_combined_ref"],
    }
    combined = _functions(parts)["ssd_chunk_scan_combined_ref"]
    return _mixer_around("mamba2", d_model, lambda x, dt, A, B, C, D: combined(x, dt, A, B, C, chunk, D))


def _module(path: Path) -> Any:
    """A peer's file as a module; its neighbors can be imported by their bare names, as it does."""
    sys.path.append(str(path.parent))
    specification = importlib.util.spec_from_file_location(f"peer_{path.parent.name.replace('-', '_')}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # where a dataclass looks up its own module
    specification.loader.exec_module(module)
    return module


def _functions(names: dict[Path, list[str]]) -> dict[str, Callable[..., Any]]:
    """Plain torch functions out of files that cannot be imported without CUDA."""
    import torch
    import torch.nn.functional as F
    from einops import rearrange, repeat

    space: dict[str, Any] = {"torch": torch, "F": F, "rearrange": rearrange, "repeat": repeat, "math": math}
    for path, wanted in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
        if len(tree.body) != len(wanted):
            raise LookupError(f"{path.name} does not have {' and '.join(wanted)}")
        exec(compile(tree, str(path), "exec"), space)
    return space


SYSTEMS = {
    system.name: system
    for system in [
        System("torch", "mamba", "ours, `torch`", None, _ours),
        System("native", "mamba", "ours, `native`", None, _ours, backend="native"),
        System("no-scan", "mamba", "ours with no scan (y = D u)", None, _no_scan),
        System("free-scan", "mamba", "the same, all projections trained", None, _free_scan),
        System("mambapy", "mamba", "mambapy", "mambapy", _mambapy),
        System("transformers", "mamba", "transformers", "transformers", _transformers),
        System("transformers-mambapy", "mamba", "transformers, `use_mambapy`", "transformers", _transformers),
        System("mamba-minimal", "mamba", "mamba-minimal", "mamba-minimal", _mamba_minimal),
        System("mamba-tiny", "mamba", "mamba-tiny, `cumsum`", "mamba-tiny", _mamba_tiny),
        System("mamba-tiny-log", "mamba", "mamba-tiny, `logcumsumexp`", "mamba-tiny", _mamba_tiny),
        System("mamba-ssm-ref", "mamba", "mamba_ssm `selective_scan_ref`", "mamba", _mamba_ssm_scan),
        System("torch2", "mamba2", "ours, `torch`", None, _ours),
        System("native2", "mamba2", "ours, `native`", None, _ours, backend="native"),
        System("no-scan2", "mamba2", "ours with no scan (y = D x)", None, _no_scan),
        System("transformers2", "mamba2", "transformers", "transformers", _transformers, CHUNKS),
        System("mamba2-minimal", "mamba2", "mamba2-minimal", "mamba2-minimal", _mamba2_minimal, CHUNKS),
        System("mamba-ssm-minimal", "mamba2", "mamba_ssm `ssd_minimal_discrete`", "mamba", _mamba_ssm_minimal, CHUNKS),
        System(
            "mamba-ssm-combined",
            "mamba2",
            "mamba_ssm `ssd_chunk_scan_combined_ref`",
            "mamba",
            _mamba_ssm_combined,
            CHUNKS,
        ),
    ]
}


def weights(mixer: str, d_model: int) -> dict[str, Any]:
    """The state dict that all systems get; it depends on d_model alone."""
    import torch

    from models.mamba import Mamba, Mamba2

    torch.manual_seed(0)
    return (Mamba if mixer == "mamba" else Mamba2)(d_model).state_dict()


def build(name: str, d_model: int, folder: Path | None = None, chunk: int | None = None) -> nn.Module:
    """The module of system `name`: (b, l, d_model) -> (b, l, d_model), or a tuple that begins with it."""
    system = SYSTEMS[name]
    if folder is not None and str(folder / "site") not in sys.path:
        sys.path.append(str(folder / "site"))
    module = system.build(system, d_model, folder, chunk)
    module.load_state_dict(weights(system.mixer, d_model))
    return module.train()
