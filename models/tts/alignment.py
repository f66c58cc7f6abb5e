"""The token that each mel frame belongs to: the most likely monotonic path, found by dynamic programming.

Kim et al. 2020, "Glow-TTS", section 3.2 (monotonic alignment search), vectorized over batch and text. The likelihood is
that of the mel itself under one Gaussian per symbol, as in the forced alignment of speech recognizers (Rabiner 1989,
section IV). It needs no training, and its boundaries are more exact than those of means that an encoder learns:
docs/benchmarks.md, "Boundaries of phones", has the errors of both.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from models.padding import without_mean


def gaussian_score(x: Tensor, mean: Tensor) -> Tensor:
    """Log-likelihood, up to a constant, of each frame under each token's Gaussian of unit variance.

    x (b, t, m), mean (b, n, m) -> (b, n, t). Never in half precision: small differences decide about paths.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        x, mean = x.to(wide), mean.to(wide)
        product = torch.einsum("bnm,btm->bnt", mean, x)
        return product - 0.5 * mean.square().sum(-1).unsqueeze(2) - 0.5 * x.square().sum(-1).unsqueeze(1)


@torch.library.custom_op("tacomamba::monotonic_path", mutates_args=())
def monotonic_path(score: Tensor, token_lengths: Tensor, mel_lengths: Tensor) -> Tensor:
    """The durations that maximize the summed score of a monotonic path that uses all tokens and all frames.

    Args:
        score: (b, n, t), of token n at frame t.
        token_lengths: (b,), tokens of each utterance; later ones are padding.
        mel_lengths: (b,), frames of each utterance, at least as many as tokens.

    Returns:
        (b, n) int64: frames of each token, at least 1, and 0 on padding.
    """
    tokens, frames = token_lengths.cpu().numpy(), mel_lengths.cpu().numpy()
    if (frames < tokens).any():
        raise ValueError("an utterance with fewer frames than tokens has no alignment")
    by_frame = rearrange(score.detach().float().cpu(), "b n t -> t b n").numpy()
    moved = _best_moves(by_frame)
    rows = np.arange(len(tokens))
    token = tokens - 1
    durations = np.zeros(by_frame.shape[1:], dtype=np.int64)
    for frame in range(len(by_frame) - 1, -1, -1):
        inside = frame < frames
        durations[rows, token] += inside
        token = token - (moved[frame, rows, token] & inside)
    return torch.from_numpy(durations).to(score.device)


@monotonic_path.register_fake
def _durations(score: Tensor, token_lengths: Tensor, mel_lengths: Tensor) -> Tensor:
    return score.new_empty(score.shape[:2], dtype=torch.int64)


def _best_moves(score: np.ndarray) -> np.ndarray:
    """True where the best path to token n at frame t comes from token n - 1: score (t, b, n) -> same shape."""
    moved = np.zeros(score.shape, dtype=bool)
    best = np.full(score.shape[1:], -np.inf)
    best[:, 0] = score[0, :, 0]
    before = np.full_like(best, -np.inf)
    for frame in range(1, len(score)):
        before[:, 1:] = best[:, :-1]
        np.greater(before, best, out=moved[frame])
        np.maximum(before, best, out=best)
        best += score[frame]
    return moved


class SymbolAligner(nn.Module):
    """Durations from one Gaussian per symbol, all with one covariance.

    `mean` (v, n_mels) are the symbols' means; `whitening` (n_mels, n_mels) turns the covariance into the identity.
    `utils.tts.aligning.fit` estimates both before training starts; they are buffers of the model. The mean of the
    utterance, which belongs to the speaker and the recording, is subtracted first.
    """

    def __init__(self, n_symbols: int, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_symbols, n_mels))
        self.register_buffer("whitening", torch.eye(n_mels))

    def forward(self, x: Tensor, mel_lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Standardized mels x (b, t, n_mels), tokens (b, n), lengths (b,) -> durations (b, n) int64."""
        with torch.autocast(x.device.type, enabled=False):
            centered = without_mean(x, mel_lengths).to(self.mean.dtype)
            score = gaussian_score(centered @ self.whitening, self.mean[tokens] @ self.whitening)
        return monotonic_path(score, token_lengths, mel_lengths)
