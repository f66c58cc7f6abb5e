"""Exported recognizers: every model in every format, files used without this repository, and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from commands import answer, call, refused
from test_readme import blocks
from voices import speak

from models.engine.backends import set_backend
from models.mixers import MIXERS
from models.padding import length_mask
from models.speaker import SpeakerConfig, SpeakerModel
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.features.recipe import RECIPES
from utils.features.windows import cut_windows
from utils.speaker.export import command as export
from utils.speaker.export import embedder
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.scoring.calibration import Calibration
from utils.speaker.scoring.cohort import Cohort
from utils.speaker.scoring.scoring import Scoring

FORMATS = ("onnx", "torchscript", "torch_export")
RECIPE = RECIPES["speaker-16k"]
SECONDS = (0.035, 1.7, 2.6)  # two frames; one window of 2 s, and two
SMALL = {"d_model": 16, "headdim": 8, "d_state": 4, "n_layers": 1, "pooled_channels": 16, "embedding_dim": 12}
CASES = [(mixer, causal) for mixer in sorted(MIXERS) for causal in (False, True)]
OTHERS = [
    {"model": "xvector"},
    {"model": "ecapa", "channels": 16},
    {"model": "statistics"},
    {"normalize": "utterance", "pooling": "statistics", "all_layers": False, "mel_statistics": False},
    {"directions": "alternate", "n_layers": 2, "subsampling": 3, "mlp_ratio": 1.0},
]


def content(**options: Any) -> dict[str, Any]:
    """A checkpoint of a small untrained model with a back end."""
    torch.manual_seed(0)
    config = SpeakerConfig(**{**SMALL, **options})
    model = SpeakerModel(config, 2)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    model.feature_norm.mean.fill_(-2.0)
    size = config.embedding_dim
    back_end = {"center": 0.02 * torch.randn(size), "whitening": torch.eye(size) + 0.1 * torch.randn(size, size)}
    plain = {"task": "speaker", "step": 1, "config": {}, "training_list": "", "metrics": {"valid_threshold": 0.25}}
    recipe = {"recipe": RECIPE.to_dict(), "recipe_hash": RECIPE.hash, "speakers": ["1", "2"]}
    return {**plain, **recipe, "model_config": config.to_dict(), "model": model.state_dict(), "back_end": back_end}


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 2 s: those of 60 s cost much, and the command itself tests one recording of 70 s."""
    monkeypatch.setattr("utils.speaker.recognizer.WINDOW_SECONDS", 2)


def recognizer(**options: Any) -> SpeakerRecognizer:
    return SpeakerRecognizer(content(**options), "test", "cpu")


def round_trip(original: SpeakerRecognizer, formats: tuple[str, ...]) -> dict[str, float]:
    """The largest difference of the embeddings by a file of each format."""
    with embedder.without_notes():
        graph = embedder.trace(embedder.SamplesToEmbedding(original), original.recipe)
        differences = {}
        for format in formats:
            written = getattr(embedder, f"to_{format}")(graph, "{}")
            run = getattr(embedder, f"from_{format}")(written)
            differences[format] = export.largest_difference(run, original, SECONDS)
    return differences


