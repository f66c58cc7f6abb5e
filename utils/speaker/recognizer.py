"""A trained speaker model, from recordings to embeddings, in three lines:

    from utils.speaker.recognizer import SpeakerRecognizer
    recognizer = SpeakerRecognizer.load()
    embedding = recognizer.embed_file("recording.flac")

`load("runs/demo")` takes a model of your own. Embeddings are unit-normalized, so that the cosine of two recordings is
their dot product; `recognizer.compare(a, b)` gives the log-likelihood ratio of two files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.speaker import SpeakerConfig, SpeakerModel
from utils.cli import progress
from utils.errors import UserError
from utils.features.audio import SAMPLES, checked_samples, load_audio, read_blocks, resample
from utils.features.mel import MelExtractor
from utils.features.speech import audible, spoken
from utils.features.windows import Window, cut_windows, middle, read_windows
from utils.speaker.embeddings import unit
from utils.speaker.scoring.back_end import BackEnd
from utils.speaker.scoring.scoring import Scoring
from utils.speaker.scoring.validation import MIN_SPEAKERS, Recordings
from utils.speaker.streaming import EmbeddingStream, embed_continued, normalized
from utils.trained import TrainedModel

Mel = NDArray[np.float32]

WINDOW_SECONDS = 60
"""A longer recording is embedded in windows of 30 to 60 s, whose embeddings are averaged, unless the model streams."""

MIN_SPEECH_SECONDS = 0.5

_BATCH_FRAMES = 16_000  # padded frames in one forward: 160 s of audio; a longer recording forms a batch of its own
_READ_AHEAD = 128  # recordings held at once; lengths are sorted among them, so that little is padding


class Part(NamedTuple):
    """The log-mel spectrogram (t, n_mels) of a window of a recording, and its weight in the recording's embedding."""

    mel: Mel
    weight: float


class EmbeddedWindow(NamedTuple):
    """A window of a recording: start, end, length without long pauses, and speech, in s; and its embedding (d,)."""

    start: float
    end: float
    seconds: float
    speech: float
    embedding: NDArray[np.float32]


