"""Tacotron 2: padding, teacher forcing against synthesis, gradients, learning, odd inputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.tts import TextToMelConfig
from models.tts.tacotron2 import AttentionState, Tacotron2, _off_diagonal, _stop_loss

SMALL = {
    "n_mels": 6,
    "d_model": 16,
    "prenet_dim": 12,
    "attention_dim": 10,
    "decoder_dim": 14,
    "postnet_channels": 8,
    "reduction": 2,
    "guided_attention": 1.0,
    "dropout": 0.1,
}
SYMBOLS = 9
TOKEN_LENGTHS, MEL_LENGTHS = torch.tensor([7, 3, 1]), torch.tensor([5, 21, 12])


def make_model(seed: int = 0, **changes: object) -> Tacotron2:
    torch.manual_seed(seed)
    model = Tacotron2(TextToMelConfig(model="tacotron2", **SMALL | changes), SYMBOLS).double()
    model.set_statistics(torch.linspace(-6, -4, 6), torch.linspace(0.5, 2, 6), 3.0)
    return model


def never_stops(**changes: object) -> Tacotron2:
    model = make_model(**changes).eval()
    torch.nn.init.constant_(model.stop.bias, -50.0)
    return model


def padded_batch(token_padding: int, mel_padding: float, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three utterances, the first of more tokens than frames, with the given values on the padding."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, SYMBOLS, (3, 7), generator=draw)
    mel = torch.randn(3, 21, 6, generator=draw, dtype=torch.float64) - 5
    tokens[torch.arange(7) >= TOKEN_LENGTHS[:, None]] = token_padding
    mel[torch.arange(21) >= MEL_LENGTHS[:, None]] = mel_padding
    return tokens, TOKEN_LENGTHS, mel, MEL_LENGTHS


def alone(batch: tuple[Tensor, Tensor, Tensor, Tensor], row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, token_lengths, mel, mel_lengths = batch
    rows = slice(row, row + 1)
    return tokens[rows, : token_lengths[row]], token_lengths[rows], mel[rows, : mel_lengths[row]], mel_lengths[rows]


@pytest.mark.parametrize("reduction", [1, 2, 3])
def test_padding_changes_neither_losses_nor_gradients_nor_comparison(reduction, seed):
    """Float64, within 1e-10 of utterances on their own; what the padding holds may even be NaN."""
    model = make_model(seed, reduction=reduction).eval()
    batch = padded_batch(token_padding=5, mel_padding=math.nan, seed=seed + 1)
    together = model(*batch)
    gradients = torch.autograd.grad(together["loss_sum"], list(model.parameters()))
    parts = [model(*alone(batch, row)) for row in range(3)]
    apart = torch.autograd.grad(sum(part["loss_sum"] for part in parts), list(model.parameters()))
    assert together["count"] == MEL_LENGTHS.sum()
    for name, total in together.items():
        torch.testing.assert_close(total, sum(part[name] for part in parts), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, apart, rtol=1e-10, atol=1e-10)
    comparison = model.compare(*batch)
    for row, (tokens, frames) in enumerate(zip(TOKEN_LENGTHS, MEL_LENGTHS, strict=True)):
        expected = model.compare(*alone(batch, row))
        torch.testing.assert_close(comparison.mel[row, :frames], expected.mel[0], rtol=1e-10, atol=1e-10)
        assert torch.equal(comparison.durations[row, :tokens], expected.durations[0])
        assert (comparison.durations[row, tokens:] == 0).all() and comparison.durations[row].sum() == frames


@pytest.mark.parametrize("speaker", ["none", "table", "embedding"])
def test_gradients_reach_every_parameter(speaker):
    model = make_model(voice=speaker, n_speakers=4, speaker_dim=5).train()
    given = {"none": None, "table": torch.tensor([0, 3, 1]), "embedding": torch.randn(3, 5, dtype=torch.float64)}
    model(*padded_batch(0, 0.0), given[speaker])["loss_sum"].backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not missing


def test_speakers_change_speech():
    model = make_model(voice="table", n_speakers=2).eval()
    batch = padded_batch(0, 0.0)
    first, second = (model.compare(*batch, torch.full((3,), voice)).mel for voice in (0, 1))
    assert (first - second).abs().max() > 1e-3
    tokens = torch.tensor([[1, 2, 3]])
    spoken = [model.synthesize(tokens, torch.tensor([voice])).mel[:2] for voice in (0, 1)]
    assert (spoken[0] - spoken[1]).abs().max() > 1e-3


@pytest.mark.parametrize("reduction", [1, 2])
def test_teacher_forcing_on_its_own_speech_predicts_the_same(reduction, seed):
    """Float64, within 1e-10: one parallel pass over synthesized frames gives those frames and that attention again."""
    model = never_stops(seed=seed, reduction=reduction)
    tokens, lengths = torch.tensor([[1, 5, 2, 8]]), torch.tensor([4])
    with torch.no_grad():
        before, weights, _ = model._speak(tokens, None, 30)
        frames = torch.tensor([before.shape[1]])
        prediction = model._predict(tokens, lengths, before, frames, None)
    assert before.shape == (1, 30 * reduction, 6)
    torch.testing.assert_close(prediction.before, before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prediction.weights, weights, rtol=1e-10, atol=1e-10)


def test_attention_step_follows_the_equations(seed):
    """Chorowski et al. 2015, equation 9, token by token, with the last weights and their sum as location; to 1e-12."""
    layer, draw = make_model(seed).attention, torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    encoded, gates = normal(1, 5, 16), normal(1, 56)
    memory = layer.memory(encoded, torch.tensor([5]))
    state = AttentionState(normal(1, 14), normal(1, 14), normal(1, 16), normal(1, 5).softmax(1), normal(1, 5).abs())
    after = layer.step(gates, memory, state)
    keep, write, show, value = (gates + layer.recurrence(torch.cat([state.context, state.hidden], 1))).split(14, 1)
    cell = keep.sigmoid() * state.cell + write.sigmoid() * value.tanh()
    hidden = show.sigmoid() * cell.tanh()
    energies = []
    for token in range(5):
        location = torch.zeros(10, dtype=torch.float64)
        for other in range(5):
            seen = torch.stack([state.weights[0, other], state.total[0, other]])
            location += layer.location.weight[:, :, 15 + other - token] @ seen
        features = (layer.query(hidden)[0] + layer.key(encoded[0, token]) + location).tanh()
        energies.append(layer.energy @ features)
    weights = torch.stack(energies).softmax(0).unsqueeze(0)
    expected = AttentionState(hidden, cell, weights @ encoded[0], weights, state.total + weights)
    torch.testing.assert_close(tuple(after), tuple(expected), rtol=1e-12, atol=1e-12)


def test_prenet_drops_units_of_both_layers():
    """Kept units are doubled, in training and outside of it, where every run keeps the same units."""
    prenet = make_model().prenet
    mel = torch.ones(1, 1, 6, dtype=torch.float64)
    keep = torch.zeros(1, 1, 2, 12, dtype=torch.bool)
    keep[0, 0, 0, :5], keep[0, 0, 1, 3:] = True, True
    first = F.relu(prenet.layers[0](mel)) * torch.tensor([2.0] * 5 + [0.0] * 7)
    second = F.relu(prenet.layers[1](first)) * torch.tensor([0.0] * 3 + [2.0] * 9)
    torch.testing.assert_close(prenet(mel, keep), second)
    units = torch.cat(list(prenet.draw_fixed(50, mel.device)), dim=1)
    assert units.shape == (1, 50, 2, 12) and 0.4 < units.double().mean() < 0.6
    assert torch.equal(units[:, :20], torch.cat(list(prenet.draw_fixed(20, mel.device)), dim=1))
    assert not torch.equal(units[:, 0], units[:, 1]) and not torch.equal(units[:, :, 0], units[:, :, 1])


def synthetic_utterances() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two texts whose tokens last 4 or 6 frames each and have one mel vector each."""
    draw = torch.Generator().manual_seed(2)
    texts = [([1, 4, 5, 6, 2], [4, 6, 4, 6, 4]), ([1, 7, 4, 2], [4, 6, 6, 4])]
    means = torch.randn(SYMBOLS, 6, generator=draw) - 5
    mels = [means[torch.tensor(text).repeat_interleave(torch.tensor(durations))] for text, durations in texts]
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text, _ in texts], batch_first=True)
    lengths = torch.tensor([len(text) for text, _ in texts]), torch.tensor([len(mel) for mel in mels])
    return tokens, lengths[0], torch.nn.utils.rnn.pad_sequence(mels, batch_first=True), lengths[1]


