"""Pitch (F0) of log-mels, estimated and rendered with harmonic templates.

A mel of 80 channels resolves the harmonics of a voice up to some kHz. The template of a fundamental frequency is the
log-mel of its harmonics without the spectral envelope. Templates estimate the pitch of a recording without its audio,
and a decoder adds them to its frames: a text does not determine where harmonics lie, and the median of all that are
possible sounds like a whisper. Shapes: b utterances, t frames, n tokens, f pitches of the grid.

Spectral templates follow Camacho and Harris 2008, "A sawtooth waveform inspired pitch estimator for speech and
music"; the best track by dynamic programming follows Talkin 1995, "A robust algorithm for pitch tracking"; a decoder
that reads a pitch per token is that of Lancucki 2021, "FastPitch: Parallel text-to-speech with pitch
prediction". The constants were chosen on LJSpeech against pYIN; docs/benchmarks.md, "Pitch", has the errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.padding import length_mask
from models.tts.durations import Positions, positions

LOWEST, PER_OCTAVE, GRID = 65.0, 48, 141  # Hz, steps of 25 cents: up to 491 Hz
TOP = (GRID - 1) / PER_OCTAVE  # octaves above LOWEST
FIRST = 1.5  # octaves above LOWEST, 184 Hz: between men's and women's, where no pitch is known
ENVELOPE = 8  # channels to either side over which a spectral envelope is averaged
COMPARED = 0.5  # share of the channels, from below, that are compared: above 1.8 kHz they are wider than harmonics
UNVOICED, VOICED = 0.4, 0.8  # correlations from which a frame counts in part, and fully
JUMP = 0.5  # evidence, about a frame's, that must speak for a jump of an octave between tokens
LEAST = 0.25  # evidence of a voiced token: one frame that is half sure
BEND = 8  # grid steps, of 25 cents, by which a frame may differ from the contour of its tokens


class Pitch(NamedTuple):
    """Pitches in octaves above `LOWEST`; unvoiced parts are interpolated between voiced ones."""

    token: Tensor  # (b, n)
    frame: Tensor | None = None  # (b, t), if it was estimated from a mel, and None if predicted from a text
    voiced: Tensor | None = None  # (b, n), voiced frames of each token, of which doubtful ones count in part


def grid_hz() -> Tensor:
    """The fundamental frequencies of the grid in Hz: (f,)."""
    return LOWEST * 2 ** (torch.arange(GRID, dtype=torch.float64) / PER_OCTAVE)


def without_envelope(mel: Tensor) -> Tensor:
    """Subtracts the spectral envelope, a running mean over channels, from log-mels (..., n_mels)."""
    channels = mel.shape[-1]
    reach = min(ENVELOPE, channels - 1)
    window = torch.hann_window(2 * reach + 3, periodic=False, dtype=mel.dtype, device=mel.device)[1:-1]
    padded = F.pad(mel.reshape(-1, 1, channels), (reach, reach), mode="reflect")
    return mel - F.conv1d(padded, (window / window.sum())[None, None]).view_as(mel)


class Harmonics(nn.Module):
    """Harmonic templates of a mel recipe: `templates` (f, n_mels), a buffer that `set_tones` fills."""

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("templates", torch.zeros(GRID, n_mels))

    def set_tones(self, tones: Tensor) -> None:
        """Makes templates from the log-mels (f, n_mels) of harmonic tones of the pitches `grid_hz`."""
        self.templates.copy_(without_envelope(tones))

    def render(self, pitch: Tensor) -> Tensor:
        """The template of each pitch, interpolated: octaves (b, t) -> natural-log units (b, t, n_mels)."""
        place = pitch.clamp(0.0, TOP) * PER_OCTAVE
        below = place.floor().long().clamp(max=GRID - 2)
        share = (place - below).unsqueeze(-1)
        return self.templates[below] * (1 - share) + self.templates[below + 1] * share

    @torch.no_grad()
    def track(self, mel: Tensor, mel_lengths: Tensor, durations: Tensor) -> Pitch:
        """The pitch of log-mels (b, t, n_mels), natural logarithm, whose tokens last `durations` (b, n) frames."""
        with torch.autocast(mel.device.type, enabled=False):
            score = self._scores(mel.to(self.templates.dtype), mel_lengths)
        where = positions(durations, 0, mel.shape[1])
        evidence = score.new_zeros(*durations.shape, GRID)
        evidence.scatter_add_(1, where.token.unsqueeze(-1).expand_as(score), _confidence(score).square())
        tokens = interpolate_unvoiced(best_contour(evidence), durations, evidence.amax(2) > LEAST)
        frame, confidence = self._frames(score, contour(tokens, durations, where))
        return Pitch(tokens, frame, torch.zeros_like(tokens).scatter_add_(1, where.token, confidence))

    def _scores(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Correlations (b, t, f) of templates and frames, averaged with their neighbors; 0 on padding."""
        channels = round(COMPARED * mel.shape[2])
        x = F.normalize(without_envelope(mel)[..., :channels], dim=-1)
        score = x @ F.normalize(self.templates[:, :channels], dim=-1).T
        inside = length_mask(lengths, mel.shape[1]).unsqueeze(-1)
        padded = F.pad(score * inside, (0, 0, 1, 1))
        return (0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]) * inside

    def _frames(self, score: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """The best pitch of each frame near the contour (b, t), which unvoiced frames follow, and its confidence."""
        steps = torch.arange(GRID, device=score.device)
        far = (steps - (near * PER_OCTAVE).unsqueeze(-1)).abs() > BEND
        best, place = score.masked_fill(far, -torch.inf).max(dim=2)
        confidence = _confidence(best)
        return torch.where(confidence > 0, place.to(near.dtype) / PER_OCTAVE, near), confidence


def _confidence(correlation: Tensor) -> Tensor:
    """Confidence, 0 to 1, that a frame has the pitch of a template."""
    return ((correlation - UNVOICED) / (VOICED - UNVOICED)).clamp(0.0, 1.0)


@torch.library.custom_op("tacomamba::best_contour", mutates_args=())
def best_contour(evidence: Tensor) -> Tensor:
    """Pitches of tokens that maximize the summed evidence (b, n, f) less the costs of jumps: (b, n) octaves.

    Dynamic programming over tokens. Jumps cost in proportion to their width, so that two running maxima find the best
    predecessor of every pitch.
    """
    by_token = rearrange(evidence.cpu(), "b n f -> n b f").numpy().astype(np.float64)
    ramp = JUMP / PER_OCTAVE * np.arange(GRID)
    best = np.empty_like(by_token)
    best[0] = by_token[0]
    for token in range(1, len(best)):
        up = np.maximum.accumulate(best[token - 1] + ramp, axis=1) - ramp
        down = np.maximum.accumulate((best[token - 1] - ramp)[:, ::-1], axis=1)[:, ::-1] + ramp
        best[token] = np.maximum(up, down) + by_token[token]
    places = np.empty(best.shape[:2], dtype=np.int64)
    places[-1] = best[-1].argmax(axis=1)
    for token in range(len(best) - 2, -1, -1):
        jumps = np.abs(np.arange(GRID) - places[token + 1][:, None])
        places[token] = (best[token] - JUMP / PER_OCTAVE * jumps).argmax(axis=1)
    return torch.from_numpy(places.T).to(evidence.device, evidence.dtype) / PER_OCTAVE


@best_contour.register_fake
def _best_contour(evidence: Tensor) -> Tensor:
    return evidence.new_empty(evidence.shape[:2])


@torch.library.custom_op("tacomamba::interpolate_unvoiced", mutates_args=())
def interpolate_unvoiced(pitch: Tensor, durations: Tensor, is_voiced: Tensor) -> Tensor:
    """Interpolates the pitches (b, n) of unvoiced tokens linearly between the middles of the voiced ones beside them.

    It is constant before the first and after the last voiced token, and `FIRST` in an utterance without any.
    """
    middles = (durations.cumsum(1) - durations / 2).cpu().numpy()
    rows, voiced = pitch.cpu().numpy(), is_voiced.cpu().numpy()
    found = np.full_like(rows, FIRST)
    for out, row, x, known in zip(found, rows, middles, voiced, strict=True):
        if known.any():
            out[:] = np.interp(x, x[known], row[known])
    return torch.from_numpy(found).to(pitch.device)


@interpolate_unvoiced.register_fake
def _interpolate_unvoiced(pitch: Tensor, durations: Tensor, is_voiced: Tensor) -> Tensor:
    return torch.empty_like(pitch)


def contour(pitch: Tensor, durations: Tensor, where: Positions) -> Tensor:
    """Interpolates pitches linearly between the middles of tokens: (b, n) -> (b, frames).

    The contour is constant before the first middle and after the last one. Tokens without frames are padding.
    """
    token, place, length = where
    last = (durations > 0).sum(1, keepdim=True) - 1
    offset = (place + 0.5 - length / 2).to(pitch.dtype)  # from the middle of the frame's token
    other = torch.where(offset < 0, token - 1, token + 1).clamp(min=0).minimum(last)
    distance = ((length + durations.gather(1, other)) / 2).to(pitch.dtype)
    here, there = pitch.gather(1, token), pitch.gather(1, other)
    return here + (there - here) * offset.abs() / distance
