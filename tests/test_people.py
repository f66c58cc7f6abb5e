"""test.py on recordings of people: windows, several people in one recording, folders of people, and their store."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import answer, call, problems
from safetensors import safe_open

from utils.errors import UserError
from utils.features.speech import spoken
from utils.speaker.people.enrollment import EnrollmentStore
from utils.speaker.recognizer import SpeakerRecognizer

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer(trained_run: Path) -> SpeakerRecognizer:
    return SpeakerRecognizer.load(trained_run, "cpu")


@pytest.fixture(scope="module")
def recordings(librispeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sub-folder of three recordings for each of two people, and files that are none."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, speaker in (("Ada", "101"), ("Ben", "106")):
        (folder / name / "day").mkdir(parents=True)
        for path in sorted(librispeech_root.rglob(f"{speaker}-*.flac"))[:3]:
            shutil.copy(path, folder / name / "day")
    (folder / "Ada" / "notes.txt").write_text("no audio")
    (folder / "readme.md").write_text("in no sub-folder")
    (folder / "Ada" / "._ada.flac").write_text("hidden, as copies from other systems are")
    (folder / ".cache").mkdir()
    return folder


@pytest.fixture(scope="module")
def meeting(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of Ada, then 3 s of silence, then recordings of Ben, each 12 s long."""
    parts = []
    for name in ("Ada", "Ben"):
        samples = np.concatenate([soundfile.read(path)[0] for path in sorted(recordings.glob(f"{name}/*/*.flac"))])
        parts.append(np.resize(samples, 12 * RATE))
    path = tmp_path_factory.mktemp("meeting") / "meeting.wav"
    soundfile.write(path, np.concatenate([parts[0], np.zeros(3 * RATE), parts[1]]), RATE)
    return path


