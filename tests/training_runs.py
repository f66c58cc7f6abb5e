"""Small trainings by train_tacomamba.py, in the process of the tests, and what they leave."""

from __future__ import annotations

import socket
from pathlib import Path

import torch

import train_tacomamba
from utils.checkpoint import load_checkpoint
from utils.training.runlog import read_log

MODEL = ["--d-model", "16", "--n-layers", "1", "--headdim", "8", "--d-state", "8", "--pooled-channels", "16"]
SMALL = [*MODEL, "--batch-size", "8", "--crop-seconds", "0.5", "--log-every", "1", "--threads", "1", "--no-tensorboard"]
SMALL += ["--margin-warmup", "0.1"]


def flags(data: Path, out: Path, *words: str) -> list[str]:
    return ["--task", "speaker", "--data", str(data), "--out", str(out), *SMALL, *words]


def train(data: Path, out: Path, *words: str) -> int:
    return train_tacomamba.main(flags(data, out, *words))


def losses(run: Path) -> dict[int, str]:
    return {line["step"]: line["loss_hex"] for line in read_log(run) if "step" in line}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt")["model"]


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
