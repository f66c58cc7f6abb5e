"""A causal recognizer as one graph that takes a stream block by block, for `test.py export --streaming`."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from utils.speaker.export.embedder import INPUT, OUTPUT, Embedder, Graph, Plan, Run, follow
from utils.speaker.packing import generated_voice
from utils.speaker.recognizer import SpeakerRecognizer

FORMAT = "tacomamba-stream-1"  # of the metadata
CHECKED_SECONDS = 60  # of each recording of the check

HELD = "state_samples"  # the samples before a block that its frames need
NO_WEIGHT = -1e30  # for -inf, the logarithm of no weight, which JSON has no word for; what is added to it stays exact


class BlockToEmbedding(Embedder):
    """The next block of a stream and the state before it -> the running embedding and the state after it.

    A block has a fixed number of samples, those of whole groups of frames. The frames of a block need a few samples
    before it, which are part of the state; the first samples of a stream are not a block, but its initial ones.
    """

    def __init__(self, recognizer: SpeakerRecognizer, seconds: float) -> None:
        """Rounds the length of a block up; the recognizer must be able to stream."""
        super().__init__(recognizer)
        recipe, group = recognizer.recipe, recognizer.config.subsampling
        self.lead = recipe.min_samples - recipe.hop_length
        frames = group * -(-max(1, round(seconds * recipe.sample_rate)) // (group * recipe.hop_length))
        self.block = frames * recipe.hop_length
        self._separate(frames, recipe.n_mels)

    @torch.no_grad()
    def _separate(self, frames: int, n_mels: int) -> None:
        """Finds what of the model's state a block changes; the rest is constant, such as a level that is not used."""
        before = self.model.initial_state(1)
        leaves, self.structure = pytree.tree_flatten_with_path(before)
        after = pytree.tree_leaves(self.model.step(torch.zeros(1, frames, n_mels), before))
        self.leaves = [leaf for _, leaf in leaves]
        self.changes = [old is not new and old.numel() > 0 for old, new in zip(self.leaves, after, strict=True)]
        self.initial = {HELD: torch.zeros(1, self.lead)}
        for path, leaf in itertools.compress(leaves, self.changes):
            name = "_".join(re.findall(r"\w+", pytree.keystr(path)))
            self.initial[f"state_{name}"] = leaf.clamp(min=NO_WEIGHT)

    def forward(self, samples: Tensor, held: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Samples (1, block), and the tensors of `initial` in their order, to an embedding (1, e) and the next ones."""
        held = torch.cat([held, samples], dim=1)
        changing = iter(state)
        leaves = [next(changing) if change else leaf for change, leaf in zip(self.changes, self.leaves, strict=True)]
        after = self.model.step(self.log_mel(held), pytree.tree_unflatten(leaves, self.structure))
        new = itertools.compress(pytree.tree_leaves(after), self.changes)
        return self.finish(self.model.embedding_of(after)), held[:, self.block :], *new

    def trace(self) -> Graph:
        """The graph for one stream."""
        program = follow(self, (torch.zeros(1, self.block), *self.initial.values()))
        return Graph(program, [INPUT, *self.initial], [OUTPUT, *(f"new_{name}" for name in self.initial)])

    def description(self) -> dict[str, Any]:
        """The block and the state as plain values, for the metadata; `initial` fills a tensor before the stream."""
        state = [
            {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "initial": tensor.flatten()[:1].sum().item(),
            }
            for name, tensor in self.initial.items()
        ]
        return {"block_samples": self.block, "lead_samples": self.lead, "state": state}


def of_blocks(recognizer: SpeakerRecognizer, metadata: dict[str, Any], seconds: float) -> Plan:
    """The file that takes blocks of `seconds`, of a recognizer that can stream; `metadata` as of one for recordings."""
    module = BlockToEmbedding(recognizer, seconds)
    common = {key: value for key, value in metadata.items() if key not in ("least_samples", "window_seconds")}
    about = {**common, "format": FORMAT, **module.description()}
    most = CHECKED_SECONDS * recognizer.recipe.sample_rate // module.block
    counts = [2**power for power in range(most.bit_length())]
    state_bytes = sum(tensor.nbytes for tensor in module.initial.values())
    check = functools.partial(largest_difference, about=about, recognizer=recognizer, counts=counts)
    facts = {"block_samples": module.block, "state_bytes": state_bytes, "blocks": counts}
    return Plan(module.trace(), about, check, facts)


def largest_difference(run: Run, about: dict[str, Any], recognizer: SpeakerRecognizer, counts: Sequence[int]) -> float:
    """The largest difference of a number of an embedding from that of `embed_stream` after `counts` of blocks.

    It is over a voice and noise, used as the metadata `about` say; NaN if one is.
    """
    rate, size, lead = recognizer.recipe.sample_rate, about["block_samples"], about["lead_samples"]
    voice = generated_voice(0, (lead + counts[-1] * size + 1) / rate, rate)
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    differences = []
    for samples in (voice, noise):
        stream, pushed, state = recognizer.embed_stream(), 0, initial_state(about, samples)
        for count in range(1, counts[-1] + 1):
            end = lead + count * size
            embedding, *state = run(samples[None, end - size : end], *state)
            if count in counts:
                stream.push(samples[pushed:end])  # all at once: not in the same blocks
                differences.append(np.abs(embedding[0] - stream.embedding).max())
                pushed = end
    return float(np.max(differences))


def initial_state(about: dict[str, Any], samples: NDArray[np.float32]) -> list[NDArray[Any]]:
    """The state before the first block of a stream that begins with `samples` (s,), by the metadata of a file."""
    state = [np.full(each["shape"], each["initial"], each["dtype"]) for each in about["state"]]
    return [samples[None, : about["lead_samples"]], *state[1:]]
