"""Trainings of equal CPU time, and evaluations of what they left, each in a process of its own.

Equal time is equal CPU time of training steps. A calibration run of each system measures CPU seconds a step; a run then
has so many steps as the budget allows, so that its learning rate falls to the end and its result does not depend on
what else the machine was doing. Calibrations are kept in steps.json: a run that was interrupted goes on with the same
number of steps. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.synthesis.systems import SYSTEMS
from utils.cli import UserError, cores
from utils.files import read_json, sha256_file, write_json
from utils.training.runlog import read_log

ROOT = Path(__file__).resolve().parents[2]
STEPS = "steps.json"
WARM_UP = 2  # steps of a calibration that do not count
CHECKPOINTS = 12  # validations of a run, and chances to be its best
SPLITS = ("test",)  # valid chooses the checkpoint


@dataclass(frozen=True)
class Training:
    """A training run: `flags` are those of train_tacomamba.py on top of `preset`."""

    part: str  # folder of OUT that the run lies in
    system: str
    seed: int
    preset: Path
    flags: tuple[str, ...]
    minutes: float
    data: Path

    @property
    def name(self) -> str:
        """What the run is called within its part."""
        return f"{self.system}-seed{self.seed}"


def training(
    args: argparse.Namespace, part: str, system: str, seed: int, preset: Path, minutes: float, extra: Sequence[str] = ()
) -> Training:
    """A run of one of the systems on the benchmark's features."""
    return Training(part, system, seed, preset, (*SYSTEMS[system], *extra), minutes, args.data)


def run_script(name: str, out: Path, *words: object) -> None:
    """Runs a script of the repository with `--out OUT` on one thread; `UserError` with its last lines if it fails.

    Waits for one that is still at work on `out`: if this process is killed, its scripts are not.
    """
    command = [sys.executable, str(ROOT / name), *map(str, words), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the script inherits the file, and the lock lasts until both have closed it
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "pass_fds": (lock.fileno(),)}
        result = subprocess.run(command, env=environment, text=True, **pipes)
    if result.returncode:
        last = " ".join(result.stderr.strip().splitlines()[-3:])
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {last}")


def _train(one: Training, out: Path, device: str, *words: object) -> None:
    fixed = ("--task", "tts", "--config", one.preset, "--data", one.data, "--seed", one.seed, "--threads", 1)
    run_script("train_tacomamba.py", out, *fixed, "--device", device, "--no-tensorboard", *one.flags, *words)


def steps_for(minutes: float, cpu_s_per_step: float) -> int:
    """Steps that take so many CPU minutes, at least 1."""
    return max(1, round(60 * minutes / cpu_s_per_step))


def cpu_per_step(log: Sequence[dict[str, Any]]) -> float:
    """Median CPU seconds of a calibration's steps (log lines of single steps), without those that warm up."""
    seconds = [line["cpu_s_per_step"] for line in log if "cpu_s_per_step" in line][WARM_UP:]
    if not seconds:
        raise UserError(f"a calibration needs more than {WARM_UP} steps")
    return statistics.median(seconds)


def planned_steps(args: argparse.Namespace, one: Training) -> int:
    """Steps of a run: --steps, or those of its budget by the calibration in steps.json, which is made if need be."""
    if args.steps is not None:
        return args.steps
    return steps_for(one.minutes, calibration(args, one)["cpu_s_per_step"])


def calibration(args: argparse.Namespace, one: Training) -> dict[str, Any]:
    """The entry of steps.json for a system; one of other flags, preset, data or device is measured anew."""
    path, key = args.out / STEPS, f"{one.part}/{one.system}"
    entries = read_json(path) if path.exists() else {}
    about = {
        "flags": list(one.flags),
        "preset": str(one.preset),
        "preset_sha256": sha256_file(one.preset),
        "data": str(one.data),
        "device": args.device,
    }
    entry = entries.get(key)
    if entry is not None and {name: entry[name] for name in about} == about and key not in args.to_recalibrate:
        return entry
    entries[key] = {**_calibrate(args, one, args.out / "calibration" / one.part / one.system), **about}
    write_json(path, entries)
    args.to_recalibrate.discard(key)
    print(f"{key}: {entries[key]['cpu_s_per_step']:.3f} CPU s a step", flush=True)
    return entries[key]


