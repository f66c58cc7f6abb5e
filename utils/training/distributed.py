"""Where a process stands among those that torchrun started, and the few collectives the loop needs."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from utils.device import pick_device


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `world` processes, and its device; one process is rank 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank validates, logs and saves."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over all ranks, the same bits on each."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_main(self, values: Tensor) -> Tensor:
        """Rank 0's `values`, on every rank."""
        if self.world > 1:
            dist.broadcast(values, src=0)
        return values


def join(device_name: str) -> Ranks:
    """Joins the process group that torchrun's environment names: NCCL for CUDA, gloo otherwise."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = pick_device(device_name)
    if world == 1:
        return Ranks(0, 1, device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank, world, device)


def leave() -> None:
    """Leaves the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
