"""The profiler against modules whose bytes can be counted by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import profile_model
from models.speaker import SpeakerConfig, SpeakerModel
from models.tts import MODELS, TextToMelConfig
from utils.profiling import LiveStorages, layer_table, profile_layers, profile_step
from utils.text.vocabulary import VOCABULARIES

ROOT = Path(__file__).resolve().parent.parent
FLOAT = 4


def rows_of(model, *inputs):
    rows = profile_layers(model, lambda: model(*inputs).sum())
    return {row.name: row for row in rows}


def test_linear_saves_its_input_and_not_its_weight():
    model = nn.Linear(8, 16)
    row = rows_of(model, torch.randn(5, 8, requires_grad=True))[""]
    assert (row.kind, row.parameters, row.calls) == ("Linear", 8 * 16 + 16, 1)
    assert row.output_bytes == 5 * 16 * FLOAT
    assert row.saved_bytes == row.own_saved_bytes == 5 * 8 * FLOAT


def test_chain_counts_each_shared_storage_once():
    """A ReLU saves its output, which the next layer saves as its input: one storage, counted at the ReLU."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Identity())
    rows = rows_of(model, torch.randn(5, 8))
    assert [rows[name].saved_bytes for name in "0123"] == [5 * 8 * FLOAT, 5 * 16 * FLOAT, 0, 0]
    assert [rows[name].output_bytes for name in "0123"] == [5 * n * FLOAT for n in (16, 16, 4, 4)]
    assert rows[""].saved_bytes == 5 * (8 + 16) * FLOAT
    assert rows[""].own_saved_bytes == 0


def test_inplace_relu_saves_the_storage_that_it_overwrote():
    rows = rows_of(nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4)), torch.randn(5, 8))
    assert [rows[name].saved_bytes for name in "012"] == [5 * 8 * FLOAT, 5 * 16 * FLOAT, 0]


def test_views_of_one_storage_are_counted_once_and_in_full():
    class Slices(nn.Module):
        def forward(self, x):
            y = x * 2
            return y[:, :1] * y[:, 1:2] + y.view(-1, 2, 5)[:, 0, :1].exp()

    rows = rows_of(Slices(), torch.randn(6, 10, requires_grad=True))
    # all of y (three views of it), and the result of exp; the 2 is no tensor.
    assert rows[""].saved_bytes == (6 * 10 + 6) * FLOAT
    assert rows[""].output_bytes == 6 * FLOAT


def test_nothing_is_saved_without_gradients_or_for_results_nobody_uses():
    model = nn.Linear(8, 16).requires_grad_(False)
    assert rows_of(model, torch.randn(5, 8))[""].saved_bytes == 0

    class Wasteful(nn.Module):
        def forward(self, x):
            (x * x).exp()
            return x.sum()

    assert rows_of(Wasteful(), torch.randn(5, 8, requires_grad=True))[""].saved_bytes == 0


def test_saved_by_a_custom_function_and_by_the_loss_are_seen():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x * x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] * gradient

    class Inner(nn.Module):
        def forward(self, x):
            return Cube.apply(x)

    model = nn.Sequential(Inner())
    x = torch.randn(7, 3, requires_grad=True)
    rows = {row.name: row for row in profile_layers(model, lambda: model(x).square().sum())}
    assert rows["0"].saved_bytes == 21 * FLOAT
    assert rows[""].own_saved_bytes == 21 * FLOAT  # the square outside saves the model's output
    assert rows[""].saved_bytes == 42 * FLOAT


def test_module_called_twice_and_shared_parameters():
    layer = nn.Linear(8, 8)
    rows = rows_of(nn.Sequential(layer, layer), torch.randn(5, 8))
    assert list(rows) == ["", "0"]
    assert (rows["0"].calls, rows["0"].output_bytes) == (2, 2 * 5 * 8 * FLOAT)
    assert rows[""].parameters == 72


def test_hooks_are_gone_after_a_failure():
    model = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(RuntimeError):
        profile_layers(model, lambda: model(torch.randn(5, 7)))
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks and not model._forward_hooks


