"""TacoMamba: text to mel without attention, by a bidirectional encoder, durations and a decoder of Mamba-2 blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.padding import length_mask
from models.stack import MixerStack
from models.tts.alignment import SymbolAligner
from models.tts.condition import SpeakerCondition
from models.tts.config import MODELS, TextToMelConfig
from models.tts.convolution import ResidualConvs
from models.tts.decoder import Decoder, Plan
from models.tts.durations import at_pace, positions, round_durations
from models.tts.interface import Comparison, Synthesis
from models.tts.pitch import TOP, Pitch
from models.tts.prosody import ProsodyPredictor, duration_loss, pitch_loss

PRENET_LAYERS, PRENET_KERNEL = 2, 5
DURATION_WEIGHT, PITCH_WEIGHT = 0.1, 0.5  # make both losses about equally large in the predictor that they share


class TextEncoder(nn.Module):
    """Embedding, residual convolutions, bidirectional mixers: tokens (b, n), lengths (b,) -> (b, n, d_model)."""

    def __init__(self, config: TextToMelConfig, n_symbols: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_symbols, config.d_model, padding_idx=0)
        self.prenet = ResidualConvs(config.d_model, PRENET_LAYERS, PRENET_KERNEL, causal=False, dropout=config.dropout)
        self.condition = SpeakerCondition(config)
        self.stack = MixerStack(config.encoder_stack, causal=False)

    def forward(self, tokens: Tensor, lengths: Tensor, speaker: Tensor | None) -> Tensor:
        x = self.prenet(self.embedding(tokens), lengths)
        return self.stack(self.condition(x, speaker), lengths)


@MODELS.register("tacomamba")
class TacoMamba(nn.Module):
    """Non-attentive text to mel (Shen et al. 2020, "Non-Attentive Tacotron") with alignments by likelihood.

    Durations to train with are those of the most likely monotonic path under one Gaussian per symbol. Each token also
    has a mean mel, a projection of the encoder's output, which the likelihood along the path trains (the prior loss)
    and the decoder refines; and a pitch, estimated from the mel (`models.tts.pitch`) and predicted from the text,
    whose harmonics the decoder adds.

    `duration_scale` is a factor on predicted durations: they are trained to be unbiased with dropout, and differ
    without it. `utils.tts.task` measures the factor at every validation.
    """

    has_durations = True  # which a pace can stretch
    duration_scale = 1.0

    def __init__(self, config: TextToMelConfig, n_symbols: int) -> None:
        super().__init__()
        n_mels = config.n_mels
        self.register_buffer("mel_mean", torch.zeros(n_mels))
        self.register_buffer("mel_std", torch.ones(n_mels))
        self.aligner = SymbolAligner(n_symbols, n_mels)
        self.encoder = TextEncoder(config, n_symbols)
        self.token_mean = nn.Linear(config.d_model, n_mels)
        self.prosody = ProsodyPredictor(config)
        self.decoder = Decoder(config)

    @property
    def can_stream(self) -> bool:
        """True if `stream` can return the mel of `synthesize` in pieces."""
        return self.decoder.can_stream

    def set_statistics(self, mean: Tensor, std: Tensor, frames_per_token: float) -> None:
        """Sets the training set's mean and deviation (n_mels,) of log-mels, and the initial mean duration."""
        self.mel_mean.copy_(mean)
        self.mel_std.copy_(std)
        self.prosody.start_from(frames_per_token)

    @property
    def draws_harmonics(self) -> bool:
        """True if training needs `set_tones` first."""
        return self.decoder.source is not None

    def set_tones(self, tones: Tensor) -> None:
        """Makes harmonic templates from the log-mels (f, n_mels) of tones of the pitches `models.tts.pitch.grid_hz`."""
        self.decoder.source.harmonics.set_tones(tones)

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, mel: Tensor, mel_lengths: Tensor, speaker: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch as sums over its frames: tokens (b, n), mel (b, t, n_mels) natural log, lengths (b,).

        `loss_sum` is to be minimized per `count` of frames. `mel_sum` is the absolute error in natural-log units,
        averaged over channels; `prior_sum` half the squared error of the tokens' means in deviations, averaged over
        channels; `duration_sum` half the Poisson deviance of the durations; `pitch_sum`, of models with pitch, the
        squared error in octaves, mostly of voiced frames.
        """
        x = self._standardize(mel)
        plan = self._align(tokens, token_lengths, mel, mel_lengths, speaker)
        before, after = self.decoder(plan, x)
        log_mean, predicted = self.prosody(plan.hidden, token_lengths, speaker)
        valid = length_mask(mel_lengths, mel.shape[1]).unsqueeze(-1)
        sums = {
            "before": self._error(before, x, valid),
            "after": self._error(after, x, valid),
            "prior": self._prior(plan, x, valid),
            "duration": duration_loss(log_mean, plan.durations, token_lengths),
        }
        loss = sums.pop("before") + sums.pop("after") + sums["prior"] + DURATION_WEIGHT * sums["duration"]
        if plan.pitch is not None:
            sums["pitch"] = pitch_loss(predicted, plan.pitch, plan.durations)
            loss = loss + PITCH_WEIGHT * sums["pitch"]
        sums["mel"] = self._error(after.detach() * self.mel_std, x * self.mel_std, valid)
        parts = {f"{name}_sum": value.detach() for name, value in sums.items()}
        return {"loss_sum": loss, "count": mel_lengths.sum(), **parts}

    def _standardize(self, mel: Tensor) -> Tensor:
        return (mel - self.mel_mean) / self.mel_std

    def _align(
        self, tokens: Tensor, token_lengths: Tensor, mel: Tensor, mel_lengths: Tensor, speaker: Tensor | None
    ) -> Plan:
        """The text with the durations and pitches of the true mel."""
        hidden = self.encoder(tokens, token_lengths, speaker)
        durations = self.aligner(self._standardize(mel), mel_lengths, tokens, token_lengths)
        source = self.decoder.source
        pitch = None if source is None else source.harmonics.track(mel, mel_lengths, durations)
        return Plan(hidden, self._means(hidden), durations, speaker, pitch)

    def _means(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.token_mean(hidden)

    def _error(self, prediction: Tensor, x: Tensor, valid: Tensor) -> Tensor:
        return ((prediction - x).abs() * valid).sum() / x.shape[2]

    def _prior(self, plan: Plan, x: Tensor, valid: Tensor) -> Tensor:
        mean = positions(plan.durations, 0, x.shape[1]).of(plan.base)
        return ((mean - x).square() * valid).sum() / (2 * x.shape[2])

    @torch.no_grad()
    def compare(
        self, tokens: Tensor, token_lengths: Tensor, mel: Tensor, mel_lengths: Tensor, speaker: Tensor | None = None
    ) -> Comparison:
        """The mels of texts with the durations and pitches of the true ones, predicted as in training.

        An autoregressive decoder also reads the true frame before each step.
        """
        plan = self._align(tokens, token_lengths, mel, mel_lengths, speaker)
        after = self.decoder(plan, self._standardize(mel))[1]
        predicted = self._prosody(plan.hidden, token_lengths, speaker)[1]
        return Comparison(after * self.mel_std + self.mel_mean, plan.durations, plan.pitch, predicted)

    @torch.no_grad()
    def predicted_lengths(self, tokens: Tensor, token_lengths: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Predicted frames of each utterance, at least one per token, before rounding: (b,) float."""
        hidden = self.encoder(tokens, token_lengths, speaker)
        valid = length_mask(token_lengths, tokens.shape[1])
        mean = self._prosody(hidden, token_lengths, speaker)[0]
        return mean.clamp(min=1.0).masked_fill(~valid, 0.0).sum(1)

    @torch.no_grad()
    def synthesize(self, tokens: Tensor, speaker: Tensor | None = None, pace: float = 1.0) -> Synthesis:
        """The mel of one text, tokens (1, n); with `pace` 1.2 it is 20 % faster."""
        plan = self._plan(tokens, speaker, pace)
        frames = int(plan.durations.sum())
        if self.decoder.prenet is None:
            after = self.decoder(plan)[1]
        else:
            after = torch.cat(list(self._chunks(plan, frames)), dim=1)
        alignment = torch.eye(tokens.shape[1], device=after.device)[positions(plan.durations, 0, frames).token[0]]
        return Synthesis((after * self.mel_std + self.mel_mean)[0], plan.durations[0], alignment, truncated=False)

    @torch.no_grad()
    def stream(
        self, tokens: Tensor, speaker: Tensor | None = None, pace: float = 1.0, chunk: int = 32
    ) -> Iterator[Tensor]:
        """The mel of `synthesize` in pieces (t, n_mels) of `chunk` frames, rounded up to whole decoder steps."""
        if not self.can_stream:
            raise ValueError("this model cannot stream: the decoder needs the whole sentence or has no state")
        for after in self._chunks(self._plan(tokens, speaker, pace), chunk):
            yield (after * self.mel_std + self.mel_mean)[0]

    def _plan(self, tokens: Tensor, speaker: Tensor | None, pace: float) -> Plan:
        """One text, tokens (1, n), with predicted durations and pitches."""
        lengths = torch.tensor([tokens.shape[1]], device=tokens.device)
        hidden = self.encoder(tokens, lengths, speaker)
        mean, pitch = self._prosody(hidden, lengths, speaker)
        durations = round_durations(at_pace(mean, pace), lengths)
        return Plan(hidden, self._means(hidden), durations, speaker, pitch)

    def _prosody(self, hidden: Tensor, lengths: Tensor, speaker: Tensor | None) -> tuple[Tensor, Pitch | None]:
        """Frames (b, n) of each token before rounding, and its pitch."""
        log_mean, pitch = self.prosody(hidden, lengths, speaker)
        return self.duration_scale * log_mean.exp(), None if pitch is None else Pitch(pitch.clamp(0.0, TOP))

    def _chunks(self, plan: Plan, chunk: int) -> Iterator[Tensor]:
        """Standardized frames (1, t, n_mels); t is a multiple of the reduction except at the end."""
        state, total = self.decoder.initial_state(1), int(plan.durations.sum())
        steps = max(1, -(-chunk // self.decoder.reduction))
        while state.frame < total:
            left = total - state.frame
            need = min(steps, -(-left // self.decoder.reduction))
            yield self.decoder.step(plan, need, state)[:, :left]
