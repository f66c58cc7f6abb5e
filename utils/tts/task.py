"""The text-to-mel task: a model of log-mels given tokens, validated by its error on held-out texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from models.config import Config, option
from models.padding import length_mask
from models.tts import MODELS, TextToMelConfig
from models.tts.pitch import grid_hz
from utils.errors import UserError
from utils.features.harmonics import tones
from utils.features.store import FeatureStore
from utils.lists import training_list_hash
from utils.text.frontend import VERSION
from utils.training.distributed import Ranks
from utils.training.options import TrainingOptions
from utils.training.runlog import RunLog
from utils.training.sampling import Order, make_order
from utils.tts.aligning import Batch, fit
from utils.tts.text_lists import read_text_lists
from utils.tts.voices import Voices

VALID_BATCH = 8
SCALED_UTTERANCES = 64  # training texts that measure the bias of predicted durations without dropout
ALIGNED_UTTERANCES = 2000
ALIGNED_BATCH = 16


@dataclass(frozen=True)
class TtsOptions(Config):
    """The source of speaker embeddings."""

    title = "voice of text to mel"

    speaker_encoder: Path | None = option(  # compared by the hash of its weights when a run is resumed
        None, "checkpoint or packed model of the speaker task that makes the embeddings", may_change=True
    )


@dataclass(eq=False)
class TextDataset(Dataset):
    """Entire utterances: tokens (n,), log-mel (t, n_mels), and the model's input for the voice."""

    store: FeatureStore
    items: list[int]
    voices: Voices
    order: Order

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray, Any]:
        item = self.items[self.order[place]]
        return self.store.tokens(item), self.store.mel(item), self.voices.at(item, place)


