"""The version of the project, which CITATION.cff states."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


class ShowVersion(argparse.Action):
    """Action of `--version`: prints the version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        import yaml  # only here, as every script has this flag

        content = (Path(__file__).resolve().parents[1] / "CITATION.cff").read_text(encoding="utf-8")
        print(f"TacoMamba {yaml.safe_load(content)['version']}")
        parser.exit()