class SpeakerRecognizer(TrainedModel):
    """A speaker model with the features that it was trained on.

    `scoring` turns embeddings into answers. `threshold` is its score at the equal error rate of the validation trials;
    None without a validation.
    """

    task = "speaker"
    config_class = SpeakerConfig

    def __init__(
        self, content: dict[str, Any], source: str | Path, device: str = "auto", backend: str = "auto"
    ) -> None:
        super().__init__(content, source, device, backend)
        self.threshold: float | None = content["metrics"].get("valid_threshold")
        tensors = content.get("back_end")
        self.back_end = BackEnd.from_tensors(tensors) if tensors else BackEnd.none(self.model.embedding_dim)
        self.scoring = Scoring.from_checkpoint(content)
        self._extractor = MelExtractor(self.recipe)

    def build(self, content: dict[str, Any]) -> SpeakerModel:
        """The untrained model, with a class for each speaker at each speed; for none in a packed model."""
        return SpeakerModel(self.config, content.get("speeds", 1) * len(content["speakers"]))

    @property
    def has_classifier(self) -> bool:
        """Whether the model has vectors of its training speakers; packed models do not."""
        return len(self.model.classifier.weight) > 0

    @property
    def name(self) -> str:
        """`tacomamba-mamba2`, `xvector`, ..."""
        kind = self.config.model
        return f"{kind}-{self.config.mixer}" if kind == "tacomamba" else kind

    def description(self, checkpoint: str | Path) -> dict[str, Any]:
        """The entries of a report that describe the model, the threshold among them."""
        about = super().description(checkpoint)
        of_scores = {"valid_threshold": self.threshold, "scores": self.scoring.name}
        return {**about, "checkpoint": {**about["checkpoint"], **of_scores}}

    def remove_back_end(self) -> None:
        """Takes cosines of embeddings as the encoder gives them; what was fitted to other cosines goes too."""
        self.back_end = BackEnd.none(self.model.embedding_dim)
        self.threshold, self.scoring = None, Scoring()

    def remove_cohort(self) -> None:
        """Takes plain cosines; what was fitted beside the cohort goes too."""
        if self.scoring.cohort is not None:
            self.threshold, self.scoring = None, Scoring()

    def identification_threshold(self, wanted: float | None, seconds: float, enrolled: int) -> float:
        """`wanted`, or else that of the operating points for a recording of `seconds` and `enrolled` people.

        Checkpoints without operating points have the threshold of trials only, which is one of cosines if there is no
        cohort. `UserError` if there is none of them.
        """
        if wanted is None and self.scoring.operating_points is not None:
            return self.scoring.operating_points.identification(seconds, enrolled)
        if wanted is None and self.scoring.cohort is None:
            wanted = self.threshold
        if wanted is None:
            raise UserError(
                "the checkpoint has no threshold of cosines, because it was validated on too few speakers or none: "
                "give --threshold"
            )
        return wanted

    def require_calibration(self) -> None:
        """`UserError` if the checkpoint has no calibration."""
        if self.scoring.calibration is None:
            raise UserError(
                "the checkpoint has no calibration, because it is of an older version or was validated on fewer than "
                f"{MIN_SPEAKERS} speakers: test.py pack --data fits one, and --threshold decides by the cosine alone"
            )

    def compare(self, a: str | Path, b: str | Path) -> float:
        """Log-likelihood ratio of two recordings: above 0 one speaker explains them better than two do.

        It is the natural logarithm of p(a, b | same speaker) / p(a, b | different speakers). `UserError` if a recording
        has too little speech, or if the checkpoint has no calibration.
        """
        self.require_calibration()
        return self.llr(self.embed_speech([a, b]))

    def llr(self, pair: Recordings) -> float | None:
        """The log-likelihood ratio of two recordings; None without a calibration."""
        llrs = self.scoring.llrs(*(Recordings(*(each[place : place + 1] for each in pair)) for place in (0, 1)))
        return None if llrs is None else float(llrs[0, 0])

    def mel_of_file(self, path: str | Path) -> Mel:
        """Log-mel spectrogram (t, n_mels) of an audio file of any sample rate."""
        return self.mel_of_samples(path, self.samples_of_file(path))

    def samples_of_file(self, path: str | Path) -> NDArray[np.float32]:
        """Samples (s,) of an audio file at the rate of the features."""
        return load_audio(path, self.recipe.sample_rate)

    def mel_of_samples(self, path: str | Path, waveform: NDArray[np.float32]) -> Mel:
        """Log-mel spectrogram (t, n_mels) of the `audible` of samples (s,); `path` names the recording in errors."""
        try:
            return self._extractor(audible(waveform, self.recipe.sample_rate))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def _windows(self, path: str | Path) -> Iterator[Window]:
        """Windows of samples whose frames are those of `cut_windows` of the entire spectrogram."""
        recipe = self.recipe
        hop = self.longest_window * recipe.hop_length
        overlap = recipe.n_fft - sum(recipe.pad) - recipe.hop_length
        return read_windows(path, recipe.sample_rate, hop + overlap, hop, recipe.hop_length)

    @property
    def longest_window(self) -> int:
        """Frames of a spectrogram that are embedded as a whole."""
        return self._frames(WINDOW_SECONDS)

    def embed_mels(self, mels: Sequence[Mel]) -> NDArray[np.float32]:
        """Unit-normalized embeddings (n, d) of log-mel spectrograms (t_i, n_mels), in batches of like length.

        One of more than `WINDOW_SECONDS` gets the mean of its windows' embeddings, weighted by their lengths; of a
        model that can stream, the running embedding of all of it.
        """
        length = self.longest_window
        return self._embed([(Part(mel, len(mel)) for _, mel in cut_windows([mel], length, length)) for mel in mels])

    def _embed(self, recordings: Iterable[Iterator[Part]]) -> NDArray[np.float32]:
        """Embeddings (n, d) of recordings in parts; those of one part are embedded together, longer ones at once."""
        rows: list[Any] = []
        whole: list[Mel] = []
        for parts in recordings:
            first, second = next(parts), next(parts, None)
            if second is None:
                whole.append(first.mel)
                rows.append(None)
            else:
                rows.append(self._embed_parts(itertools.chain([first, second], parts)))
        embedded = iter(embed_mels(self.model, whole, self.device))
        rows = [next(embedded) if row is None else row for row in rows]
        return self.back_end(np.array(rows, dtype=np.float32).reshape(len(rows), self.model.embedding_dim))

    def _embed_parts(self, parts: Iterable[Part]) -> NDArray[np.float32]:
        if self.model.can_stream:
            return embed_continued(self.model, (part.mel for part in parts))
        total = np.zeros(self.model.embedding_dim)
        for mel, weight in parts:
            total += weight * embed_mels(self.model, [mel], self.device)[0].astype(np.float64)
        return unit(total)

    def embed_durations(
        self, sources: Sequence[Any], read: Callable[[Any], Mel], durations: Iterable[float | None], **bar: Any
    ) -> list[NDArray[np.float32]]:
        """Embeddings (n, d) of `sources` for each of `durations`: seconds of their middle, or None for all of it.

        `read` returns the spectrogram of a source; it is called once for each source.
        """
        frames = [None if seconds is None else self._frames(seconds) for seconds in durations]
        parts: list[list[NDArray[np.float32]]] = [[] for _ in frames]
        for group in _groups(sources, **bar):
            mels = [read(source) for source in group]
            for part, length in zip(parts, frames, strict=True):
                part.append(self.embed_mels([middle(mel, length) for mel in mels]))
        return [self._joined(part) for part in parts]

    def _joined(self, groups: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate([np.empty((0, self.model.embedding_dim), dtype=np.float32), *groups])

    def _frames(self, seconds: float) -> int:
        frames = self.recipe.frames(round(seconds * self.recipe.sample_rate))
        if frames < 1:
            raise UserError(f"{seconds} s is shorter than one frame of the features")
        return frames

    def embed_files(self, paths: Sequence[str | Path], seconds: float | None = None, **bar: Any) -> NDArray[np.float32]:
        """Embeddings (n, d) of audio files, of the middle `seconds` of each (None: of the entire file).

        Entire files are read in windows, as `embed_mels` cuts their spectrograms: an hour needs no more memory than a
        minute.
        """
        if seconds is not None:
            return self.embed_durations(paths, self.mel_of_file, [seconds], **bar)[0]
        return self._joined(self._embed(map(self._parts, group)) for group in _groups(paths, **bar))

    def _parts(self, path: str | Path) -> Iterator[Part]:
        for window in self._windows(path):
            mel = self.mel_of_samples(path, window.values)
            yield Part(mel, len(mel))

    def embed_file(self, path: str | Path) -> NDArray[np.float32]:
        """Embedding (d,) of an audio file."""
        return self.embed_files([path], disable=True)[0]

    def embed_samples(self, samples: ArrayLike, rate: int) -> NDArray[np.float32]:
        """Embedding (d,) of mono samples (s,) at `rate` Hz, floats or signed integers; `UserError` if unusable."""
        return self.embed_mels([self.mel_of_samples(SAMPLES, self._samples(samples, rate))])[0]

    def _samples(self, samples: ArrayLike, rate: int) -> NDArray[np.float32]:
        """Mono samples (s,) at the rate of the features."""
        return resample(SAMPLES, checked_samples(samples), rate, self.recipe.sample_rate)

    def embed_stream(self, rate: int | None = None) -> EmbeddingStream:
        """The running embedding of samples at `rate` Hz (default: that of the features) that will be pushed.

        `UserError` for a model that is not causal, or whose mixer or pooling keeps every frame.
        """
        if not self.config.causal:
            raise UserError(
                f"a running embedding needs a causal model, and {self.name} is not: it embeds windows, or train one "
                "with --causal"
            )
        if not self.model.can_stream:
            raise UserError(
                f"a running embedding needs a mixer and a pooling with a state of constant size, and {self.name} with "
                f"pooling {self.config.pooling} keeps every frame"
            )
        return EmbeddingStream(self.model, self._extractor, self.back_end, rate)

    def embed_windows(
        self, source: str | Path | ArrayLike, seconds: float = 3.0, hop: float = 1.0, rate: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Times (n, 2), start and end in s, and embeddings (n, d) of windows of a recording; arguments as `windows`."""
        windows = list(self.windows(source, seconds, hop, rate))
        return np.array([(each.start, each.end) for each in windows]), np.stack([each.embedding for each in windows])

    def windows(
        self,
        source: str | Path | ArrayLike,
        seconds: float = 3.0,
        hop: float = 1.0,
        rate: int | None = None,
        every: int = 1,
    ) -> Iterator[EmbeddedWindow]:
        """Embeds windows of `seconds` that start `hop` seconds apart, as the recording is read.

        The last two share what remains, so that they are shorter (`utils.features.windows.cut_windows`). Long pauses in
        a window are left out, as by `embed_speech`.

        Args:
            source: an audio file, or mono samples (s,) at `rate` Hz (default: that of the features).
            every: embeds one of so many windows, from the first on.

        Raises:
            UserError: the recording cannot be used, or `hop` is not within (0, seconds].
        """
        if not 0 < hop <= seconds:
            raise UserError(f"windows of {seconds:g} s cannot start {hop:g} s apart: the hop must be within the window")
        own = self.recipe.sample_rate
        is_file = isinstance(source, str | Path)
        blocks = read_blocks(source, own) if is_file else [self._samples(source, rate or own)]
        cut = cut_windows(blocks, max(1, round(seconds * own)), max(1, round(hop * own)))
        windows = itertools.islice(cut, 0, None, every)
        while group := list(itertools.islice(windows, _READ_AHEAD)):
            name = source if is_file else SAMPLES
            heard = [spoken(values, own) for _, values in group]
            embeddings = self.embed_mels([self.mel_of_samples(name, each.samples) for each in heard])
            for (start, values), each, embedding in zip(group, heard, embeddings, strict=True):
                end, seconds = (start + len(values)) / own, len(each.samples) / own
                yield EmbeddedWindow(start / own, end, seconds, each.seconds, embedding)

    def embed_speech(self, paths: Sequence[str | Path], **bar: Any) -> Recordings:
        """Embeds recordings; `UserError` if one contains too little speech.

        As `embed_files`, but of what is `spoken`, and windows count by their seconds of speech. Silence says nothing
        about a speaker, and that of edited recordings is like nothing in training. The seconds of `Recordings` are what
        remains.
        """
        seconds: list[float] = []
        groups = [self._embed(self._spoken_parts(path, seconds) for path in group) for group in _groups(paths, **bar)]
        return Recordings(self._joined(groups), np.array(seconds))

    def _spoken_parts(self, path: str | Path, seconds: list[float]) -> Iterator[Part]:
        """Parts with speech; at the end appends the length of what they hold to `seconds`."""
        rate, speech, left_out = self.recipe.sample_rate, 0.0, 0
        for window in self._windows(path):
            heard = spoken(window.values, rate)
            speech += heard.seconds
            if heard.seconds:
                yield Part(self.mel_of_samples(path, heard.samples), heard.seconds)
            left_out += len(window.values) - (len(heard.samples) if heard.seconds else 0)
        if speech < MIN_SPEECH_SECONDS:
            raise UserError(f"{path} has {speech:.2f} s of speech; at least {MIN_SPEECH_SECONDS} s are needed")
        seconds.append((window.start + len(window.values) - left_out) / rate)

    @torch.inference_mode()
    def classify(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines (n, s) of embeddings (n, d) with the vectors of the training speakers, if `has_classifier`."""
        weight = torch.nn.functional.normalize(self.model.classifier.weight[: len(self.speakers)].float(), dim=-1)
        return embeddings @ self.back_end(weight.cpu().numpy()).T


def _groups(sources: Sequence[Any], **bar: Any) -> Iterator[Sequence[Any]]:
    """Groups of at most `_READ_AHEAD`, with progress."""
    with progress(total=len(sources), unit="file", **bar) as shown:
        for start in range(0, len(sources), _READ_AHEAD):
            yield (group := sources[start : start + _READ_AHEAD])
            shown.update(len(group))


@torch.inference_mode()
def embed_mels(model: SpeakerModel, mels: Sequence[Mel], device: torch.device) -> NDArray[np.float32]:
    """Unit-normalized embeddings (n, d) of log-mel spectrograms (t_i, n_mels), by a model in eval mode.

    Batches hold spectrograms of like length, padded. The model masks the padding, so that order and company change an
    embedding by no more than the order of floating-point sums does.
    """
    result = np.empty((len(mels), model.embedding_dim), dtype=np.float32)
    for batch in _batches([len(mel) for mel in mels]):
        result[batch] = normalized(_embed_batch(model, [mels[place] for place in batch], device))
    return result


def _embed_batch(model: SpeakerModel, mels: Sequence[Mel], device: torch.device) -> Tensor:
    lengths = torch.tensor([len(mel) for mel in mels])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(mel)) for mel in mels], batch_first=True)
    return model.embed(padded.to(device), lengths.to(device))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places in order of length, cut into batches of at most `_BATCH_FRAMES` padded frames, or of a single place."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > _BATCH_FRAMES:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