class TextToMelTask:
    """Training text to mel on the text lists of a feature store: a `utils.training.task.Task`.

    A new task estimates its alignment, which takes a while; a task that is not new takes it from a checkpoint.
    """

    name = "tts"
    score_name = "valid_mel"
    is_slow_to_load = False
    model_config = TextToMelConfig

    @staticmethod
    def option_classes() -> list[type[Config]]:
        """The options of the task."""
        return [TtsOptions]

    @staticmethod
    def problems(config: TextToMelConfig, training: TrainingOptions, options: Sequence[Config]) -> list[str]:
        """Sentences about options of the model, the loop and the task that contradict each other."""
        found, (own,) = [], options
        if training.compile:
            found.append("--compile is not for --task tts: g++ 12 cannot compile what torch.compile generates")
        if config.voice == "embedding" and own.speaker_encoder is None:
            found.append("--voice embedding needs --speaker-encoder, a checkpoint of --task speaker")
        if config.voice != "embedding" and own.speaker_encoder is not None:
            found.append("--speaker-encoder needs --voice embedding")
        return found

    def __init__(
        self,
        store: FeatureStore,
        protocol_folder: Path,
        config: TextToMelConfig,
        training: TrainingOptions,
        options: Sequence[Config],
        is_new: bool = True,
    ) -> None:
        self.store, self.lists, self.training = store, read_text_lists(protocol_folder), training
        if store.vocabulary is None:
            raise UserError(f"{store.directory} has no transcripts: use features of preprocess.py --task tts")
        items = self._usable(self.lists.train, "training")
        if not items:
            raise UserError("every training utterance has fewer mel frames than symbols")
        (own,) = options
        self.voices = Voices(store, items, config.voice, own.speaker_encoder, training)
        self.speakers = self.voices.speakers
        self.symbol_counts = self._count_symbols(items)
        self.valid_items = self._choose_valid()
        self.scaled_items = _drawn(items, SCALED_UTTERANCES, [training.seed, 7])
        sizes = {"n_mels": store.recipe.n_mels, "n_speakers": len(self.speakers), "speaker_dim": self.voices.dim}
        self.config = dataclasses.replace(config, **sizes)
        self.model = MODELS[config.model](self.config, len(store.vocabulary))
        self._set_statistics(items, is_new)
        self.order = make_order([store.rows[item].frames for item in items], training)
        self.dataset = TextDataset(store, items, self.voices, self.order)

    def _usable(self, utterances: list[str], what: str) -> list[int]:
        """Store items of the utterances with at least one mel frame per symbol."""
        items = self.store.listed(utterances, what)
        usable = self.store.with_a_frame_a_token(items)
        if len(usable) < len(items):
            print(f"{len(items) - len(usable)} {what} utterances left out: they have fewer mel frames than symbols")
        return usable

    def _choose_valid(self) -> list[int]:
        """At most `--valid-utterances` store items of the validation list, by training speakers."""
        items, known = self._usable(self.lists.valid, "validation"), set(self.speakers)
        spoken = [item for item in items if self.voices.of_item[item] in known]
        if len(spoken) < len(items):
            print(f"{len(items) - len(spoken)} validation utterances left out: their speakers are not trained")
        if not spoken:
            print("no validation: no utterance is by a training speaker; the last checkpoint counts as the best")
        return sorted(_drawn(spoken, self.training.valid_utterances, [self.training.seed, 3]))

    def _count_symbols(self, items: list[int]) -> dict[str, int]:
        """Number of occurrences of each symbol of the vocabulary in the training texts."""
        symbols = self.store.vocabulary.symbols
        counts = sum((np.bincount(self.store.tokens(item), minlength=len(symbols)) for item in items), 0)
        return dict(zip(symbols, counts.tolist(), strict=True))

    def _set_statistics(self, items: list[int], is_new: bool) -> None:
        mean, std = self.store.statistics(items, self.training.seed)
        frames = sum(self.store.rows[item].frames for item in items)
        tokens = sum(len(self.store.tokens(item)) for item in items)
        self.model.set_statistics(torch.from_numpy(mean), torch.from_numpy(std), frames / tokens)
        if self.model.draws_harmonics:
            self.model.set_tones(torch.from_numpy(tones(grid_hz().numpy(), self.store.recipe)))
        if self.model.has_durations and is_new:
            fit(self.model.aligner, lambda: self._aligned_batches(items, mean, std))

    def _aligned_batches(self, items: list[int], mean: np.ndarray, std: np.ndarray) -> Iterator[Batch]:
        """Standardized batches of at most `ALIGNED_UTTERANCES` training utterances, each batch of like lengths."""
        items = _drawn(items, ALIGNED_UTTERANCES, [self.training.seed, 6])
        items = sorted(items, key=lambda item: self.store.rows[item].frames)
        for start in range(0, len(items), ALIGNED_BATCH):
            part = items[start : start + ALIGNED_BATCH]
            mels = [(self.store.mel(item) - mean) / std for item in part]
            finite = [place for place, mel in enumerate(mels) if np.isfinite(mel).all()]
            if finite:
                batch = self.collate([(self.store.tokens(part[place]), mels[place], None) for place in finite])
                yield batch["tokens"], batch["token_lengths"], batch["mel"], batch["mel_lengths"]

    def collate(self, samples: list[tuple[np.ndarray, np.ndarray, Any]]) -> dict[str, Tensor]:
        """Right-padded `tokens` (b, n) and `mel` (b, t, n_mels), their lengths (b,), `speaker` (b,) or (b, e)."""
        tokens, mels, speakers = zip(*samples, strict=True)
        batch = {
            "tokens": pad_sequence([torch.from_numpy(part).long() for part in tokens], batch_first=True),
            "token_lengths": torch.tensor([len(part) for part in tokens]),
            "mel": pad_sequence([torch.from_numpy(part) for part in mels], batch_first=True),
            "mel_lengths": torch.tensor([len(part) for part in mels]),
        }
        if speakers[0] is not None:
            batch["speaker"] = torch.from_numpy(np.stack([np.asarray(speaker) for speaker in speakers]))
        return batch

    def inputs(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        """The model's arguments: the batch."""
        return batch

    def schedule(self, step: int) -> dict[str, float]:
        """Nothing: no part of the loss changes with the step."""
        return {}

    def frames(self, batch: dict[str, Tensor]) -> int:
        """Mel frames in a batch, without padding."""
        return int(batch["mel_lengths"].sum())

    def utterance(self, place: int) -> str:
        """The id of the utterance at a place of the run."""
        return self.store.rows[self.dataset.items[self.order[place]]].utterance

    def validate(self, ranks: Ranks) -> dict[str, float]:
        """Metrics of the validation list, if there is one, and the `duration_scale` of a model with durations.

        `valid_mel`: mean absolute error of the mel in natural-log units, with the durations and pitches of the
        recordings. `valid_length_bias`: predicted over true frames of all utterances together, less 1, for models that
        predict durations. `valid_pitch`: root mean square error of the predicted pitch in cents, on voiced frames, for
        models that predict it.
        """
        metrics = self._set_duration_scale(ranks) if self.model.has_durations else {}
        if not self.valid_items:
            return metrics
        error, frames, predicted, squares, voiced = self._rows(self.valid_items, self._judge, 5, ranks).sum(0).tolist()
        metrics = {"valid_mel": error / frames, **metrics}
        if np.isfinite(predicted):
            metrics["valid_length_bias"] = predicted / frames - 1
        if np.isfinite(squares) and voiced:
            metrics["valid_pitch"] = (squares / voiced) ** 0.5
        return metrics

    def _set_duration_scale(self, ranks: Ranks) -> dict[str, float]:
        self.model.duration_scale = 1.0
        lists = self.scaled_items, self.valid_items
        trained, held_out = (self._rows(items, self._lengths, 2, ranks) for items in lists)
        self.model.duration_scale = duration_scale(trained, held_out)
        return {"duration_scale": self.model.duration_scale}

    def _rows(
        self, items: list[int], judge: Callable[[list[int], torch.device], np.ndarray], columns: int, ranks: Ranks
    ) -> np.ndarray:
        """Rows of `judge` for items, a few at a time: (n, columns); each item is judged on one rank."""
        share = ranks.share(len(items))
        parts = (share[start : start + VALID_BATCH] for start in range(0, len(share), VALID_BATCH))
        rows = [judge([items[number] for number in part], ranks.device) for part in parts]
        return ranks.join_rows(np.concatenate([np.empty((0, columns)), *rows]), len(items))

    def _lengths(self, items: list[int], device: torch.device) -> np.ndarray:
        """Frames and predicted frames of each item: (n, 2)."""
        batch = self._batch(items, device)
        columns = batch["mel_lengths"], self._predicted_lengths(batch)
        return torch.stack([each.double() for each in columns], dim=1).cpu().numpy()

    def _judge(self, items: list[int], device: torch.device) -> np.ndarray:
        """Sums of each item: (n, 5), NaN for values that the model does not predict.

        Error of the mel, frames, predicted frames, squared error of the pitch in cents, voiced frames.
        """
        batch = self._batch(items, device)
        mel, lengths = batch["mel"], batch["mel_lengths"]
        compared, predicted = self.model.compare(**batch), self._predicted_lengths(batch)
        error = ((compared.mel - mel).abs().mean(2) * length_mask(lengths, mel.shape[1])).sum(1)
        squares = voiced = unknown = torch.full_like(error, torch.nan)
        if compared.pitch is not None:
            cents = 1200 * (compared.predicted_pitch.token - compared.pitch.token)
            squares, voiced = (compared.pitch.voiced * cents.square()).sum(1), compared.pitch.voiced.sum(1)
        columns = error, lengths, unknown if predicted is None else predicted, squares, voiced
        return torch.stack([each.double() for each in columns], dim=1).cpu().numpy()

    def _predicted_lengths(self, batch: dict[str, Tensor]) -> Tensor | None:
        names = ("tokens", "token_lengths", "speaker")
        return self.model.predicted_lengths(**{name: batch[name] for name in names if name in batch})

    def _batch(self, items: list[int], device: torch.device) -> dict[str, Tensor]:
        samples = [(self.store.tokens(item), self.store.mel(item), self.voices.at(item, None)) for item in items]
        return {name: tensor.to(device) for name, tensor in self.collate(samples).items()}

    def show(self, log: RunLog, step: int) -> None:
        """Logs the first validation utterance as the model speaks it: mel, under the true one, alignment, and audio."""
        from utils.tts.plots import draw_speech
        from utils.tts.vocoder import GRIFFIN_LIM, load_vocoder

        if not self.valid_items:
            return
        item = self.valid_items[0]
        batch = self._batch([item], next(self.model.parameters()).device)
        spoken = self.model.synthesize(batch["tokens"], batch.get("speaker"))
        mel, alignment = spoken.mel.cpu().numpy(), spoken.alignment.cpu().numpy()
        symbols = [self.store.vocabulary.symbols[token] for token in self.store.tokens(item)]
        title = f"{self.store.rows[item].utterance}, step {step}"
        shown = mel, alignment, symbols, self.store.recipe, title, self.store.mel(item)
        log.picture(step, "speech", lambda path: draw_speech(path, *shown))
        if np.isfinite(mel).all():
            vocoder = load_vocoder(GRIFFIN_LIM, self.store.recipe)
            log.sound(step, "speech", vocoder(mel), self.store.recipe.sample_rate)

    def description(self) -> dict[str, Any]:
        """The entries of a checkpoint beside the weights."""
        return {
            "model_config": self.config.to_dict(),
            "recipe": self.store.recipe.to_dict(),
            "recipe_hash": self.store.recipe.hash,
            "vocabulary": self.store.vocabulary.to_dict(),
            "front_end_version": VERSION,
            "symbol_counts": self.symbol_counts,
            "speakers": self.speakers,
            "training_list": training_list_hash(self.lists.train),
            "recognizer_hash": None if self.voices.recognizer is None else self.voices.hash,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Nothing: attachments do not change in training."""

    def attachments(self) -> dict[str, Any]:
        """The recognizer for reference recordings, and the training speakers' embeddings (n_speakers, e)."""
        return {"recognizer": self.voices.recognizer, "speaker_embeddings": self.voices.means()}


def _drawn(items: list[int], most: int, seed: list[int]) -> list[int]:
    """`items`, or `most` of them drawn by `seed` if there are more."""
    if len(items) <= most:
        return items
    return np.random.default_rng(seed).choice(items, most, replace=False).tolist()


def duration_scale(trained: NDArray[np.float64], held_out: NDArray[np.float64]) -> float:
    """The factor on predicted durations, from true and predicted frames of utterances: (n, 2), (m, 2).

    Training texts are many and give a precise scale, but a biased one once a model has memorized them. Validation texts
    give an unbiased scale, but are few. So the scale of the training texts is moved toward that of the validation
    texts by the share of their distance that chance does not explain: 1 - (standard error / distance)^2, if positive
    (Efron and Morris 1973, "Stein's estimation rule and its competitors"). 1 if a prediction is not finite.
    """
    if not (np.isfinite(trained).all() and np.isfinite(held_out).all()):
        return 1.0
    scale, variance = _ratio(trained)
    if len(held_out) < 2:
        return scale
    held_scale, held_variance = _ratio(held_out)
    distance, chance = held_scale - scale, held_variance + variance
    return scale + (distance - chance / distance if distance**2 > chance else 0.0)


def _ratio(rows: NDArray[np.float64]) -> tuple[float, float]:
    """True over predicted frames (n, 2), and the variance (Cochran 1977, "Sampling techniques", section 6.4)."""
    true, predicted = rows.sum(0)
    ratio = float(true / predicted)
    rest = rows[:, 0] - ratio * rows[:, 1]
    return ratio, float(len(rows) / max(1, len(rows) - 1) * (rest**2).sum() / rows[:, 1].sum() ** 2)
