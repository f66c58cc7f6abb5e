"""Streams: a causal model's running embedding is the offline one, of constant size; identify --stream."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import soundfile
import torch
from commands import answer, call
from hypothesis import given
from hypothesis import strategies as st
from root import ROOT
from torch import Tensor
from voices import speak

import train_tacomamba
from benchmarks import streaming as measure_streaming
from models.speaker import SpeakerConfig, SpeakerModel
from utils.errors import UserError
from utils.features.audio import load_audio, resample
from utils.features.mel import MelExtractor, MelStream
from utils.features.recipe import RECIPES
from utils.features.windows import cut_windows, live_windows
from utils.speaker.people.enrollment import EnrollmentStore
from utils.speaker.people.live import pcm_blocks
from utils.speaker.recognizer import SpeakerRecognizer

RATE = 16_000
SMALL = {"d_model": 32, "n_layers": 2, "headdim": 16, "pooled_channels": 24, "embedding_dim": 12, "causal": True}
MODELS = {
    "mamba": {"mixer": "mamba", "mlp_ratio": 1.0},
    "mamba2": {"mixer": "mamba2", "pooling": "statistics"},
    "lstm": {"mixer": "lstm", "level": False},
    "conv": {"mixer": "conv", "subsampling": 3, "mel_statistics": False},
    "last layer": {"all_layers": False, "subsampling": 1},
    "no mixer": {"n_layers": 0},
    "statistics": {"model": "statistics"},
}


def make(settings: dict) -> SpeakerModel:
    torch.manual_seed(0)
    return SpeakerModel(SpeakerConfig(n_mels=10, **SMALL | settings), 4).eval()


def pieces(data: st.DataObject, values: np.ndarray | Tensor, axis: int = 0) -> list:
    """`values` cut at up to six drawn places, without the empty pieces."""
    length = values.shape[axis]
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=6))})
    return [values[(slice(None),) * axis + (slice(a, b),)] for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())
@given(data=st.data())
@torch.inference_mode()
def test_a_stream_of_frames_has_the_embedding_of_the_frames_so_far(settings, data):
    """At each cut of a drawn batch, against the batch padded with garbage, and its rows alone: 1e-5 of the largest."""
    model = make(settings)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    mel = 2 * torch.randn(2, data.draw(st.integers(1, 90)), 10) - 3
    state, end = model.initial_state(2), 0
    for piece in pieces(data, mel, axis=1):
        state, end = model.step(piece, state), end + piece.shape[1]
        padded = mel.clone()
        padded[:, end:] = 30
        found, together = model.embedding_of(state), model.embed(padded, torch.tensor([end, end]))
        assert (found - together).abs().max() <= 1e-5 * together.abs().max()
        for row in range(2):
            alone = model.embed(mel[row : row + 1, :end], torch.tensor([end]))[0]
            assert (found[row] - alone).abs().max() <= 1e-5 * alone.abs().max()


def train(processed: Path, out: Path, *words: str) -> Path:
    model = ["--d-model", "32", "--n-layers", "2", "--headdim", "16", "--d-state", "8", "--pooled-channels", "32"]
    training = ["--steps", "60", "--save-every", "60", "--batch-size", "16", "--crop-seconds", "1", "--lr", "0.003"]
    flags = ["--data", str(processed), "--out", str(out), "--threads", "1", "--no-tensorboard", "--causal"]
    assert train_tacomamba.main([*flags, *model, *training, *words]) == 0
    return out


@pytest.fixture(scope="module")
def causal_run(processed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(processed, tmp_path_factory.mktemp("runs") / "causal")


@pytest.fixture(scope="module")
def recognizer(causal_run: Path) -> SpeakerRecognizer:
    return SpeakerRecognizer.load(causal_run, "cpu")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Ten seconds of two voices in turn, the second one quiet, 16 kHz."""
    draw = np.random.default_rng(8)
    return np.concatenate([speak(draw, "101", 5), 0.1 * speak(draw, "106", 5)])


