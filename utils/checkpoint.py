"""Checkpoints: plain dictionaries saved by torch, loaded without pickle, with a sha256 beside them; and packed models.

Keys of every checkpoint: `format`, `task`, `step`, `config` (the run's flags), `model_config`, `recipe` (of the
features), `recipe_hash`, `speakers` (of the classifier's rows, or of the voices), `training_list` (a hash), `model`
(the state dict to use) and `metrics`. Text to mel adds `vocabulary`, `symbol_counts` (of the training texts),
`front_end_version`, `recognizer` and `recognizer_hash` (of the speaker checkpoint that embeds recordings, or None) and
`speaker_embeddings` (n_speakers, e). `last.pt` adds `training`, state of the run (`utils.training.trainer.Trainer`).
`utils.packed` describes the folders that hold the content of a checkpoint in order to be published.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import packed
from utils.errors import UserError
from utils.files import atomic_write, sha256_file, write_text

FORMAT = 1
BEST, LAST = "best.pt", "last.pt"


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes `checkpoint`, plain values and tensors only, and then its hash.

    The old hash is removed first: a crash in between leaves a checkpoint without a hash, never one with a wrong hash.
    `UserError` if the system refuses, as with a full disk; the old checkpoint is intact then.
    """
    buffer = io.BytesIO()  # not the file, because torch reports a full disk as an internal error
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    content = buffer.getvalue()  # without a copy; a view may not outlive the buffer
    try:
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            hash_path(path).unlink(missing_ok=True)
        write_text(hash_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); an older one is untouched") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file, the best one of a run folder, or a packed model, by its folder or shipped under a name.

    `UserError` if it is missing, damaged or foreign.
    """
    found = find_model(path)
    if packed.is_packed(found):
        return packed.read_packed(found)
    path = found / BEST if found.is_dir() else found
    if not path.is_file():
        if found.parent == packed.SHIPPED:
            raise UserError(f"no trained model is shipped in {found}: give --checkpoint, or train one")
        raise UserError(f"there is no checkpoint at {path}")
    beside = hash_path(path)
    if beside.exists() and beside.read_bytes().decode(errors="replace").split()[:1] != [sha256_file(path)]:
        raise UserError(f"the checkpoint {path} does not have the sha256 in {beside.name}: it is damaged")
    try:
        with path.open("rb") as file:  # torch itself cannot open names that are not UTF-8
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose text says how to load unsafe files
        raise UserError(f"{path} is not a checkpoint, or it is damaged") from error
    except Exception as error:  # torch.load raises EOFError, RuntimeError ...
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be loaded: {reason}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of TacoMamba, format {FORMAT}")
    return checkpoint


def find_model(path: str | Path) -> Path:
    """The path, or where nothing has it and it is a single name, the folder of the shipped model of that name."""
    path = Path(path)
    shipped = packed.shipped_model(path.name)
    return shipped if not path.exists() and path.name == str(path) and shipped.is_dir() else path


def model_hash(state: dict[str, Tensor], model_config: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Identifies a model by weights, configuration and recipe, in any file: 16 hex digits of sha256."""
    digest = hashlib.sha256(repr([sorted(model_config.items()), sorted(recipe.items())]).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_path(path: Path) -> Path:
    """The file with the sha256 of a checkpoint, in the format of sha256sum."""
    return path.with_name(path.name + ".sha256")
