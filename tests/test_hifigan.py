import dataclasses
import io
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.tts.hifigan import HiFiGAN, HiFiGANConfig, HiFiGANStream, fold_weight_norm

# The geometry of the published V1 and V3 with few channels, and one that exercises every inequality between kernel and
# rate: equal, less than double, more than triple.
V1 = HiFiGANConfig(80, "1", (8, 8, 2, 2), (16, 16, 4, 4), 16, (3, 7, 11), ((1, 3, 5),) * 3)
V3 = HiFiGANConfig(80, "2", (8, 8, 4), (16, 16, 8), 16, (3, 5, 7), ((1, 2), (2, 6), (3, 12)))
ODD = HiFiGANConfig(5, "1", (3, 2, 5), (3, 8, 7), 16, (1, 5), ((2,), (1, 4)))
GEOMETRIES = pytest.mark.parametrize("config", [V1, V3, ODD], ids=["V1", "V3", "odd"])


def random_generator(config: HiFiGANConfig, seed: int = 0) -> HiFiGAN:
    """Weights that keep the signal's level from layer to layer, so that errors in any layer reach the samples."""
    torch.manual_seed(seed)
    model = HiFiGAN(config).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        elif isinstance(layer, nn.ConvTranspose1d):
            nn.init.normal_(layer.weight, std=(layer.weight[:, 0].numel() / layer.stride[0]) ** -0.5)
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.init.normal_(layer.bias, std=0.1)
    return model


def unfold(state: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """The state dict as it is published: every weight as a direction of any length and a gain."""
    torch.manual_seed(seed)
    published = {}
    for name, tensor in state.items():
        if name.endswith(".weight"):
            published[f"{name}_g"] = tensor.norm(dim=(1, 2), keepdim=True)
            published[f"{name}_v"] = tensor * torch.rand(len(tensor), 1, 1).add(0.5)
        else:
            published[name] = tensor
    return published


def reference(state: dict[str, torch.Tensor], config: HiFiGANConfig, mel: torch.Tensor) -> torch.Tensor:
    """The generator written out from the paper, in float64, on a published state dict."""

    def weight(name):
        v = state[f"{name}.weight_v"].double()
        return v / v.pow(2).sum((1, 2), keepdim=True).sqrt() * state[f"{name}.weight_g"], state[f"{name}.bias"].double()

    def convolve(x, name, dilation=1):
        w, b = weight(name)
        side = (w.shape[2] - 1) * dilation // 2
        return F.conv1d(F.pad(x, (side, side)), w, b, dilation=dilation)

    x = convolve(mel.double(), "conv_pre")
    block = itertools.count()
    for i, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)):
        length = x.shape[2] * rate
        w, b = weight(f"ups.{i}")
        cut = (kernel - rate) // 2
        x = F.conv_transpose1d(torch.where(x > 0, x, 0.1 * x), w, b, stride=rate)[:, :, cut : cut + length]
        total = torch.zeros_like(x)
        for dilations in config.resblock_dilation_sizes:
            y, j = x, next(block)
            for k, dilation in enumerate(dilations):
                first = "convs1" if config.resblock == "1" else "convs"
                z = convolve(torch.where(y > 0, y, 0.1 * y), f"resblocks.{j}.{first}.{k}", dilation)
                if config.resblock == "1":
                    z = convolve(torch.where(z > 0, z, 0.1 * z), f"resblocks.{j}.convs2.{k}")
                y = y + z
            total = total + y
        x = total / len(config.resblock_dilation_sizes)
    return convolve(torch.where(x > 0, x, 0.01 * x), "conv_post").tanh()[:, 0]


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """To 1e-4 of the spread of the samples, and a few roundings of the largest: with some weights all are near 1."""
    bound = 1e-4 * want.std() + 4 * torch.finfo(torch.float32).eps * want.abs().max()
    assert got.shape == want.shape and (got - want).abs().max() <= bound


@GEOMETRIES
def test_the_folded_generator_equals_torchs_weight_norm_on_the_published_names(config, seed):
    model = random_generator(config, seed)
    published = unfold(model.state_dict(), seed + 1)
    normed = HiFiGAN(config).eval()
    for layer in list(normed.modules()):
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
            with pytest.warns(FutureWarning):  # the form in which the authors saved their checkpoints
                nn.utils.weight_norm(layer)
    normed.load_state_dict(published, strict=True)
    model.load_state_dict(fold_weight_norm(published), strict=True)
    mel = torch.randn(2, config.num_mels, 9)
    samples = model(mel)
    assert samples.shape == (2, 9 * config.hop_length)
    with torch.no_grad():
        assert_close(samples, normed(mel))


