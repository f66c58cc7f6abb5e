"""Who spoke when: error rates, RTTM, segments of synthetic conversations, names, memory, and refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import answer, call
from shown_commands import load_script
from test_windows import MARGIN, run, write
from voices import speak

from utils.features.speech import HOP
from utils.speaker.people.enrollment import EnrollmentStore
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.scoring.operating import OperatingPoints
from utils.speaker.timeline.diarization import make_timeline, timeline_of
from utils.speaker.timeline.listening import FRAME, STEPS, Frames, listen
from utils.speaker.timeline.segments import Errors, Segment, errors, to_rttm

RATE = 16_000
TURNS = [("103", 4.0), ("106", 5.0), ("103", 3.0), ("105", 4.0), ("106", 3.0), ("105", 4.0)]
PAUSE = 1.0  # s before each turn
EDGE = 0.25  # s by which a border may differ: a frame of the voices


def close(found: Errors, *expected: float) -> bool:
    return list(vars(found).values()) == pytest.approx(expected)


def test_errors_of_cases_that_can_be_computed_by_hand():
    reference = [Segment(0, 10, "a"), Segment(8, 20, "b")]
    swapped = [Segment(0, 10, "y"), Segment(8, 20, "x")]
    assert close(errors(reference, swapped), 0, 0, 0, 22)
    assert close(errors(reference, swapped, named=True), 0, 0, 22, 22)
    assert close(errors(reference, reference, named=True), 0, 0, 0, 22)
    assert close(errors(reference, []), 22, 0, 0, 22)
    assert close(errors([], reference), 0, 22, 0, 0)
    one = [Segment(0, 20, "a")]  # missed where both speak; confused from 10 s on if it is a's
    assert close(errors(reference, one), 2, 0, 8, 22)
    assert close(errors(reference, one, named=True), 2, 0, 10, 22)
    assert errors(reference, one).rate == pytest.approx(10 / 22)
    late = [Segment(0.2, 10.3, "a"), Segment(8.3, 21, "b")]
    assert close(errors(reference, late), 0.2 + 0.3, 0.3 + 1.0, 0, 22)
    assert close(errors(reference, late, 0.25), 0.05, 0.05 + 0.75, 0, 22 - 0.25 - 0.75 - 0.75 - 0.25)


def test_pairs_of_speakers_are_the_best_ones():
    reference = [Segment(0, 4, "a"), Segment(4, 10, "b"), Segment(10, 13, "c")]
    found = [Segment(0, 5, "x"), Segment(5, 8, "y"), Segment(8, 13, "z")]
    assert close(errors(reference, found), 0, 0, 1 + 2, 13)
    assert errors(reference, [*found, Segment(13, 14, "x")]).false_alarm == pytest.approx(1)


def test_rttm():
    assert to_rttm([Segment(0.5, 2, "Ada Lovelace"), Segment(1.25, 3.5, "speaker 1")], "my meeting") == (
        "SPEAKER my_meeting 1 0.500 1.500 <NA> <NA> Ada_Lovelace <NA> <NA>\n"
        "SPEAKER my_meeting 1 1.250 2.250 <NA> <NA> speaker_1 <NA> <NA>\n"
    )


@pytest.fixture(scope="module")
def recognizer(trained_run: Path) -> SpeakerRecognizer:
    return SpeakerRecognizer.load(trained_run, "cpu")


def frames_of(turns: list[tuple[int, int]], unbroken: bool = False) -> Frames:
    """Turns (voice, frames) without a gap between two frames of silence; the voices' embeddings are nearly exact."""
    voices = [voice for voice, length in turns for _ in range(length)]
    draw = np.random.default_rng(4)
    embeddings = np.eye(4, 512)[voices] + 0.01 * draw.standard_normal((len(voices), 512))
    speech = np.zeros(STEPS * (len(voices) + 4), dtype=bool)
    speech[2 * STEPS : -2 * STEPS] = True
    syllables = speech & (unbroken | (np.arange(len(speech)) % 10 < 7))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    places = np.arange(len(voices)) + 2
    return Frames(HOP * len(speech), speech, syllables, places, embeddings, np.zeros((len(voices) + 4, 2)))


