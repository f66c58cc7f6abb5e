"""The predictions of profile_model.py against the memory of real steps on this CPU; writes Markdown tables.

    python benchmarks/profile_accuracy.py
    python benchmarks/profile_accuracy.py --peers ../peers --parts steps

For each of six steps: what is predicted before anything is allocated; what the CPU profiler then records; the highest
resident memory of a fresh process beyond what it had before the model; and torchinfo's estimate, if it is in PEERS/site
(`pip install --target ../peers/site torchinfo`). Part `batches` compares the largest batch for a memory, from two runs
without data, with that of a search by trying, from half to twice that, in processes whose address space is limited. One
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.memory import memory, peak_memory  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

MIB = 2**20
STEPS = {
    "speaker-tiny": ["--config", "configs/speaker-tiny.yaml"],
    "speaker-small, bf16": ["--config", "configs/speaker-small.yaml", "--amp", "bf16"],
    "speaker-base, checkpointed, average": [
        *("--config", "configs/speaker-base.yaml", "--batch-size", "16"),
        *("--checkpoint-layers", "--ema", "0.999"),
    ],
    "mamba, 3 layers of 512, N 32": [
        *("--mixer", "mamba", "--d-model", "512", "--n-layers", "3", "--d-state", "32"),
        *("--batch-size", "2", "--frames", "2185"),
    ],
    "ecapa": ["--model", "ecapa", "--batch-size", "8"],
    "tts-small": ["--config", "configs/tts-small.yaml", "--batch-frames", "4000", "--seconds", "6"],
}
SEARCHED = {
    "speaker-tiny": (["--config", "configs/speaker-tiny.yaml"], "512MiB"),
    "attention, bf16": (["--mixer", "attention", "--d-model", "128", "--amp", "bf16"], "512MiB"),
}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("steps", "batches"), default=["steps", "batches"], help="tables")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="folder whose site/ has torchinfo")
    parser.add_argument("--child", metavar="KIND", help="internal: what a process of its own measures")
    parser.add_argument("--words", metavar="JSON", help="internal: its flags of profile_model.py, as JSON")
    parser.add_argument("--bytes", type=int, default=0, metavar="N", help="internal: its limit beyond its libraries")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the tables, or in a process of its own one figure."""
    return cli.run(_measure, build_parser().parse_args(argv))


def _measure(args: argparse.Namespace) -> None:
    if args.child:
        print(json.dumps(CHILDREN[args.child](json.loads(args.words), args)))
        return
    if "steps" in args.parts:
        _steps(args)
    if "batches" in args.parts:
        _batches(args)


def _child(args: argparse.Namespace, kind: str, words: list[str], size: int = 0) -> object | None:
    """The result of a process of its own; None if it failed, as without memory."""
    own = ["--child", kind, "--words", json.dumps(words), "--bytes", str(size)]
    peers = ["--peers", str(args.peers)] if args.peers else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, *own, *peers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode and not size:
        raise UserError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1]) if not done.returncode else None


def _steps(args: argparse.Namespace) -> None:
    print("| step | predicted | measured | error | highest resident memory | torchinfo |\n|---|---|---|---|---|---|")
    for name, words in STEPS.items():
        predicted, measured, resident, other = (
            _child(args, kind, words) for kind in ("predict", "measure", "resident", "torchinfo")
        )
        error = f"{100 * (predicted / measured - 1):+.2f} %"
        sizes = ["-" if size is None else f"{size / MIB:,.1f} MiB" for size in (predicted, measured, resident, other)]
        print(f"| {name} | {sizes[0]} | {sizes[1]} | {error} | {sizes[2]} | {sizes[3]} |", flush=True)


def _batches(args: argparse.Namespace) -> None:
    print("\n| step | memory | largest batch, from two runs | found by trying | runs tried |\n|---|---|---|---|---|")
    for name, (words, available) in SEARCHED.items():
        solved = _child(args, "solve", [*words, "--gpu-mem", available])
        size = int(available.removesuffix("MiB")) * MIB
        low, high, tried = solved // 2, 2 * solved, 0
        while high - low > 1:
            middle, tried = (low + high) // 2, tried + 1
            fits = _child(args, "limited", [*words, "--batch-size", str(middle)], size) is not None
            low, high = (middle, high) if fits else (low, middle)
        print(f"| {name} | {available} | {solved} | {low} | {tried} |", flush=True)


def _case(words: list[str]):
    import profile_model

    parser = profile_model.build_parser(words)
    args = parser.parse_args(words)
    return profile_model.case_of(args, parser.read_options(args, profile_model.TASKS[args.task].model_config)[0]), args


def _predict(words: list[str], args: argparse.Namespace) -> int:
    from utils.profiling.step import predict

    return predict(_case(words)[0]).predicted


def _profiled(words: list[str], args: argparse.Namespace) -> int:
    from utils.profiling.measure import measure

    return measure(_case(words)[0])


def _solve(words: list[str], args: argparse.Namespace) -> int:
    from utils.profiling.fits import what_fits

    case, flags = _case(words)
    return what_fits(case, flags.gpu_mem).batch.largest


def _run_step(words: list[str]) -> None:
    import torch

    from utils.profiling.measure import run_steps

    case = _case(words)[0]
    run_steps(case, torch.device("cpu"))


def _resident(words: list[str], args: argparse.Namespace) -> int:
    """Bytes that a step adds to the highest resident memory of a process that has run a tiny one."""
    _run_step([*words, "--batch-size", "2", "--batch-frames", "100", "--frames", "40"])
    return peak_memory(lambda: _run_step(words))


def _limited(words: list[str], args: argparse.Namespace) -> int:
    """A step in a process that may map `args.bytes` more than it has after a tiny one."""
    _run_step([*words, "--batch-size", "2", "--frames", "40"])
    limit = memory("VmSize") + args.bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _run_step(words)
    return 0


def _torchinfo(words: list[str], args: argparse.Namespace) -> int | None:
    """torchinfo's total of a model and a batch, in training mode; None where it is missing or fails.

    Of a recognizer without its loss, whose result is one number, on which torchinfo fails.
    """
    if args.peers is None:
        return None
    sys.path.insert(0, str(args.peers / "site"))
    import torch

    try:
        import torchinfo
    except ImportError:
        return None

    case = _case(words)[0]
    (batch,) = case.batches()

    class Outputs(torch.nn.Module):  # torchinfo takes and gives tensors only, by position
        def __init__(self) -> None:
            super().__init__()
            self.model = case.model()

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            if case.task == "speaker":
                return self.model.embed(*values[:2])
            return self.model(*values)["loss_sum"].unsqueeze(0)

    try:
        found = torchinfo.summary(Outputs(), input_data=list(batch.values()), verbose=0, mode="train")
    except RuntimeError:
        return None
    return found.total_input + found.total_output_bytes + found.total_param_bytes


CHILDREN = {
    "predict": _predict,
    "measure": _profiled,
    "solve": _solve,
    "resident": _resident,
    "limited": _limited,
    "torchinfo": _torchinfo,
}


if __name__ == "__main__":
    sys.exit(main())