@GEOMETRIES
def test_the_generator_is_that_of_the_paper(config, seed):
    published = unfold(random_generator(config, seed).state_dict(), seed + 1)
    model = HiFiGAN(config).eval().requires_grad_(False)
    model.load_state_dict(fold_weight_norm(published))
    mel = torch.randn(1, config.num_mels, 9)
    assert_close(model(mel).double(), reference(published, config, mel))


def test_names_and_shapes_are_those_of_the_published_v1():
    with torch.device("meta"):
        state = HiFiGAN(dataclasses.replace(V1, upsample_initial_channel=512)).state_dict()
    assert len(state) == 2 * 78  # 234 tensors with weight_g and weight_v
    assert state["conv_pre.weight"].shape == (512, 80, 7)
    assert state["ups.1.weight"].shape == (256, 128, 16)
    assert state["resblocks.11.convs2.2.weight"].shape == (32, 32, 11)
    assert state["conv_post.bias"].shape == (1,)
    with torch.device("meta"):
        assert "resblocks.8.convs.1.weight" in HiFiGAN(V3).state_dict()


NARROW = [
    HiFiGANConfig(2, "2", (rate,), (kernel,), 4, (size,), ((1,),))
    for rate, kernel, size in [(1, 1, 1), (2, 2, 1), (2, 4, 3), (3, 7, 1), (3, 5, 3), (4, 6, 5), (5, 15, 3), (2, 12, 1)]
]


@pytest.mark.parametrize("config", [V1, V3, ODD, *NARROW])
def test_the_receptive_field_is_exact(config):
    """Positive weights and an impulse: a sample is above 0 where, and only where, it depends on the frame."""
    model = HiFiGAN(config).double().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(0.0 if name.endswith("bias") else 1 / parameter[0].numel())
    before, after = config.receptive_field
    frame = before + after + 2
    mel = torch.zeros(1, config.num_mels, 2 * frame, dtype=torch.float64)
    mel[:, :, frame] = 1.0
    touched = model(mel).view(-1, config.hop_length).sum(1).nonzero()[:, 0].tolist()
    assert touched == list(range(frame - after, frame + before + 1))


@GEOMETRIES
@pytest.mark.parametrize("frames", [0, 1, 2, 90])
def test_pieces_equal_one_pass(config, frames):
    model = random_generator(config)
    mel = torch.randn(1, config.num_mels, frames)
    complete = model(mel)[0] if frames else torch.zeros(0)
    mixed = np.random.default_rng(0).integers(0, 40, 200).tolist()  # some pieces are empty
    for sizes in ([1] * frames, [2] * frames, [16] * frames, [60] * frames, [90], mixed):
        stream, parts, start = HiFiGANStream(model), [], 0
        for size in sizes:
            piece = mel[:, :, start : start + size]
            start = min(start + size, frames)
            parts.append(stream.push(piece)[0])
            # What depends on no later frame is out.
            assert sum(map(len, parts)) >= (start - config.receptive_field[1]) * config.hop_length
        parts.append(stream.push(mel[:, :, :0], last=True)[0])
        torch.testing.assert_close(torch.cat(parts), complete, atol=1e-5, rtol=0)


def test_the_last_piece_may_hold_frames(seed):
    model = random_generator(V1, seed)
    mel = torch.randn(2, 80, 20)
    stream = HiFiGANStream(model)
    parts = [stream.push(mel[:, :, :7]), stream.push(mel[:, :, 7:], last=True)]
    assert_close(torch.cat(parts, dim=1), model(mel))


def test_what_a_stream_keeps_does_not_grow():
    def saved_bytes() -> int:
        file = io.BytesIO()
        torch.save(stream, file)  # with the storage behind each slice
        return file.tell()

    stream = HiFiGANStream(random_generator(ODD))
    for _ in range(10):
        stream.push(torch.randn(1, 5, 7))
    early = saved_bytes()
    for _ in range(200):
        stream.push(torch.randn(1, 5, 7))
    assert abs(saved_bytes() - early) < 0.01 * early
    stream.push(torch.randn(1, 5, 1000))
    assert abs(saved_bytes() - early) < 0.01 * early


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resblock": "3"}, "resblock must be"),
        ({"upsample_rates": (8, 8, 2)}, "equally long"),
        ({"upsample_rates": (8, 8, 2, 0)}, "upsample_rates must be whole numbers above 0"),
        ({"upsample_rates": (8, 8, 2, 3)}, "exceed its rate by an even number"),
        ({"upsample_rates": 256}, "upsample_rates must be whole numbers"),
        ({"upsample_initial_channel": 24}, "divisible by 2"),
        ({"upsample_initial_channel": 512.0}, "whole numbers"),
        ({"resblock_kernel_sizes": (3, 4, 11)}, "odd"),
        ({"resblock_dilation_sizes": ((1, 3, 5),) * 2}, "equally long"),
        ({"resblock_dilation_sizes": (1, 3, 5)}, "each of resblock_dilation_sizes"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(V1, **change)