@pytest.mark.parametrize(
    ("mixer", "causal"),
    [case if case[0].startswith("mamba") else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_every_mixer_in_both_directions(mixer, causal):
    """The graph, and the TorchScript of it; the bound of the command is 1e-4."""
    assert max(round_trip(recognizer(mixer=mixer, causal=causal), ("torchscript",)).values()) < 1e-5


@pytest.mark.parametrize("options", OTHERS[:3], ids=lambda options: options["model"])
def test_other_encoders(options):
    assert max(round_trip(recognizer(**options), ("torchscript",)).values()) < 1e-5


def test_all_formats():
    """Of the LSTM, whose export is the least usual; the others in ONNX and torch.export take two minutes."""
    assert max(round_trip(recognizer(mixer="lstm"), FORMATS).values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [*({"mixer": mixer, "causal": causal} for mixer, causal in CASES), *OTHERS])
def test_everything_in_all_formats(options):
    assert max(round_trip(recognizer(**options), FORMATS).values()) < 1e-5


def test_windows_are_those_of_the_recognizer():
    module = embedder.SamplesToEmbedding(recognizer())
    for module.longest in (4, 7):
        for frames in range(2, 40):
            starts, lengths, width = module._windows(frames)
            windows = list(cut_windows([np.arange(frames)], module.longest, module.longest))
            assert starts.tolist() == [window.start for window in windows]
            assert lengths.tolist() == [len(window.values) for window in windows]
            assert module.grid * width >= lengths.max()


@pytest.mark.parametrize("mixer", ["lstm", "conv", "mamba", "mamba2"])
def test_the_plain_path_of_a_mixer_respects_padding(mixer):
    """So that a window shorter than the others, and anybody's batch, is right."""
    torch.manual_seed(0)
    made = MIXERS[mixer](SpeakerConfig(**{**SMALL, "mixer": mixer}), False)
    x, lengths = torch.randn(3, 20, SMALL["d_model"]), torch.tensor([20, 11, 3])
    with torch.no_grad():
        wanted = made(x, lengths)
        set_backend(made, "decomposed")
        got = made(x, lengths)
    valid = length_mask(lengths, 20)
    torch.testing.assert_close(got[valid], wanted[valid], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ONNX file of `trained_run`, and two recordings."""
    folder = tmp_path_factory.mktemp("elsewhere")
    assert call("export", "--checkpoint", trained_run, "--out", folder / "speaker.onnx") == 0
    for number, seconds in ((1, 2.5), (2, 1.3)):
        soundfile.write(folder / f"ada{number}.flac", speak(np.random.default_rng(number), "103", seconds), 16_000)
    return folder


def elsewhere(folder: Path, code: str) -> str:
    """What a Python program prints that sees this repository neither as its folder nor on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code += "\nimport sys\nassert not {'torch', 'models', 'utils'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_onnx_file_needs_onnxruntime_and_numpy_alone(exported, trained_run):
    code = """
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("speaker.onnx")
samples = 0.1 * numpy.random.default_rng(5).standard_normal((2, 20_000)).astype(numpy.float32)
(embeddings,) = session.run(["embedding"], {"samples": samples})
print(json.dumps([session.get_modelmeta().custom_metadata_map["tacomamba"], embeddings.tolist()]))"""
    text, embeddings = json.loads(elsewhere(exported, code))
    original = SpeakerRecognizer.load(trained_run, "cpu")
    samples = 0.1 * np.random.default_rng(5).standard_normal((2, 20_000)).astype(np.float32)
    for each, embedding in zip(samples, embeddings, strict=True):
        np.testing.assert_allclose(embedding, original.embed_samples(each, 16_000), atol=1e-5)
    about = json.loads(text)
    assert about["sample_rate"] == 16_000 and about["embedding_dim"] == len(embeddings[0])
    assert about["recipe"] == {"hash": original.recipe.hash, **original.recipe.to_dict()}
    assert about["model"]["hash"] == original.model_hash
    groups = load_checkpoint(trained_run)
    assert about["decisions"]["threshold"] == original.threshold
    assert about["decisions"]["operating_points"] == {
        name: tensor.tolist() for name, tensor in groups["operating_points"].items()
    }
    assert str(trained_run).encode() not in (exported / "speaker.onnx").read_bytes()


def test_the_example_of_the_documentation_runs(exported, trained_run):
    (block,) = (block for block in blocks("docs/export.md", "python") if '"speaker.onnx"' in block)
    original, pair = SpeakerRecognizer.load(trained_run, "cpu"), sorted(exported.glob("*.flac"))
    first, second = original.embed_files(pair)
    assert elsewhere(exported, block) == f"cosine {first @ second:.3f}, LLR {original.compare(*pair):.2f}\n"


@pytest.mark.parametrize(("format", "name"), [("torchscript", "speaker.pt"), ("torch-export", "speaker.pt2")])
def test_files_for_torch_need_none_of_this_code(format, name, tmp_path, capsys):
    save_checkpoint(tmp_path / "best.pt", content(mixer="lstm", embedding_dim=192))
    words = ["--checkpoint", tmp_path, "--format", format, "--out", tmp_path / name]
    shown = answer(capsys, "export", *words)
    assert shown["difference"] < 1e-5 and shown["bytes"] == (tmp_path / name).stat().st_size
    (block,) = (block for block in blocks("docs/export.md", "python") if f'"{format}"' in block)
    code = block + "\nimport sys; assert not {'models', 'utils'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "16000 torch.Size([1, 192])\n"


def test_metadata_have_what_scores_are_made_of():
    original = recognizer()
    cohort = Cohort(np.array([[0.123456789, 0.5]], np.float32), 1)
    original.scoring = Scoring(cohort, Calibration(np.array([1.0, 2.0, -3.0]), np.array([0.75, 9.0])))
    assert export.metadata(original)["decisions"] == {
        "threshold": 0.25,
        "cohort": {"embeddings": [[0.12346, 0.5]], "top": 1},
        "calibration": {"weights": [1.0, 2.0, -3.0], "seconds": [0.75, 9.0]},
    }


def test_no_vectors_of_training_speakers_are_exported(trained_run):
    original = SpeakerRecognizer.load(trained_run, "cpu")
    assert original.has_classifier
    module = embedder.SamplesToEmbedding(original)
    assert not [name for name in module.state_dict() if "classifier" in name]
    assert original.has_classifier


def test_a_file_that_embeds_otherwise_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    save_checkpoint(tmp_path / "best.pt", content(model="statistics"))
    out = tmp_path / "out" / "speaker.pt"
    out.parent.mkdir()
    out.write_text("old")
    words = ["--checkpoint", tmp_path, "--format", "torchscript", "--out", out]
    assert "embeddings differ by " in refused(capsys, "export", *words)
    assert out.read_text() == "old" and list(out.parent.iterdir()) == [out]


def test_a_model_that_cannot_be_exported_is_refused(tmp_path, monkeypatch, capsys):
    """Such as a mixer that decides by values."""

    class Deciding(torch.nn.Module):
        def __init__(self, config: SpeakerConfig, causal: bool) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    monkeypatch.setitem(MIXERS, "deciding", Deciding)
    save_checkpoint(tmp_path / "best.pt", content(mixer="deciding"))
    words = ["--checkpoint", tmp_path, "--format", "torch-export", "--out", tmp_path / "out.pt2"]
    sentence = refused(capsys, "export", *words)
    assert "tacomamba-deciding cannot be exported to torch-export: " in sentence
    assert not (tmp_path / "out.pt2").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"the packages? {package}: pip install -r requirements-export.txt"):
        export.export(None, "onnx", tmp_path / "out.onnx")


def test_bad_input_is_refused(trained_run, tmp_path, capsys):
    assert call("export", "--checkpoint", trained_run, "--out", tmp_path) == 2
    assert f"--out {tmp_path} is a folder; a file is needed" in capsys.readouterr().err
    missing = tmp_path / "none.pt"
    assert "there is no checkpoint" in refused(capsys, "export", "--checkpoint", missing, "--out", tmp_path / "a")
    assert call("export", "--format", "tflite", "--out", tmp_path / "a") == 2
