"""A look inside our operators, which torch's dispatch modes see only from outside."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.engine import conv, selective_scan, ssd
from models.engine.inputs import ConvInputs, ScanInputs, SSDInputs

MODULES = {"causal_conv": (conv, ConvInputs), "selective_scan": (selective_scan, ScanInputs), "ssd": (ssd, SSDInputs)}
NO_LAUNCH = {
    "aten.empty",
    "aten.new_empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten._unsafe_view",
    "aten.detach",
}
BODIES = {
    f"tacomamba.{name}{suffix}.default": (kind, getattr(module, body))
    for name, (module, kind) in MODULES.items()
    for suffix, body in (("", "_forward"), ("_backward", "_backward"))
}


class Inside(TorchDispatchMode):
    """Sees every operation, also those of our operators' bodies, and sums up what they put out.

    `launches` counts those that compute: neither views nor allocations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.launches = self.elements = 0
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if str(operator) in BODIES:
            kind, body = BODIES[str(operator)]
            size = len(kind._fields)
            with self:
                return body(kind(*args[:size]), *args[size:])
        out = operator(*args, **(kwargs or {}))
        self.calls += 1
        tensors = [v for v in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(v, Tensor)]
        self.launches += bool(tensors) and not (operator.is_view or str(operator.overloadpacket) in NO_LAUNCH)
        for tensor in tensors:
            self.dtypes.add(tensor.dtype)
            self.elements += tensor.numel()
        return out