@pytest.mark.parametrize("rate", [RATE, 44_100, 8_000])
@given(data=st.data())
def test_a_stream_of_samples_has_the_embedding_of_the_samples(recognizer, speech, rate, data):
    samples = speech[: data.draw(st.integers(1300, len(speech)))]
    stream = recognizer.embed_stream(rate)
    for piece in pieces(data, samples):
        stream.push(piece)
    assert stream.seconds == len(samples) / rate
    np.testing.assert_allclose(stream.embedding, recognizer.embed_samples(samples, rate), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(stream.embedding, stream.embedding)  # to look at it changes nothing


def test_there_is_no_embedding_before_the_first_frame(recognizer, speech):
    stream = recognizer.embed_stream()
    for size in (0, 1, 399):
        assert stream.embedding is None
        stream.push(np.round(speech[:size] * 2**15).astype(np.int16))
    assert stream.embedding is not None and stream.seconds == 0.025
    with pytest.raises(UserError, match="NaN"):
        stream.push([0.1, np.nan])


def size_of(value: object) -> int:
    """Numbers in arrays and tensors, in whatever holds them."""
    if isinstance(value, np.ndarray | Tensor):
        return int(np.prod(value.shape))
    if isinstance(value, tuple | list):
        return sum(map(size_of, value))
    return size_of(list(vars(value).values())) if hasattr(value, "_held") else 0


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_the_state_of_a_stream_does_not_grow(recognizer, speech, rate):
    stream, sizes = recognizer.embed_stream(rate), []
    for seconds in range(8):
        for start in range(0, rate, 700):
            stream.push(np.resize(speech, rate)[start : start + 700])
            sizes.append(size_of([stream._state, stream._mels, stream._resampler]))
        if seconds == 1:
            most = max(sizes)
    assert max(sizes) == most and size_of(stream._state) > 1000


def test_more_than_a_minute_is_embedded_as_its_stream(recognizer, speech, tmp_path):
    """Offline, an hour of a causal model is one pass too, unlike the windows of a bidirectional one."""
    samples = np.resize(speech, 70 * RATE)
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    stream = recognizer.embed_stream()
    stream.push(samples)
    for offline in (recognizer.embed_file(tmp_path / "a.wav"), recognizer.embed_samples(samples, RATE)):
        np.testing.assert_allclose(stream.embedding, offline, rtol=0, atol=1e-5)


def test_models_that_cannot_stream_say_why(trained_run, processed, tmp_path):
    with pytest.raises(UserError, match="needs a causal model, and tacomamba-mamba2 is not: it embeds windows"):
        SpeakerRecognizer.load(trained_run, "cpu").embed_stream()
    attention = train(processed, tmp_path / "attention", "--mixer", "attention", "--steps", "1", "--save-every", "1")
    with pytest.raises(UserError, match="tacomamba-attention with pooling attentive keeps every frame"):
        SpeakerRecognizer.load(attention, "cpu").embed_stream()
    with pytest.raises(UserError, match="mels with padding hifigan cannot stream"):
        MelStream(MelExtractor(RECIPES["hifigan-22k"]))


@given(data=st.data())
def test_live_windows_are_those_of_the_file_until_it_ends(data):
    hop = data.draw(st.integers(1, 9))
    length = hop + data.draw(st.integers(0, 9))
    values = np.arange(data.draw(st.integers(1, 120)), dtype=np.float32)
    live = list(live_windows(pieces(data, values), length, hop))
    full = [start for start, window in cut_windows([values], length, hop) if len(window) == length]
    assert [start for start, window in live if len(window) == length][: len(full)] == full
    for start, window in live:
        np.testing.assert_array_equal(window, values[start : start + length])
    assert all(len(window) == length for _, window in live[:-1])
    assert live[-1].start + len(live[-1].values) == len(values)


def test_work_and_memory_of_streams_are_measured(trained_run, causal_run, librispeech_root, capsys):
    words = ["--speech", str(librispeech_root), "--minutes", "1", "--checkpoint"]
    assert measure_streaming.main([*words, str(trained_run)]) == 0
    windows = capsys.readouterr().out.splitlines()
    assert [line.partition(" s |")[0] for line in windows[2:]] == ["| 1", "| 3"]
    assert measure_streaming.main([*words, str(causal_run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(windows) + 1 + 2 + 4 + 1 + 2 + 1 and lines[-1].startswith("| 1 | ")


# identify --stream


@pytest.fixture(scope="module")
def meeting(speech: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices, 5 s each, 3 s of silence, and the second again."""
    path = tmp_path_factory.mktemp("meeting") / "meeting.wav"
    soundfile.write(path, np.concatenate([speech, np.zeros(3 * RATE), speech[5 * RATE :]]), RATE, "PCM_16")
    return path


@pytest.fixture(scope="module")
def words(causal_run: Path, librispeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command, with a store of two people."""
    store = tmp_path_factory.mktemp("store") / "people"
    for name, voice in (("Ada", "101"), ("Ben", "106")):
        recordings = sorted(librispeech_root.rglob(f"{voice}-*.flac"))[:3]
        assert call("enroll", "--checkpoint", causal_run, "--store", store, "--name", name, *recordings) == 0
    return [*map(str, ["identify", "--checkpoint", causal_run, "--store", store, "--device", "cpu"])]


def raw(path: Path) -> bytes:
    return soundfile.read(path, dtype="int16")[0].tobytes()


def listen(words: list[str], content: bytes) -> subprocess.CompletedProcess:
    return forked.run("test.py", *words, "--stream", "-", stdin=content, text=False)


def same_answers(found: list[dict], expected: list[dict]) -> None:
    """The same times, names and scores, these to 1e-5."""

    def parts(answers: list[dict], *names: str) -> list:
        return [[each.get(name) for name in names] for each in answers]

    assert parts(found, "start", "end", "name", "best") == parts(expected, "start", "end", "name", "best")
    scores = [[each.get("score", 0), each.get("threshold", 0)] for each in found]
    np.testing.assert_allclose(scores, [[each.get("score", 0), each.get("threshold", 0)] for each in expected], 0, 1e-5)


def test_a_stream_is_answered_as_its_file_is(words, meeting, causal_run, capsys):
    offline = answer(capsys, *words, "--window", 3, meeting)["results"]
    capsys.readouterr()
    assert call(*words, "--stream", "--json", meeting) == 0
    *live, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["end"] for each in live] == [*range(3, 19)]
    same_answers(live, offline)
    assert [each["name"] for each in live].count(None) >= 1 and live[0]["best"] == "Ada" and live[-1]["best"] == "Ben"
    recognizer = SpeakerRecognizer.load(causal_run, "cpu")
    store = EnrollmentStore.load(words[words.index("--store") + 1])
    running = recognizer.embed_stream()
    running.push(load_audio(meeting, RATE))
    everything = store.identify(running.embedding, 0.0)  # silence included
    assert whole["audio"] == str(meeting) and "start" not in whole
    assert (whole["best"], whole["score"]) == (everything.best, pytest.approx(everything.score, abs=1e-5))
    piped = [json.loads(line) for line in listen([*words, "--json"], raw(meeting)).stdout.splitlines()]
    same_answers(piped, [*live, whole])
    assert {each["audio"] for each in piped} == {"stdin"}


def test_a_model_that_is_not_causal_answers_windows(trained_run, words, meeting, tmp_path, capsys):
    model = ["--checkpoint", trained_run, "--store", tmp_path / "people"]
    assert call("enroll", *model, "--name", "Ada", meeting) == 0
    capsys.readouterr()
    command = ["identify", *model, "--window", 2, "--hop", 0.5, meeting]
    assert call(*command) == 0
    offline = capsys.readouterr().out
    assert call(*command, "--stream") == 0
    assert capsys.readouterr().out == offline


def test_answers_come_before_the_end_and_an_interrupt_is_one(words, meeting):
    command = [sys.executable, ROOT / "test.py", *words, "--stream", "-", "--rate", "16000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(raw(meeting)[: 2 * 4 * RATE + 1])  # and half a sample
        process.stdin.flush()
        heard = b""
        while heard.count(b"\n") < 2:
            assert select.select([process.stdout], [], [], 300)[0]
            heard += os.read(process.stdout.fileno(), 1000)
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=300)
    output = (heard + rest).decode().splitlines()
    assert process.returncode == 0 and not error
    assert [line.partition(" s: ")[0] for line in output[:2]] == ["stdin 0.0-3.0", "stdin 1.0-4.0"]
    assert len(output) == 3 and output[2].startswith("stdin: ")


def test_a_reader_that_leaves_ends_the_stream_in_silence(words, meeting):
    command = [sys.executable, ROOT / "test.py", *words, "--stream", meeting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "stdin holds no samples"),
        (b"RIFF" + bytes(1000), "stdin has WAV, and --stream - reads raw PCM: give the name of the file instead"),
    ],
)
def test_input_that_is_no_stream_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        list(pcm_blocks(io.BytesIO(content), RATE, RATE))


class Drip(io.BytesIO):
    """A pipe from which few bytes arrive at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self.size = size

    def read1(self, size: int = -1) -> bytes:
        return self.read(self.size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stream_may_arrive_in_drops(size):
    integers = np.arange(-500, 500, dtype="<i2")
    for count in (1, 2, 1000):
        found = np.concatenate(list(pcm_blocks(Drip(integers[:count].tobytes(), size), RATE, RATE)))
        np.testing.assert_array_equal(found, integers[:count].astype(np.float32) / 2**15)
    with pytest.raises(UserError, match="stdin has WAV"):
        list(pcm_blocks(Drip(b"RIFF" + bytes(100), size), RATE, RATE))


def test_a_terminal_is_no_stream():
    _, terminal = os.openpty()
    with open(terminal, "rb") as file, pytest.raises(UserError, match="from a pipe, .*, not from a terminal"):
        list(pcm_blocks(file, RATE, RATE))


def test_raw_samples_of_another_rate_are_resampled(speech):
    integers = np.round(speech * 2**15).astype("<i2")
    found = np.concatenate(list(pcm_blocks(io.BytesIO(integers.tobytes() + b"x"), 44_100, RATE)))
    expected = resample("the samples", (integers / 2**15).astype(np.float32), 44_100, RATE)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_flags_that_contradict_are_refused(words, meeting, capsys):
    for more, message in (
        (["--stream", meeting, meeting], "--stream follows one recording at a time"),
        (["--stream", "--rate", 8000, meeting], "--rate is for raw PCM: it needs --stream -"),
        (["--stream", "--hop", 4, meeting], "--hop 4 leaves gaps between windows of 3 s"),
        (["--hop", 1, meeting], "--hop needs --window or --stream"),
        (["-"], "- is missing"),
    ):
        assert call(*words, *more) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_a_stream(words, speech):
    def peak(minutes: int) -> int:
        command = [sys.executable, ROOT / "test.py", *words, "--stream", "-"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        minute = (np.resize(speech, 60 * RATE) * 2**15).astype("<i2").tobytes()
        for _ in range(minutes):
            process.stdin.write(minute)
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss * 1024

    assert peak(10) < peak(1) + 20 * 2**20
