"""Enrolled speakers: content and refusals of a store, identification."""

from __future__ import annotations

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from utils.errors import UserError
from utils.speaker.embedding_file import write_embeddings
from utils.speaker.embeddings import enrollment_mean, unit
from utils.speaker.people.enrollment import UNKNOWN, EnrollmentStore, locked_store

MODEL, RECIPE = "0123456789abcdef", "recipe"


def embeddings(*vectors: list[float]) -> np.ndarray:
    return unit(np.array(vectors, dtype=np.float32))


@given(st.integers(1, 5), st.floats(0.1, 100), st.integers(0, 1000))
def test_an_enrollment_does_not_grow_with_recordings_or_their_length(count, scale, seed):
    first, second = np.random.default_rng(seed).normal(size=(2, 8))
    mean = enrollment_mean(np.stack([first, second]))
    assert np.linalg.norm(mean) == pytest.approx(1, abs=1e-6)
    assert enrollment_mean(np.stack([scale * first, second] * count)) == pytest.approx(mean, abs=1e-6)


def test_store_round_trip(tmp_path: Path):
    path = tmp_path / "people.safetensors"
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", embeddings([1, 0, 0], [0, 1, 0]), seconds=7.25)
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ben Bär", embeddings([0, 0, 1]), seconds=3)
    store = EnrollmentStore.load(path, MODEL)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    described = [(s.name, s.count, s.seconds, s.date) for s in store.speakers]
    assert described == [("Ada", 2, 7.25, today), ("Ben Bär", 1, 3, today)]
    answer = store.identify(embeddings([1, 1, 0.1])[0], threshold=0.5)
    assert (answer.name, [name for name, _ in answer.scores]) == ("Ada", ["Ada", "Ben Bär"])
    assert answer.score == pytest.approx(2 / np.sqrt(2 * 2.01), abs=1e-6)
    assert answer.margin == pytest.approx(answer.score - 0.1 / np.sqrt(2.01), abs=1e-6)


def test_unknown_below_the_threshold_and_no_margin_alone():
    store = EnrollmentStore(MODEL, RECIPE)
    store.enroll("Ada", embeddings([1, 0]), seconds=1)
    probe = embeddings([0.6, 0.8])[0]
    near, far = store.identify(probe, threshold=0.59), store.identify(probe, threshold=0.61)
    assert (near.name, far.name, far.best, far.margin) == ("Ada", UNKNOWN, "Ada", None)
    assert json.loads(json.dumps(far.to_dict()))["scores"] == [
        {"name": "Ada", "score": pytest.approx(0.6), "llr": None}
    ]


def test_replacing_a_speaker(tmp_path: Path):
    path = tmp_path / "store"
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", embeddings([1, 0]), seconds=1)
        store.enroll("Ben", embeddings([0, 1]), seconds=1)
    before = path.read_bytes()
    with pytest.raises(UserError, match="'Ada' is enrolled already"), locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", embeddings([0, 1]), seconds=1)
    assert path.read_bytes() == before
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", embeddings([-1, 0]), seconds=2, known="replace")
    store = EnrollmentStore.load(path, MODEL)
    assert sorted((s.name, s.seconds) for s in store.speakers) == [("Ada", 2), ("Ben", 1)]
    assert store.identify(embeddings([-1, 0])[0], 0.9).name == "Ada"
    assert store.identify(embeddings([0, 1])[0], 0.9).name == "Ben"


def test_recordings_are_kept_and_more_can_be_added(tmp_path: Path):
    """As if all of them had been enrolled at once, in this file and in one of before, which has the mean alone."""
    first, second = embeddings([1, 0, 0], [0, 1, 0]), embeddings([0, 1, 1])
    path, old = tmp_path / "store", tmp_path / "old"
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", first, seconds=6)
        store.enroll("Ben", embeddings([1, 1, 1]), seconds=1)
    with locked_store(path) as store:
        added = store.enroll("Ada", second, seconds=2, known="add")
    assert (added.count, added.seconds) == (3, 8)
    store = EnrollmentStore.load(path)
    assert [speaker.name for speaker in store.speakers] == ["Ben", "Ada"]
    assert store.embeddings[1] == pytest.approx(enrollment_mean(np.concatenate([first, second])), abs=1e-6)
    about = {"format": "tacomamba-enrolment-1", "model_hash": MODEL, "recipe_hash": RECIPE}
    about["speakers"] = [{"name": "Ada", "count": 2, "seconds": 6.0, "date": "2026-01-01"}]
    save_file({"embeddings": enrollment_mean(first)[None]}, old, metadata={"enrolment": json.dumps(about)})
    with locked_store(old) as store:
        assert store.embeddings[0] == pytest.approx(enrollment_mean(first))
        store.enroll("Ada", second, seconds=2, known="add")
    mean = enrollment_mean(np.concatenate([enrollment_mean(first)[None], second]))
    assert EnrollmentStore.load(old).embeddings[0] == pytest.approx(mean, abs=1e-6)


