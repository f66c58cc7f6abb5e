"""Packed models: what they hold, that they embed as their checkpoint does, and the model that the repository ships."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import answer, call, problems, refused
from root import ROOT
from safetensors.torch import load_file
from test_evaluate import report_in
from voices import speak

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.features.store import FeatureStore
from utils.packed import CONFIG, SUMS, WEIGHTS, is_packed
from utils.speaker.packing import BEGIN, END, LEAST_COSINE
from utils.speaker.protocol import read_protocol, write_protocol
from utils.speaker.recognizer import SpeakerRecognizer
from utils.tts.synthesizer import Synthesizer

SHIPPED = ROOT / "pretrained" / "speaker"
needs_shipped = pytest.mark.skipif(not is_packed(SHIPPED), reason="no trained model is in pretrained/speaker yet")


@pytest.fixture
def recordings(librispeech_root: Path) -> list[Path]:
    """Two recordings of one speaker, and one of another."""
    first, other = sorted((librispeech_root / "LibriSpeech" / "train-tiny").iterdir())[:2]
    return [*sorted(first.rglob("*.flac"))[:2], min(other.rglob("*.flac"))]


@pytest.fixture
def copied(packed_model: Path, tmp_path: Path) -> Path:
    """A copy of the packed model to change."""
    return shutil.copytree(packed_model, tmp_path / "copied")


@pytest.fixture(scope="module")
def evaluated(packed_model: Path, processed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the packed model."""
    out = tmp_path_factory.mktemp("evaluated") / "held-out"
    words = ["evaluate", "--checkpoint", packed_model, "--data", processed, "--out", out, "--bootstrap", 20]
    assert call(*words) == 0
    return out


def test_a_packed_model_embeds_as_its_checkpoint(packed_model, trained_run, recordings):
    before, after = SpeakerRecognizer.load(trained_run, "cpu"), SpeakerRecognizer.load(packed_model, "cpu")
    cosines = (before.embed_files(recordings) * after.embed_files(recordings)).sum(1)
    assert cosines.min() > LEAST_COSINE
    assert (before.embed_file(recordings[0]) != after.embed_file(recordings[0])).any()  # 16 bits
    assert after.threshold == before.threshold and after.recipe == before.recipe
    assert (after.back_end.whitening == before.back_end.whitening).all()
    for seconds, enrolled in ((2, 1), (1.2, 5)):
        thresholds = [each.identification_threshold(None, seconds, enrolled) for each in (before, after)]
        assert thresholds[0] == thresholds[1]


def test_a_packed_model_keeps_ids_of_training_speakers_and_nothing_else_of_them(packed_model, trained_run):
    weights, content = load_file(packed_model / WEIGHTS), load_checkpoint(trained_run)
    assert len(weights["model.classifier.weight"]) == 0 < len(content["model"]["classifier.weight"])
    assert {each.dtype for name, each in weights.items() if each.dim() > 1 and name.startswith("model.")} == {
        torch.float16
    }
    text = (packed_model / CONFIG).read_text() + (packed_model / "training.yaml").read_text()
    assert json.loads((packed_model / CONFIG).read_text())["speakers"] == content["speakers"]
    assert str(trained_run) not in text and content["config"]["data"] not in text


def test_an_evaluation_of_a_packed_model_knows_its_flags(evaluated, trained_run):
    training, flags = report_in(evaluated)["model"]["training"], load_checkpoint(trained_run)["config"]
    assert set(training) == {"steps", "flags"} and "data" not in training["flags"]
    assert all(flags[name] == value for name, value in training["flags"].items()) and "mixer" in training["flags"]


