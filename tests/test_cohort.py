"""Adaptive s-norm against its definition, and evaluations and checkpoints with a cohort."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import answer, call, problems
from safetensors.numpy import load_file, save_file
from test_operating import voices

import preprocess
import train_tacomamba
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.speaker.embedding_file import write_embeddings
from utils.speaker.evaluation.metrics import eer
from utils.speaker.evaluation.results import COSINE, read_evaluation
from utils.speaker.packing import generated_voice
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.scoring.cohort import MIN_COHORT, Cohort, cohort_recordings, normalize
from utils.speaker.scoring.scoring import Scoring


def slow_s_norm(first: np.ndarray, second: np.ndarray, cohort: np.ndarray, top: int) -> float:
    """Matejka et al. 2017, one trial at a time."""
    score, result = float(first @ second), 0.0
    for side in (first, second):
        nearest = sorted((float(side @ other) for other in cohort), reverse=True)[:top]
        mean = sum(nearest) / len(nearest)
        spread = (sum((value - mean) ** 2 for value in nearest) / len(nearest)) ** 0.5
        result += 0.5 * (score - mean) / spread
    return result


@pytest.mark.parametrize("top", [5, 30, 1000])
def test_normalized_scores_are_those_of_the_definition(seed, top):
    vectors = np.random.default_rng(seed).permutation(voices(9, 5, 0.8)[0])
    cohort, first, second = Cohort(vectors[:30], top), vectors[30:37], vectors[37:44]
    statistics = [cohort.statistics(each) for each in (first, second)]
    found = normalize(np.einsum("nd,nd->n", first, second, dtype=np.float64), *statistics)
    expected = [slow_s_norm(*pair, vectors[:30], top) for pair in zip(first, second, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)
    matrix = Scoring(cohort).scores(first, second)
    assert np.diagonal(matrix) == pytest.approx(found, abs=1e-5) and matrix.shape == (7, 7)
    assert Scoring(cohort).scores(second, first) == pytest.approx(matrix.T, abs=1e-5)


def test_each_voice_of_a_cohort_is_the_mean_of_two_speakers():
    cohort = Cohort.fit(np.repeat(np.eye(60, dtype=np.float32), 3, axis=0), [f"s{n // 3:02d}" for n in range(180)])
    shares = cohort.embeddings.round(6)
    assert shares.shape == (60, 60) and cohort.top == 30
    assert ((shares > 0).sum(0) == 2).all() and ((shares > 0).sum(1) == 2).all()
    assert shares[shares > 0] == pytest.approx(0.5**0.5)
    again = Cohort.from_tensors(cohort.to_tensors())
    assert again.top == 30 and (again.embeddings == cohort.embeddings).all()


def test_a_cohort_is_of_at_most_two_recordings_of_two_hundred_speakers():
    labels = [f"s{number % 260}" for number in range(1000)]
    places = cohort_recordings(labels)
    chosen = [labels[place] for place in places]
    assert len(set(places)) == len(places) == 400 and len(set(chosen)) == 200
    assert cohort_recordings([f"s{number}" for number in range(MIN_COHORT - 1)]) == []
    assert len(cohort_recordings([f"s{number}" for number in range(MIN_COHORT)])) == MIN_COHORT


@pytest.fixture(scope="module")
def cohort(trained_run, librispeech_root: Path, tmp_path_factory) -> Path:
    """Recordings of all voices, embedded."""
    out = tmp_path_factory.mktemp("cohort") / "cohort.safetensors"
    audio = sorted((librispeech_root / "LibriSpeech").rglob("*-000[0-3].flac"))
    assert call("embed", "--checkpoint", trained_run, "--out", out, *audio) == 0
    return out


def test_an_evaluation_reports_every_kind_of_score(trained_run, stored, cohort, tmp_path, capsys):
    words = ["evaluate", "--checkpoint", trained_run, "--data", stored, "--bootstrap", 5, "--conditions", "telephone"]
    plain = answer(capsys, *words, "--out", tmp_path / "plain")
    assert plain["checkpoint"]["scores"] == "cosine" and "cosine" not in plain["verification"]["all"]
    normed = ["--cohort", cohort, "--cohort-top", 10, "--out", tmp_path / "normed"]
    report = answer(capsys, *words, *normed)
    evaluation = read_evaluation(tmp_path / "normed")
    targets, found = evaluation.trials.targets, report["verification"]["1.5s"]
    assert report["checkpoint"]["scores"] == "s-norm" and found["cllr"] is None
    assert found["eer"] == eer(evaluation.scores["1.5s"], targets)[0]
    assert found["cosine"]["eer"] == eer(evaluation.derived[COSINE]["1.5s"], targets)[0]
    for name, metrics in plain["verification"].items():
        if metrics["eer"] is not None:
            cosine = report["verification"][name]["cosine"]
            assert cosine == {key: pytest.approx(metrics[key], abs=1e-6) for key in cosine}
    assert evaluation.derived[COSINE]["telephone"].shape == (3, len(targets))
    assert report["conditions"]["telephone"]["one"]["cosine"]["eer"] >= 0
    recognizer, store = SpeakerRecognizer.load(trained_run, "cpu"), FeatureStore.open(stored)
    place = {row.path: number for number, row in enumerate(store.rows)}
    first, second = (evaluation.trials.items[side[0]] for side in (evaluation.trials.a, evaluation.trials.b))
    pair = recognizer.embed_mels([store.mel(place[path]) for path in (first, second)])
    others = load_file(cohort)["embeddings"]
    assert evaluation.scores["full"][0] == pytest.approx(slow_s_norm(*pair, others, 10), abs=1e-2)
    assert call(*words, *normed) == 0
    block = capsys.readouterr().out.partition("by s-norm")[2]
    assert "cross_chapter" in block and "telephone, one side" in block
    copy = shutil.copytree(tmp_path / "normed", tmp_path / "copy")
    pooled = answer(capsys, "pool", tmp_path / "normed", copy, "--out", tmp_path / "all")
    first, again = (each["verification"]["1.5s"]["eer"] for each in (report, pooled))
    assert again == pytest.approx(first)


def test_training_and_pack_make_the_same_cohort(tmp_path, capsys):
    """Of 50 speakers, by two short recordings of four of each; four speakers more are for validation."""
    for speaker in range(100, 154):
        for number in range(4):
            path = tmp_path / "raw" / "LibriSpeech" / "many" / f"{speaker}" / "1" / f"{speaker}-1-{number:04d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, generated_voice(speaker, 1 + number / 10, 16_000), 16_000)
    words = ["--layout", "librispeech", "--raw", tmp_path / "raw", "--split", "many", "--out", tmp_path / "data"]
    words += ["--heldout-speakers", 0, "--valid-speakers", 4, "--no-identification-tests"]
    assert preprocess.main([str(word) for word in words]) == 0
    small = "--d-model 16 --headdim 8 --d-state 4 --n-layers 1 --pooled-channels 16 --embedding-dim 12 --batch-size 8"
    words = ["--task", "speaker", "--data", tmp_path / "data", "--out", tmp_path / "run", "--steps", 2, *small.split()]
    assert train_tacomamba.main([str(word) for word in [*words, "--no-tensorboard"]]) == 0
    trained = load_checkpoint(tmp_path / "run")
    assert trained["cohort"]["embeddings"].shape == (50, 12) and trained["cohort"]["top"] == 25
    capsys.readouterr()
    answer(capsys, "pack", "--checkpoint", tmp_path / "run", "--data", tmp_path / "data", "--out", tmp_path / "packed")
    packed = load_checkpoint(tmp_path / "packed")
    np.testing.assert_allclose(packed["cohort"]["embeddings"], trained["cohort"]["embeddings"], rtol=0, atol=1e-4)
    assert packed["metrics"]["valid_eer"] == pytest.approx(trained["metrics"]["valid_eer"], abs=0.05)


def test_a_checkpoint_keeps_the_cohort_that_it_decides_by(
    trained_run, stored, cohort, librispeech_root, tmp_path, capsys
):
    """Its own cohort gives the scores of the same one in a file, and log-likelihood ratios too."""
    content, vectors = load_checkpoint(trained_run), load_file(cohort)["embeddings"]
    content["cohort"] = Cohort(vectors, 10).to_tensors()
    save_checkpoint(tmp_path / "with.pt", content)
    words = ["evaluate", "--data", stored, "--bootstrap", 5]
    own = answer(capsys, *words, "--checkpoint", tmp_path / "with.pt", "--out", tmp_path / "own")
    file = ["--checkpoint", trained_run, "--cohort", cohort, "--cohort-top", 10]
    given = answer(capsys, *words, *file, "--out", tmp_path / "given")
    without = answer(capsys, *words, "--checkpoint", tmp_path / "with.pt", "--no-s-norm", "--out", tmp_path / "without")
    plain = answer(capsys, *words, "--checkpoint", trained_run, "--out", tmp_path / "plain")
    assert own["verification"]["1.5s"]["eer"] == given["verification"]["1.5s"]["eer"]
    assert own["verification"]["1.5s"]["cllr"] > 0
    assert without["verification"]["1.5s"]["eer"] == plain["verification"]["1.5s"]["eer"]
    assert without["verification"]["1.5s"]["cllr"] is None
    a, b = sorted((librispeech_root / "LibriSpeech").rglob("*-0000.flac"))[:2]
    recognizer = SpeakerRecognizer.load(tmp_path / "with.pt", "cpu")
    pair, seconds = recognizer.embed_speech([a, b])
    score = slow_s_norm(*pair, vectors, 10)
    assert recognizer.compare(a, b) == pytest.approx(recognizer.scoring.calibration(score, *seconds), abs=1e-4)


def test_what_is_no_cohort_is_refused(trained_run, processed, cohort, tmp_path, capsys):
    words = ["evaluate", "--checkpoint", trained_run, "--data", processed, "--out", tmp_path / "out"]
    model_hash = SpeakerRecognizer.load(trained_run, "cpu").model_hash
    embeddings = load_file(cohort)["embeddings"]
    write_embeddings(tmp_path / "one", ["a"], embeddings[:1], model_hash)
    write_embeddings(tmp_path / "foreign", ["a", "b"], embeddings[:2], "feedfeedfeedfeed")
    save_file({"other": embeddings}, tmp_path / "other")
    (tmp_path / "text").write_text("no safetensors at all")
    sentences = {
        "nowhere": "there is no cohort at",
        "text": "is not a file of embeddings, or it is damaged",
        "other": "as test.py embed --out writes it",
        "foreign": "is of model feedfeedfeedfeed, and the checkpoint is model",
        "one": "has fewer than two embeddings",
    }
    for name, sentence in sentences.items():
        assert sentence in problems(capsys, *words, "--cohort", tmp_path / name)
    both = problems(capsys, *words, "--cohort", cohort, "--no-back-end")
    assert "--no-back-end and --cohort contradict" in both
    assert "--no-s-norm and --cohort contradict" in problems(capsys, *words, "--cohort", cohort, "--no-s-norm")
    assert "--cohort-top: must be at least 2" in problems(capsys, *words, "--cohort", cohort, "--cohort-top", 1)
    assert "--cohort-top needs --cohort" in problems(capsys, *words, "--cohort-top", 5)
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_threshold_of_normalized_scores_is_none_of_cosines(trained_run, cohort):
    """As in a checkpoint with a cohort that was validated on too few speakers for operating points."""
    recognizer = SpeakerRecognizer.load(trained_run, "cpu")
    recognizer.threshold, recognizer.scoring = 0.4, Scoring()
    assert recognizer.identification_threshold(None, 3.0, 2) == 0.4
    recognizer.scoring = Scoring(Cohort.load(cohort, recognizer.model_hash))
    with pytest.raises(UserError, match="has no threshold of cosines"):
        recognizer.identification_threshold(None, 3.0, 2)
    assert recognizer.identification_threshold(0.3, 3.0, 2) == 0.3
