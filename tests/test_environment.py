"""Set-up: pinned versions in one home, the permitted differences of the CUDA environment, and the Makefile's Python."""

import hashlib
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from root import ROOT

# What environment-cuda.yml may change or add, and why; anything else must be equal to environment.yml.
PERMITTED = {
    "torch": "the kernels' authors publish wheels for torch 2.6 to 2.10 only",
    "torchaudio": "goes with torch",
    "triton": "mamba-ssm's Mamba-2 kernels are written in it; pinned to the one that torch 2.10 was built with",
    "mamba-ssm": "the kernels",
    "causal-conv1d": "the kernels",
    "transformers": "mamba-ssm imports it, for language models",
    "tilelang": "mamba-ssm requires this version, for Mamba-3",
    "apache-tvm-ffi": "mamba-ssm requires at most this version, for tilelang and quack-kernels",
    "quack-kernels": "mamba-ssm requires it, for Mamba-3",
    "nvidia-cutlass-dsl": "quack-kernels requires it",
}


def pins(lines) -> dict[str, str]:
    """Name to version (or address) of requirement lines."""
    found = {}
    for line in lines:
        line = line.partition("#")[0] if " @ " not in line else line
        if line.strip():
            name, _, version = re.match(r"\s*([A-Za-z0-9_.-]+)\s*(==|@)\s*([^\s;]+)\s*(?:;.*)?$", line).groups()
            assert name not in found, f"{name} stands twice"
            found[name] = version
    return found


def requirements(name: str) -> dict[str, str]:
    return pins((ROOT / name).read_text(encoding="utf-8").splitlines())


def environment(name: str) -> tuple[dict, list[str], dict[str, str]]:
    """The file, its conda packages, and its pip pins."""
    content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    (pip,) = (item["pip"] for item in content["dependencies"] if isinstance(item, dict))
    return content, [item for item in content["dependencies"] if isinstance(item, str)], pins(pip)


@pytest.mark.parametrize("name", [f"requirements{part}.txt" for part in ("", "-demo", "-eval", "-export", "-dev")])
def test_requirements_are_pinned_exactly(name):
    versions = requirements(name)
    assert versions and all(re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", version) for version in versions.values())


def test_environment_holds_exactly_the_versions_of_requirements():
    content, conda, pip = environment("environment.yml")
    assert content["name"] == "cs7643-mamba"
    assert pip == requirements("requirements.txt")
    assert conda == ["python=3.11", "pip"]


def test_cuda_environment_differs_only_where_it_must():
    plain, plain_conda, plain_pip = environment("environment.yml")
    cuda, cuda_conda, cuda_pip = environment("environment-cuda.yml")
    assert (cuda["name"], cuda["channels"], cuda_conda) == (plain["name"], plain["channels"], plain_conda)
    changed = {name for name in plain_pip | cuda_pip if plain_pip.get(name) != cuda_pip.get(name)}
    assert changed == set(PERMITTED)
    assert all(name in cuda_pip for name in changed)


def test_kernel_wheels_fit_the_cuda_environment():
    _, conda, pip = environment("environment-cuda.yml")
    torch = ".".join(pip["torch"].split(".")[:2])
    python = "cp" + conda[0].removeprefix("python=").replace(".", "")
    for name in ("mamba-ssm", "causal-conv1d"):
        release, wheel = pip[name].split("/")[-2:]
        version, build = re.fullmatch(rf"{name.replace('-', '_')}-([^+]+)\+(.*)\.whl", wheel).groups()
        assert release == f"v{version}"
        assert build == f"cu12torch{torch}cxx11abiTRUE-{python}-{python}-linux_x86_64"
        text = (ROOT / "environment-cuda.yml").read_text(encoding="utf-8")
        assert f"{name}=={version}" in text  # the comment on how to build it


def test_python_versions_agree():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["ruff"]["target-version"] == "py311"
    assert "Python 3.11 to 3.13" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_license_is_the_verbatim_text_and_is_named_everywhere():
    text = (ROOT / "LICENSE").read_bytes()
    # The text at apache.org, which Apache-licensed distributions on PyPI carry byte for byte.
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)


@pytest.mark.parametrize("how", [[], ["--editable"]], ids=["install", "editable"])
def test_pip_says_that_this_is_no_package(how, tmp_path):
    """In one sentence, without the network, and without leaving anything behind."""
    checkout = tmp_path / "checkout"
    (checkout / "utils").mkdir(parents=True)
    for name in ("pyproject.toml", "utils/__init__.py", "utils/installation.py"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    target = ["--no-index", "--target", tmp_path / "installed"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *target, *how, checkout]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / "installed").exists()
    assert "TacoMamba is not a package: run its scripts from a checkout" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_notice_names_what_is_used_under_other_terms():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in ("espeak-ng", "GPL-3.0-or-later", "LibriSpeech", "CC BY 4.0", "LJSpeech", "public domain"):
        assert name in notice
    for file in ("requirements-demo.txt", "requirements-eval.txt", "requirements-export.txt"):
        for name in requirements(file):
            assert name in notice and name not in requirements("requirements.txt")


def test_continuous_integration_runs_both_test_targets():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines.index("make test") < lines.index("make test-slow") < lines.index("make test-bare")


