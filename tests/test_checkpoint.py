"""Checkpoints: intact and harmless, or refused with a sentence."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch

from utils.checkpoint import BEST, load_checkpoint, model_hash, save_checkpoint
from utils.errors import UserError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / BEST
    save_checkpoint(path, {"task": "speaker", "step": 3, "model": {"weight": torch.arange(1000.0)}})
    return path


def test_round_trip_by_file_and_by_folder(saved):
    for place in (saved, saved.parent, str(saved)):
        checkpoint = load_checkpoint(place)
        assert checkpoint["step"] == 3 and torch.equal(checkpoint["model"]["weight"], torch.arange(1000.0))
    assert sorted(path.name for path in saved.parent.iterdir()) == [BEST, BEST + ".sha256"]


def test_a_checkpoint_copied_without_its_hash_loads(saved, tmp_path):
    shutil.copy(saved, tmp_path / "copy.pt")
    assert load_checkpoint(tmp_path / "copy.pt")["step"] == 3


def test_one_flipped_byte_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_checkpoint_is_refused_even_without_its_hash(saved, keep):
    content = saved.read_bytes()
    (saved.parent / (BEST + ".sha256")).unlink()
    saved.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match="cannot be loaded|can be loaded"):
        load_checkpoint(saved)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_pickle_runs_no_code(tmp_path, dump):
    trap = tmp_path / "trap"
    dump({"format": 1, "model": Malice(str(trap))}, tmp_path / BEST)
    with pytest.raises(UserError, match="is not a checkpoint, or it is damaged"):
        load_checkpoint(tmp_path)
    assert not trap.exists()


def test_other_files_and_empty_places_are_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a checkpoint of TacoMamba"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_failed_save_leaves_the_old_checkpoint(saved):
    with pytest.raises(AttributeError):
        save_checkpoint(saved, {"model": lambda: None})
    assert load_checkpoint(saved)["step"] == 3


def test_the_model_hash_names_weights_configuration_and_recipe():
    weights = {"a": torch.arange(3.0), "n": torch.tensor(4)}
    name = model_hash(weights, {"causal": True}, {"hop": 160})
    assert name == model_hash(dict(reversed(weights.items())), {"causal": True}, {"hop": 160}) and len(name) == 16
    assert name != model_hash({**weights, "a": torch.arange(3.0) + 1}, {"causal": True}, {"hop": 160})
    assert name != model_hash(weights, {"causal": False}, {"hop": 160})
    assert name != model_hash(weights, {"causal": True}, {"hop": 200})
