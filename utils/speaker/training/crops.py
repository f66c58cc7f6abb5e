"""Training samples of the speaker task: random crops of stored mels or audio, augmented."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from utils.features.degrade import Scene, cut, speed
from utils.features.store import FeatureStore
from utils.speaker.training.augment import Augmentation, WaveAugmentation
from utils.training.sampling import Order

SPEEDS = (1.0, 0.9, 1.1)  # of speed perturbation; as in Kaldi, another speed makes another speaker


@dataclass(eq=False)
class CropDataset(Dataset):
    """Random crops, augmented; the sample at a place depends on the seed and the place alone.

    `crop` has the least and the greatest length in frames, from which each global batch draws its own; None takes
    entire utterances. An utterance shorter than the crop is repeated. Of a store of audio, the samples are augmented
    before the mel is computed. With several `speeds`, each crop is played at one of them, and the speakers at speed k
    have the labels from k times `speakers` on. `fill` returns the training set's mean (n_mels,) at the level of a mel.
    """

    store: FeatureStore
    items: Sequence[int]
    labels: Sequence[int]
    fill: Callable[[np.ndarray], np.ndarray]
    order: Order
    crop: tuple[int, int] | None
    augmentations: Sequence[Augmentation | WaveAugmentation]
    seed: int
    speakers: int = 0
    speeds: Sequence[float] = SPEEDS[:1]

    def __post_init__(self) -> None:
        self._of_samples = [each for each in self.augmentations if isinstance(each, WaveAugmentation)]
        self._of_mels = [each for each in self.augmentations if not isinstance(each, WaveAugmentation)]

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        position = self.order[place]
        generator = np.random.default_rng([self.seed, 2, place])
        item, label, frames = self.items[position], self.labels[position], self._frames(place)
        if self.store.kind == "audio":
            number = int(generator.integers(len(self.speeds))) if len(self.speeds) > 1 else 0
            mel = self.store.extract(self._samples(item, label, frames, self.speeds[number], generator))
            label += number * self.speakers
        else:
            mel = self._cut(item, frames, generator)
        for augment in self._of_mels:
            mel = augment(mel, generator, self.fill(mel))
        return mel, label

    def _frames(self, place: int) -> int | None:
        """The length of the crop at a place, the same for all of a global batch, which needs no padding then."""
        if self.crop is None:
            return None
        least, greatest = self.crop
        if least == greatest:
            return greatest
        batch = place // self.order.smallest_batch
        return int(np.random.default_rng([self.seed, 6, batch]).integers(least, greatest, endpoint=True))

    def _cut(self, item: int, frames: int | None, generator: np.random.Generator) -> np.ndarray:
        """A crop of a stored mel."""
        if frames is None:
            return self.store.mel(item)
        stored = self.store.rows[item].frames
        start = int(generator.integers(max(1, stored - frames + 1)))
        mel = self.store.mel(item, start, min(frames, stored - start))
        return np.tile(mel, (-(-frames // len(mel)), 1))[:frames]

    def _samples(
        self, item: int, label: int, frames: int | None, factor: float, generator: np.random.Generator
    ) -> np.ndarray:
        """The augmented samples of a crop."""
        if frames is None:
            samples = self.store.audio(item)
        else:
            needed = self.store.recipe.samples(frames)
            samples = self._piece(item, math.ceil(needed * factor), generator)
            samples = samples if factor == 1 else cut(speed(samples, factor), 0, needed)
        scene = Scene(self.store.recipe.sample_rate, lambda length: self._voice(label, length, generator))
        for augment in self._of_samples:
            samples = augment(samples, generator, scene)
        return samples

    def _voice(self, label: int, length: int, generator: np.random.Generator) -> np.ndarray:
        """Samples (length,) of a random recording of another speaker."""
        other = label
        while other == label:
            position = int(generator.integers(len(self.items)))
            other = self.labels[position]
        return self._piece(self.items[position], length, generator)

    def _piece(self, item: int, length: int, generator: np.random.Generator) -> np.ndarray:
        """A random part (length,) of an item's audio that begins where a frame does; shorter audio is repeated."""
        recipe = self.store.recipe
        last = self.store.rows[item].frames - recipe.frames(length + recipe.hop_length - 1)
        start = int(generator.integers(max(1, last + 1))) * recipe.hop_length
        return cut(self.store.audio(item, start, length), 0, length)