def test_two_utterances_can_be_memorized():
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "prenet_dim": 32,
        "attention_dim": 16,
        "decoder_dim": 48,
        "postnet_channels": 16,
        "dropout": 0.0,
    }
    model = Tacotron2(TextToMelConfig(model="tacotron2", **SMALL | sizes), SYMBOLS)
    tokens, token_lengths, mel, mel_lengths = synthetic_utterances()
    model.set_statistics(torch.full((6,), -5.0), torch.ones(6), 5.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        sums = model(tokens, token_lengths, mel, mel_lengths)
        optimizer.zero_grad()
        (sums["loss_sum"] / sums["count"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    guess = (mel[0, :24] + 5).abs().mean()  # the error of a model that predicts the mean
    for row, (n, frames) in enumerate(zip(token_lengths.tolist(), mel_lengths.tolist(), strict=True)):
        spoken = model.synthesize(tokens[row : row + 1, :n])
        assert not spoken.truncated
        assert abs(len(spoken.mel) - frames) <= 2
        both = min(len(spoken.mel), frames)
        assert (spoken.mel[:both] - mel[row, :both]).abs().mean() < 0.35 * guess
        assert spoken.durations.sum() == len(spoken.mel)
    durations = model.compare(tokens, token_lengths, mel, mel_lengths).durations
    assert (durations[0] - torch.tensor([4, 6, 4, 6, 4])).abs().max() <= 2


def test_speech_without_end_is_cut_off():
    assert len(never_stops(reduction=4).synthesize(torch.tensor([[1]])).mel) == 1720  # 20 s of the speech recipe
    spoken = never_stops(reduction=4).synthesize(torch.ones(1, 80, dtype=torch.int64))
    assert spoken.truncated and len(spoken.mel) == 80 * 25
    assert spoken.alignment.shape == (2000, 80) and spoken.durations.sum() == 2000
    torch.testing.assert_close(spoken.alignment.sum(1), torch.ones(2000).double())


def test_speech_ends_at_the_stop_token():
    model = never_stops(reduction=2)
    torch.nn.init.constant_(model.stop.bias, 50.0)
    spoken = model.synthesize(torch.tensor([[1, 2]]))
    assert len(spoken.mel) == 2 and not spoken.truncated


@pytest.mark.parametrize(("tokens", "frames"), [(1, 1), (1, 9), (6, 3), (6, 6)])
def test_texts_of_one_symbol_and_more_symbols_than_frames(tokens, frames):
    model = make_model().eval()
    lengths = torch.tensor([tokens]), torch.tensor([frames])
    inputs = torch.ones(1, tokens, dtype=torch.int64), lengths[0], torch.randn(1, frames, 6).double(), lengths[1]
    assert all(value.isfinite() for value in model(*inputs).values())
    durations = model.compare(*inputs).durations
    assert durations.sum() == frames
    assert frames < tokens or (durations >= 1).all()


def test_same_text_gives_same_speech():
    """Bit for bit, for any global random state, while training draws from it."""
    model, tokens = never_stops(), torch.tensor([[1, 3, 5]])
    first = model.synthesize(tokens).mel
    torch.manual_seed(99)
    assert torch.equal(first, model.synthesize(tokens).mel)
    batch, losses = padded_batch(0, 0.0), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(model.train()(*batch)["loss_sum"])
    assert losses[0] == losses[1] != losses[2]


def test_mel_error_is_in_natural_log_units():
    model, batch = make_model().eval(), padded_batch(0, 0.0)
    error = (model.compare(*batch).mel - batch[2]).abs().mean(2)
    expected = sum(error[row, :frames].sum() for row, frames in enumerate(MEL_LENGTHS))
    torch.testing.assert_close(model(*batch)["mel_sum"], expected, rtol=1e-10, atol=0.0)


def test_stop_loss_by_hand():
    logits = torch.tensor([[-1.0, 2.0, 9.0], [0.5, -3.0, 1.0]])
    expected = F.softplus(torch.tensor([-1.0, 0.5, -3.0])).sum() + 8 * F.softplus(torch.tensor([-2.0, -1.0])).sum()
    torch.testing.assert_close(_stop_loss(logits, torch.tensor([2, 3])), expected)


def test_guided_attention_is_cheap_on_the_diagonal_only():
    lengths = torch.tensor([8])
    diagonal = _off_diagonal(torch.eye(8).unsqueeze(0), lengths, lengths)
    reverse = _off_diagonal(torch.eye(8).flip(1).unsqueeze(0), lengths, lengths)
    assert diagonal == 0
    distances = torch.arange(-7, 8, 2) / 8
    torch.testing.assert_close(reverse, (1 - (-distances.square() / 0.08).exp()).sum())


def test_autocast_stays_close(seed):
    model = make_model(seed).float().eval()
    batch = [part.float() if part.is_floating_point() else part for part in padded_batch(0, 0.0, seed + 1)]
    full = model(*batch)["loss_sum"]
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*batch)["loss_sum"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.0)


def test_refuses_what_attention_cannot_do():
    model, tokens = make_model().eval(), torch.tensor([[1, 2]])
    assert not model.can_stream and model.predicted_lengths(tokens, torch.tensor([2])) is None
    with pytest.raises(ValueError, match="pace"):
        model.synthesize(tokens, pace=1.2)
    with pytest.raises(ValueError, match="cannot stream"):
        model.stream(tokens)
    with pytest.raises(ValueError, match="must be even"):
        make_model(d_model=15)
