"""The demo's stages: run in order, not repeated, continued, stopped; and the closing table of a whole run."""

import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import soundfile

from utils import demo
from utils.corpus.demo_voice import Settings, make_plan
from utils.corpus.layouts import read_corpus
from utils.errors import UserError
from utils.stages import Runner, Stage, StageFailed, run_command, shown_interpreter
from utils.tts.asr import comparable
from utils.tts.text_lists import read_text_lists, write_text_lists

APPEND = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); print('said', sys.argv[2])"


def append(path: Path, text: str) -> tuple[str, ...]:
    return ("-c", APPEND, str(path), text)


def test_finished_stage_is_not_repeated_until_command_input_or_output_change(tmp_path, capfd):
    log, source, record = tmp_path / "log", tmp_path / "source", tmp_path / "run" / "stages.json"
    source.write_text("1")

    def run(text: str) -> str:
        runner = Runner(record)
        runner.run(Stage("write", (append(log, text), append(log, ".")), inputs=(source,), outputs=(log,)))
        return log.read_text()

    assert run("a") == "a."
    assert f"{APPEND[:6]}" in capfd.readouterr().out  # the command is shown
    assert run("a") == "a."
    assert "finished earlier" in capfd.readouterr().out
    assert run("b") == "a.b."
    source.write_text("2")
    assert run("b") == "a.b.b."
    os.utime(source)
    assert run("b") == "a.b.b."
    log.unlink()
    assert run("b") == "b."


