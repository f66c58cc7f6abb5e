"""The recipes of docs/extending.md, applied to a copy of the repository: each trains, resumes and evaluates."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import forked
import pytest
from root import ROOT
from shown_commands import lines_of

MOST_LINES = 15
MOST_FILES = {"A mixer": 1, "A pooling layer": 2, "An augmentation": 1, "A loss": 2, "A data layout": 2}
SMALL = "--d-model 32 --n-layers 1 --headdim 16 --d-state 8 --pooled-channels 16 --embedding-dim 16 --batch-size 8"
RUN = "--crop-seconds 1 --save-every 3 --threads 1 --device cpu --no-tensorboard"
RECIPES = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text(), re.M | re.S))
SCRIPT = """
import sys
import test, train_tacomamba
train, evaluate = (words.split("\\x1f") for words in sys.argv[1:])
assert train_tacomamba.main([*train, "--steps", "3"]) == 0
assert train_tacomamba.main([*train, "--steps", "5", "--resume", "auto"]) == 0
assert test.main(evaluate) == 0
"""


def changes(recipe: str) -> list[tuple[str, str | None, str]]:
    """File, the name of the field that the code goes below (None: at the end), and the code, in the recipe's order."""
    pattern = r"(?:below `(\w+)` in|[Aa]t the end of) `([\w/.]+)`:\n\n```python\n(.*?)```"
    return [(file, field or None, code) for field, file, code in re.findall(pattern, recipe, re.S)]


def apply(recipe: str, tree: Path) -> None:
    for file, field, code in changes(recipe):
        text = (tree / file).read_text(encoding="utf-8")
        if field is None:
            text = f"{text}\n\n{code}"
        else:
            (line,) = re.findall(rf"^    {field}: .*\n", text, re.MULTILINE)
            text = text.replace(line, line + code)
        (tree / file).write_text(text, encoding="utf-8")


def command_of(recipe: str) -> list[str]:
    """The words of the recipe's command after its script."""
    (block,) = re.findall(r"```bash\n(.*?)```", recipe, re.S)
    (line,) = lines_of(block)
    return shlex.split(line)[2:]


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the product's code."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "models", "utils", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if not name.startswith(("tests/", "benchmarks/")) and (ROOT / name).exists():
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


def replaced(words: list[str], **values: Path) -> list[str]:
    """The words with other values for some flags."""
    pairs = {f"--{name}": str(value) for name, value in values.items()}
    return [pairs.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def call(tree: Path, *words: str) -> str:
    done = forked.run(*words, cwd=tree)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_resume_evaluate(tree: Path, data: Path, words: list[str]) -> None:
    out = Path(words[words.index("--out") + 1])
    evaluate = ["evaluate", "--checkpoint", str(out), "--data", str(data), "--out", f"{out}/report", "--bootstrap", "5"]
    (tree / "three.py").write_text(SCRIPT, encoding="utf-8")
    output = call(tree, "three.py", "\x1f".join([*words, *SMALL.split(), *RUN.split()]), "\x1f".join(evaluate))
    assert "from step 3" in output and "EER" in output


def test_there_is_a_recipe_for_each_kind_of_part():
    assert set(RECIPES) == set(MOST_FILES)


@pytest.mark.parametrize("name", MOST_FILES)
def test_recipes_are_short_and_touch_few_files(name):
    found = changes(RECIPES[name])
    assert sum(len([line for line in code.splitlines() if line]) for _, _, code in found) <= MOST_LINES
    assert 1 <= len({file for file, _, _ in found}) <= MOST_FILES[name]


@pytest.mark.parametrize("name", [name for name in MOST_FILES if name != "A data layout"])
def test_a_recipe_trains_resumes_and_evaluates(name, tree, processed, tmp_path):
    """Without the recipe the same command is refused."""
    words = replaced(command_of(RECIPES[name]), data=processed, out=tmp_path / "run")
    refused = forked.run("train_tacomamba.py", *words, cwd=tree)
    assert refused.returncode == 2, refused.stderr
    apply(RECIPES[name], tree)
    train_resume_evaluate(tree, processed, words)


def test_the_layout_is_preprocessed_trained_and_evaluated(tree, librispeech_root, tmp_path):
    apply(RECIPES["A data layout"], tree)
    for audio in librispeech_root.glob("LibriSpeech/*/*/*/*.flac"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(audio, tmp_path / "flat" / audio.name.replace("-", "_"))
    data = tmp_path / "data"
    words = [*replaced(command_of(RECIPES["A data layout"]), raw=tmp_path / "flat", out=data), "--num-proc", "1"]
    call(tree, "preprocess.py", *words)
    train_resume_evaluate(tree, data, ["--data", str(data), "--out", str(tmp_path / "run"), "--mixer", "conv"])