def test_live_storages_follow_birth_death_and_views():
    with LiveStorages([torch.zeros(0)]) as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        a.add_(1)
        assert (live.live, live.peak) == (4000, 4000)
        del a
        assert live.live == 4000  # the view holds it
        c = b + 1
        del b
        assert (live.live, live.peak) == (4000, 8000)
        live.restart()
        del c
        assert (live.live, live.peak) == (0, 4000)


def step_of(model, x, optimizer):
    return profile_step(model, optimizer, {"x": x}, lambda: model(x).sum())


def test_step_of_a_linear_layer_by_hand():
    """1 x 1000 through a bias-free 1000 x 1000 layer, so that everything else is small beside the weight."""
    model = nn.Linear(1000, 1000, bias=False)
    weight, vector = 1000 * 1000 * FLOAT, 1000 * FLOAT
    x = torch.randn(1, 1000)
    step = step_of(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (step.parameters, step.buffers, step.batch, step.optimizer_state) == (weight, 0, vector, 0)
    assert step.gradients == weight
    assert step.forward_peak == weight + 2 * vector + FLOAT  # input, output, sum
    assert 2 * weight < step.backward_peak < 2 * weight + 5 * vector
    assert 2 * weight < step.optimizer_peak < 2 * weight + 5 * vector
    assert step.peak == max(step.backward_peak, step.optimizer_peak)

    adam = step_of(model, x, torch.optim.AdamW(model.parameters(), foreach=False))
    assert adam.optimizer_state == 2 * weight + FLOAT  # two moments and a step count
    assert adam.resident == adam.parameters + adam.batch + adam.optimizer_state
    assert adam.backward_peak - step.backward_peak == adam.optimizer_state
    assert adam.optimizer_peak >= 4 * weight


def test_forward_peak_covers_what_is_saved():
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())))
    x = torch.randn(256, 64)
    saved = rows_of(model, x)[""].saved_bytes
    assert saved == 7 * x.nbytes  # the input and the output of each Tanh
    step = step_of(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    activations = step.forward_peak - step.resident
    assert saved - x.nbytes <= activations <= saved + x.nbytes


def test_model_trains_as_before_after_profiling():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    x = torch.randn(3, 4)
    before = model(x)
    profile_layers(model, lambda: model(x).sum())
    assert torch.equal(model(x), before)


def test_table_shows_levels_and_leaves_deep_ones_out():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 16)), nn.ReLU())
    rows = profile_layers(model, lambda: model(torch.randn(5, 8)).sum())
    assert [line.split()[:2] for line in layer_table(rows).splitlines()] == [
        ["layer", "kind"],
        ["(model)", "Sequential"],
        ["0", "Sequential"],
        ["0", "Linear"],
        ["1", "ReLU"],
    ]
    assert len(layer_table(rows, depth=1).splitlines()) == 4
    assert "144" in layer_table(rows, depth=0).splitlines()[1]


SMALL = ["--d-model", "32", "--headdim", "16", "--n-layers", "1", "--batch-size", "2", "--frames", "20"]


@pytest.mark.parametrize("kind", [["--mixer", "mamba2"], ["--mixer", "lstm", "--amp", "bf16"], ["--model", "xvector"]])
def test_script_prints_json_that_adds_up(kind, capsys):
    assert profile_model.main([*SMALL, "--speakers", "7", "--json", *kind]) == 0
    content = json.loads(capsys.readouterr().out)
    require_sums(content, SpeakerModel(SpeakerConfig.from_dict(content["model_config"]), 7))
    assert content["step_bytes"]["batch"] == (2 * 20 * 80) * FLOAT + 2 * 8 + 2 * 8


