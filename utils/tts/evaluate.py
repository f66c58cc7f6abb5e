"""Evaluation of text to mel: synthesis of held-out texts, and copy-synthesis of their recordings, by one vocoder.

Copy-synthesis sends the mel of the recording through the vocoder: its errors are the vocoder's, and the rest is the
acoustic model's. Both are measured on the mels of the resulting audio, so that their metrics are comparable.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from utils.cli import progress
from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.mel import MelExtractor
from utils.features.recipe import MelRecipe, require_same
from utils.features.store import FeatureStore, Row
from utils.files import sha256_file, shown
from utils.lists import training_list_hash
from utils.tts.asr import Transcriber, Transcript, judge
from utils.tts.speech_metrics import PitchErrors, import_librosa, pitch, pitch_errors, warp
from utils.tts.text_lists import TextLists, read_text_lists
from utils.tts.vocoder import Vocoder, load_vocoder

if TYPE_CHECKING:
    from utils.tts.synthesizer import Spoken, Synthesizer

SAMPLES = 4  # utterances whose audio and picture are kept
PARTS = ("text", "acoustic_model", "vocoder")  # with a clock each

Frames = NDArray[np.float32]


def cpu_seconds() -> float:
    """CPU seconds so far of all threads of this process, and of its child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass
class Clock:
    """Time that a part has taken, in s."""

    cpu: float = 0.0
    wall: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Adds the time of the block; the CPU time includes all threads and espeak-ng's process."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.cpu += cpu_seconds() - cpu
        self.wall += time.perf_counter() - wall


class Distortion(NamedTuple):
    """Sum in dB of the distances along a DTW path, and its number of steps; their ratio is the MCD."""

    total: float
    steps: int


class Measured(NamedTuple):
    """Metrics of audio against its recording; None for those that could not be measured."""

    frames: int
    distortion: Distortion | None
    pitch: PitchErrors | None
    transcript: Transcript | None


class Judged(NamedTuple):
    """Results of an utterance; `mel_l1` is the teacher-forced error of its mel."""

    row: Row
    mel_l1: float | None
    truncated: bool
    unknown: Counter[str]
    synthesis: Measured
    copy: Measured


class Sample(NamedTuple):
    """Audio and mels of an utterance, to listen to and look at."""

    row: Row
    recording: Frames
    spoken: Spoken
    synthesis: Frames
    copy: Frames