@pytest.fixture
def clone(tmp_path):
    """A folder, with a space in its name, of what the Makefile needs to make .venv; and an empty folder for PATH."""
    folder, path = tmp_path / "a clone", tmp_path / "path"
    folder.mkdir()
    path.mkdir()
    for name in ("Makefile", "requirements.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder, path


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def make(folder: Path, path: Path, *words: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    environment = {**kept, "PATH": f"{path}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True)


CANDIDATES = ("python3", "python3.12", "python3.11", "python3.13", "python")
SHIM = "echo 'the version is not installed' >&2; exit 127"  # a name on PATH that fails when it is run
TOO_OLD = "exit 1"  # answers the version check with no
# Makes a "virtual environment" that is this interpreter again, in no time.
FAKE_VENV = f"""if [ "$1 $2" = "-m venv" ]; then mkdir -p "$4/bin" && cp "$0" "$4/bin/python"; exit; fi
exec "{sys.executable}" "$@" """


def test_no_python_is_one_sentence(clone):
    folder, path = clone
    for name in CANDIDATES:
        program(path / name, SHIM if name != "python" else TOO_OLD)
    result = make(folder, path, ".venv/.made")
    assert result.returncode != 0
    sentence, *rest = result.stderr.splitlines()
    assert sentence.startswith(
        "No Python 3.11 to 3.13 with venv and pip was found (tried: python3 python3.12 python3.11"
    )
    assert all(line.startswith("make: ***") for line in rest)
    assert not (folder / ".venv").exists()


def test_first_python_that_runs_is_taken_and_kept(clone):
    folder, path = clone
    for name in CANDIDATES:
        program(path / name, SHIM)
    program(path / "python3.11", FAKE_VENV)
    first = make(folder, path, ".venv/.made")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Making .venv with ")
    assert "up to date" in make(folder, path, ".venv/.made").stdout
    (folder / ".venv" / ".made").unlink()
    again = make(folder, path, ".venv/.made")  # a .venv that works is not made again, whoever made it
    assert (again.returncode, again.stdout) == (0, "")
    (folder / ".venv" / "bin" / "python").unlink()  # its Python has gone
    assert "Making .venv" in make(folder, path, ".venv/.made").stdout


def test_python_can_be_named(clone, tmp_path):
    folder, path = clone
    for name in CANDIDATES:
        program(path / name, SHIM)
    named = tmp_path / "my pythons" / "python"
    named.parent.mkdir()
    program(named, FAKE_VENV)
    assert make(folder, path, ".venv/.made", f"PYTHON={named}").returncode == 0
    assert (folder / ".venv" / "bin" / "python").exists()
    program(named, TOO_OLD)
    (folder / ".venv" / "bin" / "python").unlink()
    refused = make(folder, path, ".venv/.made", f"PYTHON={named}")
    assert refused.returncode != 0
    assert f"(tried: {named})" in refused.stderr


def test_requirements_are_installed_once_and_torch_from_where_it_is_asked(clone):
    folder, path = clone
    (folder / "requirements-demo.txt").write_text("x==1.0\n")
    log = folder / "log"
    fake = f"""if [ "$1 $2" = "-m venv" ]; then mkdir -p "$4/bin" && cp "$0" "$4/bin/python"; exit; fi
if [ "$1 $2 $4" = "-m pip install" ]; then shift 4; echo "$*" >> "{log}"; exit; fi
exec "{sys.executable}" "$@" """
    program(path / "python3", fake)
    index = "https://example.org/whl/cpu"
    assert make(folder, path, "env", f"TORCH_INDEX={index}").returncode == 0
    torch = requirements("requirements.txt")["torch"]
    installed = [f"--no-deps --index-url {index} torch=={torch}", "-r requirements.txt", "-r requirements-demo.txt"]
    assert log.read_text().splitlines() == installed
    assert make(folder, path, "env").returncode == 0
    assert log.read_text().splitlines() == installed
    (folder / "requirements-demo.txt").write_text("x==2.0\n")
    assert make(folder, path, "env").returncode == 0
    assert log.read_text().splitlines() == [*installed, "-r requirements-demo.txt"]


@pytest.mark.slow
def test_real_virtual_environments_in_a_folder_with_a_space(clone, tmp_path):
    """The tests' environment sees the users', adds nothing to it, and does so in a checkout that was moved."""
    folder, path = clone
    program(path / "python3", f'exec "{sys.executable}" "$@"')
    assert make(folder, path, ".venv-test/.made").returncode == 0
    for environment, module in ((".venv", "of_users"), (".venv-test", "of_tests")):
        (library,) = (folder / environment).glob("lib/python3.*/site-packages")
        (library / f"{module}.py").write_text("")
    moved = folder.rename(tmp_path / "moved")
    for environment, seen in ((".venv", "of_users"), (".venv-test", "of_users, of_tests")):
        python = moved / environment / "bin" / "python"
        assert subprocess.run([python, "-c", f"import {seen}"]).returncode == 0
        assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    assert subprocess.run([moved / ".venv/bin/python", "-c", "import of_tests"], capture_output=True).returncode
    assert make(moved, path, "clean").returncode == 0
    assert not list(moved.glob(".venv*"))
