"""The speaker task: stored log-mels, crops or whole, in, speaker classes out, validated by the equal error rate."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.speaker import build_speaker_model
from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.lists import training_list_hash
from utils.speaker.augment import add_noise, spec_augment
from utils.speaker.embedding import embed_mels
from utils.speaker.metrics import eer
from utils.speaker.options import speaker_model_config
from utils.speaker.protocol import Protocol
from utils.training.distributed import Ranks
from utils.training.runlog import RunLog
from utils.training.sampling import BucketOrder, EpochOrder, Order
from utils.training.schedule import linear_warmup


class CropDataset(Dataset):
    """Random crops, augmented; the sample at a place depends on the seed and the place only.

    An utterance shorter than the crop is repeated from its start until the crop is full. With `--batch-frames` a sample
    is a whole utterance.
    """

    def __init__(
        self, store: FeatureStore, items: list[int], labels: list[int], fill: np.ndarray, order: Order, args: Any
    ) -> None:
        self.store, self.items, self.labels, self.fill = store, items, labels, fill
        self.order, self.args = order, args
        samples = round(args.crop_seconds * store.recipe.sample_rate)
        self.crop = None if args.batch_frames else store.recipe.frames(samples)
        if self.crop == 0:
            raise UserError(f"--crop-seconds {args.crop_seconds:g} is shorter than one frame of the features")

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        position = self.order[place]
        generator = np.random.default_rng([self.args.seed, 2, place])
        return self._augment(self._cut(self.items[position], generator), generator), self.labels[position]

    def _cut(self, item: int, generator: np.random.Generator) -> np.ndarray:
        if self.crop is None:
            return self.store.mel(item)
        frames = self.store.rows[item].frames
        start = int(generator.integers(max(1, frames - self.crop + 1)))
        mel = self.store.mel(item, start, min(self.crop, frames - start))
        return np.tile(mel, (-(-self.crop // len(mel)), 1))[: self.crop]

    def _augment(self, mel: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        args = self.args
        if args.noise_share and generator.random() < args.noise_share:
            mel = add_noise(mel, generator, *args.noise_snr)
        masks = (args.frequency_masks, args.frequency_width, args.time_masks, args.time_width)
        return spec_augment(mel, generator, self.fill, *masks)


class SpeakerTask:
    """Training a recognizer on one protocol of a feature store: a `utils.training.trainer.Task`."""

    name = "speaker"
    score_name = "valid_eer"

    def __init__(self, store: FeatureStore, protocol: Protocol, args: argparse.Namespace) -> None:
        self.store, self.protocol, self.args = store, protocol, args
        items = [store.index[utterance] for utterance in protocol.train]
        self.speakers = sorted({store.rows[item].speaker for item in items})
        self._check(items)
        classes = {speaker: number for number, speaker in enumerate(self.speakers)}
        mean, std = store.statistics(items, args.seed)
        self.config = speaker_model_config(args, store.recipe.n_mels)
        self.model = build_speaker_model(self.config, len(self.speakers))
        self.model.feature_norm.mean.copy_(torch.from_numpy(mean))
        self.model.feature_norm.std.copy_(torch.from_numpy(std))
        self.order = self._order([store.rows[item].frames for item in items])
        labels = [classes[store.rows[item].speaker] for item in items]
        self.dataset = CropDataset(store, items, labels, mean, self.order, args)
        self.trials = self._validation_trials()
        self._scored: tuple[np.ndarray, np.ndarray, float] | None = None

    def _order(self, lengths: list[int]) -> Order:
        args = self.args
        if not args.batch_frames:
            return EpochOrder(len(lengths), args.seed, args.batch_size)
        return BucketOrder(lengths, args.seed, args.batch_frames)

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
        """Stacks samples, padded with zeros: `mel` (B, T, n_mels), `lengths` (B,), `labels` (B,)."""
        mels, labels = zip(*samples, strict=True)
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(mel) for mel in mels], batch_first=True)
        return {"mel": padded, "lengths": torch.tensor([len(mel) for mel in mels]), "labels": torch.tensor(labels)}

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments: the batch and the margin of this step."""
        return {**batch, "margin": self.args.margin * linear_warmup(step, self.args.steps, self.args.margin_warmup)}

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch, without padding."""
        return int(batch["lengths"].sum())

    def utterance(self, place: int) -> str:
        """The id of the utterance at a place of the run."""
        return self.store.rows[self.dataset.items[self.order[place]]].utterance

    def validate(self, ranks: Ranks) -> dict[str, float]:
        """Equal error rate of the validation trials, and the cosine at which it stands; nothing without trials."""
        if not self.trials:
            return {}
        items = sorted({item for _, a, b in self.trials for item in (a, b)})
        place = {item: number for number, item in enumerate(items)}
        mels = [self.store.mel(items[number]) for number in ranks.share(len(items))]
        embeddings = ranks.join_rows(embed_mels(self.model, mels, ranks.device), len(items))
        left = embeddings[[place[a] for _, a, _ in self.trials]]
        right = embeddings[[place[b] for _, _, b in self.trials]]
        scores = (left * right).sum(1)
        targets = np.array([target for target, _, _ in self.trials])
        rate, threshold = eer(scores, targets)
        self._scored = scores, targets, float(threshold)
        return {"valid_eer": float(rate), "valid_threshold": float(threshold)}

    def show(self, log: RunLog, step: int) -> None:
        """The scores of the last validation as histograms."""
        if self._scored is not None:
            from utils.speaker.plots import draw_scores

            scores, targets, threshold = self._scored
            lines, title = {"EER threshold": threshold}, f"validation, step {step}"
            log.picture(step, "scores", lambda path: draw_scores(path, scores, targets, lines, title))

    def description(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights."""
        return {
            "model_config": self.config,
            "recipe": self.store.recipe.to_dict(),
            "recipe_hash": self.store.recipe.hash,
            "speakers": self.speakers,
            "training_list": training_list_hash(self.protocol.train),
        }

    def attachments(self) -> dict[str, Any]:
        """Nothing more."""
        return {}
