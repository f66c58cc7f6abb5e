"""The random number generators of one process, as plain values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """States of Python's, numpy's and torch's global generators, and of the device's."""
    numpy_state = np.random.get_state(legacy=False)
    words = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": words["key"].tolist(), "pos": int(words["pos"])}},
        "torch": torch.get_rng_state(),
        "device": torch.get_device_module(device).get_rng_state() if device.type != "cpu" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores the result of `random_state`; the device's generator only if its state was kept."""
    random.setstate(state["python"])
    words = state["numpy"]["state"]
    key = np.array(words["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {"key": key, "pos": words["pos"]}})
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"])


def seed_everything(*words: int) -> None:
    """Seeds the generators with one number derived from `words`."""
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