@dataclass
class SynthesisEvaluation:
    """Raw results; `reasons`: why a metric ("mcd", "f0", "copy_f0", "asr") is missing; `warnings`: for the user."""

    title: str
    source: dict[str, Any]
    recipe: MelRecipe
    judged: list[Judged] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    clocks: dict[str, Clock] = field(default_factory=lambda: {part: Clock() for part in PARTS})
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def evaluate_synthesis(
    synthesizer: Synthesizer,
    data: Path,
    protocol_name: str,
    splits: Sequence[str] = ("test",),
    vocoder: str = "griffin-lim",
    asr: Path | None = None,
    mcd: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> SynthesisEvaluation:
    """Speaks the texts of splits of a feature store in the voices of their recordings, and measures the results.

    Args:
        splits: of train, valid and test; their utterances are pooled.
        vocoder: a name for `load_vocoder`.
        asr: folder of a faster-whisper model; None leaves error rates out.
        mcd: whether to measure MCD and F0, which need librosa.
        limit: largest number of utterances, drawn by `seed`.

    Raises:
        UserError: data, protocol, vocoder, recognizer or librosa are missing or do not fit the checkpoint.
    """
    store = FeatureStore.open(data)
    require_same(store.recipe, synthesizer.recipe, f"the features in {data}", "the checkpoint")
    folder = data / "protocols" / protocol_name
    lists = read_text_lists(folder)
    voice = load_vocoder(vocoder, store.recipe, synthesizer.device)
    transcriber = None if asr is None else Transcriber.load(asr)
    if mcd:
        import_librosa("--mcd")  # a missing package is reported before the first synthesis
    source = {
        "data": str(data),
        "protocol": protocol_name,
        "splits": {split: sha256_file(folder / f"{split}.txt") for split in splits},
        "vocoder": voice.name,
        "asr": None if asr is None else str(asr),
        "asr_sha256": None if asr is None else sha256_file(asr / "model.bin"),
    }
    evaluation = SynthesisEvaluation(f"{synthesizer.name} on {shown(data.resolve().name)}", source, store.recipe)
    rows = _rows(evaluation, synthesizer, store, lists, limit, seed)
    _explain(evaluation, store, rows, transcriber, mcd)
    bench = _Bench(evaluation, synthesizer, store, voice, transcriber)
    bench.warm_up(rows[0])
    for row in progress(rows, unit="utt", desc=" and ".join(evaluation.source["splits"])):
        bench.judge(row)
    unaligned = sum(one.mel_l1 is None for one in evaluation.judged)
    if unaligned:
        evaluation.warnings.append(f"{unaligned} utterances have fewer frames than symbols: they have no mel L1")
    return evaluation


def _rows(
    evaluation: SynthesisEvaluation,
    synthesizer: Synthesizer,
    store: FeatureStore,
    lists: TextLists,
    limit: int | None,
    seed: int,
) -> list[Row]:
    """The utterances to speak; warns of those left out, and of those that the checkpoint may have been trained on."""
    if training_list_hash(lists.train) != synthesizer.training_list:
        evaluation.warnings.append(
            f"the checkpoint was not trained on the training list of protocol {evaluation.source['protocol']}, "
            "so that its training may have included these utterances"
        )
    splits = evaluation.source["splits"]
    utterances = [utterance for split in splits for utterance in getattr(lists, split)]
    unknown = [utterance for utterance in utterances if utterance not in store.index]
    if unknown:
        raise UserError(f"utterance {unknown[0]} of the protocol is not in {store.directory}")
    rows = _with_voices(evaluation, synthesizer, [store.rows[store.index[utterance]] for utterance in utterances])
    encoded = synthesizer.front_end.encode([row.text or "" for row in rows])
    speaking = [row for row, text in zip(rows, encoded, strict=True) if not text.says_nothing]
    if len(speaking) < len(rows):
        evaluation.warnings.append(f"{len(rows) - len(speaking)} utterances without a text to speak were left out")
    if not speaking:
        raise UserError(f"{' and '.join(splits)} of {store.directory} hold no utterance with a text to speak")
    if limit is not None and limit < len(speaking):
        chosen = np.random.default_rng(seed).permutation(len(speaking))[:limit]
        speaking = [speaking[place] for place in sorted(chosen)]
    return speaking


def _with_voices(evaluation: SynthesisEvaluation, synthesizer: Synthesizer, rows: list[Row]) -> list[Row]:
    """The utterances by speakers of the model; a model of a single voice speaks all utterances."""
    known = [row for row in rows if row.speaker in synthesizer.speakers]
    strangers = ", ".join(sorted({row.speaker for row in rows}.difference(synthesizer.speakers)))
    if not strangers:
        return rows
    if len(synthesizer.speakers) == 1:
        voice = synthesizer.speakers[0]
        evaluation.warnings.append(f"the checkpoint speaks as {voice}, the recordings are by {strangers}")
        return rows
    if not known:
        raise UserError(f"the checkpoint has no voice {strangers}; it has {', '.join(synthesizer.speakers)}")
    left_out = len(rows) - len(known)
    evaluation.warnings.append(f"{left_out} utterances were left out: the checkpoint has no voice {strangers}")
    return known


def _explain(
    evaluation: SynthesisEvaluation, store: FeatureStore, rows: list[Row], transcriber: Transcriber | None, mcd: bool
) -> None:
    """Gives the reasons for missing metrics."""
    if transcriber is None:
        evaluation.reasons["asr"] = "no --asr was given"
    if not mcd:
        evaluation.reasons |= {"mcd": "no --mcd was given", "f0": "no --mcd was given"}
    elif not all(_recording(store, row).is_file() for row in rows):
        evaluation.reasons["copy_f0"] = (
            f"the recordings are not in {store.meta['raw']}, so F0 is compared with the copies"
        )


def _recording(store: FeatureStore, row: Row) -> Path:
    return Path(store.meta["raw"]) / row.path


@dataclass
class _Bench:
    """Speaks and measures utterances, and adds the results to an evaluation."""

    evaluation: SynthesisEvaluation
    synthesizer: Synthesizer
    store: FeatureStore
    vocoder: Vocoder
    transcriber: Transcriber | None

    def __post_init__(self) -> None:
        self.recipe, self.extractor = self.store.recipe, MelExtractor(self.store.recipe)
        self.has_mcd = "mcd" not in self.evaluation.reasons

    def speaker(self, row: Row) -> str | None:
        """The voice to speak in; None for a model of a single voice."""
        return row.speaker if len(self.synthesizer.speakers) > 1 else None

    def warm_up(self, row: Row) -> None:
        """Speaks once without the clocks, because first calls load and compile."""
        self.vocoder(self.synthesizer.speak(row.text, self.speaker(row)).mel)

    def judge(self, row: Row) -> None:
        """Speaks an utterance, copies its recording, and measures both."""
        clocks, recording = self.evaluation.clocks, self.store.mel(self.store.index[row.utterance])
        with clocks["text"].running():
            reading = self.synthesizer.read(row.text)
        with clocks["acoustic_model"].running():
            spoken = self.synthesizer.speak(reading, self.speaker(row))
        with clocks["vocoder"].running():
            audio = self.vocoder(spoken.mel)
        copied = self.vocoder(recording)
        reference = self._reference_pitch(row, copied)
        synthesis = self._measure(row, audio, recording, reference)
        copy = self._measure(row, copied, recording, None if "copy_f0" in self.evaluation.reasons else reference)
        error = self._teacher_forced(row, recording)
        self.evaluation.judged.append(Judged(row, error, spoken.truncated, spoken.unknown, synthesis, copy))
        if len(self.evaluation.samples) < SAMPLES:
            self.evaluation.samples.append(Sample(row, recording, spoken, audio, copied))

    def _measure(self, row: Row, audio: Frames, recording: Frames, reference: NDArray | None) -> Measured:
        short = max(0, self.recipe.min_samples - len(audio))  # audio shorter than one frame
        mel = self.extractor(np.pad(audio, (0, short)))
        distortion = errors = transcript = None
        if self.has_mcd:
            warped = warp(mel, recording, self.recipe.power)
            distortion = Distortion(float(warped.distances.sum()), len(warped.path))
            errors = None if reference is None else pitch_errors(pitch(audio, self.recipe), reference, warped.path)
        if self.transcriber is not None:
            transcript = judge(row.text, self.transcriber(audio, self.recipe.sample_rate))
        return Measured(len(mel), distortion, errors, transcript)

    def _reference_pitch(self, row: Row, copied: Frames) -> NDArray | None:
        """The pitch (t,) of the recording, or of its copy if the recording is missing."""
        if not self.has_mcd:
            return None
        if "copy_f0" in self.evaluation.reasons:
            return pitch(copied, self.recipe)
        recording = _recording(self.store, row)
        track = pitch(load_audio(recording, self.recipe.sample_rate), self.recipe)
        if len(track) != row.frames:
            raise UserError(f"{recording} has another length than when {self.store.directory} was made from it")
        return track

    def _teacher_forced(self, row: Row, recording: Frames) -> float | None:
        """Mean absolute error of the mel in natural-log units, with the recording's durations and pitches, or frames.

        None if the text has more tokens than frames.
        """
        (encoded,) = self.synthesizer.front_end.encode([row.text])
        if len(encoded.tokens) > len(recording):
            return None
        inputs = []
        for sequence in (torch.from_numpy(encoded.tokens).long(), torch.from_numpy(recording)):
            inputs += [sequence[None], torch.tensor([len(sequence)])]
        inputs = [tensor.to(self.synthesizer.device) for tensor in inputs]
        compared = self.synthesizer.model.compare(*inputs, self.synthesizer.voice(self.speaker(row)))
        return float(np.abs(compared.mel[0].cpu().numpy() - recording).mean(dtype=np.float64))
