"""Batch normalization over the global batch, on any backend of torch.distributed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks, whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.apply(gradient)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) whose statistics cover all ranks: (b, d) or (b, l, d) -> same.

    torch's SyncBatchNorm refuses CPU tensors, so the sums are all-reduced here; with one rank this is torch's own.
    Training expects crops of one length, without padding; in eval mode the running statistics make padding harmless.
    """

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(flat).view(x.shape)
        with torch.autocast(x.device.type, enabled=False):
            return self._over_ranks(flat.to(torch.promote_types(x.dtype, torch.float32))).view(x.shape)

    def _over_ranks(self, x: Tensor) -> Tensor:
        """x (n, d) float32 or wider, this rank's share of the rows."""
        count = x.new_full((1,), len(x))
        total = _SumOverRanks.apply(torch.cat([count, x.sum(0)]))
        count, mean = total[0].detach(), total[1:] / total[0].detach()
        variance = _SumOverRanks.apply((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
