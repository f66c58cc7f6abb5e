"""Pitch of log-mels, found and drawn by harmonic templates: B utterances, T frames, N tokens, F pitches of a grid.

A mel of 80 channels resolves the harmonics of a voice up to some kHz. What a tone of some fundamental frequency adds to
the log-mel beside its envelope, its template, finds the pitch of a recording without its audio, and shows a decoder
where to draw harmonics: a text does not tell them, and the mean of all that might be is a whisper.
docs/benchmarks.md, "Text to mel", has the errors of the pitches that are found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mamba import length_mask
from models.tts.durations import positions

LOWEST, PER_OCTAVE, GRID = 65.0, 48, 141  # Hz, steps of 25 cents: up to 491 Hz
TOP = (GRID - 1) / PER_OCTAVE  # octaves above LOWEST
ENVELOPE = 8  # channels to either side that a spectral envelope is averaged over
CHANNELS = 40  # that are compared with templates; those above, from 1.8 kHz on, are wider than harmonics lie apart
UNVOICED, VOICED = 0.4, 0.8  # correlations from which a frame counts somewhat, and fully
JUMP = 0.5  # evidence, about voiced frames, that a jump of an octave between tokens must add
BEND = 8  # grid steps, of 25 cents, by which a frame may differ from the line between its tokens


class Pitch(NamedTuple):
    """Pitches in octaves above `LOWEST`, also where there is no voice: there they are between their neighbours'."""

    token: Tensor  # (B, N)
    frame: Tensor  # (B, T)
    voiced: Tensor  # (B, N), how many frames of each token are voiced, doubtful ones in part


def grid_hz() -> Tensor:
    """The fundamental frequencies of the grid in Hz: (F,)."""
    return LOWEST * 2 ** (torch.arange(GRID, dtype=torch.float64) / PER_OCTAVE)


def without_envelope(mel: Tensor) -> Tensor:
    """Takes a smooth spectral envelope, a running mean over channels, off log-mels (..., n_mels)."""
    channels = mel.shape[-1]
    reach = min(ENVELOPE, channels - 1)
    window = torch.hann_window(2 * reach + 3, periodic=False, dtype=mel.dtype, device=mel.device)[1:-1]
    padded = F.pad(mel.reshape(-1, 1, channels), (reach, reach), mode="reflect")
    return mel - F.conv1d(padded, (window / window.sum())[None, None]).view_as(mel)


class Harmonics(nn.Module):
    """The templates of a mel recipe: `templates` (F, n_mels), a buffer that `set_tones` fills."""

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("templates", torch.zeros(GRID, n_mels))

    def set_tones(self, tones: Tensor) -> None:
        """Takes the log-mels (F, n_mels) of harmonic tones of the pitches `grid_hz`."""
        self.templates.copy_(without_envelope(tones))

    def drawn(self, pitch: Tensor) -> Tensor:
        """The template of each pitch, between those of the grid where need be: (B, T) octaves -> (B, T, n_mels)."""
        place = pitch.clamp(0.0, TOP) * PER_OCTAVE
        below = place.floor().long().clamp(max=GRID - 2)
        share = (place - below).unsqueeze(-1)
        return self.templates[below] * (1 - share) + self.templates[below + 1] * share

    @torch.no_grad()
    def track(self, mel: Tensor, mel_lengths: Tensor, durations: Tensor) -> Pitch:
        """The pitch of log-mels (B, T, n_mels), natural logarithm, whose tokens last `durations` (B, N) frames."""
        with torch.autocast(mel.device.type, enabled=False):
            score = self._scores(mel.to(self.templates.dtype), mel_lengths)
        token = positions(durations, 0, mel.shape[1])[0]
        evidence = score.new_zeros(*durations.shape, GRID)
        evidence.scatter_add_(1, token.unsqueeze(-1).expand_as(score), score.clamp(min=0).square())
        tokens = best_contour(evidence)
        line = contour(tokens, durations, 0, mel.shape[1])
        frame, confidence = self._frames(score, line)
        voiced = torch.zeros_like(tokens).scatter_add_(1, token, confidence)
        return Pitch(tokens, frame, voiced)

    def _scores(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Correlations (B, T, F) of templates and frames, averaged with their neighbours; 0 on padding."""
        x = F.normalize(without_envelope(mel)[..., :CHANNELS], dim=-1)
        score = x @ F.normalize(self.templates[:, :CHANNELS], dim=-1).T
        inside = length_mask(lengths, mel.shape[1]).unsqueeze(-1)
        padded = F.pad(score * inside, (0, 0, 1, 1))
        return (0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]) * inside

    def _frames(self, score: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
        """The best pitch of each frame near the line (B, T) through its tokens', and how surely it is voiced."""
        steps = torch.arange(GRID, device=score.device)
        far = (steps - (line * PER_OCTAVE).unsqueeze(-1)).abs() > BEND
        best, place = score.masked_fill(far, -torch.inf).max(dim=2)
        return place.to(line.dtype) / PER_OCTAVE, ((best - UNVOICED) / (VOICED - UNVOICED)).clamp(0.0, 1.0)


def best_contour(evidence: Tensor) -> Tensor:
    """The pitches, one a token, whose summed evidence (B, N, F) less their jumps is greatest: (B, N) octaves.

    Dynamic programming over tokens; the best predecessor of each pitch is found by two running maxima, because a jump
    costs in proportion to its width.
    """
    by_token = evidence.permute(1, 0, 2).cpu().numpy().astype(np.float64)  # (N, B, F)
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


def contour(pitch: Tensor, durations: Tensor, start: int, frames: int) -> Tensor:
    """Pitches of the frames from `start` on, on straight lines between the middles of tokens: (B, N) -> (B, frames).

    Before the first middle and after the last one the line is level. Tokens without frames are padding.
    """
    token, place, length = positions(durations, start, frames)
    last = (durations > 0).sum(1, keepdim=True) - 1
    offset = (place + 0.5 - length / 2).to(pitch.dtype)  # from the middle of the frame's token
    other = torch.where(offset < 0, token - 1, token + 1).clamp(min=0).minimum(last)
    distance = ((length + durations.gather(1, other)) / 2).to(pitch.dtype)
    here, there = pitch.gather(1, token), pitch.gather(1, other)
    return here + (there - here) * offset.abs() / distance
