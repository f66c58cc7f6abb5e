"""Mixers, stack, pooling, loss and encoders: keys and shapes of mamba-ssm, masks, directions, known values."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

from models.mamba import Mamba, Mamba2
from models.mixers import build_mixer, reverse_by_length
from models.speaker import build_speaker_model
from models.speaker.losses import AAMSoftmax
from models.speaker.model import Subsampling
from models.speaker.pooling import AttentiveStatisticsPooling, StatisticsPooling
from models.stack import MixerStack
from utils import cli
from utils.speaker.options import (
    add_speaker_model_arguments,
    speaker_model_config,
    speaker_model_problems,
)
from utils.training.model_options import MIXERS, add_model_arguments

LENGTHS = torch.tensor([23, 9, 1])


def model_config(*words: str) -> dict:
    parser = cli.Parser()
    add_model_arguments(parser)
    add_speaker_model_arguments(parser)
    small = [
        "--d-model",
        "32",
        "--n-layers",
        "2",
        "--headdim",
        "16",
        "--pooled-channels",
        "24",
        "--embedding-dim",
        "12",
    ]
    return speaker_model_config(parser.parse_args([*small, "--channels", "16", *words]), n_mels=10)


MODELS = {
    **{mixer: ("--mixer", mixer) for mixer in MIXERS},
    **{f"causal-{mixer}": ("--mixer", mixer, "--causal") for mixer in MIXERS},
    "mlp": ("--mixer", "attention", "--mlp-ratio", "2"),
    "xvector": ("--model", "xvector"),
    "ecapa": ("--model", "ecapa"),
}


def make_stack(mixer: str, causal: bool) -> MixerStack:
    torch.manual_seed(1)
    return MixerStack(mixer, 32, 2, causal, d_state=8, headdim=16, mlp_ratio=1.0).eval()


def padded_batch() -> torch.Tensor:
    torch.manual_seed(2)
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


def test_mamba_equals_its_definition_frame_by_frame():
    torch.manual_seed(0)
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


def test_mamba2_equals_its_definition_frame_by_frame():
    torch.manual_seed(0)
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


def test_initial_time_steps_lie_where_the_paper_puts_them():
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
def test_padding_changes_nothing(mixer, causal):
    """Each sequence alone against the padded batch, with garbage in the padding: 2e-6 absolute on unit-scale output."""
    stack, x = make_stack(mixer, causal), padded_batch()
    for row, length in enumerate(LENGTHS.tolist()):
        x[row, length:] = 1e3
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


def test_attention_is_relative_in_time():
    """Rotary positions: the same frames later in a longer causal past of zeros keep their scores' differences."""
    torch.manual_seed(0)
    mixer = build_mixer("attention", 32, False, 8, 2, 16)
    cos, sin = mixer._rotation(10, torch.device("cpu"))
    from models.mixers import _rotate

    query, key = torch.randn(2, 1, 1, 1, 16)
    score = _rotate(query.expand(1, 1, 10, 16), cos, sin) @ _rotate(key.expand(1, 1, 10, 16), cos, sin).mT
    for offset in range(-9, 10):
        diagonal = score[0, 0].diagonal(offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def test_statistics_pooling_gives_mean_and_deviation_of_the_valid_frames():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3)
    pooled = StatisticsPooling()(x, torch.tensor([4, 7]))
    expected = torch.cat([x[0, :4].mean(0), x[0, :4].std(0, correction=0)])
    assert torch.allclose(pooled[0], expected, atol=1e-6)


def test_attentive_pooling_equals_its_equations():
    torch.manual_seed(0)
    pooling = AttentiveStatisticsPooling(3, 5)
    x = torch.randn(1, 6, 3)
    scores = pooling.score(torch.tanh(pooling.hidden(x[0, :4])))
    weights = scores.exp() / scores.exp().sum(0)
    mean = (weights * x[0, :4]).sum(0)
    deviation = ((weights * x[0, :4] ** 2).sum(0) - mean**2).sqrt()
    assert torch.allclose(pooling(x, torch.tensor([4]))[0], torch.cat([mean, deviation]), atol=1e-5)


def test_aam_softmax_equals_the_angle_form():
    torch.manual_seed(0)
    loss = AAMSoftmax(8, 5, scale=10.0).double()
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


def test_aam_softmax_keeps_falling_beyond_pi():
    loss = AAMSoftmax(3, 2, scale=1.0)
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


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS.keys())
def test_an_embedding_does_not_depend_on_its_batch(words):
    """Alone against padded with garbage in the padding: 1e-5 of the largest entry."""
    torch.manual_seed(0)
    model = build_speaker_model(model_config(*words), 4).eval()
    mel = torch.randn(3, 41, 10)
    lengths = torch.tensor([41, 20, 5])
    for row, length in enumerate(lengths.tolist()):
        mel[row, length:] = 50.0
    together = model.embed(mel, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.embed(mel[row : row + 1, :length], lengths[row : row + 1])
        assert (together[row] - alone[0]).abs().max() <= 1e-5 * together.abs().max()


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS.keys())
def test_every_model_learns_four_speakers(words):
    """Every parameter that the forward pass uses gets a gradient, and the loss falls by half in 20 steps."""
    torch.manual_seed(0)
    model = build_speaker_model(model_config(*words), 4)
    labels = torch.arange(4).repeat(3)
    mel = torch.randn(4, 1, 10)[labels] + 0.5 * torch.randn(12, 30, 10)
    mel[..., 0] *= 1 + labels[:, None]
    lengths = torch.full((12,), 30)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(20):
        outputs = model(mel, lengths, labels, 0.1)
        optimizer.zero_grad()
        (outputs["loss_sum"] / outputs["count"]).backward()
        if step == 0:
            assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
        optimizer.step()
        losses.append(outputs["loss_sum"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_causal_encoder_refuses_utterance_statistics():
    config = {**model_config("--causal"), "normalize": "utterance"}
    with pytest.raises(ValueError, match="causal"):
        build_speaker_model(config, 4)


def test_contradicting_model_flags_are_all_reported():
    args = Namespace(model="xvector", mixer="mamba2", causal=True, normalize="utterance")
    problems = speaker_model_problems(args)
    assert len(problems) == 2
