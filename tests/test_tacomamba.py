"""The text-to-mel model: padding, streaming, durations, voices, and that every part of it learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.mixers import MIXERS
from models.tts import MODELS, TextToMelConfig
from models.tts.durations import at_pace, positions, round_durations
from models.tts.pitch import GRID, TOP
from models.tts.prosody import ProsodyPredictor, duration_loss, pitch_loss
from utils import cli

DECODERS = "causal", "bidirectional", "ar"
SMALL = "--d-model 32 --n-layers 2 --encoder-layers 1 --headdim 16 --d-state 8 --postnet-channels 16".split()
SYMBOLS = 20
LENGTHS = {"token_lengths": torch.tensor([9, 5, 1]), "mel_lengths": torch.tensor([50, 31, 8])}


def config(*words: str) -> TextToMelConfig:
    parser = cli.Parser()
    parser.add_options(TextToMelConfig)
    (read,) = parser.read_options(parser.parse_args([*SMALL, *words]), TextToMelConfig)
    return dataclasses.replace(read, n_mels=10, n_speakers=3, speaker_dim=6)


def make(*words: str, seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = MODELS["tacomamba"](config(*words), SYMBOLS)
    model.set_statistics(torch.randn(10), torch.rand(10) + 0.5, 5.0)
    model.aligner.mean.normal_()  # with zeros all paths would be equally likely
    model.aligner.whitening.add_(0.2 * torch.randn(10, 10))
    if model.draws_harmonics:
        model.set_tones(
            torch.sin(torch.arange(GRID)[:, None] * torch.linspace(0.05, 0.3, 10))
        )  # smooth, as real ones are
    return model.eval()


def batch(seed: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"tokens": torch.randint(1, SYMBOLS, (3, 9)), "mel": torch.randn(3, 50, 10), **LENGTHS}


def alone(of: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One utterance without its padding."""
    tokens, frames = of["token_lengths"][row], of["mel_lengths"][row]
    one = {name: value[row : row + 1] for name, value in of.items()}
    return {**one, "tokens": one["tokens"][:, :tokens], "mel": one["mel"][:, :frames]}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("reduction", ["1", "3"])
def test_padding_and_batch_change_nothing(decoder, reduction):
    """Losses of a batch are the sums of those of its utterances, to 1e-10 in float64, whatever the padding."""
    model = make("--decoder", decoder, "--reduction", reduction).double()
    together = {name: value.double() if value.is_floating_point() else value for name, value in batch().items()}
    parts = [model(**alone(together, row)) for row in range(3)]
    compared = model.compare(**together)
    for row, length in enumerate(LENGTHS["mel_lengths"]):
        own = model.compare(**alone(together, row))
        torch.testing.assert_close(compared.mel[row, :length], own.mel[0], atol=1e-10, rtol=0)
        assert compared.durations[row, : LENGTHS["token_lengths"][row]].tolist() == own.durations[0].tolist()
    together["mel"] = together["mel"].clone()
    together["mel"][1, 31:] = 7.0
    together["tokens"] = together["tokens"].clone()
    together["tokens"][1, 5:] = 3
    for name, value in model(**together).items():
        torch.testing.assert_close(value, sum(part[name] for part in parts), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "lstm", "conv"])
