"""How much of a batch the torch backend computes at once, by device.

On a CPU a block's buffers should stay in the cache, and a call costs about 1 us. On an accelerator every operation is a
launch of several us, so that few large blocks are best, as large as memory allows.
"""

from __future__ import annotations

IN_MEMORY = 2**26  # elements of a block's largest buffers; in float32 each takes 256 MiB


def by_cache(device: str) -> bool:
    """Returns whether blocks on this type of device are cut for the cache of a CPU, not by `IN_MEMORY`."""
    return device == "cpu"