def test_segments_of_known_embeddings_are_exact(recognizer):
    turns = [(0, 10), (1, 20), (2, 15), (0, 12), (2, 9)]
    borders = np.cumsum([2, *(length for _, length in turns)]) * FRAME
    expected = [
        Segment(round(start, 3), round(end, 3), f"speaker {voice + 1}")
        for (voice, _), start, end in zip(turns, borders, borders[1:], strict=False)
    ]
    for number in (None, 3):
        timeline = timeline_of(frames_of(turns), recognizer, number=number, same_threshold=0.5)
        assert timeline.segments == expected and timeline.overlaps == []
        assert [person.name for person in timeline.people] == ["speaker 1", "speaker 2", "speaker 3"]
        assert [person.seconds for person in timeline.people] == pytest.approx([22 * FRAME, 20 * FRAME, 24 * FRAME])
    two = timeline_of(frames_of(turns), recognizer, number=2)
    assert len(two.people) == 2
    one = timeline_of(frames_of(turns), recognizer, number=1)
    assert one.segments == [Segment(expected[0].start, expected[-1].end, "speaker 1")]
    assert timeline_of(frames_of(turns), recognizer, same_threshold=0.0).segments == one.segments


def test_a_single_window_of_another_voice_is_no_turn_and_a_change_without_pause_is_an_overlap(recognizer):
    turns = [(0, 20), (1, 20), (3, 1), (1, 10)]
    timeline = timeline_of(frames_of(turns, unbroken=True), recognizer, number=2)
    change = 22 * FRAME
    assert timeline.segments == [
        Segment(0.48, round(change + 0.4, 3), "speaker 1"),
        Segment(round(change - 0.4, 3), round(53 * FRAME, 3), "speaker 2"),
    ]
    assert timeline.overlaps == [(round(change - 0.4, 3), round(change + 0.4, 3))]


def test_names_are_of_the_enrolled_only_and_decide_who_is_the_same(recognizer):
    turns = [(0, 20), (1, 20), (2, 15)]
    frames = frames_of(turns)
    store = EnrollmentStore("", "")
    store.enroll("speaker 1", frames.embeddings[20:30], 10.0)  # the voice that is heard second
    store.enroll("Cid", np.eye(4, 512, 3), 10.0)  # is not there
    timeline = timeline_of(frames, recognizer, store, None, 0.5, 0.5)
    assert [person.name for person in timeline.people] == ["speaker 2", "speaker 1", "speaker 3"]
    assert timeline.people[1].identification.score > 0.9
    assert timeline.people[0].identification.name == "unknown"
    store.enroll("Ben", frames.embeddings[:20], 10.0)
    everybody_alike = timeline_of(frames, recognizer, store, 3, 0.5)
    assert [person.name for person in everybody_alike.people] == ["Ben", "speaker 1", "speaker 2"]
    strict = timeline_of(frames, recognizer, store, None, 0.5, -1.0)  # but those with two names, voices are the same
    assert {"Ben", "speaker 1"} <= {person.name for person in strict.people} or len(strict.people) == 1


def test_voices_without_a_name_are_the_same_from_the_threshold_for_ten_people_on(recognizer):
    points = OperatingPoints(*map(np.array, ([1.0, 9.0], [1.0, 10.0], [[0.4, 0.6], [0.4, 0.6]])))
    recognizer = copy.copy(recognizer)
    recognizer.scoring = dataclasses.replace(recognizer.scoring, operating_points=points)
    alike = np.eye(512, dtype=np.float32)
    alike[1, :2] = 0.5, np.sqrt(0.75)  # the cosine of the voices
    frames = frames_of([(0, 20), (1, 20)])
    frames = dataclasses.replace(frames, embeddings=frames.embeddings @ alike)
    store = EnrollmentStore("", "")
    store.enroll("Ada", frames.embeddings[:20], 10.0)
    assert [person.name for person in timeline_of(frames, recognizer).people] == ["speaker 1", "speaker 2"]
    assert [person.name for person in timeline_of(frames, recognizer, store, None, 0.8).people] == ["Ada"]


