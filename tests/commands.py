"""Commands of test.py, run in the process of the tests."""

from __future__ import annotations

import importlib.util
import json

import pytest
from root import ROOT


def load_script():
    """test.py under another name, as the standard library has a package called `test`."""
    spec = importlib.util.spec_from_file_location("test_script", ROOT / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def call(*words: object) -> int:
    """The exit code of a command, whether argparse or the body gives it."""
    try:
        return script.main([str(word) for word in words])
    except SystemExit as stopped:
        return stopped.code


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """The JSON that a command prints."""
    assert call(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence of a command that must end with exit code 2."""
    assert call(*words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("error: ")
    return shown.err


def problems(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentences of a command whose arguments are refused."""
    assert call(*words) == 2
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    return err
