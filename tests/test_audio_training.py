"""Training on a store of audio: augmentations of samples, speed perturbation, exact resuming, refusals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

import test
import train_tacomamba
from utils.checkpoint import load_checkpoint
from utils.errors import ExitCode
from utils.features.degrade import colored_noise, random_room
from utils.features.store import FeatureStore
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.training.augment import AUGMENTATIONS, WaveAugmentation
from utils.speaker.training.crops import SPEEDS, CropDataset
from utils.training.runlog import read_log
from utils.training.sampling import EpochOrder

SMALL = (
    "--d-model 32 --n-layers 1 --headdim 16 --d-state 8 --pooled-channels 16 --batch-size 8 --crop-seconds 1".split()
)
RUN = "--save-every 3 --log-every 1 --threads 1 --device cpu --no-tensorboard".split()
OF_SAMPLES = {name: kind for name, kind in AUGMENTATIONS.items() if issubclass(kind, WaveAugmentation)}


@pytest.fixture(scope="module")
def noises(tmp_path_factory) -> Path:
    """Noises at two rates, one shorter than a crop and one of two channels, in a folder below, and a text file."""
    folder, draw = tmp_path_factory.mktemp("noises"), np.random.default_rng(0)
    (folder / "free-sound").mkdir()
    (folder / "README").write_text("not a sound")
    for number, (seconds, rate) in enumerate(((5, 16_000), (0.3, 16_000), (3, 22_050))):
        noise = 0.1 * colored_noise(round(seconds * rate), number, draw)
        channels = np.stack([noise, 0 * noise], 1) if number == 0 else noise
        soundfile.write(folder / "free-sound" / f"{number}.wav", channels, rate)
    return folder


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("rooms"), np.random.default_rng(1)
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", 0.9 * random_room(draw, 16_000, 0.4), 16_000)
    return folder


def configured(share: float, noises: Path, *names: str) -> list[WaveAugmentation]:
    """Augmentations of samples with a share."""
    folder = {"recorded_noise": {"noise_folder": noises}}
    return [OF_SAMPLES[name](**{f"{name}_share": share}, **folder.get(name, {})) for name in names or OF_SAMPLES]


def crops(
    stored: Path, augmentations: Sequence = (), crop: int | None = 50, speeds: Sequence[float] = SPEEDS[:1]
) -> CropDataset:
    """Crops of three speakers."""
    store = FeatureStore.open(stored)
    items = [item for item, row in enumerate(store.rows) if row.speaker in ("101", "102", "105")]
    labels = [("101", "102", "105").index(store.rows[item].speaker) for item in items]
    order = EpochOrder(len(items), seed=0, smallest_batch=8)
    lengths = crop and (crop, crop)
    return CropDataset(store, items, labels, np.zeros(80), order, lengths, augmentations, 0, 3, speeds)


def test_crops_of_audio_are_those_of_mels(stored, processed):
    for crop in (50, None):
        audio, mels = crops(stored, crop=crop), crops(processed, crop=crop)
        for place in range(30):
            (mel, label), (expected, same) = audio[place], mels[place]
            assert label == same and mel.shape == expected.shape
            np.testing.assert_allclose(mel, expected, rtol=2**-11, atol=1e-4)


def test_a_recording_shorter_than_the_crop_is_repeated(stored):
    dataset = crops(stored, crop=700)
    mel, _ = dataset[0]
    whole = dataset.store.mel(dataset.items[dataset.order[0]])
    assert len(mel) == 700 > 2 * len(whole)
    np.testing.assert_allclose(mel[: len(whole)], whole, atol=1e-5)


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_each_augmentation_changes_its_share_of_the_crops(name, stored, noises):
    plain, some, all_ = (
        crops(stored),
        *(crops(stored, configured(share, noises, name)) for share in (0.5, 1.0)),
    )
    changed = []
    for place in range(40):
        mel, label = some[place]
        assert mel.shape == (50, 80) and np.isfinite(mel).all() and label == plain[place][1]
        changed.append(not np.array_equal(mel, plain[place][0]))
        assert np.array_equal(all_[place][0], all_[place][0]) and not np.array_equal(all_[place][0], plain[place][0])
    assert 10 <= sum(changed) <= 30
    assert crops(stored, configured(1.0, noises, name), crop=None)[3][0].shape == crops(stored, crop=None)[3][0].shape


def test_samples_are_equal_for_any_number_of_processes_and_threads(stored, noises):
    dataset = crops(stored, configured(0.7, noises), speeds=SPEEDS)
    places = [[place] for place in range(24)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        here = [mel.numpy() for mel, _ in DataLoader(dataset, batch_sampler=places)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    there = [mel.numpy() for mel, _ in DataLoader(dataset, batch_sampler=places, num_workers=2)]
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_another_speed_is_another_speaker_at_another_pitch(stored):
    dataset, plain = crops(stored, speeds=SPEEDS), crops(stored)
    labels = np.array([dataset[place][1] for place in range(90)])
    assert (labels % 3 == [plain[place][1] for place in range(90)]).all()
    assert all(20 <= (labels // 3 == number).sum() <= 40 for number in range(3))
    assert all(len(dataset[place][0]) == 50 for place in range(10))


def test_babble_is_of_other_speakers(stored, monkeypatch):
    dataset, read = crops(stored), []
    audio = dataset.store.audio
    monkeypatch.setattr(dataset.store, "audio", lambda item, *part: read.append(item) or audio(item, *part))
    for label, speaker in enumerate(("101", "102", "105")):
        read.clear()
        for seed in range(20):
            dataset._voice(label, 16_000, np.random.default_rng(seed))
        assert {dataset.store.rows[item].speaker for item in read} == {"101", "102", "105"} - {speaker}


def everything(noises: Path, rooms: Path) -> list[str]:
    shares = [word for name in OF_SAMPLES for word in (f"--{name.replace('_', '-')}-share", "0.5")]
    folders = ["--noise-folder", str(noises), "--rir-folder", str(rooms)]
    return [*shares, *folders, "--noise-share", "0.5", "--speed-perturbation", "--shortest-crop-seconds", "0.6"]


def losses(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_log(run) if "loss_hex" in line]


def test_a_run_resumes_exactly_with_all_augmentations_and_other_workers(stored, noises, rooms, tmp_path, capsys):
    words = ["--data", str(stored), *SMALL, *RUN, *everything(noises, rooms)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_tacomamba.main([*words, "--out", str(whole), "--steps", "6", "--workers", "0"]) == 0
    assert train_tacomamba.main([*words, "--out", str(parts), "--steps", "6", "--workers", "2"]) == 0
    assert losses(whole) == losses(parts) and len(losses(whole)) == 6

    moved = shutil.copytree(noises, tmp_path / "moved")
    words[words.index(str(noises))] = str(moved)
    first, copy = load_checkpoint(whole / "last-1.pt"), tmp_path / "resumed"
    assert first["step"] == 3
    resume = ["--out", str(copy), "--steps", "6", "--resume", str(whole / "last-1.pt")]
    assert train_tacomamba.main([*words, *resume, "--workers", "1"]) == 0
    assert losses(copy)[-3:] == losses(whole)[3:]
    weights, again = (load_checkpoint(run / "last.pt")["model"] for run in (whole, copy))
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    resume = ["--out", str(tmp_path / "other"), "--steps", "6", "--resume", str(whole / "last-1.pt")]
    without = [word for word in words if word not in ("--rir-folder", str(rooms))]
    capsys.readouterr()
    assert train_tacomamba.main([*without, *resume]) == ExitCode.BAD_INPUT
    assert re.search(r"was trained with other sounds \(rir_folder \w+ there, None here\)", capsys.readouterr().err)
    (moved / "free-sound" / "1.wav").unlink()
    assert train_tacomamba.main([*words, *resume]) == ExitCode.BAD_INPUT
    assert "was trained with other sounds (noise_folder " in capsys.readouterr().err

    evaluate = ["--checkpoint", whole, "--data", stored, "--out", whole / "report", "--bootstrap", "5"]
    assert test.main(["evaluate", *map(str, evaluate)]) == 0
    recognizer = SpeakerRecognizer.load(whole, "cpu")
    assert len(weights["classifier.weight"]) == 18 and len(recognizer.speakers) == 6
    assert recognizer.classify(np.ones((2, recognizer.model.embedding_dim), np.float32)).shape == (2, 6)


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_store_of_mels_has_no_samples_to_augment(name, processed, noises, tmp_path, capsys):
    flag = f"--{name.replace('_', '-')}-share"
    words = ["--data", str(processed), "--out", str(tmp_path / "run"), *SMALL, *RUN]
    words += ["--noise-folder", str(noises)] * (name == "recorded_noise")
    assert train_tacomamba.main([*words, flag, "0.1"]) == ExitCode.BAD_INPUT
    assert f"error: {flag} needs a store of audio: preprocess.py --store audio\n" in capsys.readouterr().err


def refused(capsys, data: Path, *words: str) -> str:
    """The error with which flags are refused, by the parser or at the start of a run, which leaves no files."""
    out = data.parent / "refused"
    try:
        code = train_tacomamba.main(["--data", str(data), "--out", str(out), *SMALL, *RUN, *words])
    except SystemExit as caught:
        code = caught.code
    assert code == ExitCode.BAD_INPUT
    assert not out.exists() or {path.name for path in out.iterdir()} <= {".lock"}
    return capsys.readouterr().err


def test_flags_that_cannot_work(stored, processed, noises, tmp_path, capsys):
    assert "--speed-perturbation needs a store of audio" in refused(capsys, processed, "--speed-perturbation")
    both = refused(capsys, stored, "--speed-perturbation", "--batch-frames", "900")
    assert "--speed-perturbation is for crops, not for --batch-frames" in both
    assert "--recorded-noise-share needs --noise-folder" in refused(capsys, stored, "--recorded-noise-share", "0.5")
    unused = refused(capsys, stored, "--noise-folder", str(noises), "--rir-folder", str(tmp_path / "none"))
    assert "--noise-folder needs --recorded-noise-share above 0" in unused and "--rir-folder needs --reverb" in unused
    short = "--shortest-crop-seconds"
    assert f"{short} is for crops" in refused(capsys, stored, short, "0.5", "--batch-frames", "900")
    assert f"{short} 1.5 must not be above --crop-seconds 1" in refused(capsys, stored, short, "1.5")
    assert f"{short} 0.001 is shorter than one frame" in refused(capsys, stored, short, "0.001")
    order = refused(capsys, stored, "--reverb-seconds", "0.9", "0.2", "--babble-snr", "9", "3")
    assert "--reverb-seconds 0.9 0.2: the first must not be above the second" in order and "--babble-snr 9 3" in order
    (tmp_path / "empty").mkdir()
    reverb = "--reverb-share", "0.5", "--rir-folder"
    assert "empty holds no audio that libsndfile reads" in refused(capsys, stored, *reverb, str(tmp_path / "empty"))
    broken = shutil.copytree(noises, tmp_path / "broken")
    (broken / "broken.wav").write_text("no")
    assert "broken.wav is not audio that can be read" in refused(capsys, stored, *reverb, str(broken))
