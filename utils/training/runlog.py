"""A run's folder: its configuration, one line of JSON per logged step, TensorBoard scalars, pictures and sounds."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import read_text, write_json, write_text
from utils.wav import wav_file

LOG = "log.jsonl"


class RunLog:
    """Writes `log.jsonl` and TensorBoard events; a rank that is not main writes nothing.

    For a resumed run, `first_step` > 0, later lines are removed, so that no step occurs twice, and a line with
    `resumed_from` instead of `step` is added.
    """

    def __init__(self, directory: Path, is_main: bool, first_step: int, tensorboard: bool) -> None:
        self._directory = directory
        self._file = self._board = None
        if not is_main:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / LOG
        kept = _read_until(directory, first_step)
        lines = [*kept, {"resumed_from": first_step}] if first_step else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line; numbers also go to TensorBoard, under valid/ if named valid_..., else under train/."""
        if self._file is None:
            return
        # JSON has no number for the loss or gradient norm of a skipped step, which is not finite.
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(_tag(name), value, step)

    def picture(self, step: int, name: str, draw: Callable[[Path], None]) -> None:
        """Keeps the picture of `draw(path)` as `pictures/NAME-STEP.png`; does nothing without TensorBoard."""
        if self._board is not None:
            from matplotlib.image import imread

            path = self._directory / "pictures" / f"{name}-{step:08d}.png"
            draw(path)
            self._board.add_image(name, imread(path)[..., :3], step, dataformats="HWC")

    def sound(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        """Keeps samples (s,) within -1 and 1 as `sounds/NAME-STEP.wav`; does nothing without TensorBoard."""
        if self._board is not None:
            with wav_file(self._directory / "sounds" / f"{name}-{step:08d}.wav", sample_rate) as write:
                write(samples)
            self._board.add_audio(name, samples[None], step, sample_rate)

    def finish(self, config: dict[str, Any], metrics: dict[str, float]) -> None:
        """Adds the flags and the final metrics to TensorBoard's table of hyperparameters."""
        if self._board is not None:
            from torch.utils.tensorboard.summary import hparams

            flags = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in config.items()}
            scores = {_tag(name): value for name, value in metrics.items()}
            # Not by add_hparams, which would make a second run in a folder of its own.
            for summary in hparams(flags, scores):
                self._board.file_writer.add_summary(summary)

    def sync(self) -> None:
        """Flushes lines to disk, before a checkpoint is saved that the log must not fall behind."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _tag(name: str) -> str:
    """The name of a value in TensorBoard."""
    return f"valid/{name.removeprefix('valid_')}" if name.startswith("valid_") else f"train/{name}"


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without a last one that a crash cut short; `UserError` if another one is damaged."""
    path = directory / LOG
    if not path.exists():
        return []
    lines = read_text(path).split("\n")
    return [_parsed(line, f"line {number} of {path}") for number, line in enumerate(lines[:-1], 1) if line]


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is damaged: delete it") from error
    if not isinstance(content, dict) or not {"step", "resumed_from"} & content.keys():
        raise UserError(f"{where} is not of a training's log: delete it")
    return content


def cpu_time(log: Sequence[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps (k,) of a log's lines from 0 on, and the CPU seconds (k,) of the main process from 0 to each.

    Steps whose line was lost by an interruption count as the others' mean.
    """
    steps, rates = [0], []
    for line in log:
        step = line.get("resumed_from", line.get("step"))
        if step > steps[-1] and ("resumed_from" in line or "cpu_s_per_step" in line):
            steps.append(step)
            rates.append(line.get("cpu_s_per_step", np.nan))
    widths, known = np.diff(steps), np.isfinite(rates)
    if known.any():
        rates = np.where(known, rates, np.average(np.array(rates)[known], weights=widths[known]))
    return np.array(steps, dtype=np.float64), np.append(0.0, np.cumsum(widths * rates))


def costs_until(directory: Path, step: int) -> dict[str, float]:
    """CPU seconds and highest memory in MiB of a run's main process until a step; nothing if no log is there."""
    log = _read_until(directory, step)
    memory = [line["memory_mib"] for line in log if "memory_mib" in line]
    return {"cpu_s": float(cpu_time(log)[1][-1]), "memory_mib": max(memory)} if memory else {}


def _read_until(directory: Path, step: int) -> list[dict[str, Any]]:
    return [line for line in read_log(directory) if line.get("step", line.get("resumed_from")) <= step]


def write_run_record(directory: Path, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes `run.json`: command, revision, versions, machine, `facts` and configuration."""
    import torch

    content = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git_revision": _git_revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        **facts,
        "config": config,
    }
    write_json(directory / "run.json", content)


def _git_revision() -> str | None:
    """The commit of this code, with `-dirty` after it if files differ; None outside git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        folder = Path(__file__).resolve().parent
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
