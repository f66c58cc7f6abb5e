"""Triton's autotuners in another package: one configuration a kernel for a trial, and a word before what takes minutes.

An autotuner compiles and times every configuration of its kernel, for every new shape class. mamba-ssm's Mamba-2 has 14
such kernels with about 120 configurations.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import sys
from collections.abc import Hashable, Iterator
from typing import Any

logger = logging.getLogger("tacomamba")

_announced: set[Hashable] = set()


@contextlib.contextmanager
def one_configuration(module: str) -> Iterator[None]:
    """Leaves each kernel of the module's package its cheapest configuration, which Triton then takes untimed.

    Also a decorator. Imports the module first; if that fails, there is nothing to tune, and whoever needs it will say
    so.
    """
    keep_choices()
    with contextlib.suppress(Exception):
        importlib.import_module(module)
    kept = {tuner: tuner.configs for tuner in _autotuners(module)}
    for tuner, configs in kept.items():
        tuner.configs = [min(configs, key=_cost)]
    try:
        yield
    finally:
        for tuner, configs in kept.items():
            tuner.configs = configs


def keep_choices() -> None:
    """Makes Triton keep on disk what it chooses, but for kernels with hooks, unless the environment has it otherwise.

    To be called before the package is imported.
    """
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")


def announce(module: str, shape: Hashable) -> None:
    """Logs once for every shape class that the kernels of the module's package are about to be tuned."""
    if shape not in _announced and any(len(tuner.configs) > 1 for tuner in _autotuners(module)):
        _announced.add(shape)
        logger.warning(
            "Triton tunes the kernels of %s for a new shape, which can take minutes", module.partition(".")[0]
        )


def _autotuners(module: str) -> set[Any]:
    """Finds the package's kernels that Triton tunes, without an import of Triton."""
    package = module.partition(".")[0]
    modules = [known for name, known in list(sys.modules.items()) if name.partition(".")[0] == package]
    values = (value for known in modules for value in vars(known).values())
    return {value for value in values if type(value).__name__ == "Autotuner"}


def _cost(config: Any) -> int:
    """Returns what grows with a configuration's shared memory, as mamba-ssm's deterministic mode ranks them."""
    return math.prod(config.kwargs.values()) * config.num_stages
