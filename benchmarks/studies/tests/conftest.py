"""Fixtures and helpers of tests/, for the tests of the studies."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))

from tests.conftest import librispeech_root, ljspeech_root, processed_voice, real_data  # noqa: E402, F401