def test_a_model_is_found_by_default_by_name_by_folder_and_by_file(shipped, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hashes = {SpeakerRecognizer.load(*path, device="cpu").model_hash for path in ([], ["speaker"], [shipped])}
    assert len(hashes) == 1
    of_run = SpeakerRecognizer.load(trained_run, "cpu").model_hash
    assert SpeakerRecognizer.load(trained_run / "best.pt", "cpu").model_hash == of_run not in hashes
    shutil.copytree(trained_run, tmp_path / "speaker")
    assert SpeakerRecognizer.load("speaker", "cpu").model_hash == of_run
    assert SpeakerRecognizer.load(device="cpu").model_hash in hashes


def test_commands_take_the_shipped_model(shipped, recordings, tmp_path, capsys):
    model_hash = SpeakerRecognizer.load(shipped, "cpu").model_hash
    store = ["--store", tmp_path / "people"]
    answers = [
        answer(capsys, "verify", *recordings[1:]),
        answer(capsys, "enroll", *store, "--name", "Ada", *recordings[:2]),
        answer(capsys, "identify", *store, recordings[0]),
        answer(capsys, "embed", recordings[2]),
    ]
    assert {each["model_hash"] for each in answers} == {model_hash}
    assert answers[2]["results"][0]["name"] == "Ada"
    assert call("verify", *recordings[:2]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1 and shown.err == ""


def test_without_a_shipped_model_one_is_asked_for(recordings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.packed.SHIPPED", tmp_path)
    for words in ([], ["--checkpoint", tmp_path / "speaker"]):
        sentence = refused(capsys, "verify", *words, *recordings[:2])
        assert f"no trained model is shipped in {tmp_path / 'speaker'}: give --checkpoint" in sentence
    (tmp_path / "speaker").mkdir()
    (tmp_path / "speaker" / "README.md").touch()  # a card alone is no model
    assert "no trained model is shipped" in refused(capsys, "embed", recordings[0])


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, SUMS])
def test_damaged_and_missing_files_are_refused(name, copied, recordings, capsys):
    path, words = copied / name, ["verify", "--checkpoint", copied, *recordings[:2]]
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    assert f"does not have the sha256 in {SUMS}: it is damaged" in refused(capsys, *words)
    path.unlink()
    assert f"is incomplete: it lacks {name}" in refused(capsys, *words)


def test_an_evaluation_of_a_packed_model(evaluated, packed_model, trained_run, processed, tmp_path):
    report, out = report_in(evaluated), tmp_path / "out"
    reason = "the model was packed without the vectors of its training speakers"
    assert {part["reason"] for part in report["identification"].values()} == {reason}
    assert call("evaluate", "--checkpoint", trained_run, "--data", processed, "--out", out, "--bootstrap", 20) == 0
    assert report["verification"]["all"]["eer"] == pytest.approx(report_in(out)["verification"]["all"]["eer"], abs=0.02)
    assert report["training_speakers"] == report_in(out)["training_speakers"] > 0


def test_the_card_gets_the_figures_of_reports_and_keeps_the_rest(copied, evaluated, trained_run, tmp_path, capsys):
    card = copied / "README.md"
    card.write_text(f"# Mine\n\n{BEGIN}\nof long ago\n{END}\nConsent.\n", encoding="utf-8")
    weights = (copied / WEIGHTS).read_bytes()
    other = tmp_path / "other"
    report = report_in(evaluated)
    other.mkdir()
    (other / "report.json").write_text(json.dumps({**report, "model": {"name": "x", "hash": "feedfeedfeedfeed"}}))
    words = ["pack", "--checkpoint", trained_run, "--out", copied, "--report", evaluated, other]
    packed = answer(capsys, *words)
    text = card.read_text(encoding="utf-8")
    assert text.startswith(f"# Mine\n\n{BEGIN}\n") and text.endswith(f"{END}\nConsent.\n") and "long ago" not in text
    assert packed["model_hash"] == report["model"]["hash"] and packed["least_cosine"] >= LEAST_COSINE
    assert packed["bytes"] == sum(path.stat().st_size for path in copied.iterdir())
    assert f"{100 * report['verification']['3s']['eer']:.2f}" in text.partition("3s")[2].splitlines()[0]
    assert f"**held-out**: {report['title']}" in text and "; this model.\n" in text
    assert "another model, `feedfeedfeedfeed`.\n" in text
    assert (copied / WEIGHTS).read_bytes() == weights
    again = answer(capsys, "pack", "--checkpoint", copied, "--out", copied, "--report", evaluated)  # without the run
    assert again["model_hash"] == packed["model_hash"] and (copied / WEIGHTS).read_bytes() == weights
    assert "; this model.\n" in card.read_text(encoding="utf-8") and "feed" not in card.read_text(encoding="utf-8")
    assert "steps: 60" in (copied / "training.yaml").read_text()


def test_thresholds_and_calibration_are_fitted_anew_without_training(trained_run, copied, processed, tmp_path, capsys):
    """To the same validation speakers as the training did; and to a checkpoint of before, which has neither."""
    content = load_checkpoint(trained_run)
    fitted = {name: content.pop(name) for name in ("operating_points", "calibration")}
    save_checkpoint(tmp_path / "old.pt", content)
    pack = ["pack", "--checkpoint", tmp_path / "old.pt", "--out", copied]
    before = answer(capsys, *pack)
    assert "calibration" not in load_checkpoint(copied)
    assert "It has no calibration." in (copied / "README.md").read_text(encoding="utf-8")
    again = answer(capsys, *pack, "--data", processed)
    assert again["model_hash"] == before["model_hash"]
    packed = load_checkpoint(copied)
    for group, tensors in fitted.items():
        for name, tensor in tensors.items():
            np.testing.assert_allclose(packed[group][name], tensor, rtol=1e-3, atol=1e-3, err_msg=name)
    content["cohort"] = {"embeddings": torch.eye(packed["back_end"]["center"].shape[0])[:9], "top": torch.tensor(4)}
    save_checkpoint(tmp_path / "old.pt", content)
    assert call(*pack, "--data", processed) == 0  # of too few speakers for a cohort of its own
    assert "warning: validation is on training speakers" in capsys.readouterr().err
    normalized = load_checkpoint(copied)
    assert (normalized["cohort"]["embeddings"] == content["cohort"]["embeddings"]).all()
    assert (normalized["calibration"]["weights"] != packed["calibration"]["weights"]).all()
    assert "normalized by the 4 nearest of 9 voices" in " ".join((copied / "README.md").read_text("utf-8").split())
    low, high = fitted["calibration"]["seconds"]
    assert f"{low:g} and {high:.0f} s." in " ".join((copied / "README.md").read_text(encoding="utf-8").split())


def test_data_that_cannot_calibrate_are_refused(trained_run, copied, processed, processed_voice, tmp_path, capsys):
    pack = ["pack", "--checkpoint", trained_run, "--out", copied]
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert "there are no features" in refused(capsys, *pack, "--data", tmp_path / "nowhere")
    assert "the checkpoint" in refused(capsys, *pack, "--data", processed_voice)
    default = read_protocol(processed / "protocols" / "default")
    few = [trial for trial in default.valid_trials if trial.target and "/101/" in trial.a]
    for name, trials, sentence in (("none", [], "has no validation trials"), ("one", few, "are not of 3 speakers")):
        shutil.copytree(processed, tmp_path / name)
        changed = dataclasses.replace(default, name="changed", valid_trials=trials)
        write_protocol(tmp_path / name / "protocols" / "changed", changed, FeatureStore.open(processed).rows)
        assert sentence in refused(capsys, *pack, "--data", tmp_path / name, "--protocol", "changed")
    assert call(*pack, "--protocol", "other") == 2 and "--protocol needs --data" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_what_cannot_be_packed_leaves_the_folder_as_it_is(copied, trained_run, evaluated, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    content = load_checkpoint(trained_run)
    small = {name: 1e-9 * each if "encoder.embedding" in name else each for name, each in content["model"].items()}
    save_checkpoint(tmp_path / "small.pt", {**content, "model": small})
    out = ["--out", copied]
    assert "change in 16 bits: " in refused(capsys, "pack", "--checkpoint", tmp_path / "small.pt", *out)
    pack = ["pack", "--checkpoint", trained_run]
    assert "cannot be read" in refused(capsys, *pack, *out, "--report", tmp_path / "nowhere")
    other = {name: 1.1 * each if "encoder.embedding" in name else each for name, each in content["model"].items()}
    save_checkpoint(tmp_path / "small.pt", {**content, "model": other})
    assert "holds another model, " in refused(capsys, "pack", "--checkpoint", tmp_path / "small.pt", *out)
    (tmp_path / "report.json").write_text("{}")
    assert "is not the report" in refused(capsys, *pack, *out, "--report", tmp_path)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert "contains other files" in refused(capsys, *pack, "--out", evaluated)
    assert "is a file" in refused(capsys, *pack, "--out", tmp_path / "small.pt")
    assert "is the folder that you are in" in problems(capsys, *pack, "--out", ".")
    (copied / "README.md").write_text("no place\n")
    assert "has no place for figures" in refused(capsys, *pack, *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copied",
        "report.json",
        "small.pt",
        "small.pt.sha256",
    ]


def test_text_to_mel_takes_voices_by_a_packed_model(packed_model, processed_voice, recordings, tmp_path):
    import train_tacomamba

    words = "--task tts --steps 2 --save-every 2 --batch-size 4 --threads 1 --no-tensorboard --encoder-layers 1".split()
    words += "--n-layers 1 --d-model 16 --headdim 8 --d-state 8 --postnet-channels 16 --voice embedding".split()
    folders = ["--data", str(processed_voice), "--out", str(tmp_path), "--speaker-encoder", str(packed_model)]
    assert train_tacomamba.main([*words, *folders]) == 0
    expected = SpeakerRecognizer.load(packed_model, "cpu").model_hash
    assert load_checkpoint(tmp_path)["recognizer_hash"] == expected
    spoken = Synthesizer.load(tmp_path, "cpu").speak("Two boats.", speaker=str(recordings[0]))
    assert len(spoken.mel)


@needs_shipped
def test_the_shipped_model_is_small_and_scores_the_same_each_time(tmp_path):
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8e6
    draw = np.random.default_rng(3)
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path, voice in zip(paths, ("101", "101", "107"), strict=True):
        soundfile.write(path, speak(draw, voice, 3), 16_000)
    first, second = (SpeakerRecognizer.load(device="cpu").embed_speech(paths)[0] for _ in range(2))
    assert (first == second).all()
    assert first[0] @ first[1] > first[0] @ first[2]


@needs_shipped
def test_the_card_of_the_shipped_model_is_of_this_model():
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert f"Model `{SpeakerRecognizer.load(device='cpu').model_hash}`" in card and "; this model.\n" in card


@needs_shipped
@pytest.mark.real
def test_the_shipped_model_tells_unseen_speakers_apart(real_data, tmp_path, capsys):
    root = real_data / "speakers_more"
    words = ["--trials", root / "trials.txt", "--audio-root", root / "speechocean762", "--out", tmp_path / "out"]
    report = answer(capsys, "evaluate", "--checkpoint", "speaker", *words, "--bootstrap", 20)
    assert report["trial_speakers"] == 24 and report["verification"]["all"]["eer"] < 0.08
