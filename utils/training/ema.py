"""The exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """Average of parameters and running statistics, often better to use than the last weights (Polyak and Juditsky).

    Early on the decay is (1 + n) / (10 + n) after n updates, where that is less, so that the initial weights do not
    linger. Counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._source = model.state_dict()  # the model's own tensors, not copies: they change in place
        self.average = {name: tensor.detach().clone() for name, tensor in self._source.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's present weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        names = [name for name, tensor in self._source.items() if tensor.is_floating_point()]
        averages, sources = ([state[name] for name in names] for state in (self.average, self._source))
        torch._foreach_lerp_(averages, sources, 1 - decay)
        for name in self._source.keys() - names:
            self.average[name].copy_(self._source[name])

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the average's weights within the block and its own again after it."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def restore(self, average: dict[str, Tensor], updates: int) -> None:
        """Goes on from a saved average."""
        for name, tensor in average.items():
            self.average[name].copy_(tensor)
        self.updates = updates
