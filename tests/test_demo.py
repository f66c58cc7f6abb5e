"""The demo: its commands run in order, a command that fails or is stopped, and the closing table of a whole run."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from utils import demo
from utils.corpus.demo_voice import Settings, make_plan
from utils.packed import is_packed, shipped_model
from utils.tts.asr import comparable


def run_demo(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "utils.demo", *words], capture_output=True, text=True)


def test_the_exit_code_is_that_of_the_command_that_fails(tmp_path):
    (tmp_path / "file").touch()
    result = run_demo("--root", str(tmp_path / "file"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: download ended with exit code 2; the same command resumes"
    shown = [line for line in result.stdout.splitlines() if line.startswith("$ ")]
    assert len(shown) == 1 and shown[0].endswith(f"download.py --dataset demo --root {tmp_path / 'file'}")


def test_a_program_that_a_signal_kills_gives_128_and_its_number():
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert demo.run_command([sys.executable, "-c", kill]) == (137, "")


def test_the_shipped_model_is_asked_about_one_speaker_and_about_two(shipped, tmp_path, monkeypatch):
    args = demo.build_parser().parse_args(
        ["--root", f"{tmp_path}", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}"]
    )
    listed = tmp_path / "data" / "protocols" / "default" / "heldout_speakers.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("91\n92\n93\n")
    for speaker, chapter in itertools.product(("91", "92", "93"), "12"):
        folder = tmp_path / "demo" / "LibriSpeech" / "demo" / speaker / chapter
        folder.mkdir(parents=True)
        (folder / f"{speaker}-{chapter}.flac").touch()
    asked = [[Path(word).stem for word in words[2:]] for name, words in demo.stages(args) if name == "verify"]
    assert asked == [["93-2", "93-1"], ["93-2", "91-1"]]
    monkeypatch.setattr("utils.packed.SHIPPED", tmp_path)
    assert "verify" not in dict(demo.stages(args))
    assert dict(demo.shipped_answers([])) == {"shipped model": "none in this checkout"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_running_program_once_and_its_code_is_ours(number, tmp_path):
    """The program saves when it is told to stop, and takes a while; the demo waits for it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys, time\n"
        "told = []\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, lambda number, frame: told.append(number))\n"
        "print('ready', flush=True)\n"
        "while not told: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "open(sys.argv[1], 'w').write(f'saved {len(told)}')\n"
        "sys.exit(128 + told[0])\n"
    )
    saved = tmp_path / "saved"
    outer = "import sys; from utils.demo import *; sys.exit(run_command([sys.executable, *sys.argv[1:]])[0])"
    words = [sys.executable, "-c", outer, str(program), str(saved)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number)  # as a terminal does: to the whole group
    process.communicate()
    assert process.returncode == 128 + number
    assert saved.read_text() == "saved 1"


def test_the_demo_voice_never_says_the_sentence_that_is_to_be_read():
    said = {comparable(text) for block in make_plan(Settings(utterances=240, seed=0)) for text in block.texts}
    assert len(said) == 240
    assert comparable(demo.SENTENCE) not in said


def short_preset(source: str, out: Path) -> Path:
    """A copy of a preset that trains for 10 steps."""
    text, count = re.subn(r"(?m)^steps: \d+$", "steps: 10", Path(source).read_text(encoding="utf-8"))
    assert count == 1
    out.write_text(text, encoding="utf-8")
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_demo_and_its_repetition(tmp_path):
    """The real corpora and scripts with trainings of 10 steps, in a folder with a blank."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    paths = {
        "root": folder / "raw",
        "data": folder / "features",
        "out": folder / "run",
        "preset": short_preset("configs/speaker-tiny.yaml", folder / "speaker.yaml"),
        "voice-data": folder / "voice-features",
        "voice-out": folder / "voice-run",
        "voice-preset": short_preset("configs/tts-tiny.yaml", folder / "voice.yaml"),
    }
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    first = run_demo(*words)
    assert first.returncode == 0, first.stderr
    names = "download, preprocess, train, evaluate, download voice, preprocess voice, train voice, evaluate voice, "
    names = (names + "synthesize, enroll, enroll, enroll, identify").split(", ")
    is_shipped = is_packed(shipped_model("speaker"))
    names += ["verify", "verify"] if is_shipped else []
    assert [line[3:] for line in first.stdout.splitlines() if line.startswith("== ")] == names
    closing = first.stdout[first.stdout.index("wall time, download ") :]
    shown = [*(f"wall time, {name} " for name in names), "identification accuracy by chapter", "95 % interval"]
    shown += [
        "det.png",
        "MCD, copy-synthesis",
        " dB",
        "duration bias",
        "RTF, acoustic model",
        "shipped model, two speakers" if is_shipped else "none in this checkout",
        "identified:",
    ]
    sound, picture = paths["voice-out"] / "sentence.wav", paths["voice-out"] / "sentence.png"
    for needed in (*shown, demo.SENTENCE, str(sound), str(picture)):
        assert needed in closing
    samples, rate = soundfile.read(sound)
    assert rate == 22_050 and len(samples) > rate and abs(samples).max() > 0.01
    assert picture.read_bytes().startswith(b"\x89PNG")
    models = [path for folder in ("out", "voice-out") for path in paths[folder].glob("*.pt")]
    kept = {path: path.stat().st_mtime_ns for path in (*models, paths["data"] / "meta.json")}
    second = run_demo(*words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("is already trained to step 10") == 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
