"""Estimation of the Gaussians that align symbols with mel frames, before the training of a text-to-mel model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from models.padding import without_mean
from models.tts.alignment import SymbolAligner
from utils.cli import progress

ITERATIONS = 8
FIRST_WHITENED = 3  # the first alignments are too far off for a useful covariance
RIDGE = 0.03  # share of the mean variance that is added to each
PRIOR_FRAMES = 1.0  # frames of value zero added to every symbol, as a prior for the rare ones

# Tokens (b, n), token lengths (b,), standardized mels (b, t, n_mels), mel lengths (b,).
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.no_grad()
def fit(aligner: SymbolAligner, batches: Callable[[], Iterable[Batch]]) -> None:
    """Viterbi training (hard expectation maximization) of means and covariance, from evenly divided utterances.

    Sums are in float64 and in the order of the batches, so that the same data give the same bits.
    """
    for iteration in progress(range(ITERATIONS), desc="alignment", unit="pass"):
        counts = torch.full((len(aligner.mean),), PRIOR_FRAMES, dtype=torch.float64)
        sums = torch.zeros_like(aligner.mean, dtype=torch.float64)
        scatter, total = sums.new_zeros(sums.shape[1], sums.shape[1]), 0
        for tokens, token_lengths, x, mel_lengths in batches():
            if iteration:
                durations = aligner(x, mel_lengths, tokens, token_lengths)
            else:
                durations = _even_durations(token_lengths, mel_lengths, tokens.shape[1])
            centered = without_mean(x, mel_lengths)
            for row, (length, frames) in enumerate(zip(token_lengths, mel_lengths, strict=True)):
                symbols = tokens[row, :length].repeat_interleave(durations[row, :length])
                values = centered[row, :frames].double()
                rest = values - aligner.mean[symbols]
                counts += torch.bincount(symbols, minlength=len(counts))
                sums.index_add_(0, symbols, values)
                scatter += rest.T @ rest
                total += len(values)
        aligner.mean.copy_(sums / counts.unsqueeze(1))
        if iteration >= FIRST_WHITENED:
            aligner.whitening.copy_(_whitening(scatter / total))


def _whitening(covariance: Tensor) -> Tensor:
    """The matrix (n_mels, n_mels) that whitens frames of this covariance and a ridge."""
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    variances, axes = torch.linalg.eigh(covariance + ridge)
    return axes / variances.sqrt()


def _even_durations(token_lengths: Tensor, mel_lengths: Tensor, width: int) -> Tensor:
    """Frames of each token (b, width) if all tokens of an utterance last equally long."""
    edges = torch.arange(width + 1).minimum(token_lengths.unsqueeze(1)) * mel_lengths.unsqueeze(1)
    return (edges // token_lengths.unsqueeze(1)).diff(dim=1)
