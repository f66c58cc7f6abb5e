"""The alignment of tokens to mel frames: the best path, what it must use, and that it can be learned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.tts.alignment import SymbolAligner, gaussian_score, monotonic_path
from utils.tts.aligning import Batch, fit


def brute_force(score: np.ndarray) -> tuple[float, list[int]]:
    """Best sum and durations over all ways to cut T frames into N runs of at least one; score (n, t)."""
    tokens, frames = score.shape
    best = (-np.inf, [])
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        edges = [0, *cuts, frames]
        total = sum(score[n, edges[n] : edges[n + 1]].sum() for n in range(tokens))
        best = max(best, (total, list(np.diff(edges))))
    return best


@pytest.mark.parametrize("tokens, frames", [(1, 1), (1, 6), (2, 2), (3, 7), (5, 9), (7, 7)])
def test_the_path_is_the_best_of_all(tokens, frames, seed):
    draw = np.random.default_rng([tokens, frames, seed])
    for _ in range(20):
        score = draw.standard_normal((tokens, frames))
        total, durations = brute_force(score)
        lengths = torch.tensor([tokens]), torch.tensor([frames])
        found = monotonic_path(torch.from_numpy(score)[None], *lengths)[0]
        edges = np.concatenate([[0], found.cumsum(0).numpy()])
        reached = sum(score[n, edges[n] : edges[n + 1]].sum() for n in range(tokens))
        assert found.tolist() == durations
        assert reached == pytest.approx(total, abs=1e-6)


def test_padding_of_text_and_mel_changes_no_path(seed):
    torch.manual_seed(seed)
    score = torch.randn(3, 6, 20)
    tokens, frames = torch.tensor([6, 3, 1]), torch.tensor([20, 11, 4])
    together = monotonic_path(score, tokens, frames)
    assert together.sum(1).tolist() == frames.tolist()
    for row in range(3):
        alone = monotonic_path(
            score[row : row + 1, : tokens[row], : frames[row]], tokens[row : row + 1], frames[row, None]
        )
        assert together[row, : tokens[row]].tolist() == alone[0].tolist()
        assert (together[row, : tokens[row]] >= 1).all() and (together[row, tokens[row] :] == 0).all()


def test_long_sums_do_not_decide_for_small_differences(seed):
    """A shift of every score of a frame changes no path, and 2,000 frames of -1e4 must not drown differences of 1."""
    torch.manual_seed(seed)
    score = torch.randn(1, 40, 2000)
    lengths = torch.tensor([40]), torch.tensor([2000])
    assert torch.equal(monotonic_path(score, *lengths), monotonic_path(score - 8192.0, *lengths))


def test_fewer_frames_than_tokens_is_an_error():
    with pytest.raises(ValueError, match="fewer frames than tokens"):
        monotonic_path(torch.zeros(1, 3, 2), torch.tensor([3]), torch.tensor([2]))


def test_the_score_is_the_gaussian_log_likelihood(seed):
    torch.manual_seed(seed)
    x, mean = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    normal = torch.distributions.Normal(mean.unsqueeze(2), 1.0)
    expected = normal.log_prob(x.unsqueeze(1)).sum(-1) + 2 * np.log(2 * np.pi)  # 4 channels of log(2 pi) / 2
    torch.testing.assert_close(gaussian_score(x, mean), expected, atol=1e-5, rtol=0)


SYMBOLS, MELS = 12, 10


def synthetic_speech(seed: int, utterances: int) -> tuple[Batch, torch.Tensor]:
    """Symbols 1 to 11 as noisy spectra, each around a mean; the noise is strong in two directions."""
    draw = torch.Generator().manual_seed(seed)
    voice = torch.Generator().manual_seed(99)
    spectra, loud = torch.randn(SYMBOLS, MELS, generator=voice), torch.randn(2, MELS, generator=voice)
    tokens = torch.stack([1 + torch.randperm(SYMBOLS - 1, generator=draw) for _ in range(utterances)])
    durations = torch.randint(2, 9, tokens.shape, generator=draw)
    token_lengths = torch.randint(7, SYMBOLS, (utterances,), generator=draw)
    durations = durations * (torch.arange(tokens.shape[1]) < token_lengths.unsqueeze(1))
    frames = durations.sum(1)
    mel = 5 * torch.ones(utterances, int(frames.max()), MELS)  # the padding must not matter
    for row in range(utterances):
        mel[row, : frames[row]] = spectra[tokens[row]].repeat_interleave(durations[row], 0)
    mel += 0.2 * torch.randn(mel.shape, generator=draw) + 2 * torch.randn(*mel.shape[:2], 2, generator=draw) @ loud
    return (tokens, token_lengths, mel + 3 * torch.randn(utterances, 1, MELS, generator=draw), frames), durations


def boundary_error(aligner: SymbolAligner, batch: Batch, durations: torch.Tensor) -> float:
    """Mean distance in frames of the inner boundaries."""
    tokens, token_lengths, mel, frames = batch
    found = aligner(mel, frames, tokens, token_lengths)
    inner = torch.arange(tokens.shape[1]) < token_lengths.unsqueeze(1) - 1
    return (found.cumsum(1) - durations.cumsum(1))[inner].abs().double().mean().item()


def test_the_aligner_finds_boundaries_from_an_even_division():
    """Noise hides the symbols in two directions; the error is below half a frame on utterances not fitted on.

    Each utterance has an offset, as of speaker and recording, larger than the distances between symbols.
    """
    batch, _ = synthetic_speech(1, 64)
    aligner = SymbolAligner(SYMBOLS, MELS)
    fit(aligner, lambda: [tuple(part[:32] for part in batch), tuple(part[32:] for part in batch)])
    assert boundary_error(aligner, *synthetic_speech(2, 32)) < 0.5
    plain = SymbolAligner(SYMBOLS, MELS)
    plain.mean.copy_(aligner.mean)
    assert boundary_error(plain, *synthetic_speech(2, 32)) > 1  # only the covariance suppresses the noise


def test_padding_and_batch_change_no_alignment_of_the_aligner():
    (tokens, token_lengths, mel, frames), _ = synthetic_speech(3, 6)
    aligner = SymbolAligner(SYMBOLS, MELS)
    fit(aligner, lambda: [synthetic_speech(1, 32)[0]])
    together = aligner(mel, frames, tokens, token_lengths)
    assert frames.unique().numel() > 1
    for row, (length, end) in enumerate(zip(token_lengths, frames, strict=True)):
        of = slice(row, row + 1)
        alone = aligner(mel[of, :end], frames[of], tokens[of, :length], token_lengths[of])
        assert together[row, :length].tolist() == alone[0].tolist()


def test_the_same_speech_gives_the_same_aligner_bit_for_bit():
    aligners = [SymbolAligner(SYMBOLS, MELS) for _ in range(2)]
    for aligner in aligners:
        fit(aligner, lambda: [synthetic_speech(1, 16)[0]])
    first, second = (aligner.state_dict() for aligner in aligners)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_symbol_without_training_data_still_has_a_mean():
    aligner = SymbolAligner(SYMBOLS + 3, MELS)
    fit(aligner, lambda: [synthetic_speech(1, 16)[0]])
    assert aligner.mean.isfinite().all() and aligner.whitening.isfinite().all()
    assert (aligner.mean[SYMBOLS:] == 0).all()