@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Segment]]:
    """Three voices in six turns with faint noise, as a FLAC file at 16 kHz, and what is true of it."""
    draw = np.random.default_rng(12)
    parts, segments, time = [], [], 0.0
    for voice, seconds in TURNS:
        parts += [np.zeros(round(PAUSE * RATE)), speak(draw, voice, seconds)]
        segments.append(Segment(time + PAUSE, time + PAUSE + seconds, voice))
        time += PAUSE + seconds
    samples = np.concatenate([*parts, np.zeros(RATE)])
    path = tmp_path_factory.mktemp("conversation") / "talk.flac"
    soundfile.write(path, samples + 1e-3 * draw.standard_normal(len(samples)), RATE)
    return path, segments


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ada and Ben, who are heard in the conversation, and Cid, who is not; enrolled by the shipped model."""
    folder = tmp_path_factory.mktemp("people")
    draw = np.random.default_rng(13)
    for name, voice in (("Ada", "103"), ("Ben", "106"), ("Cid", "108")):
        soundfile.write(folder / f"{name}.wav", speak(draw, voice, 6.0), RATE)
        words = ["--store", folder / "people", "--name", name, folder / f"{name}.wav"]
        assert call("enroll", *words) == 0
    return folder / "people"


def borders_agree(found: list[dict], expected: list[Segment]) -> bool:
    return len(found) == len(expected) and all(
        abs(a["start"] - b.start) < EDGE and abs(a["end"] - b.end) < EDGE for a, b in zip(found, expected, strict=True)
    )


def test_a_conversation_has_the_turns_that_it_was_made_of(conversation, capsys):
    path, segments = conversation
    found = answer(capsys, "timeline", "--speakers", 3, path)
    assert borders_agree(found["segments"], segments)
    order = list(dict.fromkeys(segment.speaker for segment in segments))
    expected = [f"speaker {order.index(segment.speaker) + 1}" for segment in segments]
    assert [segment["speaker"] for segment in found["segments"]] == expected
    assert found["seconds"] == pytest.approx(30.0) and found["overlaps"] == [] and found["store"] is None
    assert answer(capsys, "timeline", path) == found


def test_the_enrolled_are_named_and_the_files_agree_with_the_table(conversation, store, tmp_path, capsys):
    """Also if a name looks like the mathematics of matplotlib."""
    spoken, segments = conversation
    path = Path(shutil.copy(spoken, tmp_path / r"$\frac$.wav"))
    assert call("timeline", "--store", store, path, "--out", tmp_path / "out") == 0
    table = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "timeline.json").read_text())
    names = {"103": "Ada", "106": "Ben", "105": "speaker 1"}
    assert [segment["speaker"] for segment in content["segments"]] == [names[each.speaker] for each in segments]
    assert {person["name"] for person in content["people"]} == set(names.values())
    lines = (tmp_path / "out" / "timeline.rttm").read_text().splitlines()
    assert [line.split()[7] for line in lines] == [names[each.speaker].replace(" ", "_") for each in segments]
    assert all(float(line.split()[3]) == part["start"] for line, part in zip(lines, content["segments"], strict=True))
    assert table.count("speaker 1\n") == 2 and f"{path}: 3 voices in 30.0 s" in table and "Ada: " in table
    assert (tmp_path / "out" / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        f"timeline.{kind}" for kind in ("json", "png", "rttm")
    ]


def test_frames_of_pieces_are_those_of_the_recording(recognizer, conversation, tmp_path):
    """Half a minute is read as one piece, and a minute as several: the same speech and embeddings at the same times."""
    samples, _ = soundfile.read(conversation[0], dtype="float32")
    soundfile.write(tmp_path / "long.wav", np.concatenate([samples, samples, samples[: 20 * RATE]]), RATE)
    short, long = listen(recognizer, conversation[0]), listen(recognizer, tmp_path / "long.wav")
    same = round(28 / FRAME)
    assert len(long.peaks) == round(80 / FRAME + 0.5) and long.seconds == pytest.approx(80)
    np.testing.assert_allclose(short.peaks[:same], long.peaks[:same], atol=1e-4)
    np.testing.assert_array_equal(short.speech[: same * STEPS], long.speech[: same * STEPS])
    early = long.places < same
    np.testing.assert_array_equal(short.places[short.places < same], long.places[early])
    np.testing.assert_allclose(short.embeddings[short.places < same], long.embeddings[early], atol=1e-4)
    shifted = round(60 / FRAME)  # 30 s are 125 frames
    np.testing.assert_array_equal(long.speech[: 15 * 50], long.speech[shifted * STEPS :][: 15 * 50])


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.3, 5.0])
def test_silence_is_nobody(trained_run, tmp_path, capsys, seconds):
    path = tmp_path / "silence.wav"
    soundfile.write(path, 1e-3 * np.random.default_rng(0).standard_normal(max(1, round(seconds * RATE))), RATE)
    assert call("timeline", "--checkpoint", trained_run, path, "--out", tmp_path / "out") == 0
    assert f"{path}: nobody speaks in {seconds:.1f} s" in capsys.readouterr().out
    assert (tmp_path / "out" / "timeline.rttm").read_text() == ""


@pytest.mark.filterwarnings("error")
def test_fewer_windows_than_voices_are_no_reason_to_warn(recognizer, tmp_path):
    soundfile.write(tmp_path / "short.wav", speak(np.random.default_rng(1), "101", 1.5), RATE)
    assert make_timeline(recognizer, tmp_path / "short.wav", number=10).people


def test_a_word_is_a_voice(recognizer, tmp_path):
    samples = np.concatenate([np.zeros(RATE // 2), speak(np.random.default_rng(1), "101", 0.9), np.zeros(RATE // 2)])
    soundfile.write(tmp_path / "word.wav", samples, RATE)
    (segment,) = make_timeline(recognizer, tmp_path / "word.wav", number=3).segments
    assert segment.speaker == "speaker 1" and abs(segment.start - 0.5) < EDGE and abs(segment.end - 1.4) < EDGE


def test_bad_input_is_one_sentence(trained_run, conversation, tmp_path, capsys):
    def refusal(*more: object) -> str:
        assert call("timeline", "--checkpoint", trained_run, *more) == 2
        out, err = capsys.readouterr()
        assert not out and "Traceback" not in err
        return err

    (tmp_path / "text.wav").write_text("no audio")
    assert "text.wav" in refusal(tmp_path / "text.wav", "--out", tmp_path / "out")
    assert "none.wav is missing" in refusal(tmp_path / "none.wav")
    assert "there is no enrollment store" in refusal(conversation[0], "--store", tmp_path / "none")
    vain = refusal(conversation[0], "--threshold", 0.5, "--same-threshold", 0.1, "--speakers", 1)
    assert "needs --store" in vain and "is for --speakers auto" in vain
    for number in ("0", "two", "1.5"):
        sentence = f"must be auto, or a whole number from 1 on, not {number!r}"
        assert sentence in refusal(conversation[0], "--speakers", number)
    assert "is a file; a folder is needed" in refusal(conversation[0], "--out", tmp_path / "text.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.wav"]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_recording(conversation, tmp_path):
    samples, _ = soundfile.read(conversation[0])
    words = ["timeline", "--speakers", 3]
    least = run(*words, write(tmp_path / "short.wav", samples, 60))[1]
    found, most = run(*words, write(tmp_path / "long.wav", samples, 300))
    assert most < least + MARGIN
    assert len(found["segments"]) == 10 * len(TURNS)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(900)
def test_conversations_of_real_people(real_data, tmp_path):
    diarization = load_script("benchmarks/diarization.py")
    speakers = (real_data / "speakers_more" / "heldout_speakers.txt").read_text()
    (tmp_path / "speakers.txt").write_text(speakers)
    words = ["--raw", real_data, "--split", "speechocean762", "--speakers", tmp_path / "speakers.txt", "--each", 1]
    noise = ["--noise-folder", real_data / "speakers_more" / "noise", "--seed", 7, "--out", tmp_path / "out"]
    assert diarization.main([str(word) for word in [*words, *noise]]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    for case in ("number given", "number found, names"):
        total = sum((Errors(**row["errors"][0]) for row in results if row["case"] == case), Errors(0, 0, 0, 0))
        assert 0.01 < total.rate < 0.12, case
