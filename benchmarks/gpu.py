"""Everything that only a GPU can answer, in one command: tests, trainings, the CPU beside the GPU, and timings.

    python benchmarks/gpu.py --out runs/gpu
    python benchmarks/gpu.py --out runs/gpu --only "timings" "training, speed"
    python benchmarks/gpu.py --out runs/gpu --wheels ../wheels --minutes 9
    python benchmarks/gpu.py --out runs/gpu --device cpu

`make test-gpu` runs it with the interpreter at hand: nothing is installed. Parts run one after another, each under its
own limit, after which it is killed with its children, and print a line as they end; a part that needs a package which
is not there is skipped. --wheels names a folder of wheels that are unpacked for this run. --device cpu runs the same
parts at small sizes, to try the script. OUT has output.txt, parts.jsonl and the timings. Exit code 1: a part failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cuda.runner import Part, Runner  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

TEXT = "num2words", "anyascii"  # packages of train_tacomamba.py, which knows the flags of both tasks
TINY = ["--d-model", "32", "--headdim", "16", "--d-state", "16", "--n-layers", "1"]
SMALL = ["--d-model", "256", "--n-layers", "2"]
LOOP = ["--dropout", "0.1", "--log-every", "1", "--no-tensorboard", "--max-bad-steps", "8"]
STEPS, FEW = ["--steps", "20", "--save-every", "10"], ["--steps", "4", "--save-every", "2"]
PATIENCE = 4  # limits on a CPU, which others may use as well, as a multiple of those on a GPU


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    help = "folder for what is measured (default: $OUT, else runs/gpu)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=help)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device; cpu tries the script")
    parser.add_argument("--minutes", type=cli.positive_float, default=8.0, metavar="N", help="limit of all parts")
    help = "only parts whose names begin with one of these; those that they build on run as well"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=help)
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to unpack for this run")
    parser.add_argument("--list", action=argparse.BooleanOptionalAction, default=False, help="list the parts and stop")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; returns 1 if one failed or was over its limit."""
    return cli.run(_run, build_parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    out = args.out or Path(os.environ.get("OUT", "runs/gpu"))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that children end as well
    with tempfile.TemporaryDirectory(prefix="tacomamba-gpu-") as folder:
        parts = list(Parts(args.device, Path(folder), out.resolve()).all())
        chosen = _chosen(parts, args.only)
        if args.list:
            print("\n".join(f"{part.name:<40} {part.limit_s:4.0f} s" for part in chosen))
            return 0
        out.mkdir(parents=True, exist_ok=True)
        if args.wheels:
            _unpack(args.wheels, Path(folder) / "site")
        runner = Runner(out, 60 * args.minutes)
        for part in chosen:
            runner.run(part)
    print(f"all output: {out}")
    return int(runner.has_failed)


def _chosen(parts: list[Part], names: list[str]) -> list[Part]:
    """The parts whose names begin with one of `names`, all if there are none, and those they build on."""
    unknown = [name for name in names if not any(part.name.startswith(name) for part in parts)]
    if unknown:
        raise UserError(f"no part's name begins with {unknown[0]!r}: --list shows them")
    wanted = {part.name for part in parts if not names or part.name.startswith(tuple(names))}
    for part in reversed(parts):
        wanted |= set(part.after) if part.name in wanted else set()
    return [part for part in parts if part.name in wanted]


def _unpack(wheels: Path, site: Path) -> None:
    """Installs the wheels of a folder, and nothing else, where this process and its parts find them first."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise UserError(f"there are no wheels in {wheels}")
    options = [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--disable-pip-version-check",
        "--target",
        str(site),
    ]
    if subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, files)]).returncode:
        raise UserError(f"the wheels in {wheels} cannot be installed for {sys.executable}")
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


class Parts:
    """The parts in their order: what may be wrong first, what takes time last."""

    def __init__(self, device: str, folder: Path, out: Path) -> None:
        self.device, self.folder, self.out, self.is_small = device, folder, out, device == "cpu"

    def all(self) -> Iterator[Part]:
        for part in itertools.chain(self._tests(), self._trainings(), self._checks(), self._measurements()):
            if self.is_small:
                patient = {"limit_s": PATIENCE * part.limit_s}
                part = replace(part, **patient, environment={"OMP_NUM_THREADS": "1", **part.environment})
            yield part

    def _python(self, *words: str | Path) -> list[str]:
        return [sys.executable, *map(str, words)]

    def _tests(self) -> Iterator[Part]:
        few = ["-k", "zero_steps or views or named"] if self.is_small else []
        where = {"TACOMAMBA_TEST_DEVICE": "cpu:0" if self.is_small else self.device, "OMP_NUM_THREADS": "1"}
        pytest = self._python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")
        files, packages = ["tests/test_engine.py", "tests/test_ssd.py"], ("pytest", "hypothesis")
        yield Part("tests, torch", [*pytest, *files, *few], 120, packages, environment=where, last=1)
        kernels = ROOT / "tests" / "triton_kernels"
        switch = {"TRITON_INTERPRET": "1"} if self.is_small else {}
        few = ["--collect-only"] if self.is_small else []
        command = self._python("-m", "pytest", "-q", "-p", "no:cacheprovider", kernels, *few)
        yield Part("tests, triton", command, 120, (*packages, "triton"), [kernels], environment=switch, last=1)

    def _trainings(self) -> Iterator[Part]:
        made = self._python("-m", "benchmarks.cuda.features", "--out", self.folder, "--tasks", "speaker", "tts")
        yield Part("features", made, 60, ("pyarrow",))
        for task in ("speaker", "tts"):
            for name, more in (("fp32", []), ("bf16", ["--amp", "bf16"]), ("fp16", ["--amp", "fp16"])):
                yield self._training(task, name, more, 40)
        yield self._training("speaker", "mamba", ["--mixer", "mamba", "--amp", "bf16"], 40)
        yield self._training("speaker", "compiled", ["--compile"], 100)
        yield self._training("speaker", "torchrun", [], 40, start=["-m", "torch.distributed.run", "--nproc-per-node=1"])

    def _training(self, task: str, name: str, more: list[str], limit_s: float, start: list[str] = ()) -> Part:
        words = [*start, "train_tacomamba.py", *self._flags(task), *more, "--out", self.folder / f"{task}-{name}"]
        return Part(f"training, {task}, {name}", self._python(*words), limit_s, TEXT, after=["features"])

    def _flags(self, task: str) -> list[str]:
        """Flags of a short training."""
        words = ["--task", task, "--data", str(self.folder / task), "--device", self.device, *LOOP]
        words += ["--batch-frames", "4000"] if task == "tts" else ["--batch-size", "16", "--crop-seconds", "2"]
        return [*words, *FEW, *TINY] if self.is_small else [*words, *STEPS, *SMALL]

    def _checks(self) -> Iterator[Part]:
        check = "-m", "benchmarks.cuda.checks"
        for task in ("speaker", "tts"):
            run = self.folder / f"{task}-fp32"
            words = [*check, "resume", "--straight", run, "--out", self.folder / f"resume-{task}", "--"]
            after = ["features", f"training, {task}, fp32"]
            command = self._python(*words, *self._flags(task))
            yield Part(f"resumed, {task}", command, 60, TEXT, after=after, last=2)
        for task, packages in (("speaker", ()), ("tts", (*TEXT, "soundfile"))):
            run, out = self.folder / f"{task}-fp32", self.folder / f"evaluation-{task}"
            common = ["--checkpoint", run, "--out", out, "--device", self.device]
            words = [*check, "evaluate", "--data", self.folder / task, *common]
            after = ["features", f"training, {task}, fp32"]
            yield Part(f"evaluate, {task}", self._python(*words), 60, packages, after=after, last=2)
        run, sounds = self.folder / "speaker-fp32", [self.folder / "recordings" / f"{n}.wav" for n in range(3)]
        words = [*check, "embed", "--checkpoint", run, "--device", self.device, *sounds]
        after, packages = ["features", "training, speaker, fp32"], ("soundfile", "torchaudio")
        yield Part("embed", self._python(*words), 45, packages, after=after, last=2)
        run = self.folder / "tts-fp32"
        words = [*check, "synthesize", "--checkpoint", run, "--device", self.device, "--out", self.folder / "spoken"]
        after, packages = ["features", "training, tts, fp32"], (*TEXT, "soundfile", "torchaudio")
        command = self._python(*words, "--text", "the quiet river carried boats.")
        yield Part("synthesize", command, 45, packages, after=after, last=2)

    def _measurements(self) -> Iterator[Part]:
        tiny = ["--batch", "2", "--d-models", "64", "--lengths", "64", "--dtypes", "bf16", "--budget", "0.02"]
        script = ["benchmarks/gpu_mixers.py", "--out", self.out, "--device", self.device]
        script += tiny if self.is_small else []
        ours = ["--systems", "triton", "torch", "sdpa"]
        yield Part("timings", self._python(*script, *ours, "--seconds", "90", "--budget", "0.15"), 120, is_shown=True)
        yield Part("first step", self._python(*script, *ours, "--first-step"), 75, is_shown=True)
        for name in ("speaker-base", "tts-small"):
            more = ["--workers", "1", *TINY] if self.is_small else ["--workers", "12", "--threads", "8"]
            counts = ["--steps", "2", "--warm-up", "1", "--profiled", "1"] if self.is_small else []
            words = ["--synthetic", "--training", f"configs/{name}.yaml", "--device", self.device, *counts]
            words += ["--out", self.out / "training.jsonl", "--", *more]
            command = self._python("benchmarks/gpu_training.py", *words)
            yield Part(f"training, speed, {name}", command, 75, (*TEXT, "pyarrow"), is_shown=True)
        for system, package in (("fla", "fla"), ("mamba_ssm", "mamba_ssm")):
            keep = {"TRITON_CACHE_AUTOTUNING": "1"}
            words = [*script, "--systems", system]
            limit_s = 90 if system == "fla" else 240  # mamba_ssm tunes its kernels for minutes
            command = self._python(*words, "--seconds", str(limit_s - 30))
            yield Part(f"timings, {system}", command, limit_s, (package,), environment=keep, is_shown=True)
            command = self._python(*words, "--first-step")
            yield Part(f"first step, {system}", command, limit_s, (package,), is_shown=True)


if __name__ == "__main__":
    sys.exit(main())