@pytest.fixture
def store(recordings: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A store of the people in `recordings`, enrolled at once."""
    path = tmp_path / "people"
    assert call("enroll", "--checkpoint", trained_run, "--store", path, "--folder", recordings) == 0
    capsys.readouterr()
    return path


def test_samples_are_embedded_as_their_file_is(recognizer, meeting, tmp_path):
    samples, _ = soundfile.read(meeting, dtype="float32")
    integers, _ = soundfile.read(meeting, dtype="int16")
    expected = recognizer.embed_file(meeting)
    np.testing.assert_allclose(recognizer.embed_samples(samples, RATE), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(recognizer.embed_samples(integers, RATE), expected, rtol=0, atol=1e-4)
    soundfile.write(tmp_path / "slow.wav", samples[: 6 * RATE], 8_000, "FLOAT")
    slow = recognizer.embed_samples(samples[: 6 * RATE], 8_000)
    np.testing.assert_allclose(slow, recognizer.embed_file(tmp_path / "slow.wav"), rtol=0, atol=1e-5)


BAD = [[], [[0.1, 0.2]], [0.1, np.nan], np.zeros(100), np.full(9000, 128, np.uint8), [100, -100] * 9000]


@pytest.mark.parametrize("samples", BAD)
def test_samples_that_cannot_serve_are_refused(recognizer, samples):
    with pytest.raises(UserError, match="the samples"):
        recognizer.embed_samples(samples, RATE)


@pytest.mark.parametrize("rate", [0, -8000, 44_100.5])
def test_rates_that_cannot_be_are_refused(recognizer, rate):
    with pytest.raises(UserError, match="cannot have a sample rate"):
        recognizer.embed_samples(np.zeros(9000), rate)


def test_windows_are_embedded_as_parts_of_the_recording(recognizer, meeting):
    samples, _ = soundfile.read(meeting, dtype="float32")
    times, embeddings = recognizer.embed_windows(meeting, seconds=2, hop=0.5)
    assert times.shape == (len(embeddings), 2) and times[0, 0] == 0 and times[-1, 1] == 27
    np.testing.assert_allclose(np.diff(times[:-1, 0]), 0.5, rtol=0, atol=1e-9)
    for (start, end), embedding in list(zip(times, embeddings, strict=True))[::9]:
        part = samples[round(start * RATE) : round(end * RATE)]
        heard = spoken(part, RATE).samples
        np.testing.assert_allclose(embedding, recognizer.embed_samples(heard, RATE), rtol=0, atol=1e-5)
    again = recognizer.embed_windows(samples, seconds=2, hop=0.5, rate=RATE)
    np.testing.assert_array_equal(again[0], times)
    np.testing.assert_allclose(again[1], embeddings, rtol=0, atol=1e-5)
    some = list(recognizer.windows(meeting, 2, 0.5, every=4))
    assert [(each.start, each.end) for each in some] == [tuple(pair) for pair in times[::4]]
    with pytest.raises(UserError, match="within the window"):
        recognizer.embed_windows(meeting, seconds=1, hop=2)


def test_a_folder_of_people_is_enrolled_at_once(trained_run, recordings, tmp_path, capsys):
    model, folder, one = ["--checkpoint", trained_run], tmp_path / "all", tmp_path / "each"
    assert call("enroll", *model, "--store", folder, "--folder", recordings) == 0
    out, err = capsys.readouterr()
    assert out.count("enrolled ") == 2 and "ignored 2 files below" in err
    for name in ("Ada", "Ben"):
        answer(capsys, "enroll", *model, "--store", one, "--name", name, *sorted(recordings.glob(f"{name}/*/*.flac")))
    for name, *audio in (("Ada", *sorted(recordings.glob("Ada/*/*.flac"))), ("Ben", *recordings.glob("Ben/*/*.flac"))):
        for path in audio:
            answer(capsys, "enroll", *model, "--store", tmp_path / "added", "--name", name, "--add", path)
    together, apart, added = (EnrollmentStore.load(path) for path in (folder, one, tmp_path / "added"))
    assert together.speakers == apart.speakers
    assert [(each.name, each.count) for each in added.speakers] == [(each.name, each.count) for each in apart.speakers]
    np.testing.assert_allclose(added.embeddings, apart.embeddings, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together.embeddings, apart.embeddings, rtol=0, atol=1e-5)


def test_folders_of_people_that_are_refused_leave_the_store_alone(trained_run, recordings, store, tmp_path, capsys):
    enroll = ["enroll", "--checkpoint", trained_run, "--store", store]
    before = store.read_bytes()
    assert "'Ada' is enrolled already" in problems(capsys, *enroll, "--folder", recordings)
    (tmp_path / "more" / "Cid").mkdir(parents=True)
    assert "Cid has no recordings" in problems(capsys, *enroll, "--folder", tmp_path / "more")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "Cid").symlink_to(recordings)
    linked = problems(capsys, *enroll, "--folder", tmp_path / "links")
    assert "Cid has no recordings; links below it are not followed" in linked
    for name in ("Zoe\N{COMBINING DIAERESIS}", "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}"):
        (tmp_path / "forms" / name).mkdir(parents=True)
    assert "two sub-folders named 'Zo\xeb'" in problems(capsys, *enroll, "--folder", tmp_path / "forms")
    assert "is not a file" in problems(capsys, *enroll[:-1], tmp_path, "--name", "Cid", *recordings.rglob("*.flac"))
    soundfile.write(tmp_path / "more" / "Cid" / "silence.wav", np.zeros(RATE), RATE)
    assert "silence.wav has 0.00 s of speech" in problems(capsys, *enroll, "--folder", tmp_path / "more")
    assert "is not a folder" in problems(capsys, *enroll, "--folder", tmp_path / "nowhere")
    both = problems(capsys, *enroll, "--folder", recordings, "--name", "Ada", "a.wav")
    assert "--folder and --name contradict" in both and "--folder and recordings contradict" in both
    for more in (("--folder", recordings), ("--name", "Ada", "a.wav")):
        assert "--add and --replace contradict" in problems(capsys, *enroll, *more, "--add", "--replace")
    assert "--name is missing" in problems(capsys, *enroll, "a.wav")
    assert "recordings of the speaker are missing" in problems(capsys, *enroll, "--name", "Ada")
    assert store.read_bytes() == before


def test_each_window_is_answered(trained_run, recognizer, store, meeting, capsys):
    words = ["identify", "--checkpoint", trained_run, "--store", store, "--threshold", -1, "--window", 3]
    results = answer(capsys, *words, "--hop", 3, meeting)["results"]
    assert [(each["start"], each["end"]) for each in results] == [(3 * n, 3 * n + 3) for n in range(9)]
    times, embeddings = recognizer.embed_windows(meeting, 3, 3)
    enrolled = EnrollmentStore.load(store)
    expected = [enrolled.identify(embedding, -1).name for embedding in embeddings]
    expected[4] = None  # silence
    assert [each["name"] for each in results] == expected
    assert call(*words, "--hop", 3, meeting) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == f"{meeting} 12.0-15.0 s: no speech" and lines[0].startswith(f"{meeting} 0.0-3.0 s: ")
    assert len(answer(capsys, *words, meeting)["results"]) == 25
    assert "leaves gaps" in problems(capsys, *words, "--hop", 4, meeting)
    assert "--window 0.5 is too short" in problems(capsys, *words[:-1], 0.5, meeting)
    assert "--hop needs --window" in problems(capsys, *words[:-2], "--hop", 1, meeting)


def test_candidates_are_ranked_with_their_ratios(trained_run, recognizer, store, recordings, capsys):
    audio = min(recordings.glob("Ben/*/*.flac"))
    words = ["identify", "--checkpoint", trained_run, "--store", store, audio]
    (result,) = answer(capsys, *words)["results"]
    enrolled, seconds = EnrollmentStore.load(store), soundfile.info(audio).duration
    assert [each["name"] for each in result["scores"]] == [result["best"], "Ada"] == ["Ben", "Ada"]
    for each in result["scores"]:
        speaker = next(speaker for speaker in enrolled.speakers if speaker.name == each["name"])
        assert each["llr"] == pytest.approx(
            recognizer.scoring.calibration(each["score"], seconds, speaker.seconds), abs=1e-4
        )
    assert result["margin"] == pytest.approx(result["scores"][0]["score"] - result["scores"][1]["score"])
    assert call(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[1:]] == [
        ["LLR", f"{each['llr']:.2f}", each["name"]] for each in result["scores"]
    ]
    assert enrolled.identify(recognizer.embed_file(audio), 0.5).to_dict()["scores"][0]["llr"] is None


def test_a_recording_of_several_people_is_reported(trained_run, recordings, store, meeting, capsys, tmp_path):
    words = ["identify", "--checkpoint", trained_run, "--store", store, "--threshold", -1]
    assert call(*words, meeting) == 0
    warning = capsys.readouterr().err
    assert f"warning: {meeting} has several people, of 8 windows of 3 s: " in warning
    assert "Ada in" in warning and "Ben in" in warning
    one = np.resize(soundfile.read(sorted(recordings.glob("Ada/*/*.flac"))[0])[0], 13 * RATE)
    soundfile.write(tmp_path / "one.wav", one, RATE)
    assert call(*words, tmp_path / "one.wav") == 0
    assert capsys.readouterr().err == ""


def test_people_are_listed_renamed_removed_and_exported(store, tmp_path, capsys):
    store.chmod(0o600)
    people = ["people", "--store", store]
    enrolled = EnrollmentStore.load(store)
    listed = answer(capsys, *people, "list")
    assert [each["name"] for each in listed["speakers"]] == ["Ada", "Ben"]
    assert call(*people, "rename", "Ada", "Ada Lovelace") == 0
    assert "Ada Lovelace: 3 recordings" in capsys.readouterr().out
    assert call(*people, "export", tmp_path / "all.safetensors") == 0
    with safe_open(tmp_path / "all.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["names"]) == ["Ada Lovelace", "Ben"]
        np.testing.assert_array_equal(file.get_tensor("embeddings"), enrolled.embeddings)
    assert call(*people, "remove", "Ada Lovelace") == 0
    left = EnrollmentStore.load(store, enrolled.model_hash)
    assert [each.name for each in left.speakers] == ["Ben"]
    np.testing.assert_array_equal(left.embeddings, enrolled.embeddings[1:])
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert call(*people, "remove", "Ben") == 0 and "holds 0 speakers" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds nobody"):
        EnrollmentStore.load(store).identify(enrolled.embeddings[0], 0.5)


def test_people_who_are_not_there_are_refused(store, tmp_path, capsys):
    people, before = ["people", "--store", store], store.read_bytes()
    assert "nobody is enrolled as 'Cid': there is Ada, Ben" in problems(capsys, *people, "remove", "Cid")
    assert "'Ben' is enrolled already: choose another name" in problems(capsys, *people, "rename", "Ada", "Ben")
    assert "rename needs NAME NEW, and got Ada" in problems(capsys, *people, "rename", "Ada")
    assert "list needs no word, and got Ada" in problems(capsys, *people, "list", "Ada")
    missing = tmp_path / "none" / "people"
    assert "there is no enrollment store" in problems(capsys, "people", "--store", missing, "remove", "Ada")
    assert not missing.parent.exists() and store.read_bytes() == before
