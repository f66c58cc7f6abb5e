"""A package in the place of faster-whisper, whose weights a test cannot fetch; it always hears the same."""

import sys
from pathlib import Path

import pytest

HEARD = "the river boats"
PACKAGE = f"""
from types import SimpleNamespace


class WhisperModel:
    def __init__(self, folder, device, compute_type, cpu_threads, local_files_only):
        assert device == "cpu" and local_files_only

    def transcribe(self, audio, language, beam_size, temperature, condition_on_previous_text, vad_filter):
        assert audio.ndim == 1 and audio.dtype == "float32" and language == "en"
        return iter([SimpleNamespace(text={HEARD!r} if len(audio) else "")]), None
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the package first on the path, in this process and in those that it starts; a folder for `--asr`."""
    packages, model = folder / "packages", folder / "whisper"
    packages.mkdir()
    (packages / "faster_whisper.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setitem(sys.modules, "faster_whisper", None)  # so that what is imported goes at the end of the test
    monkeypatch.delitem(sys.modules, "faster_whisper")
    model.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (model / name).write_text("{}", encoding="utf-8")
    return model
