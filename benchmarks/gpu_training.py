"""Speed of training on a GPU with the real loader: seconds of speech a second, and the share of time the GPU works.

    python benchmarks/gpu_training.py --data data/processed/librispeech --training configs/speaker-base.yaml
    python benchmarks/gpu_training.py --data data/processed/ljspeech --training configs/tts-small.yaml -- --workers 8
    python benchmarks/gpu_training.py --synthetic --training configs/speaker-tiny.yaml --device cpu --steps 2

Runs the steps of train_tacomamba.py, with its loader, without validation and checkpoints; --synthetic takes features of
random numbers. Flags after -- are those of train_tacomamba.py. The GPU's share is the time in which kernels run, from
torch.profiler over --profiled further steps, divided by the time of as many steps without the profiler. An epoch of
LibriSpeech is one pass over its 961 hours at the measured speed, which assumes storage as fast as here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402

LIBRISPEECH_HOURS = 961
SYNTHETIC = {"speaker": ["--speakers", "100", "--utterances", "8", "--seconds", "12"], "tts": ["--texts", "400"]}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder that preprocess.py wrote; this or --synthetic"
    )
    help = "make features of random numbers: 2.7 hours of 100 speakers, 400 texts of 15 words"
    parser.add_argument("--synthetic", action=argparse.BooleanOptionalAction, default=False, help=help)
    parser.add_argument(
        "--training", type=Path, required=True, metavar="FILE", help="configuration of train_tacomamba.py"
    )
    parser.add_argument("--device", default="cuda", help="device")
    parser.add_argument(
        "--warm-up", type=cli.positive_int, default=10, metavar="N", help="steps before the clock starts"
    )
    parser.add_argument("--steps", type=cli.positive_int, default=60, metavar="N", help="steps to time")
    parser.add_argument("--profiled", type=cli.positive_int, default=10, metavar="N", help="steps under the profiler")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to append a JSON line to")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="flags of train_tacomamba.py")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the figures."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report([] if args.synthetic != (args.data is not None) else ["give either --data or --synthetic"])
    return cli.run(_benchmark, args, notes=True)


def _benchmark(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(args, args.data or Path(folder))
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
    milliseconds = [1000 * figures[name] for name in ("step_s", "least_s", "most_s")]
    print(
        f"{args.training.name}, {figures['device']}: {figures['speech_s']:.0f} s of speech a second, "
        "{:.1f} ms a step ({:.1f} to {:.1f}), ".format(*milliseconds)
        + f"waiting for the loader {figures['waited']:.0%}, kernels run {figures['busy']:.0%} of the time, "
        f"an epoch of LibriSpeech 960: {LIBRISPEECH_HOURS / figures['speech_s']:.2f} h"
    )


def _measure(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    import torch

    from utils.device import keep_freed_memory
    from utils.training.distributed import Ranks
    from utils.training.loading import Batches
    from utils.training.update import Update

    keep_freed_memory()
    task = _task(args, data)
    training = task.training
    if training.threads:
        torch.set_num_threads(training.threads)
    device = torch.device(args.device)
    ranks, counts = Ranks(0, 1, device), (args.warm_up, args.steps, args.profiled)
    update = Update(task, training, ranks)
    batches = Batches(task, training, ranks, 0, sum(counts))
    steps = _Steps(task, update, batches)
    for _ in range(args.warm_up):
        steps.take()
    steps.clear()
    for _ in range(args.steps):
        steps.take()
    hop = task.store.recipe.hop_length / task.store.recipe.sample_rate
    total, median = sum(steps.times), statistics.median(steps.times)
    figures = {
        "config": args.training.name,
        "flags": args.flags,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "speech_s": steps.frames * hop / total,
        "step_s": median,
        "least_s": min(steps.times),
        "most_s": max(steps.times),
        "waited": steps.waited / total,
    }
    figures["busy"] = _busy_seconds(steps, args.profiled, device.type) / args.profiled / (total / args.steps)
    batches.close()
    return figures


def _task(args: argparse.Namespace, data: Path) -> Any:
    words = ["--data", str(data), "--out", "none", "--config", str(args.training), "--device", args.device, *args.flags]
    if args.synthetic:
        import train_tacomamba
        from benchmarks.cuda import features

        name = train_tacomamba.build_parser(words).parse_args(words).task  # wrong flags end here, before the work
        features.main(["--out", str(data), "--tasks", name, "--words", "15", *SYNTHETIC[name]])
        words[1] = str(data / name)
    return task_of(words)[0]


def task_of(words: list[str]) -> tuple[Any, argparse.Namespace]:
    """The task that train_tacomamba.py makes of its flags, and the flags as it parses them."""
    import torch

    import train_tacomamba
    from utils.features.store import FeatureStore
    from utils.tasks import TASKS
    from utils.training.options import TrainingOptions

    parser = train_tacomamba.build_parser(words)
    args = parser.parse_args(words)
    task = TASKS[args.task]
    training, config, *options = parser.read_options(args, TrainingOptions, task.model_config, *task.option_classes())
    torch.manual_seed(training.seed)
    return task(FeatureStore.open(args.data), args.data / "protocols" / args.protocol, config, training, options), args


class _Steps:
    """Steps of the loop, as `Trainer` takes them, with the seconds of each."""

    def __init__(self, task: Any, update: Any, batches: Any) -> None:
        self.task, self.update, self.batches = task, update, batches
        self.numbers, self.samples = itertools.count(), 0
        self.clear()

    def clear(self) -> None:
        self.times: list[float] = []
        self.frames = self.waited = 0.0

    def take(self) -> None:
        """One step; `Update` returns when the device has computed it, because it reads the loss."""
        begin = time.perf_counter()
        places = self.task.order.batch(self.samples)
        parts = self.batches.of_step(lambda: False)
        loaded = time.perf_counter()
        result = self.update(parts, places, next(self.numbers), 0)
        self.samples = places.stop
        self.frames += result.frames
        self.waited += loaded - begin
        self.times.append(time.perf_counter() - begin)


def _busy_seconds(steps: _Steps, number: int, kind: str) -> float:
    """Seconds in which at least one kernel or copy runs on the GPU, or on a CPU an operator, while steps are taken."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activity, device = getattr(ProfilerActivity, kind.upper()), getattr(DeviceType, kind.upper())
    with profile(activities=[activity]) as profiler:
        for _ in range(number):
            steps.take()
    events = [event for event in profiler.events() if event.device_type == device and not event.is_user_annotation]
    return union((event.time_range.start, event.time_range.end) for event in events) / 1e6


def union(spans: Any) -> float:
    """The length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    sys.exit(main())