@pytest.mark.parametrize("decoder", ["causal", "ar"])
@pytest.mark.parametrize("reduction", ["1", "2", "3"])
def test_a_stream_equals_synthesis_in_pieces(mixer, decoder, reduction):
    model = make("--decoder", decoder, "--mixer", mixer, "--reduction", reduction)
    tokens = batch()["tokens"][:1]
    complete = model.synthesize(tokens).mel
    for chunk in (1, 5, 16, 1000):
        pieces = list(model.stream(tokens, chunk=chunk))
        step = -(-chunk // int(reduction)) * int(reduction)
        assert [len(piece) for piece in pieces[:-1]] == [step] * (len(pieces) - 1)
        torch.testing.assert_close(torch.cat(pieces), complete, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reduction", ["1", "2", "3"])
def test_an_autoregressive_decoder_synthesizes_as_it_is_trained(reduction):
    """One pass over its own frames, in place of the true ones in training, predicts the same frames again."""
    model = make("--decoder", "ar", "--reduction", reduction)
    plan = model._plan(batch()["tokens"][:1], None, pace=0.5)
    with torch.no_grad():
        model.decoder.postnet.output.weight.zero_(), model.decoder.postnet.output.bias.zero_()
        spoken = torch.cat(list(model._chunks(plan, 16)), dim=1)
        again, other = (model.decoder(plan, mel)[0] for mel in (spoken, torch.zeros_like(spoken)))
    assert spoken.shape[1] > 30
    torch.testing.assert_close(again, spoken, atol=1e-5, rtol=0)
    assert (other - spoken).abs().max() > 1e-2


def test_the_state_of_a_stream_does_not_grow():
    model = make("--reduction", "2")
    plan = model._plan(batch()["tokens"][:1], None, pace=0.25)
    state, sizes = model.decoder.initial_state(1), set()
    with torch.no_grad():
        for _ in range(6):
            model.decoder.step(plan, 8, state)
            tensors = [*(part for mixer in state.mixers for part in mixer), *state.postnet, state.last]
            sizes.add(sum(tensor.numel() for tensor in tensors))
    assert len(sizes) == 1


@pytest.mark.parametrize("words", [["--decoder", "bidirectional"], ["--mixer", "attention"]])
def test_streaming_is_refused_without_a_causal_state(words):
    model = make(*words)
    assert not model.can_stream
    with pytest.raises(ValueError, match="cannot stream"):
        next(model.stream(batch()["tokens"][:1]))


@pytest.mark.parametrize("decoder", ["causal", "ar"])
def test_the_future_of_the_mel_reaches_no_frame(decoder, seed):
    """A causal decoder's frame depends on the text, on durations up to the next token's, and on no later true frame."""
    model = make("--decoder", decoder, "--reduction", "1", seed=seed)
    plan = model._plan(batch(seed + 1)["tokens"][:1], None, pace=0.25)
    longer = plan._replace(durations=plan.durations + 20 * (torch.arange(9) == 8))
    mels = torch.randn(2, 1, 1000, 10)
    mels[1, :, :30] = mels[0, :, :30]
    with torch.no_grad():
        first, second = (model.decoder(*given)[1] for given in ((plan, mels[0]), (longer, mels[1])))
    before_last = min(30, int(plan.durations[0, :-1].sum()))
    assert before_last > 10
    torch.testing.assert_close(first[:, :before_last], second[:, :before_last], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "words",
    [
        *(["--mixer", mixer, "--encoder-mixer", mixer] for mixer in MIXERS),
        *(["--decoder", decoder, "--voice", "table"] for decoder in DECODERS),
        ["--voice", "embedding", "--mlp-ratio", "2"],
    ],
    ids=" ".join,
)
def test_gradients_reach_every_parameter(words):
    model = make(*words).train()
    voices = {"table": torch.tensor([0, 2, 1]), "embedding": torch.randn(3, 6)}
    outputs = model(**batch(), speaker=voices.get(config(*words).voice))
    outputs["loss_sum"].backward()
    unreached = [
        name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0
    ]
    assert unreached == []


def test_the_prior_alone_trains_the_token_means_and_the_encoder():
    """The predecessor's alignment came from projections that no loss reached."""
    model, samples = make(), batch()
    args = samples["tokens"], samples["token_lengths"], samples["mel"], samples["mel_lengths"], None
    model._prior(model._align(*args), samples["mel"], torch.ones(3, 50, 1, dtype=torch.bool)).backward()
    first_mixer = model.encoder.stack.blocks[0].mixer
    for part in (model.token_mean, model.encoder.embedding, first_mixer.forward_mixer.in_proj):
        assert part.weight.grad.abs().sum() > 0
    assert model.decoder.output.weight.grad is None


def test_durations_and_pitches_have_no_gradient_in_the_encoder():
    model, samples = make(), batch()
    args = samples["tokens"], samples["token_lengths"], samples["mel"], samples["mel_lengths"], None
    plan = model._align(*args)
    log_mean, pitch = model.prosody(plan.hidden, samples["token_lengths"], None)
    for loss in (
        duration_loss(log_mean, plan.durations, samples["token_lengths"]),
        pitch_loss(pitch, plan.pitch, plan.durations),
    ):
        loss.backward(retain_graph=True)
    assert model.prosody.duration.weight.grad.abs().sum() > 0 and model.prosody.pitch.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_speech_has_the_harmonics_of_the_predicted_pitch():
    """Of a decoder that does nothing but voice: the templates along the contour of the symbols' pitches."""
    model = make("--reduction", "1")
    with torch.no_grad():
        for part in (model.token_mean, model.decoder.output, model.decoder.postnet.output):
            part.weight.zero_(), part.bias.zero_()
        model.decoder.source.voicing.weight.zero_()
        model.decoder.source.voicing.bias.fill_(1.0)
    tokens = batch()["tokens"][:1]
    plan = model._plan(tokens, None, pace=1.0)
    pitch = plan.part(0, int(plan.durations.sum())).pitch
    assert pitch.std() > 1e-3
    expected = model.decoder.source.harmonics.render(pitch) * model.mel_std + model.mel_mean
    torch.testing.assert_close(model.synthesize(tokens).mel, expected[0], atol=1e-5, rtol=0)


def test_a_model_without_pitch_has_no_parts_for_it():
    model = make("--no-pitch")
    assert not model.draws_harmonics and "pitch_sum" not in model(**batch())
    assert not any("source" in name or "pitch" in name for name in model.state_dict())
    assert model.synthesize(batch()["tokens"][:1]).mel.isfinite().all()


def test_total_durations_come_out_unbiased_on_texts_that_were_not_seen():
    """Durations as skewed as speech's: the geometric mean, which log-MSE learns, is 12 % short; ours within 3 %."""
    draw = torch.Generator().manual_seed(0)
    model = make("--dropout", "0")
    predictor: ProsodyPredictor = model.prosody.train()
    kinds = torch.randn(SYMBOLS, 32, generator=draw)
    scale = torch.linspace(3, 15, SYMBOLS)

    def texts(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, SYMBOLS, (count, 30), generator=draw)
        noise = (0.5 * torch.randn(count, 30, generator=draw)).exp()
        return kinds[tokens], (scale[tokens] * noise).round().clamp(min=1).long(), torch.full((count,), 30)

    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3)
    for _ in range(150):
        hidden, durations, lengths = texts(16)
        loss = duration_loss(predictor(hidden, lengths, None)[0], durations, lengths) / durations.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden, durations, lengths = texts(200)
    with torch.no_grad():
        mean = predictor.eval()(hidden, lengths, None)[0].exp()
    rounded = round_durations(mean, lengths)
    true = durations.sum().item()
    assert abs(mean.sum().item() / true - 1) < 0.03
    assert abs(rounded.sum().item() / true - 1) < 0.03
    kind = (hidden @ kinds.T).argmax(-1)
    logarithms = torch.stack([durations[kind == number].float().log().mean() for number in range(SYMBOLS)])
    geometric = logarithms.exp()[kind].sum().item()
    assert geometric / true < 0.92


def test_rounding_keeps_the_total_and_gives_every_token_a_frame(seed):
    torch.manual_seed(seed)
    mean = 0.3 + 6 * torch.rand(4, 25).square()
    lengths = torch.tensor([25, 10, 1, 17])
    rounded = round_durations(mean, lengths)
    valid = torch.arange(25) < lengths.unsqueeze(1)
    assert (rounded[valid] >= 1).all() and (rounded[~valid] == 0).all()
    wanted = (mean.clamp(min=1) * valid).sum(1)
    assert ((rounded.sum(1) - wanted).abs() <= 0.5).all()


def test_positions_are_the_tokens_of_frames():
    token, place, length = positions(torch.tensor([[2, 1, 3, 0]]), 1, 6)
    assert token.tolist() == [[0, 1, 2, 2, 2, 2]]
    assert place.tolist() == [[1, 0, 0, 1, 2, 3]]
    assert length.tolist() == [[2, 1, 3, 3, 3, 3]]


def test_pace_shortens_and_stretches():
    model = make()
    tokens = batch()["tokens"][:1]
    normal, fast, slow = (len(model.synthesize(tokens, pace=pace).mel) for pace in (1.0, 2.0, 0.5))
    assert fast == pytest.approx(normal / 2, abs=1) and slow == pytest.approx(2 * normal, abs=1)


def test_pace_is_kept_where_some_tokens_cannot_get_shorter():
    mean = torch.tensor([[1.0, 1.2, 6.0, 20.0, 0.4]])
    total = mean.clamp(min=1).sum()
    for pace in (0.5, 1.0, 2.0, 4.0):
        assert at_pace(mean, pace).sum().item() == pytest.approx(total.item() / pace, rel=1e-5)
        assert (at_pace(mean, pace) >= 1).all()
    assert at_pace(mean, 100.0).sum().item() == pytest.approx(5, rel=1e-5)  # a frame each is the least


def test_predictions_are_limited():
    model = make()
    torch.nn.init.constant_(model.prosody.duration.bias, 1e9)
    torch.nn.init.constant_(model.prosody.pitch.bias, 1e9)
    assert model._plan(torch.tensor([[4]]), None, 1.0).pitch.token.item() == pytest.approx(TOP)
    assert model.synthesize(torch.tensor([[4]])).durations.tolist() == [256]


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_symbol_is_a_text(decoder):
    spoken = make("--decoder", decoder).synthesize(torch.tensor([[4]]))
    assert spoken.mel.shape == (int(spoken.durations.sum()), 10) and spoken.mel.isfinite().all()
    assert spoken.alignment.sum(1).tolist() == [1.0] * len(spoken.mel)


@pytest.mark.parametrize("kind", ["table", "embedding"])
def test_the_voice_changes_mel_and_durations(kind):
    model = make("--voice", kind)
    voices = torch.tensor([0, 1]) if kind == "table" else torch.randn(2, 6)
    tokens = batch()["tokens"][:1]
    first, second = (model.synthesize(tokens, voices[row : row + 1]) for row in range(2))
    means = [model.predicted_lengths(tokens, torch.tensor([9]), voices[row : row + 1]).item() for row in range(2)]
    assert abs(means[0] - means[1]) > 1e-4
    pitches = [model._plan(tokens, voices[row : row + 1], 1.0).pitch.token for row in range(2)]
    assert (pitches[0] - pitches[1]).abs().max() > 1e-3
    shorter = min(len(first.mel), len(second.mel))
    assert (first.mel[:shorter] - second.mel[:shorter]).abs().max() > 1e-3
    if kind == "embedding":  # its length does not depend on the voice
        loud = model.synthesize(tokens, 5 * voices[:1]).mel
        torch.testing.assert_close(loud, first.mel, atol=1e-5, rtol=1e-5)


def test_half_precision_changes_no_alignment_and_no_error_by_much(seed):
    model = make(seed=seed)
    samples = batch(seed + 1)
    exact, durations = model(**samples), model.compare(**samples).durations
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(**samples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.compare(**samples).durations, durations)
    for name in ("mel_sum", "prior_sum", "pitch_sum"):
        torch.testing.assert_close(rough[name].float(), exact[name], rtol=0.02, atol=0)
