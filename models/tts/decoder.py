"""From upsampled tokens to mel frames: causal, bidirectional or autoregressive, around interchangeable mixers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.stack import MixerStack
from models.tts.condition import SpeakerCondition
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
        place, length = where.place.to(hidden.dtype), where.length.to(hidden.dtype)
        return where.of(hidden) + self.position(self._features(place, length))

    def _features(self, place: Tensor, length: Tensor) -> Tensor:
        """Position of a frame in its token, distance from both ends, length of the token: (b, t, 2 WAVES + 4)."""
        share = (place + 0.5) / length
        angles = share.unsqueeze(-1) * torch.pi * torch.arange(1, WAVES + 1, device=place.device)
        plain = torch.stack([share, place.log1p(), (length - place).clamp(min=0).log1p(), length.log()], dim=-1)
        return torch.cat([plain, angles.sin(), angles.cos()], dim=-1)


class Prenet(nn.Module):
    """Two layers with dropout that keep the decoder from relying on the last frame: (b, t, n_mels) -> (b, t, d).

    Wang et al. 2017, "Tacotron", section 3.2. Here dropout is off outside of training: the durations are given, so
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
    """The voice as a source of harmonics that the decoder filters: Fant 1960, "Acoustic theory of speech production".

    `intonation` is the decoder's input for pitch; `voicing` weights the harmonics in each channel: of a decoder step
    (b, steps, d) -> (b, steps, reduction * n_mels).
    """

    def __init__(self, d_model: int, reduction: int, n_mels: int) -> None:
        super().__init__()
        self.harmonics = Harmonics(n_mels)
        self.intonation = nn.Linear(1, d_model)
        self.voicing = nn.Linear(d_model, reduction * n_mels)

    def embed(self, pitch: Tensor) -> Tensor:
        """The decoder's input for a pitch: octaves (b, t) -> (b, t, d)."""
        return self.intonation((pitch - TOP / 2).unsqueeze(-1))


class Plan(NamedTuple):
    """Everything that a decoder reads: tokens, and when and how high they are spoken."""

    hidden: Tensor  # (b, n, d), of the tokens
    base: Tensor  # (b, n, n_mels), standardized: a first guess of each token's frames, to which the decoder adds
    durations: Tensor  # (b, n) int64, frames of each token
    speaker: Tensor | None  # the input of `SpeakerCondition`
    pitch: Pitch | None  # None for a model without pitch

    def part(self, start: int, frames: int) -> Part:
        """The given number of frames from frame `start` on."""
        where = positions(self.durations, start, frames)
        return Part(where, None if self.pitch is None else contour(self.pitch.token, self.durations, where))


class Part(NamedTuple):
    """Some frames of a plan."""

    where: Positions
    pitch: Tensor | None  # (b, frames), interpolated between the tokens


@dataclass
class DecoderState:
    """Everything that a stream keeps between chunks, of a size that does not grow."""

    frame: int  # the next one
    mixers: list[Any]
    postnet: list[Tensor]
    last: Tensor  # (b, 1, n_mels): the last frame before the postnet, for an autoregressive decoder


class Decoder(nn.Module):
    """Tokens, their durations and pitches to standardized mels, before and after the postnet.

    One step of the stack gives `reduction` frames (the reduction factor of Tacotron).
    """

    def __init__(self, config: TextToMelConfig) -> None:
        super().__init__()
        self.reduction, self.n_mels = config.reduction, config.n_mels
        d_model, n_mels = config.d_model, config.n_mels
        self.condition = SpeakerCondition(config)
        self.upsampling = Upsampling(d_model)
        self.join = nn.Linear(self.reduction * d_model, d_model)
        self.prenet = Prenet(n_mels, d_model) if config.decoder == "ar" else None
        self.stack = MixerStack(config, config.is_causal)
        self.can_stream = self.stack.can_stream
        if self.prenet is not None and not self.can_stream:
            raise ValueError(f"decoder ar needs a mixer with a state, which {config.mixer} does not have")
        self.output = nn.Linear(d_model, self.reduction * n_mels)
        self.source = Source(d_model, self.reduction, n_mels) if config.pitch else None
        self.postnet = Postnet(n_mels, config.postnet_channels, POSTNET_LAYERS, config.is_causal, config.dropout)

    def forward(self, plan: Plan, mel: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All frames at once: two standardized mels (b, t, n_mels), before and after the postnet.

        mel: (b, t, n_mels), standardized true frames, which an autoregressive decoder reads.
        """
        lengths = plan.durations.sum(1)
        frames = int(lengths.max()) if mel is None else mel.shape[1]
        steps = -(-frames // self.reduction)
        x = self._inputs(plan, plan.part(0, steps * self.reduction))
        if self.prenet is not None:
            x = x + self.prenet(self._frames_before(mel, steps))
        before = self._before(self.stack(x, -(-lengths // self.reduction)), plan, plan.part(0, frames))
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
        """Frames of several steps at once before the postnet; of one step for an autoregressive decoder."""
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
            x = x + self.source.embed(part.pitch)
        return self.condition(self.join(rearrange(x, "b (s r) d -> b s (r d)", r=self.reduction)), plan.speaker)

    def _frames_before(self, mel: Tensor, steps: int) -> Tensor:
        """The last true frame before each step, zeros before the first: (b, steps, n_mels)."""
        last = mel[:, self.reduction - 1 :: self.reduction]
        return F.pad(last, (0, 0, 1, 0))[:, :steps]

    def _before(self, x: Tensor, plan: Plan, part: Part) -> Tensor:
        """The frames of `part`: the stack's output (b, steps, d) on top of the tokens' means, and harmonics."""
        frames = part.where.token.shape[1]
        mel = self._frames(self.output(x), frames).to(plan.base.dtype) + part.where.of(plan.base)
        if self.source is None:
            return mel
        pitch = part.pitch if plan.pitch.frame is None else plan.pitch.frame
        return mel + self._frames(self.source.voicing(x), frames) * self.source.harmonics.render(pitch)

    def _frames(self, x: Tensor, frames: int) -> Tensor:
        """(b, steps, reduction * n_mels) -> (b, frames, n_mels)."""
        return rearrange(x, "b s (r m) -> b (s r) m", r=self.reduction)[:, :frames]
