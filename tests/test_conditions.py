"""Test conditions: what they do to samples, and evaluations in them from stored and from raw audio."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import test
from utils.features.recipe import RECIPES
from utils.features.store import FeatureStore
from utils.lists import Trial
from utils.speaker.evaluation.conditions import CONDITIONS, Degrader, parse_conditions
from utils.speaker.evaluation.kept_features import KeptFeatures
from utils.speaker.evaluation.metrics import act_dcf, cllr, eer, min_cllr, rates_at
from utils.speaker.evaluation.results import Evaluation, read_evaluation
from utils.speaker.evaluation.trials import Origin, TrialSet
from utils.speaker.protocol import read_protocol, write_protocol
from utils.speaker.recognizer import SpeakerRecognizer

EVERY = "clean,level,noise,babble,telephone,mp3,reverb,tilt,cut"
RATE = 16_000


def call(*words: object) -> int:
    try:
        return test.main([str(word) for word in words])
    except SystemExit as stopped:
        return stopped.code


@pytest.fixture(scope="module")
def evaluated(stored, trained_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("conditions") / "evaluated"
    words = [
        "--checkpoint",
        trained_run,
        "--data",
        stored,
        "--conditions",
        EVERY,
        "--out",
        out,
        "--bootstrap",
        20,
    ]
    assert call("evaluate", *words) == 0
    return out


def report_in(out: Path) -> dict:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def ratios(run: Path, data: Path, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Name of a condition -> log-likelihood ratios (3, n), by a checkpoint's calibration and the lengths of both."""
    recognizer, store, found = SpeakerRecognizer.load(run), FeatureStore.open(data), {}
    recipe, rows, trials = store.recipe, {row.path: row for row in store.rows}, evaluation.trials
    frames = np.array([rows[item].frames for item in trials.items])
    for name in CONDITIONS:
        most = recipe.frames(int(name[-1]) * recipe.sample_rate) if name.startswith("cut") else frames.max()
        whole, cut = (recipe.seconds(side) for side in (frames, np.minimum(frames, most)))
        pairs = [(x[trials.a], y[trials.b]) for x, y in ((cut, cut), (cut, whole), (whole, cut))]
        of_sides = zip(evaluation.conditions[name], pairs, strict=True)
        found[name] = np.array([recognizer.scoring.calibration(cosines, *pair) for cosines, pair in of_sides])
    return found


def test_each_condition_is_reported_with_both_sides_and_with_one(evaluated, trained_run, stored):
    report, evaluation = report_in(evaluated), read_evaluation(evaluated)
    targets, llrs = evaluation.trials.targets, ratios(trained_run, stored, evaluation)
    assert list(report["conditions"]) == ["clean", *CONDITIONS] and list(evaluation.conditions) == [*CONDITIONS]
    assert report["conditions"]["clean"]["both"] == report["verification"]["all"]
    assert report["verification"]["all"]["operating_point"] == report["operating_point"]
    for name, cosines in evaluation.conditions.items():
        expected = {"both": (cosines[0], targets), "one": (cosines[1:].ravel(), np.tile(targets, 2))}
        np.testing.assert_allclose(evaluation.derived["llr"][name], llrs[name], rtol=1e-5, atol=1e-4)
        by_side = {"both": llrs[name][0], "one": llrs[name][1:].ravel()}
        for sides, data in expected.items():
            metrics = report["conditions"][name][sides]
            assert metrics["eer"] == eer(*data)[0] and metrics["targets"] == data[1].sum()
            point, values = metrics["operating_point"], (by_side[sides], data[1])
            assert (point["false_rejection"], point["false_acceptance"]) == rates_at(*values, 0)
            assert metrics["cllr"] == pytest.approx(cllr(*values), abs=1e-5)
            assert metrics["min_cllr"] == pytest.approx(min_cllr(*values), abs=1e-5)
            assert metrics["act_dcf_0.05"] == pytest.approx(act_dcf(*values, 0.05), abs=1e-5)
            assert len({tuple(row) for row in cosines.tolist()}) == 3, f"{name} changes nothing"


def test_the_table_has_two_lines_for_a_condition(evaluated, trained_run, stored, tmp_path, capsys):
    words = ["--checkpoint", trained_run, "--data", stored, "--out", tmp_path / "out", "--bootstrap", 5]
    assert call("evaluate", *words, "--conditions", "telephone") == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("condition "))
    assert [line[:15].rstrip() for line in lines[place + 1 : place + 4]] == ["clean", "telephone", "  one side"]
    assert "actDCF" in lines[place] and all(line.endswith(" %") for line in lines[place + 1 : place + 4])
    assert call("evaluate", *words) == 0
    assert "condition " not in capsys.readouterr().out and report_in(tmp_path / "out")["conditions"] == {}
    assert not (tmp_path / "out" / "conditions.safetensors").exists()


