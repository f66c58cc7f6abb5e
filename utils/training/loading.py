"""Batches for the loop, loaded by this process or by others, whose failures become sentences."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from utils.errors import UserError
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.sampling import ShareBatches
from utils.training.stopping import ignore_stop_signals
from utils.training.task import Task

PATIENCE = 1.0  # seconds between looks at the signals while the loader waits
REMEDY = "use fewer --workers, or give the system more shared memory (/dev/shm; docker run --shm-size)"


class Batches:
    """The micro-batches of this rank, from the place `samples` of the run on, for `steps` steps."""

    def __init__(self, task: Task, options: TrainingOptions, ranks: Ranks, samples: int, steps: int) -> None:
        workers = int(task.is_slow_to_load) if options.workers is None else options.workers
        self._per_step, self._has_workers = options.accumulate, workers > 0
        loader = DataLoader(
            task.dataset,
            batch_sampler=ShareBatches(task.order, samples, steps, ranks, options.accumulate),
            collate_fn=functools.partial(_shared, task.collate),
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=ranks.device.type == "cuda",
            timeout=PATIENCE if workers else 0,
            generator=torch.Generator(),  # otherwise it would draw from the global one
        )
        if self._has_workers:
            _require_room(workers)
        with _unchanged_handler(signal.SIGCHLD):
            self._iterator = iter(loader)

    def of_step(self, is_stopped: Callable[[], bool]) -> list[dict[str, Tensor]] | None:
        """The micro-batches of the next step; None if the loader keeps the loop waiting and the run is to stop."""
        batches: list[dict[str, Tensor]] = []
        while len(batches) < self._per_step:
            try:
                batches.append(next(self._iterator))
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if is_stopped():
                    return None
        return batches

    def close(self) -> None:
        """Ends the processes, also those that hang: they ignore the signals that would end them politely."""
        if self._has_workers:
            self._iterator._shutdown_workers()  # its deletion would wait for the tracebacks that hold it
        for process in multiprocessing.active_children():
            process.kill()


@contextlib.contextmanager
def _unchanged_handler(number: signal.Signals) -> Iterator[None]:
    """Undoes a change of the handler of a signal.

    That of torch's loader raises wherever the main thread is when a process dies, be it within an operator or its
    backward, which leaves torch in an undefined state. Without it the death is found when the next batch is awaited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread can change it
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)


def _require_room(workers: int) -> None:
    """`UserError` if the locks of the processes find no room; a loader that fails at this cannot be cleared away."""
    try:
        [*(multiprocessing.Queue() for _ in range(workers + 1)), multiprocessing.Event()]
    except OSError as error:
        raise UserError(f"the processes of --workers cannot be started ({error.strerror}): {REMEDY}") from error


def _shared(collate: Callable[[list[Any]], dict[str, Tensor]], samples: list[Any]) -> dict[str, Tensor]:
    """A batch in shared memory if this is a loading process.

    Otherwise a thread of the process would move it there later, where an error reaches nobody and the loop waits.
    """
    batch = collate(samples)
    if get_worker_info() is not None:
        try:
            for tensor in batch.values():
                tensor.share_memory_()
        except RuntimeError as error:
            raise UserError(f"shared memory is full: {REMEDY}") from error
    return batch


@contextlib.contextmanager
def loading_errors() -> Iterator[None]:
    """Turns the death of a loading process, and the errors of a user in one, into a `UserError` of one sentence."""
    try:
        yield
    except (ConnectionError, EOFError) as error:  # it died while it handed a batch over
        raise UserError(f"a process of --workers was lost while it sent a batch: {REMEDY}") from error
    except (UserError, OSError) as error:
        raised = re.match(r"Caught (\w+) in DataLoader worker", str(error))
        if raised is None:
            raise
        raise UserError(str(error).strip().rpartition(f"{raised[1]}: ")[2]) from error
    except RuntimeError as error:
        if not re.match(r"DataLoader worker .* exited unexpectedly", str(error)):
            raise
        raise UserError(f"a process of --workers was lost: {REMEDY}") from error
