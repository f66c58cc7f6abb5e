"""Checkpoints: plain dictionaries saved by torch, loaded without pickle, with a sha256 beside them.

Keys of every checkpoint: `format`, `task`, `step`, `config` (the run's flags), `model_config`, `recipe` (of the
features), `speakers` (class names in the order of the classifier's rows), `model` (state dict) and `metrics`. `last.pt`
also holds `training`: optimiser, scaler, random states and what else an exact resume needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.cli import UserError
from utils.files import atomic_write, sha256_file, write_text

FORMAT = 1
BEST, LAST = "best.pt", "last.pt"


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes `checkpoint`, plain values and tensors only, and then its hash.

    The old hash goes first: a crash in between leaves a checkpoint without a hash, never one with a wrong hash.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    content = buffer.getbuffer()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_hash_path(path))
    with atomic_write(path) as file:
        file.write(content)
    write_text(_hash_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file, or a run folder's best one; `UserError` for whatever is wrong with it."""
    path = Path(path)
    if path.is_dir():
        path = path / BEST
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    hash_path = _hash_path(path)
    if hash_path.exists() and hash_path.read_text(encoding="utf-8").split()[:1] != [sha256_file(path)]:
        raise UserError(f"the checkpoint {path} does not have the sha256 that {hash_path.name} gives; it is damaged")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own: EOFError, RuntimeError, UnpicklingError ...
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of TacoMamba, format {FORMAT}")
    return checkpoint


def model_hash(state: dict[str, Tensor], model_config: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Names a model by weights, configuration and recipe: 16 hex digits of sha256, whatever file they lie in."""
    digest = hashlib.sha256(repr([sorted(model_config.items()), sorted(recipe.items())]).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
