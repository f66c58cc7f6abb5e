"""test.py on a trained model: reports from features and from raw audio, enrollment, identification, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import answer, call, problems, refused
from root import ROOT

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.features.store import FeatureStore
from utils.features.windows import middle
from utils.speaker.evaluation.report import CONDITIONS
from utils.speaker.protocol import read_protocol, write_protocol
from utils.speaker.recognizer import SpeakerRecognizer, embed_mels
from utils.training.runlog import cpu_time, read_log


@pytest.fixture(scope="module")
def recognizer(trained_run: Path) -> SpeakerRecognizer:
    return SpeakerRecognizer.load(trained_run, "cpu")


@pytest.fixture(scope="module")
def protocol_folder(processed: Path) -> Path:
    return processed / "protocols" / "default"


@pytest.fixture(scope="module")
def evaluated(trained_run: Path, processed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "features"
    words = ["evaluate", "--checkpoint", trained_run, "--data", processed, "--out", out, "--bootstrap", 20]
    assert call(*words) == 0
    return out


def report_in(out: Path) -> dict:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def scores_in(out: Path, name: str = "scores.txt") -> dict[tuple[str, str], float]:
    rows = [line.split() for line in (out / name).read_text().splitlines()]
    return {(a, b): float(score) for score, _, a, b in rows}


def test_evaluation_of_features_reports_everything(evaluated, recognizer, processed, protocol_folder):
    report = report_in(evaluated)
    protocol = read_protocol(protocol_folder)
    assert set(report["verification"]) == set(CONDITIONS)
    for name in ("all", "full", "1.5s", "3s"):
        metrics = report["verification"][name]
        assert metrics["targets"] == sum(trial.target for trial in protocol.trials)
        assert metrics["nontargets"] == sum(not trial.target for trial in protocol.trials)
        assert 0 <= metrics["eer"] <= 1
    assert report["identification"]["utterance"]["n"] == len(protocol.utterance_test)
    assert report["identification"]["chapter"]["n"] == len(protocol.chapter_test)
    assert report["model"]["hash"] == recognizer.model_hash
    assert report["model"]["parameters"] == recognizer.parameters
    assert report["recipe"]["hash"] == FeatureStore.open(processed).recipe.hash
    assert report["training_speakers"] == len(recognizer.speakers) and report["checkpoint"]["step"] > 0
    (trial_file,) = protocol_folder.glob("trials-*.txt")
    assert trial_file.stem.removeprefix("trials-") == report["source"]["trials_sha256"][:8]
    written = {path.name for path in evaluated.iterdir()}
    assert {"report.json", "config.yaml", "det.png", "scores.png", "errors.txt", "scores.txt"} <= written


def test_an_evaluation_records_flags_and_costs_of_the_training(evaluated, trained_run, tmp_path):
    training = report_in(evaluated)["model"]["training"]
    log = [line for line in read_log(trained_run) if line.get("step", 0) <= training["steps"]]
    assert training["steps"] == report_in(evaluated)["checkpoint"]["step"]
    assert training["flags"] == load_checkpoint(trained_run)["config"]
    assert training["cpu_s"] == pytest.approx(cpu_time(log)[1][-1]) and training["cpu_s"] > 0
    assert training["memory_mib"] == max(line["memory_mib"] for line in log)
    alone = shutil.copy(trained_run / "best.pt", tmp_path)
    bare = SpeakerRecognizer.load(alone, "cpu").description(alone)["model"]["training"]
    assert set(bare) == {"steps", "flags"} and bare["flags"] == training["flags"]


def test_identification_by_the_classifier(evaluated, recognizer, processed, protocol_folder):
    store, protocol = FeatureStore.open(processed), read_protocol(protocol_folder)
    correct = 0
    for utterance in protocol.chapter_test:
        place = store.index[utterance]
        embedding = recognizer.embed_mels([store.mel(place)])
        correct += recognizer.speakers[recognizer.classify(embedding).argmax()] == store.rows[place].speaker
    assert report_in(evaluated)["identification"]["chapter"]["accuracy"] == correct / len(protocol.chapter_test)


def test_evaluation_again_by_its_config_is_the_same(evaluated, tmp_path):
    assert call("evaluate", "--config", evaluated / "config.yaml", "--out", tmp_path / "again") == 0
    for name in ("scores.txt", "scores-1.5s.txt", "det.png", "recordings.txt", "identification.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (evaluated / name).read_bytes(), name
    first, again = report_in(evaluated), report_in(tmp_path / "again")
    assert {**first, "config": None} == {**again, "config": None}


def test_without_back_end_the_encoder_alone_gives_the_scores(trained_run, processed, tmp_path):
    words = ["evaluate", "--checkpoint", trained_run, "--data", processed, "--out", tmp_path, "--bootstrap", 2]
    assert call(*words, "--no-back-end") == 0
    recognizer, store = SpeakerRecognizer.load(trained_run), FeatureStore.open(processed)
    scores = scores_in(tmp_path)
    used = {path for pair in scores for path in pair}
    mels = {row.path: store.mel(item) for item, row in enumerate(store.rows) if row.path in used}
    vectors = dict(zip(mels, embed_mels(recognizer.model, list(mels.values()), recognizer.device), strict=True))
    assert all(score == pytest.approx(vectors[a] @ vectors[b], abs=1e-5) for (a, b), score in scores.items())
    assert report_in(tmp_path)["operating_point"] is None


def test_pooling_an_evaluation_with_its_copy_changes_no_rate(evaluated, tmp_path, capsys):
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    report = report_in(evaluated)
    warned = {**report, "warnings": ["a warning"]}
    (copy / "report.json").write_text(json.dumps(warned))
    pooled = answer(capsys, "pool", evaluated, copy, "--out", tmp_path / "pooled", "--bootstrap", 20)
    *warnings, repeated = pooled["warnings"]
    assert warnings == [*report["warnings"], "a warning"] and "of several evaluations" in repeated
    assert pooled["verification"]["all"]["eer"] == pytest.approx(report["verification"]["all"]["eer"])
    assert pooled["verification"]["all"]["targets"] == 2 * report["verification"]["all"]["targets"]
    assert pooled["models"] == [report["model"]] * 2 and pooled == report_in(tmp_path / "pooled")


def test_evaluations_are_not_replaced_by_what_is_made_of_them(evaluated, tmp_path, capsys):
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for words in (
        ["pool", copy, evaluated],
        ["compare", evaluated, copy],
        ["compare", evaluated, copy / "rates.safetensors"],
    ):
        assert "is one of the evaluations" in problems(capsys, *words, "--out", copy)
    assert "is given twice" in problems(capsys, "pool", copy, copy, "--out", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores.txt", lambda lines: ["0.5\n", *lines[1:]]),
        ("scores.txt", lambda lines: ["high " + lines[0].split(" ", 1)[1], *lines[1:]]),
        ("scores-3s.txt", lambda lines: lines[1:]),
        ("recordings.txt", lambda lines: lines[1:]),
    ],
)
def test_damaged_files_of_an_evaluation_are_named(evaluated, tmp_path, capsys, name, change):
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    (copy / name).write_text("".join(change((copy / name).read_text().splitlines(keepends=True))))
    said = problems(capsys, "pool", copy, evaluated, "--out", tmp_path / "out")
    assert f"the files in {copy} are damaged" in said and "run evaluate again" in said


def test_raw_audio_gives_the_scores_of_its_features(
    evaluated, trained_run, librispeech_root, protocol_folder, recognizer, tmp_path, capsys
):
    (trials,) = protocol_folder.glob("trials-*.txt")
    lists = [protocol_folder / f"identification_{name}.txt" for name in ("train", "utterance_test")]
    words = ["--trials", trials, "--audio-root", librispeech_root, "--identification", *lists, "--bootstrap", 20]
    report = answer(capsys, "evaluate", "--checkpoint", trained_run, *words, "--out", tmp_path)
    for name in ("scores.txt", "scores-1.5s.txt", "scores-3s.txt"):
        stored, raw = scores_in(evaluated, name), scores_in(tmp_path, name)
        assert stored.keys() == raw.keys()
        # Stored features are float16: log-mels of size 10 are off by up to 0.004.
        assert max(abs(stored[pair] - raw[pair]) for pair in stored) < 0.01, name
    assert (
        report["verification"]["same_sex"]["nontargets"]
        == (report_in(evaluated)["verification"]["same_sex"]["nontargets"])
    )
    assert report["identification"]["utterance"]["n"] == len(lists[1].read_text().splitlines())
    assert report["identification"]["chapter"] == {
        "accuracy": None,
        "n": 0,
        "reason": "no test recordings of this kind",
    }


def test_identification_lists_alone_split_by_chapter(trained_run, voices, librispeech_root, tmp_path, capsys):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    rows = {
        train: [(speaker, path) for speaker in ("101", "105") for path in voices[speaker][:3]],
        test: [(speaker, path) for speaker in ("101", "105") for path in (voices[speaker][4], voices[speaker][-1])],
    }
    for file, items in rows.items():
        file.write_text("".join(f"{speaker} {path.relative_to(librispeech_root)}\n" for speaker, path in items))
    words = ["--identification", train, test, "--audio-root", librispeech_root, "--out", tmp_path / "out"]
    report = answer(capsys, "evaluate", "--checkpoint", trained_run, *words)
    assert [report["identification"][part]["n"] for part in ("utterance", "chapter")] == [2, 2]
    assert report["verification"]["all"]["eer"] is None
    assert report["verification"]["all"]["reason"] == "no trial list was given"


def test_embeddings_do_not_depend_on_company(recognizer, processed):
    """Padding and batching change only the order of floating-point sums: at most 1e-5 of a unit vector."""
    store = FeatureStore.open(processed)
    mels = [store.mel(place) for place in range(0, 40, 3)] + [store.mel(0, 0, 40), store.mel(1, 0, 9)]
    together = recognizer.embed_mels(mels)
    alone = np.concatenate([recognizer.embed_mels([mel]) for mel in mels])
    backwards = recognizer.embed_mels(mels[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - backwards).max() < 1e-5
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(mels)), abs=1e-5)


def test_durations_read_each_recording_once(recognizer, processed):
    store, read = FeatureStore.open(processed), []

    def reading(place: int) -> np.ndarray:
        read.append(place)
        return store.mel(place)

    whole, cut = recognizer.embed_durations(range(5), reading, [None, 0.5])
    assert read == list(range(5))
    frames = store.recipe.frames(8000)
    mels = [store.mel(place) for place in range(5)]
    assert whole == pytest.approx(recognizer.embed_mels(mels), abs=1e-5)
    assert cut == pytest.approx(recognizer.embed_mels([middle(mel, frames) for mel in mels]), abs=1e-5)


def test_middle():
    mel = np.arange(10, dtype=np.float32)[:, None]
    assert middle(mel, 4)[:, 0].tolist() == [3, 4, 5, 6]
    assert middle(mel, 11) is not None and len(middle(mel, 11)) == 10


def test_model_hash_names_weights_and_recipe(trained_run, recognizer, tmp_path):
    shutil.copy(trained_run / "best.pt", tmp_path / "elsewhere.pt")
    assert SpeakerRecognizer.load(tmp_path / "elsewhere.pt", "cpu").model_hash == recognizer.model_hash
    checkpoint = load_checkpoint(trained_run)
    name = next(name for name, tensor in checkpoint["model"].items() if tensor.is_floating_point())
    checkpoint["model"][name] = checkpoint["model"][name] + 1e-3
    save_checkpoint(tmp_path / "changed.pt", checkpoint)
    assert SpeakerRecognizer.load(tmp_path / "changed.pt", "cpu").model_hash != recognizer.model_hash


CONTRADICTIONS = {
    "--data D --trials T --audio-root R": ["--data and --trials contradict", "--data and --audio-root contradict"],
    "--trials T": ["--trials need --audio-root"],
    "--identification A B": ["--identification need --audio-root"],
    "--audio-root R": ["--audio-root needs --trials or --identification"],
    "": ["nothing to evaluate: "],
    "--trials T --protocol p": ["--trials need --audio-root", "--protocol needs --data"],
    "--audio-root R --identification A B --keep-features K": ["--keep-features needs --trials"],
    "--data D --bootstrap 0 --seed -1": ["--bootstrap: must be at least 1", "--seed: must be at least 0"],
}


@pytest.mark.parametrize("flags", CONTRADICTIONS)
def test_contradicting_flags_are_all_named(flags, tmp_path, capsys):
    assert call("evaluate", "--checkpoint", "C", "--out", tmp_path / "out", *flags.split()) == 2
    shown = capsys.readouterr().err
    assert all(sentence in shown for sentence in CONTRADICTIONS[flags]), shown
    assert not (tmp_path / "out").exists()


def test_recipes_that_differ_are_refused(trained_run, processed, recognizer, tmp_path, capsys):
    checkpoint = load_checkpoint(trained_run)
    checkpoint["recipe"]["hop_length"] = 200
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    words = ["--checkpoint", tmp_path / "other.pt", "--data", processed, "--out", tmp_path / "out"]
    sentence = refused(capsys, "evaluate", *words)
    assert "hop_length 160 against 200" in sentence and recognizer.recipe.hash in sentence


def test_a_checkpoint_trained_on_held_out_speakers_is_refused(trained_run, processed, tmp_path, capsys):
    data = shutil.copytree(processed, tmp_path / "data")
    store = FeatureStore.open(data)
    protocol = read_protocol(data / "protocols" / "default")
    trained = sorted({store.rows[store.index[utterance]].speaker for utterance in protocol.train})[0]
    for part in ("train", "valid", "utterance_test", "chapter_test"):
        kept = [name for name in getattr(protocol, part) if store.rows[store.index[name]].speaker != trained]
        setattr(protocol, part, kept)
    protocol.name, protocol.heldout_speakers = "other", sorted([*protocol.heldout_speakers, trained])
    write_protocol(data / "protocols" / "other", protocol, store.rows)
    words = ["--checkpoint", trained_run, "--data", data, "--protocol", "other", "--out", tmp_path / "out"]
    assert f"was trained on 1 of the speakers that protocol other holds out ({trained})" in refused(
        capsys, "evaluate", *words
    )


def test_bad_lists_are_refused(trained_run, librispeech_root, voices, tmp_path, capsys):
    real = voices["101"][0].relative_to(librispeech_root)
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text(f"101 {real}\n")

    def evaluate(flag: str, content: str) -> str:
        bad.write_text(content)
        lists = [good, bad] if flag == "--identification" else [bad]
        words = [flag, *lists, "--audio-root", librispeech_root, "--out", tmp_path / "out"]
        return refused(capsys, "evaluate", "--checkpoint", trained_run, *words)

    missing = evaluate("--trials", f"1 {real} no/1.flac\n0 no/2.flac no/1.flac\n")
    assert f"2 of the 3 audio files in {bad} are not under {librispeech_root}, the first is no/1.flac" in missing
    assert "line 2" in evaluate("--trials", f"1 {real} no/1.flac\nmaybe a b\n")
    other = voices["102"][0].relative_to(librispeech_root)
    assert "has 1 speakers that" in evaluate("--identification", f"102 {other}\n")
    assert f"1 recordings are in both {good} and {bad}" in evaluate("--identification", f"101 {real}\n")
    assert not (tmp_path / "out" / "report.json").exists()


def test_checkpoints_that_cannot_serve_are_refused(trained_run, voices, tmp_path, capsys):
    checkpoint = load_checkpoint(trained_run)
    save_checkpoint(tmp_path / "tts.pt", {**checkpoint, "task": "tts"})
    save_checkpoint(tmp_path / "few.pt", {**checkpoint, "speakers": checkpoint["speakers"][:-1]})
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in checkpoint["model"].items() if "std" in name}
    save_checkpoint(tmp_path / "nan.pt", {**checkpoint, "model": {**checkpoint["model"], **broken}})
    (tmp_path / "text.pt").write_text("not a checkpoint")
    sentences = {
        "nowhere.pt": "there is no checkpoint",
        "text.pt": "is not a checkpoint",
        "tts.pt": "one of --task speaker is needed",
        "few.pt": "do not fit",
        "nan.pt": "not finite",
    }
    for name, sentence in sentences.items():
        assert sentence in refused(capsys, "embed", "--checkpoint", tmp_path / name, voices["101"][0])
    assert "cannot be used" in refused(
        capsys, "embed", "--checkpoint", trained_run, "--device", "abacus", voices["101"][0]
    )


def test_a_refusal_in_a_process_of_its_own(trained_run, tmp_path):
    command = [sys.executable, ROOT / "test.py", "identify", "--checkpoint", trained_run, "--store", "none", "a.wav"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: a.wav is missing; python download.py --dataset demo makes recordings to try\n"


@pytest.mark.real
def test_real_trials_of_unseen_speakers(trained_run, real_data, tmp_path, capsys):
    """A list over real recordings, of which three of the five speakers have two chapters."""
    root = real_data / "speakers_dev"
    trials = tmp_path / "trials.txt"
    trials.write_text("".join((root / "splits" / "fold1_trials.txt").open().readlines()[:60]))
    words = ["--trials", trials, "--audio-root", root, "--out", tmp_path / "out", "--bootstrap", 50]
    report = answer(capsys, "evaluate", "--checkpoint", trained_run, *words)
    metrics = report["verification"]
    assert metrics["all"]["targets"] + metrics["all"]["nontargets"] == 60
    assert 0 < metrics["cross_chapter"]["targets"] < metrics["all"]["targets"]
    assert 0 < metrics["same_sex"]["nontargets"] < metrics["all"]["nontargets"]
    assert metrics["all"]["eer_ci"][0] <= metrics["all"]["eer"] <= metrics["all"]["eer_ci"][1]
