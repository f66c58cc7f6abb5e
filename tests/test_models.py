"""Mixers, stack, pooling, loss and encoders: keys and shapes of mamba-ssm, masks, directions, known values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.mamba import Mamba, Mamba2
from models.mixers import MIXERS, MixerConfig, build_mixer
from models.padding import reverse_by_length
from models.speaker import POOLINGS, SpeakerConfig, SpeakerModel
from models.speaker.encoder import Subsampling
from models.speaker.losses import AAMSoftmax
from models.speaker.pooling import AttentiveStatisticsPooling, StatisticsPooling
from models.stack import MixerStack, StackConfig

LENGTHS = torch.tensor([23, 9, 1])
SMALL = {"d_model": 32, "n_layers": 2, "headdim": 16, "pooled_channels": 24, "embedding_dim": 12, "channels": 16}
MODELS = {
    **{mixer: {"mixer": mixer} for mixer in MIXERS},
    **{f"causal-{mixer}": {"mixer": mixer, "causal": True} for mixer in MIXERS},
    **{pooling: {"mixer": "conv", "pooling": pooling} for pooling in POOLINGS},
    "mlp": {"mixer": "attention", "mlp_ratio": 2.0},
    "xvector": {"model": "xvector"},
    "ecapa": {"model": "ecapa"},
}


def make_model(settings: dict) -> SpeakerModel:
    torch.manual_seed(0)
    return SpeakerModel(SpeakerConfig(n_mels=10, **SMALL | settings), 4)


def make_stack(mixer: str, causal: bool, seed: int = 1) -> MixerStack:
    torch.manual_seed(seed)
    config = StackConfig(mixer=mixer, d_model=32, n_layers=2, d_state=8, headdim=16, mlp_ratio=1.0)
    return MixerStack(config, causal).eval()


def padded_batch(seed: int = 2) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(3, 23, 32)


def test_mamba_has_the_keys_and_shapes_of_mamba_ssm():
    """mamba_ssm.modules.mamba_simple.Mamba(d_model=64, d_state=16, d_conv=4, expand=2), listed by hand."""
    shapes = {name: tuple(value.shape) for name, value in Mamba(64).state_dict().items()}
    assert shapes == {
        "A_log": (128, 16),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (4 + 32, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_mamba2_has_the_keys_and_shapes_of_mamba_ssm():
    """mamba_ssm.modules.mamba2.Mamba2(d_model=64, d_state=32, headdim=16, ngroups=2), listed by hand."""
    shapes = {name: tuple(v.shape) for name, v in Mamba2(64, d_state=32, headdim=16, ngroups=2).state_dict().items()}
    assert shapes == {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (2 * 128 + 2 * 2 * 32 + 8, 64),
        "conv1d.weight": (128 + 2 * 2 * 32, 1, 4),
        "conv1d.bias": (128 + 2 * 2 * 32,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


def test_mamba_equals_its_definition_frame_by_frame(seed):
    torch.manual_seed(seed)
    mixer = Mamba(8, d_state=4).double()
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    state, history, outputs = torch.zeros(16, 4, dtype=torch.float64), torch.zeros(3, 16, dtype=torch.float64), []
    for frame in x[0]:
        u, gate = mixer.in_proj(frame).chunk(2)
        window = torch.cat([history, u[None]])
        history = window[1:]
        u = F.silu((window.T * mixer.conv1d.weight[:, 0]).sum(1) + mixer.conv1d.bias)
        dt, B, C = mixer.x_proj(u).split([1, 4, 4])
        dt = F.softplus(mixer.dt_proj(dt))
        state = torch.exp(-dt[:, None] * mixer.A_log.exp()) * state + (dt * u)[:, None] * B
        outputs.append(mixer.out_proj((state @ C + mixer.D * u) * F.silu(gate)))
    assert torch.allclose(mixer(x)[0], torch.stack(outputs), atol=1e-12)


def test_mamba2_equals_its_definition_frame_by_frame(seed):
    torch.manual_seed(seed)
    mixer = Mamba2(8, d_state=4, headdim=4).double()  # 16 inner channels, 4 heads, 1 group
    torch.nn.init.normal_(mixer.norm.weight)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    state, history, outputs = torch.zeros(4, 4, 4, dtype=torch.float64), torch.zeros(3, 24, dtype=torch.float64), []
    for frame in x[0]:
        gate, xBC, dt = mixer.in_proj(frame).split([16, 24, 4])
        window = torch.cat([history, xBC[None]])
        history = window[1:]
        xBC = F.silu((window.T * mixer.conv1d.weight[:, 0]).sum(1) + mixer.conv1d.bias)
        u, B, C = xBC[:16].view(4, 4), xBC[16:20], xBC[20:]
        dt = F.softplus(dt + mixer.dt_bias)
        state = torch.exp(-dt * mixer.A_log.exp())[:, None, None] * state + (dt[:, None] * u)[..., None] * B
        y = (state @ C + mixer.D[:, None] * u).flatten() * F.silu(gate)
        outputs.append(mixer.out_proj(y / (y.square().mean() + 1e-5).sqrt() * mixer.norm.weight))
    assert torch.allclose(mixer(x)[0], torch.stack(outputs), atol=1e-12)


def test_initial_step_sizes_have_the_range_of_the_paper():
    torch.manual_seed(0)
    for bias in (Mamba(64).dt_proj.bias, Mamba2(512, headdim=4).dt_bias):
        dt = F.softplus(bias.detach())
        assert 1e-3 * 0.999 <= dt.min() and dt.max() <= 0.1 * 1.001 and dt.min() < 2e-3 and dt.max() > 0.05


def test_reverse_by_length_moves_no_padding():
    x = torch.arange(1, 11.0).view(2, 5, 1)
    expected = torch.tensor([[3, 2, 1, 4, 5], [10, 9, 8, 7, 6.0]]).unsqueeze(-1)
    assert torch.equal(reverse_by_length(x, torch.tensor([3, 5])), expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer, causal, seed):
    """Each sequence alone against the padded batch, with NaN in the padding: 2e-6 absolute on unit-scale output."""
    stack, x = make_stack(mixer, causal, seed), padded_batch(seed + 1)
    for row, length in enumerate(LENGTHS.tolist()):
        x[row, length:] = torch.nan
    together = stack(x, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = stack(x[row : row + 1, :length], LENGTHS[row : row + 1])
        assert (together[row, :length] - alone[0]).abs().max() < 2e-6
        assert not together[row, length:].any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_causal_mixers_see_no_future_and_others_do(mixer):
    x, lengths = padded_batch(), torch.full((3,), 23)
    changed = x.clone()
    changed[:, 12:] += 1
    causal, both = make_stack(mixer, True), make_stack(mixer, False)
    assert torch.equal(causal(x, lengths)[:, :12], causal(changed, lengths)[:, :12])
    assert not torch.equal(causal(x, lengths)[:, 12:], causal(changed, lengths)[:, 12:])
    assert (both(x, lengths)[:, :12] - both(changed, lengths)[:, :12]).abs().max() > 1e-4


def test_attention_is_relative_in_time(seed):
    """Rotary positions: the same frames later in a longer causal past of zeros keep the differences of their scores."""
    torch.manual_seed(seed)
    mixer = build_mixer(MixerConfig(mixer="attention", d_model=32, headdim=16), False)
    cos, sin = mixer._rotation(10, torch.device("cpu"))
    from models.mixers import _rotate

    query, key = torch.randn(2, 1, 1, 1, 16)
    score = _rotate(query.expand(1, 1, 10, 16), cos, sin) @ _rotate(key.expand(1, 1, 10, 16), cos, sin).mT
    for offset in range(-9, 10):
        diagonal = score[0, 0].diagonal(offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def test_statistics_pooling_gives_mean_and_deviation_of_the_valid_frames(seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 7, 3)
    pooled = StatisticsPooling(3)(x, torch.tensor([4, 7]))
    expected = torch.cat([x[0, :4].mean(0), x[0, :4].std(0, correction=0)])
    assert torch.allclose(pooled[0], expected, atol=1e-6)


def test_attentive_pooling_equals_its_equations(seed):
    torch.manual_seed(seed)
    pooling = AttentiveStatisticsPooling(3, 5)
    x = torch.randn(1, 6, 3)
    scores = pooling.score(torch.tanh(pooling.hidden(x[0, :4])))
    weights = scores.exp() / scores.exp().sum(0)
    mean = (weights * x[0, :4]).sum(0)
    deviation = ((weights * x[0, :4] ** 2).sum(0) - mean**2).sqrt()
    assert torch.allclose(pooling(x, torch.tensor([4]))[0], torch.cat([mean, deviation]), atol=1e-5)


def test_aam_softmax_equals_the_angle_form(seed):
    torch.manual_seed(seed)
    loss = AAMSoftmax(SpeakerConfig(embedding_dim=8, scale=10.0, margin=1.0), 5).double()
    embedding, labels, margin = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0]), 0.3
    loss_sum, cosines = loss(embedding, labels, margin)
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        logits = 10 * cosines[row].double()
        logits[label] = 10 * math.cos(math.acos(cosines[row, label].item()) + margin)
        expected -= F.log_softmax(logits, 0)[label].item()
    assert loss_sum.item() == pytest.approx(expected, rel=1e-5)
    without, _ = loss(embedding, labels, 0.0)
    assert without.item() < loss_sum.item()


def test_the_target_logit_of_aam_softmax_decreases_beyond_pi():
    loss = AAMSoftmax(SpeakerConfig(embedding_dim=3, scale=1.0, margin=1.0), 2)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    angles = torch.linspace(2.5, 3.1, 20)
    values = [loss(torch.tensor([[a.cos(), a.sin(), 0.0]]), torch.tensor([0]), 0.5)[0].item() for a in angles]
    assert all(later > earlier for earlier, later in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_subsampling_sees_no_frame_beyond_its_group(factor):
    torch.manual_seed(0)
    layer = Subsampling(3, 4, factor)
    x, lengths = torch.randn(1, 13, 3), torch.tensor([13])
    y, new_lengths = layer(x, lengths)
    assert y.shape == (1, math.ceil(13 / factor), 4) and new_lengths.tolist() == [y.shape[1]]
    changed = x.clone()
    changed[:, 2 * factor :] += 1
    assert torch.equal(layer(changed, lengths)[0][:, :2], y[:, :2])
    assert not torch.equal(layer(changed, lengths)[0][:, 2], y[:, 2])


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())
def test_an_embedding_does_not_depend_on_its_batch(settings):
    """Alone against padded with garbage in the padding: 1e-5 of the largest entry."""
    model = make_model(settings).eval()
    torch.manual_seed(1)
    mel = torch.randn(3, 41, 10)
    lengths = torch.tensor([41, 20, 5])
    for row, length in enumerate(lengths.tolist()):
        mel[row, length:] = 50.0
    together = model.embed(mel, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.embed(mel[row : row + 1, :length], lengths[row : row + 1])
        assert (together[row] - alone[0]).abs().max() <= 1e-5 * together.abs().max()


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())
def test_every_model_learns_four_speakers(settings):
    """Every parameter that the forward pass uses gets a gradient, and the loss falls by half in 20 steps."""
    model = make_model(settings)
    torch.manual_seed(1)
    labels = torch.arange(4).repeat(3)
    mel = torch.randn(4, 1, 10)[labels] + 0.5 * torch.randn(12, 30, 10)
    mel[..., 0] *= 1 + labels[:, None]
    lengths = torch.full((12,), 30)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(20):
        outputs = model(mel, lengths, labels, margin_share=0.5)
        optimizer.zero_grad()
        (outputs["loss_sum"] / outputs["count"]).backward()
        if step == 0:
            assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
        optimizer.step()
        losses.append(outputs["loss_sum"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_takes_its_share_of_the_margin():
    """Half of a margin of 0.4 is a margin of 0.2."""
    torch.manual_seed(0)
    full, half = (AAMSoftmax(SpeakerConfig(embedding_dim=8, margin=margin), 5) for margin in (0.2, 0.4))
    half.load_state_dict(full.state_dict())
    embedding, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    assert torch.equal(full(embedding, labels, 1.0)[0], half(embedding, labels, 0.5)[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"causal": True, "normalize": "utterance"}, "causal contradicts normalize utterance"),
        ({"model": "xvector", "causal": True}, "xvector has no causal form"),
        ({"model": "ecapa", "channels": 12}, "channels 12 must be a multiple of 8"),
        ({"headdim": 50}, "headdim 50 must divide expand x d_model = 384"),
        ({"mixer": "attention", "headdim": 33}, "headdim 33 must be even and divide d_model = 192"),
        ({"mixer": "gru"}, "mixer must be one of mamba, mamba2, attention, lstm, conv, not gru"),
        ({"mixer": "lstm", "d_model": 33, "expand": 1}, "expand x d_model = 33 must be even"),
        ({"d_model": 0, "margin": 9.0}, "margin must be at most 1.5708, not 9; d_model must be at least 1, not 0"),
        ({"lr": 1.0}, "unknown settings lr"),
    ],
)
def test_impossible_configurations_are_refused_with_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        SpeakerConfig.from_dict(settings)


def test_a_configuration_survives_as_plain_values():
    """Also from a checkpoint that spells a field as earlier versions did, and lacks newer ones."""
    config = SpeakerConfig(mixer="mamba", d_state=8, dt_rank=3, dt_min=2e-3, normalize="global", embedding_dim=24)
    assert SpeakerConfig.from_dict(config.to_dict()) == config
    old = {"level": False, "all_layers": False, "mel_statistics": False}
    assert SpeakerConfig.from_dict({"normalise": "global", "d_state": 16}) == SpeakerConfig(
        normalize="global", d_state=16, **old
    )
    for causal, kind in ((False, "utterance"), (True, "global")):
        found = SpeakerConfig.from_dict({"normalize": "auto", "causal": causal})
        assert found == SpeakerConfig(normalize=kind, causal=causal, **old)


def test_checking_a_configuration_draws_no_random_numbers():
    before = torch.get_rng_state()
    SpeakerConfig(mixer="lstm")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("mixer", "settings"),
    [
        ("mamba", {"d_conv": 3, "dt_rank": 5, "expand": 3, "d_state": 4}),
        ("mamba2", {"d_conv": 3, "ngroups": 2, "expand": 4, "headdim": 32, "d_state": 4}),
        ("conv", {"conv_kernel": 5, "expand": 3}),
    ],
)
def test_every_size_of_a_mixer_can_be_set(mixer, settings):
    """Each setting alone changes the shapes of the weights."""

    def shapes(**changed):
        mixer_ = build_mixer(MixerConfig(mixer=mixer, d_model=32, headdim=changed.pop("headdim", 16), **changed), True)
        return {name: tuple(value.shape) for name, value in mixer_.state_dict().items()}

    for name, value in settings.items():
        assert shapes(**{name: value}) != shapes(), name


def test_the_range_of_step_sizes_can_be_set():
    for mixer, bias in (("mamba", "dt_proj.bias"), ("mamba2", "dt_bias")):
        config = MixerConfig(mixer=mixer, d_model=128, headdim=4, dt_min=0.01, dt_max=0.02)
        dt = F.softplus(build_mixer(config, True).forward_mixer.get_parameter(bias).detach())
        assert 0.01 * 0.999 <= dt.min() and dt.max() <= 0.02 * 1.001
