"""Adaptive s-norm against its definition, and evaluations that report it beside the cosines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_evaluate import answer, call
from test_operating import voices
from test_people import refused

from utils.features.store import FeatureStore
from utils.speaker.cohort import Cohort, normalize
from utils.speaker.enrollment import write_embeddings
from utils.speaker.metrics import eer
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.report import S_NORM, read_evaluation


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
    vectors = voices(9, 5, 0.8)[0]
    vectors = np.random.default_rng(seed).permutation(vectors)
    cohort, first, second = vectors[:30], vectors[30:37], vectors[37:44]
    statistics = [Cohort(cohort, top).statistics(each) for each in (first, second)]
    scores = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    expected = [slow_s_norm(*pair, cohort, top) for pair in zip(first, second, strict=True)]
    assert normalize(scores, *statistics) == pytest.approx(expected, abs=1e-4)
    assert normalize(scores, *statistics[::-1]) == pytest.approx(normalize(scores, *statistics))


@pytest.fixture(scope="module")
def cohort(trained_run, librispeech_root: Path, tmp_path_factory) -> Path:
    """Recordings of all voices, embedded."""
    out = tmp_path_factory.mktemp("cohort") / "cohort.safetensors"
    audio = sorted((librispeech_root / "LibriSpeech").rglob("*-000[0-3].flac"))
    assert call("embed", "--checkpoint", trained_run, "--out", out, *audio) == 0
    return out


def test_an_evaluation_reports_it_beside_the_cosines(trained_run, stored, cohort, tmp_path, capsys):
    words = ["evaluate", "--checkpoint", trained_run, "--data", stored, "--bootstrap", 5, "--conditions", "telephone"]
    plain = answer(capsys, *words, "--out", tmp_path / "plain")
    normed = ["--cohort", cohort, "--cohort-top", 10, "--out", tmp_path / "normed"]
    report = answer(capsys, *words, *normed)
    evaluation = read_evaluation(tmp_path / "normed")
    values, targets = evaluation.derived[S_NORM]["1.5s"], evaluation.trials.targets
    found = report["verification"]["1.5s"]["s_norm"]
    assert found["eer"] == eer(values, targets)[0] and {"min_dcf_0.01", "min_dcf_0.05"} <= set(found)
    for name, metrics in report["verification"].items():
        without = {key: value for key, value in metrics.items() if key != "s_norm"}
        assert without == plain["verification"][name] and "s_norm" not in plain["verification"][name]
    assert evaluation.derived[S_NORM]["telephone"].shape == (3, len(targets))
    assert report["conditions"]["telephone"]["one"]["s_norm"]["eer"] >= 0
    recognizer, store = SpeakerRecognizer.load(trained_run, "cpu"), FeatureStore.open(stored)
    place = {row.path: number for number, row in enumerate(store.rows)}
    first, second = (evaluation.trials.items[side[0]] for side in (evaluation.trials.a, evaluation.trials.b))
    pair = recognizer.embed_mels([store.mel(place[path]) for path in (first, second)])
    others = load_file(cohort)["embeddings"]
    assert evaluation.derived[S_NORM]["full"][0] == pytest.approx(slow_s_norm(*pair, others, 10), abs=1e-2)
    assert call(*words, *normed) == 0
    block = capsys.readouterr().out.partition("by s-norm")[2]
    assert "cross_chapter" in block and "telephone, one side" in block
    pooled = answer(capsys, "pool", tmp_path / "normed", tmp_path / "normed", "--out", tmp_path / "all")
    first, again = (each["verification"]["1.5s"]["s_norm"]["eer"] for each in (report, pooled))
    assert again == pytest.approx(first)


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
        "one": "has one embedding; two are needed",
    }
    for name, sentence in sentences.items():
        assert sentence in refused(capsys, *words, "--cohort", tmp_path / name)
    both = refused(capsys, *words, "--cohort", cohort, "--no-back-end")
    assert "--no-back-end and --cohort contradict" in both
    assert "--cohort-top needs --cohort" in refused(capsys, *words, "--cohort-top", 5)
    assert not (tmp_path / "out" / "report.json").exists()