def _calibrate(args: argparse.Namespace, one: Training, out: Path) -> dict[str, Any]:

    shutil.rmtree(out, ignore_errors=True)
    load = os.getloadavg()
    steps = args.calibration_steps
    _train(one, out, args.device, "--steps", steps, "--log-every", 1, "--save-every", steps, "--valid-utterances", 1)
    measured = {"cpu_s_per_step": cpu_per_step(read_log(out)), "steps": steps, "load_average": load, **machine()}
    shutil.rmtree(out)
    return measured


def machine() -> dict[str, Any]:
    """When and on what something was measured."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, "processor": _processor(), "cores": cores()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def train(args: argparse.Namespace, one: Training, steps: int) -> Path:
    """Trains a run to its last step, going on from where it was interrupted; its folder."""
    out = args.out / one.part / f"{one.name}-{steps}-steps"
    done = out / "done.json"
    if not done.exists():
        every = max(1, steps // CHECKPOINTS)
        _train(one, out, args.device, "--steps", steps, "--save-every", every, "--resume", "auto")
        write_json(done, {"steps": steps, **machine()})
    return out


def cpu_seconds(log: Sequence[dict[str, Any]], steps: int) -> float:
    """CPU seconds of a run's steps; those whose log line was lost by an interruption count as the others' mean."""
    seconds, counted, last = 0.0, 0, 0
    for line in log:
        if "resumed_from" in line:
            last = line["resumed_from"]
        elif "cpu_s_per_step" in line:
            seconds += line["cpu_s_per_step"] * (line["step"] - last)
            counted += line["step"] - last
            last = line["step"]
    return seconds / counted * steps


def evaluation_of(run: Path) -> Path:
    """The folder that the evaluation of a run goes into."""
    return run.with_name(f"{run.name}-evaluation")


def evaluate(args: argparse.Namespace, checkpoint: Path, out: Path, data: Path | None = None) -> dict[str, Any]:
    """The report of test.py evaluate on the texts that were held back; one that is there already is taken."""
    words: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": str(data or args.data),
        "vocoder": str(args.vocoder),
        "asr": None if args.asr is None else str(args.asr),
        "limit": args.limit,
        "split": list(SPLITS),
        "device": "cpu",
    }
    report = out / "report.json"
    if not (report.exists() and _matches(read_json(report)["config"], words)):
        given = {name: value for name, value in words.items() if value is not None}
        flags = [(f"--{name}", *(value if isinstance(value, list) else [value])) for name, value in given.items()]
        run_script("test.py", out, "evaluate", *(word for flag in flags for word in flag))
    return read_json(report)


def _matches(config: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(config.get(name) == value for name, value in wanted.items())


def result(args: argparse.Namespace, one: Training, run: Path) -> dict[str, Any]:
    """Evaluates a finished run, and keeps everything about it in OUT/results/PART/NAME.json."""

    report = evaluate(args, run / "best.pt", evaluation_of(run), one.data)
    record, log = read_json(run / "run.json"), read_log(run)
    steps = read_json(run / "done.json")["steps"]
    seconds = cpu_seconds(log, steps)
    found = {
        "system": one.system,
        "seed": one.seed,
        "flags": list(one.flags),
        "preset": str(one.preset),
        "amp": record["config"]["amp"],
        "parameters": record["parameters"],
        "steps": steps,
        "minutes_allowed": None if args.steps is not None else one.minutes,
        "cpu_minutes": seconds / 60,
        "frames_per_cpu_s": _frames_seen(one.data, record["config"]["protocol"], log) / seconds,
        "device": record["device"],
        "git_revision": record["git_revision"],
        "checkpoint": str(run / "best.pt"),
        "report": report,
        "measured": machine(),
    }
    write_json(args.out / "results" / one.part / f"{one.name}.json", found)
    return found


def _frames_seen(data: Path, protocol: str, log: Sequence[dict[str, Any]]) -> float:
    """Mel frames that a run was trained on: its samples, each of the training list's mean length."""
    from utils.features.store import FeatureStore
    from utils.text_lists import read_text_lists

    store = FeatureStore.open(data)
    lengths = [store.rows[store.index[name]].frames for name in read_text_lists(data / "protocols" / protocol).train]
    samples = next(line["samples"] for line in reversed(log) if "samples" in line)
    return samples * sum(lengths) / len(lengths)