def test_writers_at_once_lose_nobody(tmp_path: Path):
    def enroll(number: int) -> None:
        with locked_store(tmp_path / "store", MODEL, RECIPE) as store:
            store.enroll(f"speaker {number}", embeddings([1, number]), seconds=1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enroll, range(16)))
    assert len(EnrollmentStore.load(tmp_path / "store", MODEL).speakers) == 16


@pytest.mark.parametrize("name", ["", " ", " Ada", "two\nlines", UNKNOWN])
def test_names_that_cannot_be_enrolled(name):
    with pytest.raises(UserError):
        EnrollmentStore(MODEL, RECIPE).check_name(name, "add")


def test_stores_that_are_refused(tmp_path: Path):
    path = tmp_path / "store"
    with pytest.raises(UserError, match="there is no enrollment store"):
        EnrollmentStore.load(path, MODEL)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        EnrollmentStore.load(path, MODEL)
    path.write_bytes(b"a text file, not safetensors")
    with pytest.raises(UserError, match="not an enrollment store, or it is damaged"):
        EnrollmentStore.begin(path, MODEL, RECIPE)
    save_file({"embeddings": np.zeros((1, 2), np.float32)}, path)
    with pytest.raises(UserError, match="a safetensors file, but not an enrollment store"):
        EnrollmentStore.load(path, MODEL)
    path.unlink()
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", embeddings([1, 0]), seconds=1)
    with pytest.raises(UserError, match=f"belongs to model {MODEL}, and the checkpoint is model another"):
        EnrollmentStore.load(path, "another")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="damaged"):
        EnrollmentStore.load(path, MODEL)


def test_a_link_to_a_store_has_its_lock(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "store")

    def enroll(number: int) -> None:
        with locked_store(tmp_path / ("store", "link")[number % 2], MODEL, RECIPE) as store:
            store.enroll(f"speaker {number}", embeddings([1, number]), seconds=1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enroll, range(16)))
    assert len(EnrollmentStore.load(tmp_path / "store", MODEL).speakers) == 16


def test_a_name_is_one_however_its_accents_are_written():
    store = EnrollmentStore(MODEL, RECIPE)
    store.enroll("Rene\u0301", embeddings([1, 0]), seconds=1)
    with pytest.raises(UserError, match="is enrolled already"):
        store.enroll("Ren\u00e9", embeddings([1, 0]), seconds=1)
    store.rename("Ren\u00e9", "Zoe\u0308")
    assert [speaker.name for speaker in store.speakers] == ["Zo\u00eb"]
    store.remove("Zoe\u0308")


@pytest.mark.parametrize(
    "changes",
    [{"model_hash": None}, {"rows": [1]}, {"rows": [2, 1]}, {"speakers": [{"name": "Ada", "age": 36}]}, {"rows": "3"}],
)
def test_damaged_descriptions_of_a_store_are_refused(tmp_path: Path, changes):
    with locked_store(tmp_path / "store", MODEL, RECIPE) as store:
        for name in ("Ada", "Ben"):
            store.enroll(name, embeddings([1, 0]), seconds=1)
    with safe_open(tmp_path / "store", framework="numpy") as file:
        about, arrays = json.loads(file.metadata()["enrolment"]), {"embeddings": file.get_tensor("embeddings")}
    about = {name: value for name, value in (about | changes).items() if value is not None}
    save_file(arrays, tmp_path / "store", {"enrolment": json.dumps(about)})
    with pytest.raises(UserError, match="is not an enrollment store, or it is damaged"):
        EnrollmentStore.load(tmp_path / "store")


def test_embeddings_replace_nothing_but_embeddings(tmp_path: Path):
    path = tmp_path / "people"
    with locked_store(path, MODEL, RECIPE) as store:
        store.enroll("Ada", embeddings([1, 0]), seconds=1)
    (tmp_path / "speech.wav").write_bytes(b"RIFF")
    for other in (path, tmp_path / "speech.wav"):
        before = other.read_bytes()
        with pytest.raises(UserError, match="exists, and is no file of embeddings"):
            write_embeddings(other, ["a"], embeddings([1, 2]), MODEL)
        assert other.read_bytes() == before
    for _ in range(2):
        write_embeddings(tmp_path / "e", ["a"], embeddings([1, 2]), MODEL)


def test_embeddings_file(tmp_path: Path):
    vectors = embeddings([1, 2], [3, 4])
    write_embeddings(tmp_path / "e.safetensors", ["a.flac", "b c.wav"], vectors, MODEL)
    with safe_open(tmp_path / "e.safetensors", framework="numpy") as file:
        assert (file.get_tensor("embeddings") == vectors).all()
        assert (json.loads(file.metadata()["names"]), file.metadata()["model_hash"]) == (["a.flac", "b c.wav"], MODEL)
