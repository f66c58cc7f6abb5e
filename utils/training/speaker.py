"""The speaker task: crops of stored log-mels in, speaker classes out, validated by the equal error rate."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models import build_speaker_model
from utils.cli import UserError
from utils.evaluation.embedding import embed_mels
from utils.evaluation.metrics import eer
from utils.features.store import FeatureStore
from utils.protocol import Protocol, training_list_hash
from utils.training.augment import add_noise, spec_augment
from utils.training.options import model_config
from utils.training.sampling import EpochOrder
from utils.training.schedule import linear_warmup

STATISTICS_UTTERANCES = 2000
MIN_STD = 1e-3


class CropDataset(Dataset):
    """Random crops, augmented; the sample at a place depends on the seed and the place only.

    An utterance shorter than the crop is repeated from its start until the crop is full.
    """

    def __init__(self, store: FeatureStore, items: list[int], labels: list[int], fill: np.ndarray, args: Any) -> None:
        self.store, self.items, self.labels, self.fill, self.args = store, items, labels, fill, args
        self.crop = store.recipe.frames(round(args.crop_seconds * store.recipe.sample_rate))
        if self.crop < 1:
            raise UserError(f"--crop-seconds {args.crop_seconds:g} is shorter than one frame of the features")
        self.order = EpochOrder(len(items), args.seed)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        position = self.order[place]
        generator = np.random.default_rng([self.args.seed, 2, place])
        item = self.items[position]
        frames = self.store.rows[item].frames
        start = int(generator.integers(max(1, frames - self.crop + 1)))
        mel = self.store.mel(item, start, min(self.crop, frames - start))
        if len(mel) < self.crop:
            mel = np.tile(mel, (-(-self.crop // len(mel)), 1))[: self.crop]
        return self._augment(mel, generator), self.labels[position]

    def _augment(self, mel: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        args = self.args
        if args.noise_share and generator.random() < args.noise_share:
            mel = add_noise(mel, generator, *args.noise_snr)
        masks = (args.frequency_masks, args.frequency_width, args.time_masks, args.time_width)
        return spec_augment(mel, generator, self.fill, *masks)


class SpeakerTask:
    """Training a recogniser on one protocol of a feature store: a `utils.training.trainer.Task`."""

    name = "speaker"
    score_name = "valid_eer"

    def __init__(self, store: FeatureStore, protocol: Protocol, args: argparse.Namespace) -> None:
        self.store, self.protocol, self.args = store, protocol, args
        items = [store.index[utterance] for utterance in protocol.train]
        self.speakers = sorted({store.rows[item].speaker for item in items})
        self._check(items)
        classes = {speaker: number for number, speaker in enumerate(self.speakers)}
        mean, std = feature_statistics(store, items, args.seed)
        self.config = model_config(args, store.recipe.n_mels)
        self.model = build_speaker_model(self.config, len(self.speakers))
        self.model.feature_norm.mean.copy_(torch.from_numpy(mean))
        self.model.feature_norm.std.copy_(torch.from_numpy(std))
        self.dataset = CropDataset(store, items, [classes[store.rows[item].speaker] for item in items], mean, args)
        self.trials = self._validation_trials()

    def _check(self, items: list[int]) -> None:
        leaked = set(self.protocol.heldout_speakers) & set(self.speakers)
        if leaked:
            raise UserError(
                f"protocol {self.protocol.name}: held-out speakers {sorted(leaked)} are in the training list"
            )
        if len(self.speakers) < 2:
            raise UserError(f"protocol {self.protocol.name} has {len(self.speakers)} training speakers; 2 are needed")

    def _validation_trials(self) -> list[tuple[bool, int, int]]:
        """Validation trials among at most `--valid-utterances` utterances, as store items."""
        by_path = {row.path: item for item, row in enumerate(self.store.rows)}
        trials = [(trial.target, by_path[trial.a], by_path[trial.b]) for trial in self.protocol.valid_trials]
        items = np.array(sorted({item for _, a, b in trials for item in (a, b)}))
        if len(items) > self.args.valid_utterances:
            draw = np.random.default_rng([self.args.seed, 3])
            kept = set(draw.choice(items, self.args.valid_utterances, replace=False).tolist())
            trials = [trial for trial in trials if trial[1] in kept and trial[2] in kept]
        if len({target for target, _, _ in trials}) == 2:
            return trials
        print("no validation: it needs trials of one speaker and of two; the last checkpoint counts as the best")
        return []

    def collate(self, samples: list[tuple[np.ndarray, int]]) -> dict[str, Tensor]:
        """Stacks crops: `mel` (B, T, n_mels), `lengths` (B,), `labels` (B,)."""
        mels, labels = zip(*samples, strict=True)
        mel = torch.from_numpy(np.stack(mels))
        return {"mel": mel, "lengths": torch.full((len(mel),), mel.shape[1]), "labels": torch.tensor(labels)}

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments: the batch and the margin of this step."""
        return {**batch, "margin": self.args.margin * linear_warmup(step, self.args.steps, self.args.margin_warmup)}

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch."""
        return batch["mel"].shape[0] * batch["mel"].shape[1]

    def validate(self, device: torch.device) -> dict[str, float]:
        """Equal error rate of the validation trials, and the cosine at which it stands; nothing without trials."""
        if not self.trials:
            return {}
        items = sorted({item for _, a, b in self.trials for item in (a, b)})
        place = {item: number for number, item in enumerate(items)}
        embeddings = embed_mels(self.model, [self.store.mel(item) for item in items], device)
        left = embeddings[[place[a] for _, a, _ in self.trials]]
        right = embeddings[[place[b] for _, _, b in self.trials]]
        targets = np.array([target for target, _, _ in self.trials])
        rate, threshold = eer((left * right).sum(1), targets)
        return {"valid_eer": float(rate), "valid_threshold": float(threshold)}

    def description(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights."""
        return {
            "model_config": self.config,
            "recipe": self.store.recipe.to_dict(),
            "speakers": self.speakers,
            "training_list": training_list_hash(self.protocol),
        }


def feature_statistics(store: FeatureStore, items: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each mel channel over (at most 2000 of) the training utterances, each (n_mels,) float32."""
    if len(items) > STATISTICS_UTTERANCES:
        chosen = np.random.default_rng([seed, 4]).choice(len(items), STATISTICS_UTTERANCES, replace=False)
        items = [items[position] for position in sorted(chosen)]
    count, total, squares = 0, 0.0, 0.0
    for item in items:
        mel = store.mel(item).astype(np.float64)
        count, total, squares = count + len(mel), total + mel.sum(0), squares + np.square(mel).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, MIN_STD**2))
    return mean.astype(np.float32), std.astype(np.float32)