def require_sums(content, model):
    """The rows are the model's modules, and their sizes add up to those of the step."""
    assert content["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    layers = {row["name"]: row for row in content["layers"]}
    assert layers[""]["saved_bytes"] == sum(row["own_saved_bytes"] for row in content["layers"]) > 0
    for name, module in model.named_modules():
        assert layers[name]["parameters"] == sum(parameter.numel() for parameter in module.parameters()), name
    step = content["step_bytes"]
    assert step["parameters"] == step["gradients"] == content["parameters"] * FLOAT
    assert step["peak"] > step["resident"] + layers[""]["saved_bytes"] - step["batch"]


TEXT_MODELS = [
    [],
    ["--decoder", "bidirectional", "--voice", "table", "--speakers", "7"],
    ["--decoder", "ar", "--amp", "bf16"],
    ["--mixer", "lstm", "--voice", "embedding", "--speaker-dim", "32"],
    ["--model", "tacotron2"],
]


@pytest.mark.parametrize("kind", TEXT_MODELS, ids=" ".join)
def test_script_profiles_text_to_mel(kind, capsys):
    assert profile_model.main([*SMALL, "--task", "tts", "--symbols", "9", "--json", *kind]) == 0
    content = json.loads(capsys.readouterr().out)
    config = TextToMelConfig.from_dict(content["model_config"])
    require_sums(content, MODELS[config.model](config, len(VOCABULARIES["phoneme"])))
    voice = 2 * 8 * ("table" in kind) + 2 * 32 * FLOAT * ("embedding" in kind)
    assert content["step_bytes"]["batch"] == (2 * 20 * 80) * FLOAT + 2 * 9 * 8 + 2 * 8 + 2 * 8 + voice
    assert (content["symbols"], content["frames"], content["task"]) == (9, 20, "tts")


def test_a_batch_in_frames_has_complete_samples(capsys):
    words = ["--task", "tts", "--batch-frames", "99", "--depth", "0"]
    assert profile_model.main([*SMALL, *words]) == 0
    assert "task tts, batch size 4, frames 20, symbols 3, voice none, amp off" in capsys.readouterr().out
    assert profile_model.main([*SMALL[:-2], "--frames", "100", *words]) == 0
    assert "batch size 1, frames 100, symbols 17" in capsys.readouterr().out


def test_script_takes_the_presets(capsys):
    """As they are, but for the size of a step, which would take long."""
    for preset in ROOT.glob("configs/*-*.yaml"):
        assert profile_model.main(["--config", str(preset), *SMALL[-2:], "--batch-frames", "40", "--depth", "0"]) == 0
        assert f"task {preset.name.partition('-')[0]}, batch size 2, frames 20" in capsys.readouterr().out


def test_script_takes_a_training_configuration_and_shows_a_table(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: tacomamba\nd-model: 32\nheaddim: 16\nn-layers: 1\nbatch-size: 2\ncrop-seconds: 0.2\nsteps: 9\n"
    )
    assert profile_model.main(["--config", str(config), "--depth", "1"]) == 0
    out = capsys.readouterr().out
    assert "batch size 2, frames 18, speakers 1000, amp off" in out
    assert "optimizer peak" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--crop-seconds", "0.02"], "--crop-seconds 0.02 is too short for one frame of speaker-16k"),
        (["--json", "--depth", "1"], "--depth shortens the table"),
        (["--model", "ecapa", "--causal"], "ecapa has no causal form"),
        (["--decoder", "ar"], "--decoder is for --task tts, not for --task speaker"),
        (["--symbols", "9"], "--symbols is for --task tts, not for --task speaker"),
        (["--task", "tts", "--channels", "64"], "--channels is for --task speaker, not for --task tts"),
        (["--task", "tts", "--model", "xvector"], "argument --model: invalid choice: 'xvector'"),
        (["--task", "tts", "--model", "tacotron2", "--no-pitch"], "--pitch is for --model tacomamba"),
        (["--task", "tts", "--guided-attention", "9"], "--guided-attention is for --model tacotron2"),
        (["--model", "ecapa", "--mixer", "lstm"], "--mixer is for --model tacomamba, not for --model ecapa"),
        (["--task", "tts", "--frames", "20", "--symbols", "21"], "--symbols 21 is too many for 20 mel frames"),
    ],
)
def test_script_refuses_what_makes_no_sense(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        profile_model.main(words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
