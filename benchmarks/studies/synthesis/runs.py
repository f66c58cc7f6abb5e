"""Trainings of equal CPU time, and evaluations of their checkpoints, each in a process of its own.

Equal time is equal CPU time of training steps. A calibration run of each system measures CPU seconds a step; a run then
has as many steps as the budget allows, so that its learning rate falls to the end and its result does not depend on
what else the machine was doing. Calibrations are kept in steps.json: a run that was interrupted resumes with the same
number of steps. What is finished is not done again, as long as what it follows from is the same: each run keeps its
request, and what it is compared by are hashes, so that features or presets made anew at an old path do not pass for it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.studies.synthesis.systems import SYSTEMS
from utils.cli import cores
from utils.errors import UserError
from utils.files import read_json, sha256_file, write_json
from utils.lists import DEFAULT_PROTOCOL, training_list_hash
from utils.training.runlog import cpu_time, read_log

ROOT = Path(__file__).resolve().parents[3]
STEPS = "steps.json"
DONE, REQUEST = "done.json", "request.json"  # of a run that is finished, of one that is under way
WARM_UP = 2  # steps of a calibration that do not count
CHECKPOINTS = 12  # validations of a run, and chances to be its best
SPLITS = ("test",)  # valid chooses the checkpoint
OTHER_LIST = "the checkpoint was not trained on the training list"  # how the evaluator's warning begins


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
    inputs: tuple[Path, ...] = ()  # files that flags name

    @property
    def name(self) -> str:
        """Name of the run within its part."""
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
    with _alone_at(out) as lock:  # the script inherits the file, and the lock lasts until both have closed it
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "pass_fds": (lock.fileno(),)}
        result = subprocess.run(command, env=environment, text=True, **pipes)
    if result.returncode:
        last = " ".join(result.stderr.strip().splitlines()[-3:])
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {last}")


@contextlib.contextmanager
def _alone_at(out: Path) -> Iterator[IO[str]]:
    """The lock of `out`, once no script is at work there any more."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


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
    """Steps of a run: --steps, or those of its budget by the calibration in steps.json, which is created if needed."""
    if args.steps is not None:
        return args.steps
    return steps_for(one.minutes, calibration(args, one)["cpu_s_per_step"])


def basis(one: Training, device: str) -> dict[str, Any]:
    """Inputs that determine every step of a run, with hashes of the contents of its files; paths do not matter.

    `UserError` if the features or their lists are missing.
    """
    from utils.features.store import read_meta
    from utils.tts.text_lists import read_text_lists

    meta = read_meta(one.data)
    if meta is None:
        raise UserError(f"{one.data} is not a finished feature store: make it with preprocess.py")
    lists = read_text_lists(one.data / "protocols" / DEFAULT_PROTOCOL)
    return {
        "flags": list(one.flags),
        "preset_sha256": sha256_file(one.preset),
        "inputs_sha256": [sha256_file(path) for path in one.inputs],
        "training_list": training_list_hash(lists.train),
        "validation_list": training_list_hash(lists.valid),
        "recipe_hash": meta["recipe"],
        "text": meta["text"],
        "sources": {split: about["source"] for split, about in meta["splits"].items()},
        "device": device,
    }


def request_of(one: Training, device: str, steps: int) -> dict[str, Any]:
    """Inputs that determine an entire run."""
    return {**basis(one, device), "seed": one.seed, "steps": steps}


def differences(found: dict[str, Any] | None, wanted: dict[str, Any]) -> list[str]:
    """Names in `wanted` that a record has with another value, or not at all."""
    return [name for name, value in wanted.items() if name not in (found or {}) or found[name] != value]


