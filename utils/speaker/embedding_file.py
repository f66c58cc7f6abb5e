"""The file of embeddings of recordings, which others may read: `test.py embed --out` and `people export` write it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from utils.errors import UserError
from utils.files import write_bytes


def write_embeddings(path: str | Path, names: Sequence[str], embeddings: NDArray[np.float32], model_hash: str) -> None:
    """Writes a safetensors file: `embeddings` (n, d), metadata `names` (a JSON list) and `model_hash`.

    `UserError` if `path` exists and is another kind of file, or cannot be written.
    """
    content = save({"embeddings": embeddings}, metadata={"names": json.dumps(list(names)), "model_hash": model_hash})
    try:
        if Path(path).exists() and Path(path).stat().st_size:
            read_embeddings(path)
    except UserError as error:
        raise UserError(f"{path} exists, and is no file of embeddings: choose another name") from error
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"the embeddings cannot be written to {path}: {error.strerror or error}") from error


def read_embeddings(path: str | Path) -> tuple[NDArray[np.float32], str]:
    """Embeddings (n, d) of a file that `write_embeddings` wrote, and the hash of their model; else `UserError`."""
    try:
        with safe_open(path, framework="numpy") as file:
            model_hash = (file.metadata() or {}).get("model_hash")
            embeddings = file.get_tensor("embeddings") if "embeddings" in file.keys() else None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a file of embeddings, or it is damaged: {error}") from error
    if model_hash is None or embeddings is None:
        raise UserError(f"{path} is not a file of embeddings, as test.py embed --out writes it")
    return embeddings, model_hash
