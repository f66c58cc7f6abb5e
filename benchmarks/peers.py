"""Fetches the other Mambas in plain torch, which benchmarks/mixers.py measures, into a folder beside this repository.

    python benchmarks/peers.py --out ../peers
    python benchmarks/peers.py --out ../peers --only mamba-minimal mamba

This repository contains none of their code. OUT/site holds packages from PyPI without their dependencies, which are in
requirements.txt; OUT/NAME is a clone at a pinned commit. A folder with the same layout from another source works as
well; missing peers are left out of the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

PACKAGES = {"mambapy": "1.2.0", "transformers": "5.23.0", "tokenizers": "0.23.3", "regex": "2026.11.15"}
REPOSITORIES = {
    "mamba-minimal": ("https://github.com/johnma2006/mamba-minimal", "03de542a36d873f6e6c4057ad687278cc6ae944d"),
    "mamba-tiny": ("https://github.com/PeaBrane/mamba-tiny", "5937e1ff6c3875cad63c4a5563214d17f8632c12"),
    "mamba2-minimal": ("https://github.com/tommyip/mamba2-minimal", "4f4413731f24303b4e046962bce6ca5b6a3b13d6"),
    "mamba": ("https://github.com/state-spaces/mamba", "e9594ce1c732d97440f0332fdc43170a2294dbfa"),
}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for --peers of benchmarks/mixers.py")
    names = [*PACKAGES, *REPOSITORIES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="peers to fetch")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Fetches the missing peers and prints the versions of all."""
    return cli.run(_fetch, build_parser().parse_args(argv))


def _fetch(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        if version(args.out, name) is None:
            _install(args.out, name) if name in PACKAGES else _clone(args.out, name)
        print(f"{name}: {version(args.out, name)}")


def _install(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--target", str(folder / "site"), f"{name}=={PACKAGES[name]}"])


def _clone(folder: Path, name: str) -> None:
    address, commit = REPOSITORIES[name]
    _run(["git", "clone", "--quiet", address, str(folder / name)])
    _run(["git", "-C", str(folder / name), "checkout", "--quiet", commit])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"`{' '.join(command)}` ended with {result.returncode}: {result.stderr.strip()}")


def version(folder: Path | None, name: str) -> str | None:
    """The version of a peer in `folder`: of its package, else its commit, else a hash of its files; None if missing."""
    if folder is None:
        return None
    if name in PACKAGES:
        found = importlib.metadata.distributions(name=name, path=[str(folder / "site")])
        return next((distribution.version for distribution in found), None)
    if not (folder / name).is_dir():
        return None
    if (folder / name / ".git").exists():
        head = ["git", "-C", str(folder / name), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    return hash_of(sorted((folder / name).rglob("*.py")))


def hash_of(files: list[Path]) -> str:
    """Twelve digits of the SHA-256 of the files' contents, one after another."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
