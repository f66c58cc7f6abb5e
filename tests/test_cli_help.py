"""Every script's `--help`: prompt, complete, and without torch."""

import argparse
import re
import resource
import subprocess
import sys

import pytest
import yaml
from root import ROOT
from shown_commands import MODULES, SCRIPTS, build_parser, lines_of, parse, split_command, subparsers

from utils import cli

CPU_SECONDS = 0.3
WITH_MODELS = ["profile_model.py", "train_tacomamba.py"]  # whose flags are generated from the models: they need torch
CPU_SECONDS_WITH_MODELS = 3.0
HEAVY = {"torch", "torchaudio", "datasets", "pyarrow", "matplotlib", "tensorboard"}


def parsers(name: str) -> dict[str, cli.Parser]:
    """The parser of a script and those of its subcommands, by the words that lead to them."""
    parser = build_parser(name)
    found = {name: parser} | {f"{name} {command}": inner for command, inner in subparsers(parser).items()}
    if name in WITH_MODELS:
        found[f"{name} --task tts"] = build_parser(name, ["--task", "tts"])
    return found


def test_the_list_of_scripts_is_complete():
    scripts = ["download.py", "preprocess.py", "profile_model.py", "test.py", "train_tacomamba.py"]
    measuring = "adaptation degraded diarization embedding_speed gpu gpu_mixers gpu_training launches loading metrics"
    measuring = [*measuring.split(), *"mixers open_set peers pretrained profile_accuracy recognizers streaming".split()]
    assert SCRIPTS == [*(f"benchmarks/{name}.py" for name in measuring), *scripts]
    commands = set(subparsers(build_parser("test.py")))
    assert {"evaluate", "embed", "enroll", "identify", "verify"} <= commands
    with_parsers = {path for path in ROOT.glob("utils/**/*.py") if "def build_parser()" in path.read_text("utf-8")}
    assert with_parsers == {ROOT / (name.replace(".", "/") + ".py") for name in MODULES}


def run_help(words: list[str]) -> tuple[float, str, set[str]]:
    """CPU seconds (user and system) of `--help` in a new process, its output, and the packages imported."""
    start = ["-m", words[0]] if words[0] in MODULES else [words[0]]
    command = [sys.executable, "-X", "importtime", *start, *words[1:], "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, process.stderr
    lines = (line.rpartition("|")[2].strip() for line in process.stderr.splitlines() if line.startswith("import time:"))
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, process.stdout, {line.partition(".")[0] for line in lines}


@pytest.mark.parametrize("words", [*SCRIPTS, *MODULES, "test.py evaluate", "train_tacomamba.py --task tts"])
def test_help_is_prompt_and_imports_nothing_heavy(words):
    has_models = words.split()[0] in WITH_MODELS
    seconds, bound = [], CPU_SECONDS_WITH_MODELS if has_models else CPU_SECONDS
    for _ in range(3):  # the least of three: a busy machine can only add
        spent, output, packages = run_help(words.split())
        assert "argparse" in packages
        assert not packages & (HEAVY - {"torch", "pyarrow"} if has_models else HEAVY)
        assert output.startswith("usage: ") and "--help" in output
        seconds.append(spent)
        if min(seconds) < bound:
            return
    raise AssertionError(f"--help took {min(seconds):.2f} s of CPU time")


@pytest.mark.parametrize("name", SCRIPTS + MODULES)
def test_flags_are_kebab_case_and_explained(name):
    for words, parser in parsers(name).items():
        assert parser.description, words
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{words}: {action.dest} has no help"
            for flag in action.option_strings:
                assert re.fullmatch(r"-h|--[a-z][a-z0-9]*(-[a-z0-9]+)*", flag), f"{words}: {flag}"


@pytest.mark.parametrize("words", [*SCRIPTS, *MODULES, "test.py evaluate"])
def test_every_script_states_the_version(words, capsys):
    name, *rest = words.split()
    with pytest.raises(SystemExit) as stop:
        build_parser(name).parse_args([*rest, "--version"])
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"]
    assert stop.value.code == 0 and capsys.readouterr().out == f"TacoMamba {version}\n"


@pytest.mark.parametrize("name", ["test.py", "train_tacomamba.py", "profile_model.py"])
def test_values_of_flags_have_short_names(name):
    for words, parser in parsers(name).items():
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and not action.choices:
                is_device = action.dest == "device"  # its name is as good as any
                assert is_device or action.metavar, f"{words}: {action.option_strings[0]} has no metavar"
                assert (action.type is not cli.positive_int) or action.metavar == "N"


@pytest.mark.parametrize("name", SCRIPTS + MODULES)
def test_defaults_are_shown_once_and_switches_are_no_words(name):
    for words, parser in parsers(name).items():
        assert "(default: None)" not in parser.format_help()
        for action in parser._actions:
            assert action.type is not bool, f"{words}: {action.option_strings} would take every word for true"
            if action.option_strings and action.default not in (None, argparse.SUPPRESS):
                assert "(default: " not in action.help, f"{words}: {action.option_strings[0]} is shown twice"


@pytest.mark.parametrize("name", SCRIPTS + MODULES)
def test_docstrings_show_commands_that_parse(name, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for words, parser in parsers(name).items():
        commands = [line for line in lines_of(parser.description) if re.match(r"(python|torchrun) ", line)]
        own = [command for command in commands if split_command(command)[0] == name]
        assert own or words != name, f"{words} shows no command"
        for command in commands:  # those of other scripts prepare what this one needs
            parse(command, tmp_path)