def test_failing_stage_stops_with_its_code_and_is_tried_again(tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"
    check = ("-c", "import os, sys; sys.exit(0 if os.path.exists(sys.argv[1]) else 3)", str(gate))
    stage = Stage("check", (append(log, "x"), check, append(log, "y")))
    runner = Runner(tmp_path / "stages.json")
    with pytest.raises(StageFailed) as failure:
        runner.run(stage)
    assert (failure.value.code, log.read_text()) == (3, "x")
    first = runner.seconds("check")
    gate.touch()
    again = Runner(tmp_path / "stages.json")
    again.run(stage)
    assert log.read_text() == "xxy"
    assert again.seconds("check") > first  # both tries count
    assert again.kept == set()


def test_what_a_stage_begins_anew_with_is_kept_for_the_continuation_of_the_same_stage(tmp_path):
    state, gate = tmp_path / "state", tmp_path / "gate"
    check = ("-c", "import os, sys; sys.exit(not os.path.exists(sys.argv[1]))", str(gate))
    stage = Stage("train", (append(state, "a"), check), anew=(state,))
    state.write_text("of another run")
    for expected in ("a", "aa"):
        with pytest.raises(StageFailed):
            Runner(tmp_path / "stages.json").run(stage)
        assert state.read_text() == expected
    gate.touch()
    Runner(tmp_path / "stages.json").run(stage)
    assert state.read_text() == "aaa"
    other = Stage("train", (append(state, "b"),), anew=(state,))
    Runner(tmp_path / "stages.json").run(other)
    assert state.read_text() == "b"


def test_output_of_the_last_command_is_shown_and_kept(tmp_path, capfd):
    answer = tmp_path / "answer"
    runner = Runner(tmp_path / "stages.json")
    runner.run(Stage("ask", (append(tmp_path / "log", "1"), append(tmp_path / "log", "2")), stdout=answer))
    assert answer.read_text() == "said 2\n"
    assert "said 1\n" in (out := capfd.readouterr().out) and "said 2\n" in out


def test_missing_inputs_and_outputs_are_sentences(tmp_path):
    runner = Runner(tmp_path / "stages.json")
    with pytest.raises(UserError, match="the stage a needs .*nowhere, and the stages before it made none"):
        runner.run(Stage("a", (("-c", ""),), inputs=(tmp_path / "nowhere",)))
    with pytest.raises(UserError, match="the stage b ended well and yet did not make .*nothing"):
        runner.run(Stage("b", (("-c", ""),), outputs=(tmp_path / "nothing",)))
    assert not runner.stages["b"]["finished"]


def test_program_that_a_signal_killed_gives_128_and_its_number():
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_command([sys.executable, "-c", kill], capture=False) == (137, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_reaches_the_running_program_once_and_its_code_is_ours(number, tmp_path):
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
    outer = (
        "import sys\nfrom pathlib import Path\nfrom utils.stages import *\n"
        "try: Runner(Path(sys.argv[1])).run(Stage('train', ((sys.argv[2], sys.argv[3]),)))\n"
        "except StageFailed as failure: sys.exit(failure.code)\n"
    )
    saved = tmp_path / "saved"
    words = [sys.executable, "-c", outer, str(tmp_path / "stages.json"), str(program), str(saved)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number)  # as a terminal does: to the whole group
    process.communicate()
    assert process.returncode == 128 + number
    assert saved.read_text() == "saved 1"
    assert not json.loads((tmp_path / "stages.json").read_text())["train"]["finished"]


def test_refuses_a_preset_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--preset", "configs/none.yaml"])
    assert stop.value.code == 2
    assert "--preset configs/none.yaml is not a file" in capsys.readouterr().err


def test_refuses_both_halves_in_one_folder(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--out", "runs/one", "--voice-out", "runs/../runs/one", "--voice-preset", "configs/none.yaml"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--out and --voice-out are both runs/one" in error
    assert "--voice-preset configs/none.yaml is not a file" in error


def test_commands_are_shown_as_one_types_them(monkeypatch):
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv" / "bin" / "python"))
    assert shown_interpreter() == ".venv/bin/python"
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    assert shown_interpreter() == "/elsewhere/python"


def test_voices_to_enroll_are_held_out_and_have_two_chapters(librispeech_root, processed):
    protocol = processed / "protocols" / "default"
    held_out = protocol.joinpath("heldout_speakers.txt").read_text().split()
    voices = demo.held_out_recordings(librispeech_root, protocol)
    assert list(voices) == sorted(set(held_out) - {"104", "108"})  # these have one chapter
    for name, (first, last) in voices.items():
        assert {path.parent.parent.name for path in first + last} == {name}
        assert len({path.parent for path in first}) == len({path.parent for path in last}) == 1
        assert first[0].parent != last[0].parent and all(path.is_file() for path in first + last)


def test_the_demo_voice_never_says_the_sentence_that_is_to_be_read():
    said = {comparable(text) for block in make_plan(Settings(utterances=240, seed=0)) for text in block.texts}
    assert len(said) == 240
    assert comparable(demo.SENTENCE) not in said


def test_a_sentence_of_the_training_list_is_refused_in_any_spelling(ljspeech_root, tmp_path):
    utterances = read_corpus(ljspeech_root, "ljspeech")
    write_text_lists(tmp_path, utterances, 0, {})
    lists = read_text_lists(tmp_path)
    texts = {utterance.utterance: utterance.text for utterance in utterances}
    trained, held_out = texts[lists.train[0]], texts[lists.test[0]]
    for sentence in (trained, f"  {trained.upper().rstrip('.').replace(' ', ', ')}!"):
        with pytest.raises(UserError, match=f"trained on the sentence that it is to read: .*{lists.train[0]}.wav"):
            demo.require_unread(sentence, ljspeech_root, tmp_path)
    for sentence in (held_out, f"{trained} again", demo.SENTENCE):
        demo.require_unread(sentence, ljspeech_root, tmp_path)


SPEAKER_STAGES = ("download", "preprocess", "train", "evaluate", "enroll", "identify")
VOICE_STAGES = ("download voice", "preprocess voice", "train voice", "evaluate voice", "synthesize")


def short_preset(source: str, out: Path) -> Path:
    """A copy of a preset that trains for 10 steps."""
    text, count = re.subn(r"(?m)^steps: \d+$", "steps: 10", Path(source).read_text(encoding="utf-8"))
    assert count == 1
    out.write_text(text, encoding="utf-8")
    return out


@pytest.mark.slow
def test_whole_demo_and_its_repetition(tmp_path):
    """The real corpora and scripts with trainings of 10 steps: figures are not judged here."""
    args = Namespace(
        root=tmp_path / "raw",
        data=tmp_path / "features",
        out=tmp_path / "run",
        preset=short_preset("configs/speaker-tiny.yaml", tmp_path / "speaker.yaml"),
        voice_data=tmp_path / "voice-features",
        voice_out=tmp_path / "voice-run",
        voice_preset=short_preset("configs/tts-tiny.yaml", tmp_path / "voice.yaml"),
    )
    words = [sys.executable, "-m", "utils.demo"]
    for name, path in vars(args).items():
        words += [f"--{name.replace('_', '-')}", str(path)]
    first = subprocess.run(words, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    stages = SPEAKER_STAGES + VOICE_STAGES
    assert [line[3:] for line in first.stdout.splitlines() if line.startswith("== ")] == list(stages)
    closing = first.stdout[first.stdout.index("stage               wall time") :]
    shown = ["identification accuracy by chapter", "95 % interval", "det.png", "identified: ", "synthetic", *stages]
    shown += ["mel-cepstral distortion, copy-synthesis", "duration bias", "real-time factor, acoustic model"]
    sound, picture = demo.sentence_files(args.voice_out)
    for needed in (*shown, demo.SENTENCE, str(sound), str(picture)):
        assert needed in closing
    samples, rate = soundfile.read(sound)
    assert rate == 22_050 and len(samples) > rate and abs(samples).max() > 0.01
    assert picture.read_bytes().startswith(b"\x89PNG")
    made = [stage for each in (demo.speaker_stages, demo.voice_stages) for stage in each(args)]
    kept = {path: path.stat().st_mtime_ns for stage in made for path in stage.outputs}
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finished earlier") == len(stages)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "$ " not in second.stdout
