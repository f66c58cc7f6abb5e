"""From upsampled tokens to mel frames: causal, bidirectional or autoregressive, around interchangeable mixers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stack import MixerStack
from models.tts.condition import build_condition
from models.tts.config import TextToMelConfig
from models.tts.convolution import Postnet
from models.tts.durations import Positions, positions
from models.tts.pitch import TOP, Harmonics, Pitch, contour

WAVES = 4  # sines and cosines of the position inside a token
POSTNET_LAYERS = 3


class Upsampling(nn.Module):
    """Hidden vectors of tokens (b, n, d) repeated over their frames, with the position inside the token added."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.position = nn.Linear(2 * WAVES + 4, d_model)

    def forward(self, hidden: Tensor, where: Positions) -> Tensor:
        """Those of frames: (b, frames, d)."""
        place, length = where.place.to(hidden.dtype), where.length.to(hidden.dtype)
        return where.of(hidden) + self.position(self._features(place, length))

    def _features(self, place: Tensor, length: Tensor) -> Tensor:
        """(b, t, 2 WAVES + 4): where in the token a frame lies, how far from both ends, how long the token is."""
        share = (place + 0.5) / length
        angles = share.unsqueeze(-1) * torch.pi * torch.arange(1, WAVES + 1, device=place.device)
        plain = torch.stack([share, place.log1p(), (length - place).clamp(min=0).log1p(), length.log()], dim=-1)
        return torch.cat([plain, angles.sin(), angles.cos()], dim=-1)


class Prenet(nn.Module):
    """Two layers with dropout that keep the decoder from leaning on the last frame: (b, t, n_mels) -> (b, t, d).

    Wang et al. 2017, "Tacotron", section 3.2. Here the dropout rests outside of training: the lengths are given, so
    that synthesis cannot get stuck.
    """

    def __init__(self, n_mels: int, d_model: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n_mels, d_model), nn.Linear(d_model, d_model)])

    def forward(self, mel: Tensor) -> Tensor:
        for layer in self.layers:
            mel = F.dropout(F.relu(layer(mel)), 0.5, self.training)
        return mel


class Source(nn.Module):
    """The voice as a source of harmonics that the decoder shapes: Fant 1960, "Acoustic theory of speech production".

    `intonation` tells the decoder the pitch, `voicing` is how much of its harmonics each channel gets: of a decoder
    step (b, steps, d) -> (b, steps, reduction * n_mels).
    """

    def __init__(self, d_model: int, reduction: int, n_mels: int) -> None:
        super().__init__()
        self.harmonics = Harmonics(n_mels)
        self.intonation = nn.Linear(1, d_model)
        self.voicing = nn.Linear(d_model, reduction * n_mels)

    def told(self, pitch: Tensor) -> Tensor:
        """What is added to the decoder's input: (b, t) octaves -> (b, t, d)."""
        return self.intonation((pitch - TOP / 2).unsqueeze(-1))


class Plan(NamedTuple):
    """What is to be said, and when: all that a decoder speaks from."""

    hidden: Tensor  # (b, n, d), of the tokens
    base: Tensor  # (b, n, n_mels), standardized: a first guess of each token's frames, which the decoder adds to
    durations: Tensor  # (b, n) int64, frames of each token
    speaker: Tensor | None  # what `SpeakerCondition` takes
    pitch: Pitch | None  # where the model draws harmonics

    def part(self, start: int, frames: int) -> Part:
        """The frames from `start` on."""
        where = positions(self.durations, start, frames)
        return Part(where, None if self.pitch is None else contour(self.pitch.token, self.durations, where))


class Part(NamedTuple):
    """Some frames of a plan."""

    where: Positions
    line: Tensor | None  # (b, frames), the way that pitch takes through the tokens

    def first(self, frames: int) -> Part:
        """The first of them."""
        where = Positions(*(each[:, :frames] for each in self.where))
        return Part(where, None if self.line is None else self.line[:, :frames])


@dataclass
class DecoderState:
    """All that a stream remembers between chunks; its size does not depend on how much was said."""

    frame: int  # the next one
    mixers: list[Any]
    postnet: list[Tensor]
    last: Tensor  # (b, 1, n_mels): the last frame before the postnet, for an autoregressive decoder


