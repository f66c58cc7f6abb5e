"""A trained text-to-mel model, from checkpoint to speech, in four lines:

from utils.tts.synthesizer import Synthesizer
from utils.tts.vocoder import load_vocoder
synthesizer = Synthesizer.load("runs/voice")
samples = load_vocoder("griffin-lim", synthesizer.recipe)(synthesizer.speak("Good morning.").mel)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, block_diag, nn

from models.tts import MODELS, TextToMelConfig
from utils.errors import UserError
from utils.speaker.recognizer import SpeakerRecognizer
from utils.text.frontend import VERSION, EncodedText, FrontEnd, split_sentences
from utils.text.vocabulary import Vocabulary
from utils.trained import TrainedModel

_SUBSTITUTES = {"?": ".", "!": ".", ";": ",", ":": ","}  # for marks that no training text had


@dataclass(frozen=True)
class Reading:
    """The sentences of a text as a model can speak them, and how often each symbol occurs that it cannot speak."""

    sentences: tuple[EncodedText, ...]
    unknown: Counter[str]

    @property
    def spoken(self) -> str:
        """The text as it is read, normalized."""
        return " ".join(sentence.spoken for sentence in self.sentences)


@dataclass(frozen=True)
class Spoken:
    """Speech for one text, its sentences one after the other: t frames, n symbols."""

    mel: NDArray[np.float32]  # (t, n_mels), natural logarithm
    durations: NDArray[np.int64]  # (n,), frames of each symbol, adding up to t
    alignments: tuple[NDArray[np.float32], ...]  # of each sentence (t_i, n_i): the share of each symbol in each frame
    symbols: tuple[str, ...]
    spoken: str  # the text as it was read, normalized
    unknown: Counter[str]  # symbols of no training text; they were left out, or replaced by a similar mark
    truncated: bool  # a sentence was stopped at the limit on its length

    @property
    def alignment(self) -> NDArray[np.float32]:
        """The alignments of the sentences along the diagonal of one matrix (t, n), computed at each call."""
        return block_diag(*map(torch.from_numpy, self.alignments)).numpy()


class Synthesizer(TrainedModel):
    """A text-to-mel model with its text front end; `trained` holds the symbols that its training texts had."""

    task = "tts"
    config_class = TextToMelConfig

    def __init__(
        self, content: dict[str, Any], source: str | Path, device: str = "auto", backend: str = "auto"
    ) -> None:
        if content.get("front_end_version") != VERSION:
            raise UserError(
                f"{source} was trained on texts that another version of this program normalized: train the model again"
            )
        super().__init__(content, source, device, backend)
        if self.model.has_durations:
            self.model.duration_scale = content["metrics"].get("duration_scale", 1.0)
        self.front_end = FrontEnd(Vocabulary.from_dict(content["vocabulary"]))
        self.trained = frozenset(symbol for symbol, count in content["symbol_counts"].items() if count)
        self._embeddings: Tensor | None = content["speaker_embeddings"]
        self._recognizer: dict[str, Any] | None = content["recognizer"]
        self._references: dict[str, Tensor] = {}  # embeddings of reference recordings

    def build(self, content: dict[str, Any]) -> nn.Module:
        """The untrained model."""
        return MODELS[self.config.model](self.config, len(content["vocabulary"]["symbols"]))

    @property
    def name(self) -> str:
        """`tacomamba-causal`, `tacomamba-causal-lstm-no-pitch`, `tacotron2`, ..."""
        config = self.config
        if config.model != "tacomamba":
            return config.model
        mixer = "" if config.mixer == "mamba2" else f"-{config.mixer}"
        return f"{config.model}-{config.decoder}{mixer}{'' if config.pitch else '-no-pitch'}"

    def description(self, checkpoint: str | Path) -> dict[str, Any]:
        """The entries of a report that describe the model, the units of its texts among them."""
        return {**super().description(checkpoint), "units": self.front_end.units}

    def require_pace(self, pace: float) -> None:
        """`UserError` for a pace other than 1 if the model does not predict durations."""
        if pace != 1.0 and not self.model.has_durations:
            raise UserError(f"--pace needs a model that predicts durations, which {self.name} does not")

    def require_streaming(self) -> None:
        """`UserError` if the model cannot emit a sentence piece by piece."""
        if not self.model.can_stream:
            raise UserError(
                f"{self.name} cannot stream: this needs the decoder causal or ar, with any mixer but attention"
            )

    def speak(self, text: str | Reading, speaker: str | None = None, pace: float = 1.0) -> Spoken:
        """Speaks a text, or the result of `read`, sentence by sentence.

        Args:
            speaker: one of `speakers`; or a recording of the voice, for a model trained with `--voice embedding`; None
                for the first of `speakers`.
            pace: 1.2 speaks 20 % faster.
        """
        self.require_pace(pace)
        reading, voice = self._read(text), self.voice(speaker)
        parts = [self.model.synthesize(self._tokens(sentence), voice, pace) for sentence in reading.sentences]
        return Spoken(
            mel=np.concatenate([part.mel.cpu().numpy() for part in parts]),
            durations=np.concatenate([part.durations.cpu().numpy() for part in parts]),
            alignments=tuple(part.alignment.cpu().numpy() for part in parts),
            symbols=tuple(symbol for sentence in reading.sentences for symbol in sentence.symbols),
            spoken=reading.spoken,
            unknown=reading.unknown,
            truncated=any(part.truncated for part in parts),
        )

    def stream(
        self, text: str | Reading, speaker: str | None = None, pace: float = 1.0, chunk: int = 32
    ) -> Iterator[NDArray[np.float32]]:
        """Yields the mel of `speak` in pieces (t, n_mels) of `chunk` frames, each as soon as it is final."""
        self.require_streaming()
        reading, voice = self._read(text), self.voice(speaker)
        for sentence in reading.sentences:
            for part in self.model.stream(self._tokens(sentence), voice, pace, chunk):
                yield part.cpu().numpy()

    def read(self, text: str) -> Reading:
        """The sentences of a text that hold something to speak; `UserError` if none does."""
        return self.read_all([text])[0]

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        """`read` of each text, with one phonemizer process for all; the `UserError` names every text it cannot read."""
        cut = [split_sentences(text) for text in texts]
        encoded = iter(self.front_end.encode([sentence for sentences in cut for sentence in sentences]))
        readings = [self._reading(list(islice(encoded, len(sentences)))) for sentences in cut]
        silent = [
            f"the text {text[:40]!r}{'...' * (len(text) > 40)}" + f" (number {number})" * (len(texts) > 1)
            for number, (text, reading) in enumerate(zip(texts, readings, strict=True), start=1)
            if not reading.sentences
        ]
        if silent:
            raise UserError(f"there is nothing to speak in {' and '.join(silent)}")
        return readings

    def _reading(self, encoded: list[EncodedText]) -> Reading:
        unknown = Counter(symbol for sentence in encoded for symbol in sentence.symbols if symbol not in self.trained)
        sentences = map(self._speakable, encoded)
        return Reading(tuple(sentence for sentence in sentences if not sentence.says_nothing), unknown)

    def _read(self, text: str | Reading) -> Reading:
        return self.read(text) if isinstance(text, str) else text

    def _speakable(self, sentence: EncodedText) -> EncodedText:
        """The sentence without the symbols of no training text, whose embeddings are noise."""
        symbols = [symbol if symbol in self.trained else _SUBSTITUTES.get(symbol, "") for symbol in sentence.symbols]
        kept = [symbol for symbol in symbols if symbol in self.trained]
        tokens, unknown = self.front_end.vocabulary.encode(kept)
        return EncodedText(tokens, tuple(kept), sentence.spoken, unknown)

    def _tokens(self, sentence: EncodedText) -> Tensor:
        return torch.from_numpy(sentence.tokens).long()[None].to(self.device)

    def voice(self, speaker: str | None) -> Tensor | None:
        """The model's input for the voice: None, an id (1,), or an embedding (1, e)."""
        kind = self.config.voice
        if kind == "none":
            if speaker is not None and speaker not in self.speakers:
                raise UserError(f"this model has one voice, {self.speakers[0]}, and cannot speak as {speaker}")
            return None
        speaker = self.speakers[0] if speaker is None else speaker
        if speaker in self.speakers:
            number = torch.tensor([self.speakers.index(speaker)])
            return (number if kind == "table" else self._embeddings[number]).to(self.device)
        known = ", ".join(self.speakers[:10]) + (" ..." if len(self.speakers) > 10 else "")
        if kind == "table":
            raise UserError(
                f"this model speaks as {known}, not as {speaker}; only one trained with --voice embedding can take the "
                "voice of a recording"
            )
        if not Path(speaker).is_file():
            raise UserError(f"{speaker} is neither a recording nor one of this model's speakers ({known})")
        if speaker not in self._references:
            recognizer = SpeakerRecognizer(self._recognizer, "the recognizer in this checkpoint", "cpu")
            self._references[speaker] = torch.from_numpy(recognizer.embed_speech([speaker])[0])
        return self._references[speaker].to(self.device)
