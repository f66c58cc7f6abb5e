"""The ranks that torchrun started, and the collectives that the loop needs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from utils.device import pick_device
from utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `world` processes, and its device; one process is rank 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the rank that logs and saves."""
        return self.rank == 0

    @property
    def is_group(self) -> bool:
        """True if torchrun started this process, with others or alone: all results then pass through its group."""
        return dist.is_initialized()

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all ranks, the same bits on each."""
        if self.is_group:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Waits for all ranks."""
        if self.is_group:
            dist.barrier()

    def share(self, count: int) -> range:
        """The numbers below `count` that this rank works on; each belongs to one rank, and a rank may have none."""
        return range(self.rank, count, self.world)

    def micro_batch(self, places: range, number: int, of: int) -> range:
        """The places of a global batch in this rank's micro-batch, `number` of as many as `of`."""
        return places[number * self.world + self.rank :: self.world * of]

    def join_rows(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Puts the rows (len(share(count)), d) of each rank's share in order: (count, d), the same on every rank."""
        joined = torch.zeros(count, rows.shape[1], device=self.device)
        joined[self.rank :: self.world] = torch.from_numpy(rows).to(joined)
        return self.sum(joined).cpu().numpy().astype(rows.dtype)  # a row plus zeros of other ranks: no bit changes

    def gather(self, value: T) -> list[T]:
        """Plain values of all ranks, in their order."""
        values: list[Any] = [value] * self.world
        if self.is_group:
            dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """Performs `action` on rank 0 while the others wait; returns its plain result on all.

        A `UserError` or `OSError` is raised on every rank, so that none waits for one that has failed.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except (UserError, OSError) as error:
                self._send([None, str(error)])
                raise
        self._send(outcome)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def _send(self, outcome: list[Any]) -> None:
        if self.is_group:
            dist.broadcast_object_list(outcome, src=0)


def join(device_name: str) -> Ranks:
    """Joins the process group that torchrun's environment names: NCCL for CUDA, gloo otherwise.

    torchrun keeps one store for all restarts, in which a restarted rank may find the address of a dead one (pytorch
    issue 135712). So the keys of each restart get a prefix if one torchrun counts restarts for all ranks; on several
    machines TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has the same effect.
    """
    device = pick_device(device_name)
    if os.environ.get("WORLD_SIZE", "1") == "1" and not dist.is_torchelastic_launched():
        return Ranks(0, 1, device)
    if device.type == "cuda":
        local_rank, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        device = gpu_of(local_rank, processes, torch.cuda.device_count())
        torch.cuda.set_device(device)
    store, rank, world = next(iter(dist.rendezvous("env://")))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    return Ranks(rank, world, device)


def gpu_of(local_rank: int, processes: int, gpus: int) -> torch.device:
    """The GPU of one process of a machine; `UserError` in every process if there are more of them than GPUs."""
    if processes > gpus:
        raise UserError(
            f"torchrun started {processes} processes on a machine with {gpus} GPU{'s' * (gpus != 1)}: "
            f"start at most {gpus} (--nproc-per-node), or use --device cpu"
        )
    return torch.device("cuda", local_rank)


def leave() -> None:
    """Leaves the process group, if one was joined."""
    if dist.is_initialized():
        gc.collect()  # DistributedDataParallel is in cycles, and at exit its connections would end with an abort
        dist.destroy_process_group()
