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
from torch import Tensor

from models.tts import MODELS, TextToMelConfig
from utils.checkpoint import load_checkpoint, model_hash
from utils.device import pick_device, use_backend
from utils.errors import UserError
from utils.features.recipe import MelRecipe
from utils.speaker.recognizer import SpeakerRecognizer
from utils.text.frontend import VERSION, EncodedText, FrontEnd, split_sentences
from utils.text.vocabulary import Vocabulary

INSTEAD = {"?": ".", "!": ".", ";": ",", ":": ","}  # marks that stand in for those a model has not heard


@dataclass(frozen=True)
class Reading:
    """A text as a model can say it: its sentences, and how often each symbol stands in it that the model cannot say."""

    sentences: tuple[EncodedText, ...]
    unknown: Counter[str]

    @property
    def spoken(self) -> str:
        """The text as it is read, normalized."""
        return " ".join(sentence.spoken for sentence in self.sentences)


@dataclass(frozen=True)
class Spoken:
    """Speech for one text, its sentences one after the other: T frames, N symbols."""

    mel: NDArray[np.float32]  # (T, n_mels), natural logarithm
    durations: NDArray[np.int64]  # (N,), frames of each symbol, adding up to T
    alignments: tuple[NDArray[np.float32], ...]  # of each sentence (T_i, N_i): the share of each symbol in each frame
    symbols: tuple[str, ...]
    spoken: str  # the text as it was read, normalized
    unknown: Counter[str]  # symbols that the model has no sound for; they were left out, or a like mark was read
    truncated: bool  # a sentence was stopped at the limit on its length

    @property
    def alignment(self) -> NDArray[np.float32]:
        """(T, N): the alignments of the sentences along the diagonal of one matrix, made when it is asked for."""
        whole = np.zeros((len(self.mel), len(self.symbols)), dtype=np.float32)
        frame = token = 0
        for part in self.alignments:
            whole[frame : frame + part.shape[0], token : token + part.shape[1]] = part
            frame, token = frame + part.shape[0], token + part.shape[1]
        return whole


