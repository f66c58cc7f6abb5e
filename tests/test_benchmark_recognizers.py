"""The benchmark of recognizers: degraded versions of a corpus, and a comparison of two models from speech to tables."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from folders import contents

from benchmarks import degraded, embedding_speed, launches, metrics, pretrained, recognizers
from utils.features.audio import load_audio
from utils.speaker.evaluation.rates import Rates
from utils.speaker.evaluation.results import read_evaluation

SPLIT = "train-tiny"


@pytest.fixture(scope="module")
def noises(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noises")
    soundfile.write(folder / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    return folder


def test_versions_are_degraded_copies_and_always_the_same(librispeech_root, noises, tmp_path):
    (tmp_path / "without.txt").write_text("".join(f"{speaker}\n" for speaker in range(103, 109)))
    common = ["--raw", librispeech_root, "--split", SPLIT, "--without", tmp_path / "without.txt"]
    common = [str(word) for word in [*common, "--noise-folder", noises]]
    assert degraded.main([*common, "--versions", "2", "--out", str(tmp_path / "both")]) == 0
    assert degraded.main([*common, "--versions", "1", "--out", str(tmp_path / "one")]) == 0
    both = contents(tmp_path / "both")
    assert {name.removeprefix("version1/"): content for name, content in both.items() if "version1" in name} == {
        name.removeprefix("version1/"): content for name, content in contents(tmp_path / "one").items()
    }
    source = librispeech_root / "LibriSpeech" / SPLIT
    originals = [path for speaker in ("101", "102") for path in (source / speaker).rglob("*.flac")]
    assert len(both) == 2 * len(originals)
    changed = 0
    for path, version in itertools.product(originals, ("1", "2")):
        copy = tmp_path / "both" / f"version{version}" / path.relative_to(source)
        samples, copied = load_audio(path, 16_000), load_audio(copy.with_stem(f"{path.stem}-v{version}"), 16_000)
        assert len(samples) == len(copied)
        changed += np.abs(samples - copied).max() > 0.01
    assert changed > len(originals)  # of twice as many
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "both").rglob("*.flac")}
    assert degraded.main([*common, "--versions", "2", "--out", str(tmp_path / "both")]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times


def trials_of(folder: Path, root: Path) -> str:
    paths = sorted(path.relative_to(root).as_posix() for path in folder.rglob("*.flac"))
    pairs = itertools.combinations(paths, 2)
    return "".join(f"{int(a.split('/')[-3] == b.split('/')[-3])} {a} {b}\n" for a, b in pairs)


def test_another_recognizer_is_evaluated_on_the_same_recordings(librispeech_root, tmp_path, monkeypatch, capsys):
    heard = []

    def spectrum(samples: np.ndarray) -> np.ndarray:
        heard.append(len(samples))
        return np.log(np.abs(np.fft.rfft(samples, 4096)).reshape(-1)[:2048].reshape(32, 64).mean(1))

    monkeypatch.setitem(pretrained.SYSTEMS, "spectrum", lambda: spectrum)
    (tmp_path / "trials.txt").write_text(trials_of(librispeech_root / "LibriSpeech" / SPLIT / "101", librispeech_root))
    other = sorted((librispeech_root / "LibriSpeech" / SPLIT / "105").rglob("*.flac"))[0]
    with (tmp_path / "trials.txt").open("a") as file:
        first = sorted((librispeech_root / "LibriSpeech" / SPLIT / "101").rglob("*.flac"))[0]
        file.write(f"0 {first.relative_to(librispeech_root)} {other.relative_to(librispeech_root)}\n")
    words = ["--system", "spectrum", "--audio-root", librispeech_root, "--trials", tmp_path / "trials.txt"]
    words += ["--conditions", "level,cut", "--bootstrap", 2, "--out", tmp_path / "out", "--json"]
    assert pretrained.main([str(word) for word in words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["name"] == "spectrum" and report["operating_point"] is None
    assert list(report["conditions"]) == ["clean", "level", "cut1", "cut2"]
    assert heard.count(16_000) >= 14 and heard.count(24_000) >= 13  # cut1, 1.5s
    assert len(read_evaluation(tmp_path / "out").scores["full"]) == 13 * 12 / 2 + 1


def test_the_speed_of_embedding_is_measured(trained_run, librispeech_root, capsys):
    words = ["--speech", librispeech_root, "--checkpoint", trained_run, "--rounds", 1]
    assert embedding_speed.main([str(word) for word in words]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith(f"| {trained_run} | 0.") and row.count(", 1.00 |") == 2


def test_an_export_that_cannot_be_run_is_refused(trained_run, librispeech_root, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.onnx").write_text("no graph")
    words = ["--speech", librispeech_root, "--checkpoint", trained_run, "--exported", tmp_path / "a.onnx"]
    assert embedding_speed.main([str(word) for word in words]) == 2
    assert "a.onnx is not an ONNX file that can be run" in capsys.readouterr().err


def test_measures_of_impossible_sizes_are_refused(capsys):
    assert metrics.main(["--trials", "1"]) == 2
    assert capsys.readouterr().err == "error: the trials are of one kind: give more --trials and --speakers\n"
    with pytest.raises(SystemExit) as stopped:
        launches.main(["--d-model", "33"])
    assert stopped.value.code == 2 and "must be a multiple of 32, not 33" in capsys.readouterr().err


def test_kept_rates_name_no_folder_of_the_machine():
    files = list(recognizers.RATES.rglob("*.safetensors"))
    assert files
    for file in files:
        rates = Rates.read(file)
        assert rates.about == rates.published().about, file


def test_trials_that_all_folds_share_need_one_fold(capsys):
    words = "--models mamba2 --steps 240 --seeds 1 --tests more --folds".split()
    printed = []
    for folds in (["0"], ["0", "1"]):
        assert recognizers.main([*words, *folds]) == 0
        printed.append(capsys.readouterr().out)
    assert "more, 1 seed |" in printed[0] and printed[0] == printed[1]


@pytest.mark.slow
def test_models_are_compared_and_rates_of_finished_cells_are_kept(librispeech_root, noises, tmp_path, capsys):
    source, dev, more = librispeech_root / "LibriSpeech" / SPLIT, tmp_path / "speakers_dev", tmp_path / "speakers_more"
    for speaker in ("101", "102", "103", "105"):
        shutil.copytree(source / speaker, dev / "LibriSpeech" / "train-clean-100" / speaker)
        clips = sorted((source / speaker).rglob("*.flac"))[:3]
        for clip, (root, name) in itertools.product(
            clips, ((dev / "LibriSpeech" / "train-clean-100-notext", "3"), (more / "speechocean762", "9"))
        ):
            target = root / f"{name}{speaker}" / "1" / f"{name}{clip.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, target)
    (dev / "splits").mkdir()
    for fold, speakers in enumerate((("101", "102"), ("103", "105"))):
        (dev / "splits" / f"fold{fold}_speakers.txt").write_text("".join(f"{speaker}\n" for speaker in speakers))
        held = [dev / "LibriSpeech" / "train-clean-100" / speaker for speaker in speakers]
        listed = "".join(trials_of(folder, dev) for folder in held)
        a, b = (next(folder.rglob("*.flac")).relative_to(dev) for folder in held)
        (dev / "splits" / f"fold{fold}_trials.txt").write_text(f"{listed}0 {a} {b}\n")
    (more / "heldout_speakers.txt").write_text("9101\n9102\n")
    (more / "trials.txt").write_text(trials_of(more / "speechocean762", more / "speechocean762"))
    models = ["no-mixer", "no-mixer/no-back-end", "statistics/no-versions:4"]
    asked = ["--models", *models, "--steps", 3, "--seeds", 1, "--versions", 1, "--rates", tmp_path / "rates"]
    asked = [str(word) for word in asked]
    assert recognizers.main(asked) == 2
    assert f"{', '.join(sorted(models)).removesuffix(':4')}: not all rates are in" in capsys.readouterr().err
    words = ["--speech", tmp_path, "--noise-folder", noises, "--out", tmp_path / "out", "--bootstrap", 5]
    assert recognizers.main([*asked, *(str(word) for word in words)]) == 0
    first = capsys.readouterr().out
    assert "| no-mixer |" in first and "dev, 1 seed |" in first and "mean, one side" in first
    logs = [path for data in ("both-1", "both-0") for path in (tmp_path / "out" / data).glob("*/log.jsonl")]
    assert len(logs) == 2  # two runs, one of them evaluated in two ways
    names = {path.name for path in (tmp_path / "rates").glob("*/*")}
    assert len(names) == 6 and "statistics-no-versions-4-fold0-seed0-more.safetensors" in names
    shutil.rmtree(tmp_path / "out")
    assert recognizers.main(asked) == 0
    assert capsys.readouterr().out == first
    asked = [*asked, "--models", "statistics", "--corpora", "dev", "--folds", "0", "1", "--tests", "dev"]
    assert recognizers.main([*asked, *(str(word) for word in words)]) == 0
    (kept,) = (tmp_path / "rates" / "dev-1").iterdir()
    assert kept.name == "statistics-3-fold01-seed0-dev.safetensors"
    pooled = read_evaluation(next((tmp_path / "out").glob("dev-1/pooled-*")))
    assert len(pooled.scores["full"]) == sum(
        len((dev / "splits" / f"fold{fold}_trials.txt").read_text().splitlines()) for fold in (0, 1)
    )
