"""The speaker task: a classifier of training speakers on log-mels, validated by its equal error rate on others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.config import Config, option
from models.speaker import ENCODERS, SpeakerConfig, SpeakerModel
from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.lists import training_list_hash
from utils.speaker.augment import AUGMENTATIONS, Augmentation
from utils.speaker.metrics import eer
from utils.speaker.protocol import read_protocol
from utils.speaker.recognizer import embed_mels
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.runlog import RunLog
from utils.training.sampling import Order, make_order
from utils.training.schedule import linear_warmup


@dataclass(frozen=True)
class SpeakerOptions(Config):
    """Training samples of the speaker task, and the schedule of its loss."""

    title = "speaker task"

    crop_seconds: float = option(2.0, "length of a training crop in seconds", above=0)
    margin_warmup: float = option(0.3, "share of the steps over which the margin grows from 0", least=0, most=1)


@dataclass(eq=False)
class CropDataset(Dataset):
    """Random crops, augmented; the sample at a place depends on the seed and the place alone.

    `crop` is their length in frames; None takes entire utterances. An utterance shorter than the crop is repeated.
    """

    store: FeatureStore
    items: Sequence[int]
    labels: Sequence[int]
    fill: np.ndarray
    order: Order
    crop: int | None
    augmentations: Sequence[Augmentation]
    seed: int

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        position = self.order[place]
        generator = np.random.default_rng([self.seed, 2, place])
        mel = self._cut(self.items[position], generator)
        for augment in self.augmentations:
            mel = augment(mel, generator, self.fill)
        return mel, self.labels[position]

    def _cut(self, item: int, generator: np.random.Generator) -> np.ndarray:
        if self.crop is None:
            return self.store.mel(item)
        frames = self.store.rows[item].frames
        start = int(generator.integers(max(1, frames - self.crop + 1)))
        mel = self.store.mel(item, start, min(self.crop, frames - start))
        return np.tile(mel, (-(-self.crop // len(mel)), 1))[: self.crop]


class SpeakerTask:
    """Training a recognizer on one protocol of a feature store: a `utils.training.task.Task`."""

    name = "speaker"
    score_name = "valid_eer"
    model_config = SpeakerConfig

    @staticmethod
    def option_classes() -> list[type[Config]]:
        """The options of the task and of each augmentation."""
        return [SpeakerOptions, *AUGMENTATIONS.values()]

    @staticmethod
    def problems(config: SpeakerConfig, training: TrainingOptions, options: Sequence[Config]) -> list[str]:
        """Sentences about options of the model, the loop and the task that contradict each other."""
        if training.batch_frames and not ENCODERS[config.model].takes_padding:
            return [f"--batch-frames: {config.model} has batch norm over frames, which would include the padding"]
        return []

    def __init__(
        self,
        store: FeatureStore,
        protocol_folder: Path,
        config: SpeakerConfig,
        training: TrainingOptions,
        options: Sequence[Config],
        is_new: bool = True,
    ) -> None:
        self.options, *augmentations = options
        self.store, self.protocol, self.training = store, read_protocol(protocol_folder), training
        items = store.listed(self.protocol.train, "training")
        self.speakers = sorted({store.rows[item].speaker for item in items})
        self._check()
        classes = {speaker: number for number, speaker in enumerate(self.speakers)}
        mean, std = store.statistics(items, training.seed)
        self.config = dataclasses.replace(config, n_mels=store.recipe.n_mels)
        self.model = SpeakerModel(self.config, len(self.speakers))
        self.model.feature_norm.mean.copy_(torch.from_numpy(mean))
        self.model.feature_norm.std.copy_(torch.from_numpy(std))
        self.order = make_order([store.rows[item].frames for item in items], training)
        labels = [classes[store.rows[item].speaker] for item in items]
        self.dataset = CropDataset(store, items, labels, mean, self.order, self._crop(), augmentations, training.seed)
        self.trials = self._validation_trials()
        self._scored: tuple[np.ndarray, np.ndarray, float] | None = None

    def _crop(self) -> int | None:
        """Frames of a training sample; None if it is an entire utterance."""
        if self.training.batch_frames:
            return None
        frames = self.store.recipe.frames(round(self.options.crop_seconds * self.store.recipe.sample_rate))
        if not frames:
            raise UserError(f"--crop-seconds {self.options.crop_seconds:g} is shorter than one frame of the features")
        return frames

    def _check(self) -> None:
        name, leaked = self.protocol.name, sorted(set(self.protocol.heldout_speakers).intersection(self.speakers))
        if leaked:
            raise UserError(f"protocol {name}: held-out speakers {leaked} are in the training list")
        if len(self.speakers) < 2:
            raise UserError(f"protocol {name} has {len(self.speakers)} training speakers; 2 are needed")

    def _validation_trials(self) -> list[tuple[bool, int, int]]:
        """Validation trials among at most `--valid-utterances` utterances, as store items."""
        by_path = {row.path: item for item, row in enumerate(self.store.rows)}
        trials = [(trial.target, by_path[trial.a], by_path[trial.b]) for trial in self.protocol.valid_trials]
        items = np.array(sorted({item for _, a, b in trials for item in (a, b)}))
        if len(items) > self.training.valid_utterances:
            draw = np.random.default_rng([self.training.seed, 3])
            kept = set(draw.choice(items, self.training.valid_utterances, replace=False).tolist())
            trials = [trial for trial in trials if trial[1] in kept and trial[2] in kept]
        if len({target for target, _, _ in trials}) == 2:
            return trials
        print("no validation: it needs target and non-target trials; the last checkpoint counts as the best")
        return []

    def collate(self, samples: list[tuple[np.ndarray, int]]) -> dict[str, Tensor]:
        """Stacks samples, padded with zeros: `mel` (b, t, n_mels), `lengths` (b,), `labels` (b,)."""
        mels, labels = zip(*samples, strict=True)
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(mel) for mel in mels], batch_first=True)
        return {"mel": padded, "lengths": torch.tensor([len(mel) for mel in mels]), "labels": torch.tensor(labels)}

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments: the batch, and the share of the margin at this step."""
        return {**batch, "margin_share": self._margin_share(step)}

    def schedule(self, step: int) -> dict[str, float]:
        """The margin of the loss at a step."""
        return {"margin": self.config.margin * self._margin_share(step)}

    def _margin_share(self, step: int) -> float:
        return linear_warmup(step, self.training.steps, self.options.margin_warmup)

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch, without padding."""
        return int(batch["lengths"].sum())

    def utterance(self, place: int) -> str:
        """The id of the utterance at a place of the run."""
        return self.store.rows[self.dataset.items[self.order[place]]].utterance

    def validate(self, ranks: Ranks) -> dict[str, float]:
        """Equal error rate of the validation trials, and its threshold; empty without trials."""
        if not self.trials:
            return {}
        items = sorted({item for _, a, b in self.trials for item in (a, b)})
        place = {item: number for number, item in enumerate(items)}
        mels = [self.store.mel(items[number]) for number in ranks.share(len(items))]
        embeddings = ranks.join_rows(embed_mels(self.model, mels, ranks.device), len(items))
        targets, left, right = zip(*((target, place[a], place[b]) for target, a, b in self.trials), strict=True)
        scores, targets = (embeddings[list(left)] * embeddings[list(right)]).sum(1), np.array(targets)
        rate, threshold = eer(scores, targets)
        self._scored = scores, targets, threshold
        return {"valid_eer": rate, "valid_threshold": threshold}

    def show(self, log: RunLog, step: int) -> None:
        """Logs histograms of the scores of the last validation."""
        if self._scored is not None:
            from utils.speaker.plots import draw_scores

            scores, targets, threshold = self._scored
            lines, title = {"EER threshold": threshold}, f"validation, step {step}"
            log.picture(step, "scores", lambda path: draw_scores(path, scores, targets, lines, title))

    def description(self) -> dict[str, Any]:
        """The entries of a checkpoint beside the weights."""
        return {
            "model_config": self.config.to_dict(),
            "recipe": self.store.recipe.to_dict(),
            "recipe_hash": self.store.recipe.hash,
            "speakers": self.speakers,
            "training_list": training_list_hash(self.protocol.train),
        }

    def attachments(self) -> dict[str, Any]:
        """Nothing more."""
        return {}
