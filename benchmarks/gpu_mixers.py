"""Times the mixers' operations and whole blocks on a GPU: our backends, mamba-ssm, flash-linear-attention, attention.

    python benchmarks/gpu_mixers.py --out runs/gpu-mixers
    python benchmarks/gpu_mixers.py --out runs/gpu-mixers --systems mamba_ssm --seconds 300
    python benchmarks/gpu_mixers.py --out runs/gpu-mixers --first-step
    python benchmarks/gpu_mixers.py --out runs/cpu --device cpu --batch 2 --d-models 64 --lengths 64 --budget 0.1

CUDA events after two calls that do not count, the GPU's cache written over before each repeat: median (least to most).
"x floor" is the time over that of moving the inputs and outputs once at the speed of a copy within the device; MiB is
the memory beyond inputs and parameters; the difference is the output's from the backend torch in float32. What cannot
run here is skipped. The most important shapes come first, rows are printed as they come, and OUT/timings.jsonl has
them: a cell there is not measured again. Nothing else should use the GPU meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cuda.plan import D_MODELS, DTYPES, LENGTHS, plan, systems_of  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import ExitCode  # noqa: E402

SYSTEMS = "triton", "torch", "sdpa", "fla", "mamba_ssm"
DEATHS = 5  # of the measuring process, each of which costs one cell
TIMINGS, FIRST_STEPS = "timings.jsonl", "first_steps.jsonl"
FIRST_STEP_S = 180.0  # limit of one


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-mixers"), metavar="FOLDER", help="folder to write")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device; the CPU tries the script")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="systems to time")
    parser.add_argument("--batch", type=cli.positive_int, default=16, metavar="N", help="sequences")
    help = "channels, the most important first"
    parser.add_argument("--d-models", type=cli.positive_int, nargs="+", default=D_MODELS, metavar="N", help=help)
    help = "frames, the most important first"
    parser.add_argument("--lengths", type=cli.positive_int, nargs="+", default=LENGTHS, metavar="N", help=help)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp16", "fp32"), default=DTYPES, help="types")
    parser.add_argument("--seconds", type=cli.positive_float, default=300.0, metavar="S", help="no cell begins after")
    parser.add_argument("--budget", type=cli.positive_float, default=0.3, metavar="S", help="repeats of one figure")
    help = "time the first step of each system instead, from import on, in a fresh process with empty caches"
    parser.add_argument("--first-step", action=argparse.BooleanOptionalAction, default=False, help=help)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the rows."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    return _first_steps(args) if args.first_step else _timings(args)


def _timings(args: argparse.Namespace) -> int:
    """Starts the measuring process, and again where a cell ends it: an error of a kernel can cost the whole device."""
    file, end = args.out / TIMINGS, time.monotonic() + args.seconds
    for _ in range(DEATHS):
        done = _finished(file)
        planned = map(asdict, plan(args.systems, args.batch, args.d_models, args.lengths, args.dtypes))
        todo = [cell for cell in planned if _key(cell) not in done]
        if not todo:
            return 0
        left = end - time.monotonic()
        order = {"cells": todo, "device": args.device, "seconds": left, "budget_s": args.budget}
        command = [sys.executable, "-m", "benchmarks.cuda.timings", json.dumps({**order, "file": str(file.resolve())})]
        code = subprocess.run(command, cwd=ROOT).returncode
        if code in (ExitCode.DONE, ExitCode.BAD_INPUT):
            return code
        print(f"the measuring process ended with {code}", flush=True)
    return 1


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _finished(file: Path) -> set[str]:
    """The cells of a file, also the one at which a process died."""
    if not file.exists():
        return set()
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {_key(record["cell"]) for record in records if "cell" in record}


def _first_steps(args: argparse.Namespace) -> int:
    print("| what | system | import, s | first step, s |\n| --- | --- | --- | --- |", flush=True)
    for what in ("mamba2 block", "mamba block", "ssd", "attention block"):
        for system in (name for name in systems_of(what) if name in args.systems):
            if (what == "ssd") == (system == "fla"):  # which has no block
                record = {"what": what, "system": system, **_first_step(what, system, args)}
                with open(args.out / FIRST_STEPS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                figures = (
                    [f"{record['import_s']:.1f}", f"{record['first_step_s']:.1f}"]
                    if record["status"] == "ok"
                    else [f"{record['status']}: {record['why']}"]
                )
                print(f"| {' | '.join([what, system, *figures])} |", flush=True)
    return 0


def _first_step(what: str, system: str, args: argparse.Namespace) -> dict[str, Any]:
    """The first step in a process of its own, whose caches of compiled kernels are empty."""
    command = [sys.executable, "-m", "benchmarks.cuda.first_step", what, system, args.device, str(args.lengths[0])]
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: f"{folder}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        environment = {**os.environ, **caches}
        try:
            process = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=FIRST_STEP_S
            )
        except subprocess.TimeoutExpired:
            return {"status": "failed", "why": f"over {FIRST_STEP_S:.0f} s"}
    lines = (process.stderr if process.returncode else process.stdout).strip().splitlines()
    return {"status": "failed", "why": lines[-1] if lines else ""} if process.returncode else json.loads(lines[-1])


if __name__ == "__main__":
    sys.exit(main())