class Decoder(nn.Module):
    """Tokens, their durations and pitches to standardized mels, before and after the postnet.

    One step of the stack makes `reduction` frames (the reduction factor of Tacotron).
    """

    def __init__(self, config: TextToMelConfig) -> None:
        super().__init__()
        self.reduction, self.n_mels = config.reduction, config.n_mels
        d_model, n_mels = config.d_model, config.n_mels
        self.condition = build_condition(config)
        self.upsampling = Upsampling(d_model)
        self.join = nn.Linear(self.reduction * d_model, d_model)
        self.prenet = Prenet(n_mels, d_model) if config.decoder == "ar" else None
        self.stack = MixerStack(config, config.is_causal)
        self.can_stream = self.stack.can_stream
        if self.prenet is not None and not self.can_stream:
            raise ValueError(f"decoder ar continues from a state, which mixer {config.mixer} does not have")
        self.output = nn.Linear(d_model, self.reduction * n_mels)
        self.source = Source(d_model, self.reduction, n_mels) if config.pitch else None
        self.postnet = Postnet(n_mels, config.postnet_channels, POSTNET_LAYERS, config.is_causal, config.dropout)

    def forward(self, plan: Plan, mel: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All frames at once: two standardized mels (b, t, n_mels), before and after the postnet.

        mel: (b, t, n_mels), standardized, the true frames that an autoregressive decoder goes on from.
        """
        lengths = plan.durations.sum(1)
        frames = int(lengths.max())
        steps = -(-frames // self.reduction)
        part = plan.part(0, steps * self.reduction)
        x = self._inputs(plan, part)
        if self.prenet is not None:
            x = x + self.prenet(self._frames_before(mel, steps))
        before = self._before(self.stack(x, -(-lengths // self.reduction)), plan, part.first(frames))
        return before, before + self.postnet(before, lengths)

    def initial_state(self, batch: int) -> DecoderState:
        """The state before the first frame."""
        last = self.output.weight.new_zeros(batch, 1, self.n_mels)
        return DecoderState(0, self.stack.initial_state(batch), self.postnet.initial_state(batch), last)

    def step(self, plan: Plan, steps: int, state: DecoderState) -> Tensor:
        """The next steps * reduction standardized mel frames (b, t, n_mels); changes `state`."""
        if self.prenet is None:
            before = self._advance(plan, steps, state)
        else:
            before = torch.cat([self._advance(plan, 1, state) for _ in range(steps)], dim=1)
        correction, state.postnet = self.postnet.step(before, state.postnet)
        return before + correction

    def _advance(self, plan: Plan, steps: int, state: DecoderState) -> Tensor:
        """Frames before the postnet, made in one go; one step at a time for an autoregressive decoder."""
        part = plan.part(state.frame, steps * self.reduction)
        x = self._inputs(plan, part)
        if self.prenet is not None:
            x = x + self.prenet(state.last)
        x, state.mixers = self.stack.step(x, state.mixers)
        before = self._before(x, plan, part)
        state.frame, state.last = state.frame + before.shape[1], before[:, -1:]
        return before

    def _inputs(self, plan: Plan, part: Part) -> Tensor:
        """(b, steps, d): the upsampled tokens, `reduction` frames joined."""
        x = self.upsampling(plan.hidden, part.where)
        if self.source is not None:
            x = x + self.source.told(part.line)
        x = self.join(x.unflatten(1, (-1, self.reduction)).flatten(2))
        return x if self.condition is None else x + self.condition(plan.speaker).unsqueeze(1)

    def _frames_before(self, mel: Tensor, steps: int) -> Tensor:
        """The last true frame before each step, zeros before the first: (b, steps, n_mels)."""
        last = mel[:, self.reduction - 1 :: self.reduction]
        return F.pad(last, (0, 0, 1, 0))[:, :steps]

    def _before(self, x: Tensor, plan: Plan, part: Part) -> Tensor:
        """The stack's output (b, steps, d) as the frames of `part`, on top of the tokens' means and of harmonics."""
        frames = part.where.token.shape[1]
        mel = self._frames(self.output(x), frames).to(plan.base.dtype) + part.where.of(plan.base)
        if self.source is None:
            return mel
        pitch = part.line if plan.pitch.frame is None else plan.pitch.frame
        return mel + self._frames(self.source.voicing(x), frames) * self.source.harmonics.drawn(pitch)

    def _frames(self, x: Tensor, frames: int) -> Tensor:
        """(b, steps, reduction * n_mels) -> (b, frames, n_mels)."""
        return x.unflatten(2, (self.reduction, self.n_mels)).flatten(1, 2)[:, :frames]
