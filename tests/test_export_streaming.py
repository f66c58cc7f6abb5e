"""Exported streams: causal mixers in every format, files used without this repository, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import answer, call, refused
from test_export import FORMATS, SMALL, content, elsewhere, recognizer
from test_readme import blocks
from voices import speak

from benchmarks import streaming as measure_streaming
from models.mixers import MIXERS
from models.speaker import SpeakerConfig, SpeakerModel
from utils.checkpoint import save_checkpoint
from utils.speaker.export import block_embedder, embedder
from utils.speaker.recognizer import SpeakerRecognizer

RATE = 16_000
STREAMING = [
    mixer for mixer in sorted(MIXERS) if SpeakerModel(SpeakerConfig(**SMALL, mixer=mixer, causal=True), 2).can_stream
]
OTHERS = {
    "statistics": {"model": "statistics"},
    "no level": {"mixer": "lstm", "level": False},
    "no mel statistics": {"mixer": "conv", "subsampling": 3, "mel_statistics": False, "pooling": "statistics"},
    "one tap": {"d_conv": 1, "all_layers": False, "mlp_ratio": 1.0, "n_layers": 2},
    "no mixer": {"n_layers": 0, "subsampling": 1},
}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Three seconds of two voices in turn, the second one quiet."""
    draw = np.random.default_rng(8)
    return np.concatenate([speak(draw, "101", 1.5), 0.1 * speak(draw, "106", 1.5)])


def difference(options: dict[str, Any], format: str, speech: np.ndarray, seed: int) -> float:
    """The largest difference of an embedding from the offline one along a stream.

    Its blocks, of one group of frames and of some, come in a drawn order: files of one model share their state.
    """
    original, draw = recognizer(causal=True, **options), np.random.default_rng(seed)
    files = []
    with embedder.without_notes():
        for groups in (1, int(draw.integers(2, 12))):
            seconds = groups * original.config.subsampling * original.recipe.hop_length / RATE
            plan = block_embedder.of_blocks(original, {}, seconds)
            assert plan.metadata["block_samples"] == round(seconds * RATE)
            content = getattr(embedder, f"to_{format}")(plan.graph, "{}")
            files.append((getattr(embedder, f"from_{format}")(content), plan.metadata["block_samples"]))
    end, state, differences = plan.metadata["lead_samples"], block_embedder.initial_state(plan.metadata, speech), []
    shapes = [(each.shape, each.dtype) for each in state]
    while end + files[-1][1] <= len(speech):
        run, size = files[draw.integers(2)]
        embedding, *state = run(speech[None, end : end + size], *state)
        assert [(each.shape, each.dtype) for each in state] == shapes
        end += size
        if draw.random() < 0.3:
            differences.append(np.abs(embedding[0] - original.embed_samples(speech[:end], RATE)).max())
    assert len(differences) >= 3
    return float(np.max(differences))


def test_every_mixer_that_can_stream_is_tested():
    assert {"conv", "lstm", "mamba", "mamba2"} <= set(STREAMING)


MIXERS_TESTED = [each if each.startswith("mamba") else pytest.param(each, marks=pytest.mark.slow) for each in STREAMING]


@pytest.mark.parametrize("mixer", MIXERS_TESTED)
def test_blocks_in_any_order_give_the_offline_embedding(mixer, speech):
    """By the TorchScript of the graph; the bound of the command is 1e-4."""
    assert difference({"mixer": mixer}, "torchscript", speech, seed=STREAMING.index(mixer)) < 1e-5


def test_a_convolution_and_groups_of_three(speech):
    assert difference(OTHERS["no mel statistics"], "torchscript", speech, seed=20) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("options", [*({"mixer": mixer} for mixer in STREAMING), *OTHERS.values()])