def calibration(args: argparse.Namespace, one: Training) -> dict[str, Any]:
    """The entry of steps.json for a system; one of other flags, preset, data or device is measured anew."""
    path, key = args.out / STEPS, f"{one.part}/{one.system}"
    entries = read_json(path) if path.exists() else {}
    about = basis(one, args.device)
    entry = entries.get(key)
    if entry is not None and not differences(entry, about) and key not in args.to_recalibrate:
        return entry
    measured = _calibrate(args, one, args.out / "calibration" / one.part / one.system)
    entries[key] = {**measured, **about, "preset": str(one.preset), "data": str(one.data)}
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
    """Time and machine of a measurement."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, "processor": _processor(), "cores": cores()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def train(args: argparse.Namespace, one: Training, steps: int) -> Path:
    """Trains a run to its last step, resuming it if it was interrupted; returns its folder.

    A run there that follows from anything else is removed.
    """
    out = args.out / one.part / f"{one.name}-{steps}-steps"
    wanted = request_of(one, args.device, steps)
    if out.exists():
        _remove_another(out, wanted)
    if not (out / DONE).exists():
        write_json(out / REQUEST, wanted)
        every = max(1, steps // CHECKPOINTS)
        _train(one, out, args.device, "--steps", steps, "--save-every", every, "--resume", "auto")
        write_json(out / DONE, {"steps": steps, **machine(), "request": wanted})
    return out


def recorded(run: Path) -> dict[str, Any] | None:
    """The request that a run was started with; None if it has not stored any."""
    if (run / DONE).exists():
        return read_json(run / DONE).get("request")
    return read_json(run / REQUEST) if (run / REQUEST).exists() else None


def _remove_another(run: Path, wanted: dict[str, Any]) -> None:
    """Removes the folder of a run with another request than `wanted`, with a message."""
    found = recorded(run)
    different = differences(found, wanted)
    if not different:
        return
    why = "it kept no request" if found is None else f"it had another {', '.join(different)}"
    print(f"{run} is removed and begun anew: {why}", flush=True)
    with _alone_at(run):
        shutil.rmtree(run)


def evaluation_of(run: Path) -> Path:
    """The folder that the evaluation of a run goes into."""
    return run.with_name(f"{run.name}-evaluation")


def evaluate(args: argparse.Namespace, checkpoint: Path, out: Path, data: Path | None = None) -> dict[str, Any]:
    """The report of test.py evaluate on the held-out texts.

    One that is there already is taken if it is of the same model, lists, vocoder, recognizer and limit.
    """
    words: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": str(data or args.data),
        "vocoder": str(args.vocoder),
        "asr": None if args.asr is None else str(args.asr),
        "mcd": True,
        "limit": args.limit,
        "split": list(SPLITS),
        "device": "cpu",
    }
    report = out / "report.json"
    if not (report.exists() and is_of(read_json(report), words, judged_by(checkpoint, data or args.data))):
        given = {name: value for name, value in words.items() if value is not None}
        values = {name: value if isinstance(value, list) else [value] for name, value in (given | {"mcd": []}).items()}
        flags = [(f"--{name}", *value) for name, value in values.items()]
        run_script("test.py", out, "evaluate", *(word for flag in flags for word in flag))
    return read_json(report)


def judged_by(checkpoint: Path, data: Path) -> dict[str, Any]:
    """Inputs that metrics of a checkpoint follow from: its `model` (hash), the `splits` (sha256 of the lists' files),
    and whether it was trained on `another_list` than that of the data.
    """
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.text_lists import read_text_lists

    synthesizer, folder = Synthesizer.load(checkpoint, "cpu"), data / "protocols" / DEFAULT_PROTOCOL
    return {
        "model": synthesizer.model_hash,
        "splits": {split: sha256_file(folder / f"{split}.txt") for split in SPLITS},
        "another_list": synthesizer.training_list != training_list_hash(read_text_lists(folder).train),
    }


def is_of(report: dict[str, Any], words: dict[str, Any], by: dict[str, Any]) -> bool:
    """Returns True if a report was made with the flags `words` and follows from `by`, as `judged_by` gives it."""
    found = {
        "model": report["model"]["hash"],
        "splits": report["source"]["splits"],
        "another_list": on_another_list(report),
    }
    return found == by and all(report["config"].get(name) == value for name, value in words.items())


def on_another_list(report: dict[str, Any]) -> bool:
    """Returns True if the evaluator warned that the model may have been trained on the texts of its test."""
    return any(warning.startswith(OTHER_LIST) for warning in report["warnings"])


def require_unseen(report: dict[str, Any], run: Path) -> None:
    """`UserError` if the model of a run may have been trained on the texts that it was judged by."""
    if on_another_list(report):
        raise UserError(
            f"{run} was not trained on the training list that its data have now, so its figures may be of texts that "
            f"it was trained on: remove {run} and {evaluation_of(run)}, and train it anew"
        )


def result(args: argparse.Namespace, one: Training, run: Path) -> dict[str, Any]:
    """Evaluates a finished run, and keeps everything about it in OUT/results/PART/NAME.json.

    `UserError` if it was trained on another list than that of its data.
    """
    report = evaluate(args, run / "best.pt", evaluation_of(run), one.data)
    require_unseen(report, run)
    record, log = read_json(run / "run.json"), read_log(run)
    steps = read_json(run / DONE)["steps"]
    seconds = float(cpu_time(log)[1][-1])
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
    from utils.tts.text_lists import read_text_lists

    store = FeatureStore.open(data)
    lengths = [store.rows[store.index[name]].frames for name in read_text_lists(data / "protocols" / protocol).train]
    samples = next(line["samples"] for line in reversed(log) if "samples" in line)
    return samples * sum(lengths) / len(lengths)