def test_scores_are_those_of_embeddings_of_degraded_samples(evaluated, stored, trained_run):
    recognizer, store = SpeakerRecognizer.load(trained_run, "cpu"), FeatureStore.open(stored)
    evaluation = read_evaluation(evaluated)
    trials, rows = evaluation.trials, {row.path: item for item, row in enumerate(store.rows)}
    path, other = trials.items[trials.a[0]], trials.items[trials.b[0]]
    middles = [store.audio(rows[name]) for name in (path, other)]
    middles = [samples[(len(samples) - RATE) // 2 :][:RATE] for samples in middles]
    cut = recognizer.embed_mels([recognizer.mel_of_samples("", samples) for samples in middles])
    whole = recognizer.embed_mels([store.mel(rows[name]) for name in (path, other)])
    expected = [cut[0] @ cut[1], cut[0] @ whole[1], whole[0] @ cut[1]]
    assert evaluation.conditions["cut1"][:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_same_bits_again_from_raw_audio_and_in_another_order(
    evaluated, stored, trained_run, librispeech_root, tmp_path
):
    words = ["--config", evaluated / "config.yaml", "--out", tmp_path / "again"]
    assert call("evaluate", *words) == 0
    for name in ("conditions.safetensors", "scores.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (evaluated / name).read_bytes()
    (listed,) = (stored / "protocols" / "default").glob("trials-*.txt")
    lines = listed.read_text().splitlines(keepends=True)
    order = random.Random(0).sample(range(len(lines)), len(lines))
    (tmp_path / "trials.txt").write_text("".join(lines[number] for number in order))
    raw = ["--audio-root", librispeech_root, "--trials", tmp_path / "trials.txt", "--conditions", EVERY]
    assert call("evaluate", "--checkpoint", trained_run, *raw, "--out", tmp_path / "raw", "--bootstrap", 5) == 0
    first, again = (load_file(out / "conditions.safetensors") for out in (evaluated, tmp_path / "raw"))
    assert first.keys() == again.keys()
    for name, cosines in first.items():
        np.testing.assert_allclose(again[name], cosines[:, order], atol=1e-6, err_msg=name)


def test_kept_features_give_the_same_bits_and_are_not_written_again(
    stored, trained_run, librispeech_root, tmp_path, capsys
):
    (listed,) = (stored / "protocols" / "default").glob("trials-*.txt")
    words = ["evaluate", "--checkpoint", trained_run, "--audio-root", librispeech_root, "--trials", listed]
    words += ["--conditions", "level,babble", "--bootstrap", 5]
    keep, outs = ["--keep-features", tmp_path / "kept"], [tmp_path / name for name in ("computed", "first", "again")]
    times = []
    for out, more in zip(outs, ([], keep, keep), strict=True):
        assert call(*words, "--out", out, *more) == 0
        times.append({path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npy")})
    for name in ("conditions.safetensors", "scores.txt", "scores-3s.txt"):
        assert len({(out / name).read_bytes() for out in outs}) == 1
    recordings = len((outs[0] / "recordings.txt").read_text().splitlines())
    assert len(times[1]) == 3 * recordings and times[2] == times[1]
    min(times[1]).write_bytes(b"damaged")
    assert call(*words, "--out", tmp_path / "out", *keep) == 2
    assert f"{min(times[1])} is damaged" in capsys.readouterr().err


def test_babble_is_made_anew_if_any_recording_has_changed(tmp_path):
    """It consists of the other recordings."""
    origins = {name: Origin(name[0], "", "") for name in ("a.wav", "b.wav")}
    for name in origins:
        (tmp_path / name).write_bytes(b"old")
    trials, made = TrialSet.build([Trial(False, "a.wav", "b.wav")], origins), []

    def make() -> np.ndarray:
        made.append(0)
        return np.zeros((1, 80), np.float32)

    def count(name: str) -> int:
        before = len(made)
        KeptFeatures(tmp_path / "kept", RECIPES["speaker-16k"], tmp_path, trials).mel(name, "a.wav", make)
        return len(made) - before

    assert [count(name) for name in ("babble", "noise", "babble", "noise")] == [1, 1, 0, 0]
    (tmp_path / "b.wav").write_bytes(b"newer")
    assert [count(name) for name in ("babble", "noise")] == [1, 0]


def test_pooled_evaluations_keep_their_conditions(evaluated, tmp_path):
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    assert call("pool", evaluated, copy, "--out", tmp_path / "pooled", "--bootstrap", 5) == 0
    pooled, report = report_in(tmp_path / "pooled")["conditions"], report_in(evaluated)["conditions"]
    assert pooled["noise"]["one"]["eer"] == pytest.approx(report["noise"]["one"]["eer"])
    assert pooled["noise"]["one"]["targets"] == 2 * report["noise"]["one"]["targets"]
    assert pooled["noise"]["one"]["cllr"] == pytest.approx(report["noise"]["one"]["cllr"])


@pytest.fixture
def recordings() -> dict[str, np.ndarray]:
    """Path -> two to three seconds of noise that a syllable of 0.25 s interrupts, of three speakers."""
    draw = np.random.default_rng(0)
    found = {}
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1"):
        samples = 0.1 * draw.standard_normal(int(draw.integers(2 * RATE, 3 * RATE)))
        found[name] = (samples * (1 + (np.arange(len(samples)) // 4000) % 2)).astype(np.float32)
    return found


def degrader(recordings, names=None, read=None) -> Degrader:
    speakers = {name: name[0] for name in names or recordings}
    return Degrader(speakers, read or recordings.__getitem__, RATE)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_degradation_depends_on_its_recording_alone(name, recordings):
    everything, few = degrader(recordings), degrader(recordings, ["b/2", "a/2", "a/1"])
    first = everything(name, "a/1")
    everything(name, "b/1")
    np.testing.assert_array_equal(everything(name, "a/1"), first)
    same = np.array_equal(few(name, "a/1"), first)
    assert same != (name == "babble") and np.isfinite(first).all() and first.dtype == np.float32


def test_random_degradations_differ_between_recordings(recordings):
    recordings["a/2"] = recordings["a/1"]
    for name in ("noise", "reverb"):
        assert not np.array_equal(degrader(recordings)(name, "a/1"), degrader(recordings)(name, "a/2"))


def test_babble_is_of_other_speakers(recordings):
    read = []
    voices = degrader(recordings, read=lambda path: read.append(path) or recordings[path])
    voices("babble", "a/1")
    assert read[0] == "a/1" and len(read) == 6 and {path[0] for path in read[1:]} <= {"b", "c"}


def test_conditions_have_their_settings(recordings):
    clean = recordings["a/1"]
    done = {name: degrader(recordings)(name, "a/1") for name in CONDITIONS}
    assert np.abs(done["level"] - 0.1 * clean).max() <= 0.5 / 32_768 + 1e-7
    np.testing.assert_array_equal(np.rint(done["level"] * 32_768), done["level"] * 32_768)
    for name in ("noise", "babble"):
        ratio = np.square(clean).mean() / np.square(done[name] - clean).mean()
        assert 10 * np.log10(ratio) == pytest.approx(10, abs=2), name
    assert (len(done["cut1"]), len(done["cut2"])) == (RATE, 2 * RATE)
    np.testing.assert_array_equal(done["cut1"], done["cut2"][RATE // 2 : -RATE // 2])
    frequencies = np.fft.rfftfreq(len(clean), 1 / RATE)
    for name, lowest in (("tilt", 6000), ("telephone", 4200)):
        power = np.square(np.abs(np.fft.rfft(done[name])))
        assert power[frequencies > lowest].sum() < 1e-3 * power.sum(), name


def test_conditions_without_trials_are_refused(stored, trained_run, tmp_path, capsys):
    data = shutil.copytree(stored, tmp_path / "data")
    rows, default = FeatureStore.open(data).rows, read_protocol(data / "protocols" / "default")
    write_protocol(data / "protocols" / "none", dataclasses.replace(default, name="none", trials=[]), rows)
    words = ["evaluate", "--checkpoint", trained_run, "--data", data, "--out", tmp_path / "out", "--protocol", "none"]
    assert call(*words, "--conditions", "level") == 2
    assert "has no trials, so there is nothing to degrade" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lists_of_conditions():
    assert parse_conditions("clean") == [] and parse_conditions("noise, clean,cut,noise") == ["noise", "cut1", "cut2"]
    with pytest.raises(ValueError, match="there is no condition 'rain'"):
        parse_conditions("noise,rain")


def test_the_help_names_every_condition(capsys):
    assert call("evaluate", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(dict.fromkeys(name.rstrip("12") for name in CONDITIONS)) in shown


def refused(capsys, *words: object) -> str:
    assert call("evaluate", *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_what_cannot_be_tested_is_refused(trained_run, processed, librispeech_root, tmp_path, capsys):
    model, out = ["--checkpoint", trained_run], ["--out", tmp_path / "out"]
    sentence = refused(capsys, *model, "--data", processed, "--conditions", "cut", *out)
    assert "--store audio" in sentence and sentence.count("\n") == 1
    assert not (tmp_path / "out" / "report.json").exists()
    assert "no condition 'rain'" in refused(capsys, *model, "--data", processed, "--conditions", "rain", *out)
    lists = ["--identification", "a", "b", "--audio-root", librispeech_root]
    assert "--conditions needs --trials" in refused(capsys, *model, *lists, "--conditions", "noise", *out)
    protocol = read_protocol(processed / "protocols" / "default")
    speaker = protocol.heldout_speakers[0]
    chosen = [trial for trial in protocol.trials if f"/{speaker}/" in trial.a and f"/{speaker}/" in trial.b]
    (tmp_path / "one.txt").write_text("".join(f"1 {trial.a} {trial.b}\n" for trial in chosen))
    raw = ["--audio-root", librispeech_root, "--trials", tmp_path / "one.txt"]
    assert "at least two speakers" in refused(capsys, *model, *raw, "--conditions", "babble", *out)
    assert call("evaluate", *model, "--data", processed, "--conditions", "clean", *out, "--bootstrap", 5) == 0