def test_everything_in_all_formats(options, format, speech):
    assert difference(options, format, speech, seed=FORMATS.index(format)) < 1e-5


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a causal model, its stream in ONNX, and two recordings."""
    folder = tmp_path_factory.mktemp("elsewhere")
    save_checkpoint(folder / "best.pt", content(causal=True, n_layers=2))
    assert call("export", "--checkpoint", folder, "--streaming", "--out", folder / "stream.onnx") == 0
    for number, seconds in ((1, 2.5), (2, 1.3)):
        soundfile.write(folder / f"ada{number}.flac", speak(np.random.default_rng(number), "103", seconds), RATE)
    return folder


def test_an_onnx_file_needs_onnxruntime_and_numpy_alone(exported):
    """By the example of the documentation."""
    (block,) = (block for block in blocks("docs/export.md", "python") if '"stream.onnx"' in block)
    block += "\nprint(json.dumps([about, [[end, each.tolist()] for end, each in embeddings('ada2.flac')]]))"
    *shown, last = elsewhere(exported, block).splitlines()
    about, found = json.loads(last)
    original, samples = SpeakerRecognizer.load(exported, "cpu"), soundfile.read(exported / "ada2.flac")[0]
    assert len(found) == (len(samples) - 240) // 1600 and [end for end, _ in found[:2]] == [1840, 3440]
    for end, embedding in found:
        np.testing.assert_allclose(embedding, original.embed_samples(samples[:end], RATE), atol=1e-5)
    assert len(shown) == 2 and shown[0].startswith("0.515 s: score ")
    assert about["format"] == "tacomamba-stream-1" and about["block_samples"] == 1600 and about["lead_samples"] == 240
    assert about["model"]["hash"] == original.model_hash and about["decisions"]["threshold"] == original.threshold
    assert not {"least_samples", "window_seconds"} & set(about)
    states = {each["name"]: (each["shape"], each["dtype"], each["initial"]) for each in about["state"]}
    assert list(states)[:3] == ["state_samples", "state_level_energy", "state_level_frames"]
    assert states["state_encoder_mixers_1_conv"] == ([1, 3, 40], "float32", 0.0)
    assert states["state_encoder_pooled_log_weight"] == ([1, 16], "float64", -1e30)


@pytest.mark.parametrize(
    ("format", "name"),
    [("torchscript", "stream.pt"), pytest.param("torch-export", "stream.pt2", marks=pytest.mark.slow)],
)
def test_files_for_torch_need_none_of_this_code(format, name, exported, tmp_path, capsys):
    words = ["--checkpoint", exported, "--format", format, "--out", tmp_path / name]
    shown = answer(capsys, "export", *words, "--streaming", "--block", 0.5)
    assert shown["difference"] < 1e-5 and shown["bytes"] == (tmp_path / name).stat().st_size
    assert shown["block_samples"] == 8000 and shown["blocks"] == [1, 2, 4, 8, 16, 32, 64]
    (code,) = (block for block in blocks("docs/export.md", "python") if '"stream.pt"' in block)
    if format == "torch-export":
        code = code.replace('torch.jit.load("stream.pt", _extra_files=files)', _OF_TORCH_EXPORT)
    code += "\nimport sys; assert not {'models', 'utils'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{shown['state_bytes']} bytes of state, torch.Size([1, 12])\n"


_OF_TORCH_EXPORT = 'torch.export.load("stream.pt2", extra_files=files).module()'


@pytest.mark.slow
def test_work_of_exported_streams_is_measured(exported, librispeech_root, capsys):
    words = ["--checkpoint", exported, "--speech", librispeech_root, "--minutes", 1, "--exported"]
    assert measure_streaming.main([*map(str, words), str(exported / "stream.onnx")]) == 0
    title, _, row = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:])
    assert title[1] == "block, ms" and row[1] == "100" and int(row[4]) > 1000


def test_a_block_is_rounded_up_to_groups_of_frames():
    original = recognizer(causal=True, subsampling=3)
    for seconds, samples in ((1e-9, 480), (0.03, 480), (0.0301, 960), (0.14, 2400)):
        assert block_embedder.BlockToEmbedding(original, seconds).block == samples


def test_models_that_cannot_stream_are_refused(tmp_path, capsys):
    out = tmp_path / "out.onnx"
    for options, sentence in (
        ({}, "a running embedding needs a causal model, and tacomamba-mamba2 is not"),
        ({"mixer": "attention", "causal": True}, "tacomamba-attention with pooling attentive keeps every frame"),
    ):
        save_checkpoint(tmp_path / "best.pt", content(**options))
        assert sentence in refused(capsys, "export", "--checkpoint", tmp_path, "--streaming", "--out", out)
        assert not out.exists()


def test_a_file_that_embeds_otherwise_is_not_written(tmp_path, monkeypatch, capsys):
    """Such as one whose metadata do not say how the state begins."""
    monkeypatch.setattr(block_embedder, "NO_WEIGHT", 0.0)
    save_checkpoint(tmp_path / "best.pt", content(model="statistics", causal=True))
    out = tmp_path / "out" / "stream.pt"
    out.parent.mkdir()
    out.write_text("old")
    words = ["--checkpoint", tmp_path, "--format", "torchscript", "--streaming", "--out", out]
    assert "embeddings differ by " in refused(capsys, "export", *words)
    assert out.read_text() == "old" and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--block", "0.1"], "--block is for files that take a stream: it needs --streaming"),
        (["--streaming", "--block", "11"], "--block 11 is too long: a block has at most 10 s"),
        (["--streaming", "--block", "0"], "--block: must be above 0"),
    ],
)
def test_flags_that_contradict_are_refused(words, message, tmp_path, capsys):
    assert call("export", "--out", tmp_path / "a", *words) == 2
    assert message in capsys.readouterr().err
