"""Packed models: folders of plain files to publish, such as those in pretrained/, read without pickle.

`model.safetensors` has the tensors of a checkpoint under the names of their groups, such as `model.` and `back_end.`;
matrices and kernels of the model are float16 there, everything else keeps its type. `config.json` has the checkpoint's
plain entries, and `SHA256SUMS` the hashes of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, read_text, sha256_file, write_bytes, write_json, write_text

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"
"""A folder for each task that this repository has a trained model of."""

WEIGHTS, CONFIG, SUMS = "model.safetensors", "config.json", "SHA256SUMS"
TRAINING = "training.yaml"  # the flags of the training
FORMAT = "tacomamba-packed-1"


def shipped_model(task: str) -> Path:
    """The folder of the model that is shipped for a task; there may be no model in it."""
    return SHIPPED / task


def is_packed(path: Path) -> bool:
    """Whether a path is a folder with a packed model, or with a part of one."""
    return any((path / name).exists() for name in (WEIGHTS, CONFIG, SUMS))


def write_packed(folder: Path, content: dict[str, Any]) -> None:
    """Writes the content of a checkpoint, without its training state, into an existing folder."""
    from safetensors.torch import save
    from torch import Tensor

    groups = {
        group: values
        for group, values in content.items()
        if isinstance(values, dict) and values and all(isinstance(each, Tensor) for each in values.values())
    }
    tensors = {f"{group}.{name}": each for group, values in groups.items() for name, each in values.items()}
    halves = {name: each for name, each in tensors.items() if name.startswith("model.") and each.dim() > 1}
    tensors |= {name: each.half() for name, each in halves.items()}
    write_bytes(folder / WEIGHTS, save({name: each.clone() for name, each in tensors.items()}))  # no two share memory
    plain = {name: value for name, value in content.items() if name not in groups}
    write_json(folder / CONFIG, {"format": FORMAT, **plain})
    write_text(folder / SUMS, "".join(f"{_line(folder / name)}\n" for name in (WEIGHTS, CONFIG)))


def read_packed(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint, floats as float32 or wider; `UserError` if it is incomplete, damaged or foreign."""
    from safetensors.torch import load_file

    missing = [name for name in (WEIGHTS, CONFIG, SUMS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"the packed model {folder} is incomplete: it lacks {' and '.join(missing)}")
    sums = read_text(folder / SUMS).splitlines()
    for name in (WEIGHTS, CONFIG):
        if _line(folder / name) not in sums:
            raise UserError(f"{folder / name} does not have the sha256 in {SUMS}: it is damaged")
    content = read_json(folder / CONFIG)
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{folder} is not a packed model of TacoMamba, format {FORMAT}")
    for name, tensor in load_file(folder / WEIGHTS).items():
        group, _, name = name.partition(".")
        content.setdefault(group, {})[name] = tensor.float() if tensor.element_size() == 2 else tensor
    return content


def _line(path: Path) -> str:
    """Hash and name of a file, in the format of sha256sum."""
    return f"{sha256_file(path)}  {path.name}"
