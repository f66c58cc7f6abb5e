"""Durations and pitches of tokens, predicted from the text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.padding import length_mask
from models.tts.condition import SpeakerCondition
from models.tts.config import TextToMelConfig
from models.tts.convolution import ResidualConvs
from models.tts.pitch import FIRST, Pitch

MOST_DROPOUT = 0.1  # more of it before an exponential would bias the mean
LONGEST_TOKEN = 256  # frames; a longer prediction is a mistake
UNVOICED_WEIGHT = 0.1  # of unvoiced frames, between whose pitches those of voiced ones beside them are interpolated


class ProsodyPredictor(nn.Module):
    """Logarithm of the mean duration of each token, and its pitch: hidden (b, n, d), lengths (b,) -> (b, n) twice.

    The gradient stops at `hidden`, so that errors of the alignment cannot distort the encoder. Pitches are in octaves
    above `models.tts.pitch.LOWEST`, and None for a model without pitch.
    """

    def __init__(self, config: TextToMelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.condition = SpeakerCondition(config)
        dropout = min(config.dropout, MOST_DROPOUT)
        self.convs = ResidualConvs(d_model, n_layers=2, kernel=3, causal=False, dropout=dropout)
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.duration = nn.Linear(d_model, 1)
        self.pitch = nn.Linear(d_model, 1) if config.pitch else None
        if self.pitch is not None:
            nn.init.constant_(self.pitch.bias, FIRST)

    def start_from(self, frames_per_token: float) -> None:
        """Sets the mean duration that the untrained predictor returns."""
        nn.init.constant_(self.duration.bias, math.log(frames_per_token))

    def forward(self, hidden: Tensor, lengths: Tensor, speaker: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.norm(self.convs(self.condition(hidden.detach(), speaker), lengths))
        log_mean = _of_tokens(self.duration, x).clamp(max=math.log(LONGEST_TOKEN))
        return log_mean, None if self.pitch is None else _of_tokens(self.pitch, x)


def _of_tokens(output: nn.Linear, x: Tensor) -> Tensor:
    """(b, n, d) -> (b, n), in float32 or wider."""
    y = output(x).squeeze(-1)
    return y.to(torch.promote_types(y.dtype, torch.float32))


def duration_loss(log_mean: Tensor, durations: Tensor, lengths: Tensor) -> Tensor:
    """Poisson deviance / 2 of durations (b, n) under predicted means, summed over valid tokens: a scalar.

    Its optimum predicts unbiased totals: the derivative with respect to the bias of the last layer is the difference
    of the totals (McCullagh and Nelder 1989, section 2.2.4). The squared error of logarithms would find the geometric
    mean, which is 10 to 15 % short for speech.
    """
    target = durations.to(log_mean.dtype)
    valid = length_mask(lengths, log_mean.shape[1])
    deviance = torch.special.xlogy(target, target) - target * log_mean - target + log_mean.exp()
    return deviance.masked_fill(~valid, 0.0).sum()


def pitch_loss(predicted: Tensor, pitch: Pitch, durations: Tensor) -> Tensor:
    """Squared error in octaves of predicted pitches (b, n), summed over frames, mostly voiced ones: a scalar."""
    weight = pitch.voiced + UNVOICED_WEIGHT * durations
    return (weight * (predicted - pitch.token).square()).sum()
