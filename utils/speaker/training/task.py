"""The speaker task: a classifier of training speakers on log-mels, validated by its equal error rate on others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import Config, option
from models.speaker import ENCODERS, SpeakerConfig, SpeakerModel
from utils.cli import flag_name
from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.features.windows import middle
from utils.lists import training_list_hash
from utils.speaker.evaluation.metrics import eer
from utils.speaker.protocol import read_protocol
from utils.speaker.recognizer import embed_mels
from utils.speaker.scoring.back_end import BackEnd
from utils.speaker.scoring.cohort import MIN_COHORT, Cohort, cohort_of
from utils.speaker.scoring.scoring import Scoring
from utils.speaker.scoring.validation import TOO_OPTIMISTIC, Validation, useful_cuts
from utils.speaker.training.augment import AUGMENTATIONS, WaveAugmentation
from utils.speaker.training.crops import SPEEDS, CropDataset
from utils.speaker.training.initial import begin_with
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.runlog import RunLog
from utils.training.sampling import balanced_places, make_order
from utils.training.schedule import linear_warmup

BACK_END_SAMPLES = 2000  # training samples that the back end is fitted to


@dataclass(frozen=True)
class SpeakerOptions(Config):
    """Training samples of the speaker task, and the schedule of its loss."""

    title = "speaker task"

    crop_seconds: float = option(2.0, "length of a training crop in seconds", above=0, most=3600)
    shortest_crop_seconds: float | None = option(
        None, "least length of a crop: each batch draws one from this up to --crop-seconds", above=0, most=3600
    )
    speed_perturbation: bool = option(
        False, "play each crop at 0.9, 1 or 1.1 times its speed, as other speakers; needs a store of audio"
    )
    margin_warmup: float = option(0.3, "share of the steps over which the margin grows from 0", least=0, most=1)
    init: str | None = option(
        None,
        "checkpoint, run folder or packed model whose encoder and feature statistics to begin with, and for the same "
        "training speakers its classifier; flags of the encoder default to its own",
        metavar="MODEL",
    )
    freeze: str = option(
        "none",
        "part of the model of --init that does not change: the statistics of its batch norms, which few speakers would "
        "spoil, or all of its encoder, so that the classifier alone learns",
        choices=("none", "statistics", "encoder"),
    )


def _fill(mean: np.ndarray, is_relative: bool, mel: np.ndarray) -> np.ndarray:
    """`mean` (n_mels,) at the level of a mel (t, n_mels), if it is relative to that."""
    return mean + np.float32(0.5 * np.log(np.exp(2 * mel).mean())) if is_relative else mean


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
        found = []
        if training.batch_frames and not ENCODERS[config.model].takes_padding:
            found.append(f"--batch-frames: {config.model} has batch norm over frames, which would include the padding")
        if training.batch_frames and options[0].speed_perturbation:
            found.append("--speed-perturbation is for crops, not for --batch-frames: it would change their lengths")
        shortest = options[0].shortest_crop_seconds
        if shortest is not None and training.batch_frames:
            found.append("--shortest-crop-seconds is for crops, not for the entire utterances of --batch-frames")
        elif shortest is not None and shortest > options[0].crop_seconds:
            found.append(
                f"--shortest-crop-seconds {shortest:g} must not be above --crop-seconds {options[0].crop_seconds:g}"
            )
        if options[0].freeze != "none" and not options[0].init:
            found.append(f"--freeze {options[0].freeze} needs --init, the model that it comes from")
        return found

    def __init__(
        self,
        store: FeatureStore,
        protocol_folder: Path,
        config: SpeakerConfig,
        training: TrainingOptions,
        options: Sequence[Config],
        is_new: bool = True,
    ) -> None:
        self.options, *self.augmentations = options
        self.store, self.protocol, self.training = store, read_protocol(protocol_folder), training
        self.is_slow_to_load = store.kind == "audio"
        items = store.listed(self.protocol.train, "training")
        self.speakers = sorted({store.rows[item].speaker for item in items})
        self._check()
        self.sounds = {each.folder: each.sounds and each.sounds.digest for each in self._of_audio() if each.folder}
        speeds = SPEEDS if self.options.speed_perturbation else SPEEDS[:1]
        classes = {speaker: number for number, speaker in enumerate(self.speakers)}
        self.config = dataclasses.replace(config, n_mels=store.recipe.n_mels)
        self.model = SpeakerModel(self.config, len(speeds) * len(self.speakers))
        mean, std = store.statistics(items, training.seed, self.model.feature_norm.prepared)
        self.model.feature_norm.mean.copy_(torch.from_numpy(mean))
        self.model.feature_norm.std.copy_(torch.from_numpy(std))
        self.back_end: BackEnd | None = None
        self.scoring = Scoring()
        if is_new and self.options.init:
            taken = begin_with(self.model, self.config, store.recipe, self.speakers, self.options.init)
            if self._keeps_back_end():
                self.restore(taken)
        if self.options.freeze != "none":
            self.model.freeze(self.options.freeze)
        self.order = make_order([store.rows[item].frames for item in items], training)
        labels = [classes[store.rows[item].speaker] for item in items]
        fill = functools.partial(_fill, mean, config.level)
        data = store, items, labels, fill, self.order, self._crop(), self.augmentations, training.seed
        self.dataset = CropDataset(*data, len(self.speakers), speeds)
        self.trials = self._validation_trials()
        self._scored: tuple[np.ndarray, np.ndarray, float] | None = None

    def _crop(self) -> tuple[int, int] | None:
        """The least and the greatest number of frames of a training sample; None if it is an entire utterance."""
        if self.training.batch_frames:
            return None
        greatest = self._crop_frames("crop_seconds")
        has_range = self.options.shortest_crop_seconds is not None
        return (self._crop_frames("shortest_crop_seconds") if has_range else greatest), greatest

    def _crop_frames(self, name: str) -> int:
        recipe, seconds = self.store.recipe, getattr(self.options, name)
        frames = recipe.frames(round(seconds * recipe.sample_rate))
        if not frames:
            raise UserError(f"{flag_name(name)} {seconds:g} is shorter than one frame of the features")
        return frames

    def _keeps_back_end(self) -> bool:
        """Whether back end and scoring of --init stay: few speakers say too little of the spread within them."""
        is_frozen = self.options.freeze == "encoder"
        return is_frozen or bool(self.options.init and len(self.speakers) < MIN_COHORT)

    def _check(self) -> None:
        name, leaked = self.protocol.name, sorted(set(self.protocol.heldout_speakers).intersection(self.speakers))
        if leaked:
            raise UserError(f"protocol {name}: held-out speakers {leaked} are in the training list")
        if len(self.speakers) < 2:
            raise UserError(f"protocol {name} has {len(self.speakers)} training speakers; 2 are needed")
        needing = [each.share_name for each in self._of_audio()]
        needing += ["speed_perturbation"] if self.options.speed_perturbation else []
        if needing and self.store.kind != "audio":
            raise UserError(f"{flag_name(needing[0])} needs a store of audio: preprocess.py --store audio")

    def _of_audio(self) -> list[WaveAugmentation]:
        """The augmentations of samples that are in use."""
        return [each for each in self.augmentations if isinstance(each, WaveAugmentation) and each.share]

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
            if not self.protocol.valid_speakers:
                print(TOO_OPTIMISTIC)
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
        """Fits back end and scoring, unless they stay; EER of the validation trials, and its threshold."""
        if self.back_end is None or not self._keeps_back_end():
            self.back_end = self._fit_back_end(ranks)
        if not self.trials:
            return {}
        items = sorted({item for _, a, b in self.trials for item in (a, b)})
        place = {item: number for number, item in enumerate(items)}
        mels = self._mels(items, ranks)
        embeddings = self._embed(mels, len(items), ranks)
        if self.scoring.operating_points is None or not self._keeps_back_end():
            self.scoring = Scoring.fit(self._cohort(ranks), self._validation(items, mels, embeddings, ranks))
        trials = [(target, place[a], place[b]) for target, a, b in self.trials]
        scores, targets = self.scoring.of_trials(embeddings, trials)
        rate, threshold = eer(scores, targets)
        self._scored = scores, targets, threshold
        return {"valid_eer": rate, "valid_threshold": threshold}

    def _embed(self, mels: Sequence[np.ndarray], count: int, ranks: Ranks) -> np.ndarray:
        """Embeddings (count, e) by the back end; `mels` are this rank's share."""
        return self.back_end(ranks.join_rows(embed_mels(self.model, mels, ranks.device), count))

    def _mels(self, items: Sequence[int], ranks: Ranks) -> list[np.ndarray]:
        """This rank's share of the spectrograms of items."""
        return [self.store.mel(items[number]) for number in ranks.share(len(items))]

    def _cohort(self, ranks: Ranks) -> Cohort | None:
        """A cohort of the training speakers, if they are not too few."""

        def embed(places: list[int]) -> np.ndarray:
            items = [self.dataset.items[place] for place in places]
            return self._embed(self._mels(items, ranks), len(items), ranks)

        return cohort_of([self.store.rows[item].speaker for item in self.dataset.items], embed)

    def _validation(
        self, items: Sequence[int], mels: Sequence[np.ndarray], whole: np.ndarray, ranks: Ranks
    ) -> Validation:
        """Cuts and embeds the validation recordings; `whole` (n, e) are the embeddings of entire ones."""
        recipe, rows = self.store.recipe, [self.store.rows[item] for item in items]
        speakers, lengths = [row.speaker for row in rows], [row.seconds for row in rows]
        cut = {}
        for seconds in useful_cuts(lengths):
            frames = recipe.frames(round(seconds * recipe.sample_rate))
            cut[seconds] = self._embed([middle(mel, frames) for mel in mels], len(items), ranks)
        return Validation.of(cut, whole, speakers, lengths)

    def _fit_back_end(self, ranks: Ranks) -> BackEnd:
        """Fits the back end to as many samples of each speaker, augmented as in training; finite ones only.

        Speakers weigh the same, so that a corpus with many recordings of each does not hide another with few.
        """
        dataset = dataclasses.replace(self.dataset, speeds=SPEEDS[:1])
        places = balanced_places(self.order, dataset.labels, min(BACK_END_SAMPLES, 4 * self.order.size))
        samples = [dataset[places[number]] for number in ranks.share(len(places))]
        usable = np.array([[np.isfinite(mel).all()] for mel, _ in samples], dtype=np.float32).reshape(-1, 1)
        mels = [mel if is_usable else np.zeros_like(mel) for (mel, _), is_usable in zip(samples, usable, strict=True)]
        labels = np.array([label for _, label in samples], dtype=np.float32).reshape(-1, 1)
        rows = np.concatenate([embed_mels(self.model, mels, ranks.device), labels, usable], axis=1)
        rows = ranks.join_rows(rows, len(places))
        rows = rows[rows[:, -1] > 0]
        return BackEnd.fit(rows[:, :-2], rows[:, -2].astype(np.int64))

    def show(self, log: RunLog, step: int) -> None:
        """Logs histograms of the scores of the last validation."""
        if self._scored is not None:
            from utils.speaker.evaluation.plots import draw_scores

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
            **({"sounds": self.sounds} if self.sounds else {}),
            **({"speeds": len(SPEEDS)} if self.options.speed_perturbation else {}),
        }

    def attachments(self) -> dict[str, Any]:
        """What the last validation fitted."""
        found = {} if self.back_end is None else {"back_end": self.back_end.to_tensors()}
        return {**found, **self.scoring.to_tensors()}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes what a validation fitted from a checkpoint."""
        if "back_end" in checkpoint:
            self.back_end = BackEnd.from_tensors(checkpoint["back_end"])
        self.scoring = Scoring.from_checkpoint(checkpoint)