class Synthesizer:
    """A text-to-mel model with its text front end.

    `speakers` are the training speakers; `trained` the symbols that its training texts had; `model_hash` names weights,
    configuration and recipe wherever the file lies.
    """

    def __init__(self, model: Any, checkpoint: dict[str, Any], device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.recipe = MelRecipe.from_dict(checkpoint["recipe"])
        self.front_end = FrontEnd(Vocabulary.from_dict(checkpoint["vocabulary"]))
        self.speakers: list[str] = list(checkpoint["speakers"])
        self.trained = frozenset(symbol for symbol, count in checkpoint["symbol_counts"].items() if count)
        self.step: int = checkpoint["step"]
        self.training_list: str = checkpoint["training_list"]
        self.config = TextToMelConfig.from_dict(checkpoint["model_config"])
        self.model_hash = model_hash(checkpoint["model"], checkpoint["model_config"], checkpoint["recipe"])
        self._embeddings: Tensor | None = checkpoint["speaker_embeddings"]
        self._recognizer: dict[str, Any] | None = checkpoint["recognizer"]
        self._heard: dict[str, Tensor] = {}  # embeddings of reference recordings

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "auto", backend: str = "auto") -> Synthesizer:
        """Reads a checkpoint file or a run folder (its best checkpoint); `UserError` for anything wrong with it."""
        content = load_checkpoint(checkpoint)
        if content["task"] != "tts":
            raise UserError(f"{checkpoint} holds a model for {content['task']}; a text-to-mel model (tts) is needed")
        if content.get("front_end_version") != VERSION:
            raise UserError(
                f"{checkpoint} was trained on texts that another version of this program made: train it anew"
            )
        try:
            config = TextToMelConfig.from_dict(content["model_config"])
            model = MODELS[config.model](config, len(content["vocabulary"]["symbols"]))
            model.load_state_dict(content["model"])
            if model.has_durations:
                model.duration_scale = content["metrics"].get("duration_scale", 1.0)
        except ValueError as error:
            raise UserError(f"{checkpoint} is of another version of this program ({error}): train it anew") from error
        except RuntimeError as error:
            raise UserError(f"the weights in {checkpoint} do not fit its own model configuration") from error
        processor = pick_device(device)
        use_backend(model, backend, processor)
        return cls(model, content, processor)

    @property
    def name(self) -> str:
        """`tacomamba-causal`, `tacomamba-causal-lstm-no-pitch`, `tacotron2`, ..."""
        config = self.config
        if config.model != "tacomamba":
            return config.model
        mixer = "" if config.mixer == "mamba2" else f"-{config.mixer}"
        return f"{config.model}-{config.decoder}{mixer}{'' if config.pitch else '-no-pitch'}"

    @property
    def parameters(self) -> int:
        """Trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def description(self, checkpoint: str | Path) -> dict[str, Any]:
        """What a report says of the model, as plain values."""
        return {
            "model": {"name": self.name, "parameters": self.parameters, "hash": self.model_hash},
            "recipe": {"hash": self.recipe.hash, **self.recipe.to_dict()},
            "checkpoint": {"path": str(checkpoint), "step": self.step},
            "units": self.front_end.units,
            "training_speakers": len(self.speakers),
        }

    def require_pace(self, pace: float) -> None:
        """`UserError` for a pace that the model cannot keep."""
        if pace != 1.0 and not self.model.has_durations:
            raise UserError(f"--pace needs a model that predicts durations; {self.name} decides the length as it goes")

    def require_streaming(self) -> None:
        """`UserError` if the model cannot speak before it has thought a sentence through."""
        if not self.model.can_stream:
            raise UserError(
                f"{self.name} cannot stream: only a causal or ar decoder of mamba or mamba2 carries its whole past "
                "in a state"
            )

    def speak(self, text: str | Reading, speaker: str | None = None, pace: float = 1.0) -> Spoken:
        """The mel of a text, or of one that was read before, sentence by sentence.

        Args:
            speaker: one of `speakers`, or a recording to take the voice from, where the model was trained with
                embeddings; None for a model of one voice, or for the first of several.
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
        """The mel of `speak` in pieces (t, n_mels) of `chunk` frames, each as soon as it is known."""
        self.require_streaming()
        reading, voice = self._read(text), self.voice(speaker)
        for sentence in reading.sentences:
            for part in self.model.stream(self._tokens(sentence), voice, pace, chunk):
                yield part.cpu().numpy()

    def read(self, text: str) -> Reading:
        """The sentences of a text that say something; `UserError` if none does."""
        return self.read_all([text])[0]

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        """What `read` makes of each, with one process for the phonemes of all; one `UserError` names all it cannot."""
        cut = [split_sentences(text) for text in texts]
        encoded = iter(self.front_end.encode([sentence for sentences in cut for sentence in sentences]))
        readings = [self._reading(list(islice(encoded, len(sentences)))) for sentences in cut]
        silent = [
            f"the text {text[:40]!r}{'...' * (len(text) > 40)}" + f" (number {number})" * (len(texts) > 1)
            for number, (text, reading) in enumerate(zip(texts, readings, strict=True), start=1)
            if not reading.sentences
        ]
        if silent:
            raise UserError(f"there is nothing that could be spoken in {' and '.join(silent)}")
        return readings

    def _reading(self, encoded: list[EncodedText]) -> Reading:
        unknown = Counter(symbol for sentence in encoded for symbol in sentence.symbols if symbol not in self.trained)
        sentences = (self._sayable(sentence) for sentence in encoded)
        return Reading(tuple(sentence for sentence in sentences if not sentence.says_nothing), unknown)

    def _read(self, text: str | Reading) -> Reading:
        return self.read(text) if isinstance(text, str) else text

    def _sayable(self, sentence: EncodedText) -> EncodedText:
        """The sentence without symbols that no training text had: their embeddings are noise."""
        symbols = [symbol if symbol in self.trained else INSTEAD.get(symbol, "") for symbol in sentence.symbols]
        kept = [symbol for symbol in symbols if symbol in self.trained]
        tokens, unknown = self.front_end.vocabulary.encode(kept)
        return EncodedText(tokens, tuple(kept), sentence.spoken, unknown)

    def _tokens(self, sentence: EncodedText) -> Tensor:
        return torch.from_numpy(sentence.tokens).long()[None].to(self.device)

    def voice(self, speaker: str | None) -> Tensor | None:
        """The model's input that tells the voice: None, an id (1,), or an embedding (1, E)."""
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
                f"this model speaks as {known}, not as {speaker}; --voice embedding trains one that hears recordings"
            )
        if not Path(speaker).is_file():
            raise UserError(f"{speaker} is neither a recording nor one of this model's speakers ({known})")
        if speaker not in self._heard:
            recognizer = SpeakerRecognizer.restore(self._recognizer, "the recognizer in this checkpoint", "cpu")
            self._heard[speaker] = torch.from_numpy(recognizer.embed_speech([speaker])[0])
        return self._heard[speaker].to(self.device)
