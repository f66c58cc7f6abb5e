"""The build backend that pyproject.toml names: it ends `pip install .` with one sentence that names what works."""

from __future__ import annotations

import sys
from typing import Any, NoReturn


def build_wheel(*_: Any, **__: Any) -> NoReturn:
    """Exits, as all hooks that pip calls do."""
    sys.exit(
        "TacoMamba is not a package: run its scripts from a checkout (pip install -r requirements.txt), and use a "
        "trained recognizer elsewhere as the file that test.py export writes (docs/export.md)"
    )


get_requires_for_build_wheel = get_requires_for_build_editable = get_requires_for_build_sdist = build_wheel
build_editable = build_sdist = build_wheel
