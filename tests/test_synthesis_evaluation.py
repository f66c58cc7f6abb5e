"""Evaluation of synthesized speech: metrics of synthetic results, files on disk, and a real model."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from utils.errors import UserError
from utils.features.recipe import RECIPES
from utils.features.store import FeatureStore, Row
from utils.files import read_json, sha256_file, write_json
from utils.tts.asr import judge
from utils.tts.evaluate import Clock, Distortion, Judged, Measured, Sample, SynthesisEvaluation, evaluate_synthesis
from utils.tts.plots import draw_speech
from utils.tts.report import (
    AUDIO,
    UTTERANCES,
    build_synthesis_report,
    synthesis_table,
    write_synthesis_report,
)
from utils.tts.speech_metrics import PitchErrors
from utils.tts.text_lists import read_text_lists

if TYPE_CHECKING:
    from utils.tts.synthesizer import Synthesizer

RECIPE = RECIPES["hifigan-22k"]
TEXTS = ("The cat sat on the mat.", "Paid $2, twice.")
HEARD = ("the cat cat sat on the mat", "paid two dollars")


@dataclass
class Drawn:
    """The parts of a synthesis that a picture shows."""

    mel: np.ndarray
    alignment: np.ndarray
    symbols: tuple[str, ...]


def measured(frames: int, distance: float, text: str | None = None, heard: str = "") -> Measured:
    pitches = PitchErrors(frames, frames // 2, frames // 4, 100.0 * (frames // 2), 400.0 * (frames // 2))
    transcript = None if text is None else judge(text, heard)
    return Measured(frames, Distortion(distance * frames, frames), pitches, transcript)


def unvoiced(one: Judged) -> Judged:
    silent = PitchErrors(one.synthesis.frames, 0, one.synthesis.frames, 0.0, 0.0)
    return one._replace(synthesis=one.synthesis._replace(pitch=silent))


def evaluation(asr: bool = True, utterances: int = 2) -> SynthesisEvaluation:
    """Two utterances of 100 and 300 frames, spoken in 110 and 270."""
    result = SynthesisEvaluation("a model on synthetic data", {"data": "synthetic"}, RECIPE)
    result.clocks = {"acoustic_model": Clock(cpu=0.38, wall=0.19), "vocoder": Clock(cpu=3.8, wall=3.8)}
    frames = ((100, 110), (300, 270))
    for number, (true, predicted) in enumerate(frames[:utterances]):
        text, heard = TEXTS[number], HEARD[number]
        row = Row(f"u{number}", f"u{number}.wav", "synthetic", "voice", "c", "F", text, RECIPE.seconds(true), true)
        synthesis = measured(predicted, 4.0 + number, text if asr else None, heard)
        copy = measured(true, 1.0, text if asr else None, text)
        result.judged.append(Judged(row, 0.5 + number, number == 1, Counter("☃" * number), synthesis, copy))
        mel = np.full((predicted, 80), -5, np.float32)
        spoken = Drawn(mel, np.full((predicted, 3), 1 / 3, np.float32), ("<s>", "a", "</s>"))
        audio = np.linspace(-0.5, 0.5, predicted * RECIPE.hop_length, dtype=np.float32)
        result.samples.append(Sample(row, mel, spoken, audio, audio))
    if not asr:
        result.reasons["asr"] = "no --asr was given"
    return result


def report_of(result: SynthesisEvaluation) -> dict:
    return build_synthesis_report(result, {"model": {"name": "tiny"}}, bootstrap=200, seed=0)


def test_metrics_are_pooled_over_utterances():
    report = report_of(evaluation())
    synthesis, copy = report["synthesis"], report["copy_synthesis"]
    assert synthesis["mcd"] == pytest.approx((110 * 4 + 270 * 5) / 380) and copy["mcd"] == pytest.approx(1)
    assert synthesis["mcd_ci"] == pytest.approx((4, 5)) and copy["mcd_ci"] == pytest.approx((1, 1))
    assert synthesis["f0_rmse_hz"] == pytest.approx(10) and synthesis["f0_rmse_cents"] == pytest.approx(20)
    assert synthesis["voicing_error"] == pytest.approx((27 + 67) / 380)
    # "cat" twice in 6 words; "twice" missing of "paid two dollars twice".
    assert (synthesis["wer"], synthesis["wer_length"]) == (0.2, 10)
    assert (synthesis["wer_insertions"], synthesis["wer_deletions"], synthesis["wer_substitutions"]) == (0.1, 0.1, 0)
    assert synthesis["cer"] == pytest.approx((4 + 6) / (22 + 22)) and synthesis["cer_length"] == 22 + 22
    assert copy["wer"] == 0 and copy["cer_ci"] == (0, 0)
    assert report["duration"]["bias"] == pytest.approx(380 / 400 - 1)
    assert report["duration"]["bias_ci"] == pytest.approx((-0.1, 0.1))
    assert report["duration"]["error"] == pytest.approx(0.1)
    assert report["mel_l1"] == pytest.approx((100 * 0.5 + 300 * 1.5) / 400)
    seconds = RECIPE.seconds(380)
    assert report["real_time_factor"]["vocoder"] == pytest.approx({"cpu": 3.8 / seconds, "wall": 3.8 / seconds})
    assert report["real_time_factor"]["acoustic_model"]["wall"] == pytest.approx(0.19 / seconds)
    assert report["real_time_factor"]["whole"]["cpu"] == pytest.approx((0.38 + 3.8) / seconds)
    assert (report["truncated"], report["unknown_symbols"], report["utterances"]) == (1, {"☃": 1}, 2)


def test_what_is_missing_is_null_with_its_reason():
    report = report_of(evaluation(asr=False, utterances=1))
    assert [report["synthesis"][name] for name in ("cer", "cer_ci", "wer", "wer_insertions")] == [None] * 4
    assert report["synthesis"]["mcd_ci"] is None
    shown = synthesis_table(report)
    assert "CER and WER               no --asr was given" in shown and "words inserted" not in shown
    json.dumps(report, allow_nan=False)


def test_a_synthesis_without_pitch_has_no_f0_error():
    result = evaluation()
    result.judged = [unvoiced(one) for one in result.judged]
    report = report_of(result)
    assert report["synthesis"]["f0_rmse_hz"] is None and report["synthesis"]["voicing_error"] == 1
    assert report["copy_synthesis"]["f0_rmse_hz"] == pytest.approx(10)
    assert "F0 of synthesis           no frame is voiced both" in synthesis_table(report)


def test_the_table_sets_copy_synthesis_beside_synthesis():
    lines = synthesis_table(report_of(evaluation())).splitlines()
    row = {line[:26].strip(): line[26:] for line in lines}
    assert lines[0].split() == ["synthesis", "copy-synthesis"]
    assert row["MCD"].split() == "4.71 dB (4.00 dB to 5.00 dB) 1.00 dB (1.00 dB to 1.00 dB)".split()
    assert row["words inserted"].split() == ["10.00", "%", "0.00", "%"]
    assert row["duration bias"] == "-5.00 % (-10.00 % to +10.00 %)"
    assert "1 cut at the limit" in lines[-1]


def test_the_folder_holds_report_utterances_audio_and_pictures(tmp_path: Path):
    """A new report leaves nothing of the old one."""
    result = evaluation()
    report = report_of(result)
    write_synthesis_report(tmp_path, report, result)
    assert json.loads((tmp_path / "report.json").read_text())["duration"] == json.loads(json.dumps(report["duration"]))
    first, second = map(json.loads, (tmp_path / UTTERANCES).read_text(encoding="utf-8").splitlines())
    assert (first["utterance"], first["truncated"], second["unknown_symbols"]) == ("u0", False, {"☃": 1})
    assert first["synthesis"]["heard"] == HEARD[0] and first["synthesis"]["words"]["insertions"] == 1
    assert second["copy_synthesis"]["mcd"] == pytest.approx(1) and second["predicted_seconds"] < second["seconds"]
    names = [f"u{number}.{what}" for number in (0, 1) for what in ("copy.wav", "png", "synthesis.wav")]
    assert sorted(path.name for path in (tmp_path / AUDIO).iterdir()) == names
    samples, rate = soundfile.read(tmp_path / AUDIO / "u0.synthesis.wav", dtype="float32")
    assert rate == 22_050 and np.abs(samples - result.samples[0].synthesis).max() <= 1 / 2**15
    assert (tmp_path / "durations.png").stat().st_size > 1000
    again = evaluation(utterances=1)
    write_synthesis_report(tmp_path, report_of(again), again, "svg")
    assert sorted(path.name for path in (tmp_path / AUDIO).iterdir()) == ["u0.copy.wav", "u0.svg", "u0.synthesis.wav"]
    assert [path.name for path in tmp_path.glob("durations.*")] == ["durations.svg"]
    assert len((tmp_path / UTTERANCES).read_text().splitlines()) == 1


@pytest.mark.parametrize("tokens", [3, 100])
def test_pictures_show_mels_and_alignment(tmp_path: Path, tokens: int):
    """A picture's height grows with the panels in it, and dollars in a title are no formula."""
    mel = np.linspace(-11, 1, 120 * 80, dtype=np.float32).reshape(120, 80)
    alignment = np.eye(tokens, dtype=np.float32)[np.arange(120) * tokens // 120]
    symbols = ("$",) * tokens
    draw_speech(tmp_path / "a.png", mel, None, (), RECIPE, "from $5 to $6")
    draw_speech(tmp_path / "b.png", mel, alignment, symbols, RECIPE, "from $5 to $6", recording=mel[:90])
    bare, full = imread(tmp_path / "a.png")[..., :3], imread(tmp_path / "b.png")[..., :3]
    assert full.shape[0] > 2 * bare.shape[0] and full.shape[1] == bare.shape[1]
    aligned = np.abs(full - to_rgb(colormaps["Blues"](1.0))).max(axis=-1) < 0.02
    rows, columns = np.nonzero(aligned)
    assert len(rows) > 500 and np.corrcoef(rows, columns)[0, 1] < -0.85  # from the lower left to the upper right
    assert not (np.abs(bare - to_rgb(colormaps["Blues"](1.0))).max(axis=-1) < 0.02).any()


def labels_in(path: Path, pattern: str) -> dict[str, tuple[float, float]]:
    """Texts in an SVG picture that a pattern describes, and where they are, in points."""
    found = re.findall(r'<text [^>]* x="([0-9.]+)" y="([0-9.]+)"[^>]*>([^<]*)</text>', path.read_text())
    return {text: (float(x), float(y)) for x, y, text in found if re.fullmatch(pattern, text)}


def test_symbols_of_120_tokens_are_readable(tmp_path: Path):
    symbols = [f"s{number}" for number in range(121)]
    for tokens in (120, 121):
        alignment = np.eye(tokens, dtype=np.float32)
        draw_speech(tmp_path / f"{tokens}.svg", np.zeros((tokens, 80)), alignment, symbols[:tokens], RECIPE, "many")
    places = labels_in(tmp_path / "120.svg", "s[0-9]+")
    assert set(places) == set(symbols[:120]) and not labels_in(tmp_path / "121.svg", "s[0-9]+")
    for column in (symbols[0:120:2], symbols[1:120:2]):
        heights = np.array([places[symbol][1] for symbol in column])
        assert (-np.diff(heights) > 7).all()  # points, the size of the letters
    assert places["s1"][0] < places["s0"][0] - 15
    assert set(labels_in(tmp_path / "120.svg", "[0-9]{3,4}")) >= {"250", "500", "1000", "2000", "4000"}


@pytest.fixture(scope="module")
def synthesizer(processed_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Synthesizer:
    """A small model that train_tacomamba.py has hardly trained."""
    import train_tacomamba
    from utils.tts.synthesizer import Synthesizer

    run = tmp_path_factory.mktemp("runs") / "voice"
    model = ["--d-model", "16", "--n-layers", "1", "--encoder-layers", "1", "--headdim", "8", "--d-state", "8"]
    training = ["--steps", "2", "--save-every", "2", "--batch-size", "4", "--postnet-channels", "16"]
    arguments = [
        "--task",
        "tts",
        "--data",
        str(processed_voice),
        "--out",
        str(run),
        "--threads",
        "1",
        "--no-tensorboard",
    ]
    assert train_tacomamba.main([*arguments, *model, *training, "--device", "cpu", "--no-tensorboard"]) == 0
    return Synthesizer.load(run, "cpu")


def without_times(result: SynthesisEvaluation) -> dict:
    return {key: value for key, value in report_of(result).items() if key != "real_time_factor"}


def test_a_model_is_measured_beside_copies_of_its_recordings(synthesizer: Synthesizer, processed_voice: Path):
    """Three utterances of the longest list; the metrics are the same the second time."""
    store, lists = FeatureStore.open(processed_voice), read_text_lists(processed_voice / "protocols" / "default")
    result = evaluate_synthesis(synthesizer, processed_voice, "default", ["train"], mcd=True, limit=3, seed=1)
    report = report_of(result)
    assert len({one.row.utterance for one in result.judged} & set(lists.train)) == 3 and not result.warnings
    assert [one.copy.frames for one in result.judged] == [one.row.frames for one in result.judged]
    assert [one.synthesis.frames for one in result.judged] == [len(sample.spoken.mel) for sample in result.samples]
    assert 4 * report["copy_synthesis"]["mcd"] < 4 < report["synthesis"]["mcd"]
    assert report["copy_synthesis"]["f0_rmse_cents"] < 50 and report["copy_synthesis"]["voicing_error"] < 0.3
    assert all(value > 0 for times in report["real_time_factor"].values() for value in times.values())
    expected = [forced_error(synthesizer, store, one.row) for one in result.judged]
    assert [one.mel_l1 for one in result.judged] == pytest.approx(expected)
    again = evaluate_synthesis(synthesizer, processed_voice, "default", ["train"], mcd=True, limit=3, seed=1)
    assert without_times(again) == without_times(result)


def forced_error(synthesizer: Synthesizer, store: FeatureStore, row: Row) -> float:
    place = store.index[row.utterance]
    tokens, mel = torch.from_numpy(store.tokens(place)).long()[None], torch.from_numpy(store.mel(place))[None]
    lengths = torch.tensor([tokens.shape[1]]), torch.tensor([mel.shape[1]])
    return float((synthesizer.model.compare(tokens, lengths[0], mel, lengths[1], None).mel - mel).abs().mean())


def test_splits_are_judged_together(synthesizer: Synthesizer, processed_voice: Path):
    lists = read_text_lists(processed_voice / "protocols" / "default")
    result = evaluate_synthesis(synthesizer, processed_voice, "default", ["valid", "test"])
    assert [one.row.utterance for one in result.judged] == [*lists.valid, *lists.test]
    assert len(lists.valid) and len(lists.test)
    assert list(result.source["splits"]) == ["valid", "test"]
    hashes = [sha256_file(processed_voice / "protocols" / "default" / f"{name}.txt") for name in ("valid", "test")]
    assert list(result.source["splits"].values()) == hashes


def test_without_recordings_f0_is_held_against_the_copies(
    synthesizer: Synthesizer, processed_voice: Path, tmp_path: Path
):
    """The store was moved to a machine that lacks the audio, and another training list was made there."""
    moved = shutil.copytree(processed_voice, tmp_path / "moved")
    meta = read_json(moved / "meta.json")
    write_json(moved / "meta.json", {**meta, "raw": str(tmp_path / "nowhere")})
    train = moved / "protocols" / "default" / "train.txt"
    train.write_text("\n".join(train.read_text().split()[1:]), encoding="utf-8")
    result = evaluate_synthesis(synthesizer, moved, "default", mcd=True)
    report = report_of(result)
    assert "nowhere" in report["reasons"]["copy_f0"] and report["copy_synthesis"]["f0_rmse_hz"] is None
    assert 0 <= report["synthesis"]["voicing_error"] <= 1
    assert len(result.warnings) == 1 and "may have included these utterances" in result.warnings[0]


def test_mcd_and_f0_are_measured_only_where_they_are_asked_for(
    synthesizer: Synthesizer, processed_voice: Path, monkeypatch, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(UserError, match="^--mcd needs the package librosa: pip install -r requirements-demo.txt$"):
        evaluate_synthesis(synthesizer, processed_voice, "default", mcd=True)
    result = evaluate_synthesis(synthesizer, processed_voice, "default", limit=1)
    report = report_of(result)
    assert report["synthesis"]["mcd"] is None and report["copy_synthesis"]["f0_rmse_hz"] is None
    shown = synthesis_table(report)
    for metric in ("MCD", "F0"):
        assert f"{metric:<26}no --mcd was given" in shown
    write_synthesis_report(tmp_path, report, result)
    assert json.loads((tmp_path / UTTERANCES).read_text(encoding="utf-8"))["synthesis"] == {}


def test_what_does_not_fit_is_refused(synthesizer: Synthesizer, processed_voice: Path, processed: Path, tmp_path: Path):
    with pytest.raises(UserError, match="there is no protocol .*; there is default"):
        evaluate_synthesis(synthesizer, processed_voice, "other")
    with pytest.raises(UserError, match="mel recipe"):
        evaluate_synthesis(synthesizer, processed, "default")
    with pytest.raises(UserError, match="there is no vocoder nothing"):
        evaluate_synthesis(synthesizer, processed_voice, "default", vocoder="nothing")
    with pytest.raises(UserError, match="not a model folder of faster-whisper"):
        evaluate_synthesis(synthesizer, processed_voice, "default", asr=tmp_path)
