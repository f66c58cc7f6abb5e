"""Costs of the training loop: overhead, waiting for data, ranks, compilation, recomputed layers, padding.

    python preprocess.py --dataset librispeech --raw ../shared/data/speakers_dev \
        --split train-clean-100 train-clean-100-notext --out data/processed/speakers_dev \
        --protocol fold0 --heldout-speakers ../shared/data/speakers_dev/splits/fold0_speakers.txt
    python benchmarks/studies/training.py --data data/processed/speakers_dev --protocol fold0 --out runs/training

Each number is a median over blocks of 5 steps of the model of configs/speaker-small.yaml, on one thread per process.
Runs that are compared alternate, so that other load affects both. Times are CPU times of the process unless wall time
is stated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_training import task_of  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

PRESET = ROOT / "configs" / "speaker-small.yaml"
BLOCK = 5


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that preprocess.py wrote")
    parser.add_argument("--protocol", default="default", help="which of the data's protocols gives the splits")
    parser.add_argument("--out", type=Path, required=True, help="where runs and the table go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--repeats", type=cli.positive_int, default=3, help="runs of each kind, alternating")
    parser.add_argument("--steps", type=cli.positive_int, default=20, help="steps of a run, at least 10")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures, prints and writes the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    from utils.files import write_json

    results: dict[str, Any] = {}
    for part in args.parts:
        results[part] = PARTS[part](args)
        print(part, *(f"  {name}: {value}" for name, value in results[part].items()), sep="\n", flush=True)
        write_json(args.out / "results.json", results)


def _flags(args: argparse.Namespace, run: str, *words: object) -> list[str]:
    flags = ["--data", args.data, "--protocol", args.protocol, "--out", args.out / run, "--config", PRESET]
    flags += ["--steps", args.steps, "--save-every", 10**6, "--log-every", BLOCK, "--valid-utterances", 2]
    flags += ["--threads", 1, "--device", "cpu", "--no-tensorboard"]
    return [str(word) for word in (*flags, *words)]


def _blocks(args: argparse.Namespace, run: str, ranks: int, *words: object) -> list[dict[str, Any]]:
    """The log lines of a new run in a process of its own, without the first block, which warms up."""
    import shutil

    from utils.training.runlog import read_log

    shutil.rmtree(args.out / run, ignore_errors=True)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *start, str(ROOT / "train_tacomamba.py"), *_flags(args, run, *words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{run} ended with {result.returncode}: {result.stderr.strip().splitlines()[-1]}")
    return read_log(args.out / run)[1:]


def _alternating(args: argparse.Namespace, cases: dict[str, tuple[int, list[object]]]) -> dict[str, list[dict]]:
    """Name -> log lines of all repeats; `cases`: name -> (ranks, flags)."""
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(args.repeats):
        for name, (ranks, words) in cases.items():
            lines[name] += _blocks(args, name.replace(" ", "-"), ranks, *words)
    return lines


def _median(lines: list[dict[str, Any]], key: str) -> float:
    return round(statistics.median(line[key] for line in lines), 4)


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per step of the trainer, and of a bare loop over the same loader: forward, backward, AdamW."""
    import torch

    torch.set_num_threads(1)
    ours: list[float] = []
    bare: list[float] = []
    for repeat in range(args.repeats):
        bare += _bare_loop(args)
        ours += _our_loop(args, repeat)
    low, high = statistics.median(bare), statistics.median(ours)
    figures = {"bare_cpu_s_per_step": low, "trainer_cpu_s_per_step": high}
    return {**{name: round(value, 4) for name, value in figures.items()}, "overhead": round(high / low - 1, 4)}


def _bare_loop(args: argparse.Namespace) -> list[float]:
    import torch
    from torch.utils.data import DataLoader

    from utils.training.update import parameter_groups

    task, _ = task_of(_flags(args, "bare"))
    training, model = task.training, task.model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, training.weight_decay), lr=training.lr)
    places = [list(range(step * 32, step * 32 + 32)) for step in range(args.steps)]
    seconds, begun = [], time.process_time()
    for step, batch in enumerate(DataLoader(task.dataset, batch_sampler=places, collate_fn=task.collate), start=1):
        loss = model(**task.inputs(batch, step))["loss_sum"] / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % BLOCK == 0:
            seconds.append((time.process_time() - begun) / BLOCK)
            begun = time.process_time()
    return seconds[1:]


def _our_loop(args: argparse.Namespace, repeat: int) -> list[float]:
    import contextlib
    import io

    import torch

    from utils.training.distributed import Ranks
    from utils.training.runlog import read_log
    from utils.training.trainer import Trainer

    run = args.out / f"overhead-{repeat}"
    task, parsed = task_of(_flags(args, run.name))
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(task, task.training, cli.plain_arguments(parsed), run, Ranks(0, 1, torch.device("cpu"))).fit()
    return [line["cpu_s_per_step"] for line in read_log(run)][1:]


def loader(args: argparse.Namespace) -> dict[str, Any]:
    """Share of wall time spent waiting for data, also with batches of entire utterances."""
    cases = {f"{workers} workers": (1, ["--workers", workers]) for workers in (0, 1, 2)}
    cases["by frames 1 worker"] = (1, ["--workers", 1, "--batch-frames", 7000])
    return {name: _median(lines, "wait_share") for name, lines in _alternating(args, cases).items()}


def ranks(args: argparse.Namespace) -> dict[str, Any]:
    """Frames per second of wall time of 2 ranks against 1 at one global batch, and the CPU time of a rank."""
    lines = _alternating(args, {"1 rank": (1, []), "2 ranks": (2, [])})
    figures: dict[str, Any] = {f"{name} frames_per_s": _median(part, "frames_per_s") for name, part in lines.items()}
    one, two = figures.values()
    cpu = {f"{name} cpu_s_per_step": _median(part, "cpu_s_per_step") for name, part in lines.items()}
    return {**figures, **cpu, "ratio of wall time": round(two / one, 3), "cores": cli.cores()}


def compiled(args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per step with and without torch.compile, without the first block, which includes the compilation."""
    models = {"mamba2": [], "xvector": ["--model", "xvector"]}
    cases = {f"{name}{mark}": (1, [*words, *flag]) for name, words in models.items() for mark, flag in COMPILED.items()}
    return {name: _median(lines, "cpu_s_per_step") for name, lines in _alternating(args, cases).items()}


COMPILED = {"": [], " compiled": ["--compile"]}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory in MiB and CPU seconds per step: plain, in micro-batches, with recomputed layers."""
    cases = {"plain": (1, []), "accumulate 4": (1, ["--accumulate", 4])}
    cases["checkpoint-layers"] = (1, ["--checkpoint-layers"])
    lines = _alternating(args, cases)
    return {name: [_median(part, "memory_mib"), _median(part, "cpu_s_per_step")] for name, part in lines.items()}


def padding(args: argparse.Namespace) -> dict[str, Any]:
    """Share of padded frames that are padding, over three epochs of the protocol's training utterances."""
    import numpy as np

    from utils.features.store import FeatureStore
    from utils.speaker.protocol import read_protocol
    from utils.training.sampling import BucketOrder, EpochOrder

    store = FeatureStore.open(args.data)
    utterances = read_protocol(args.data / "protocols" / args.protocol).train
    lengths = np.array([store.rows[store.index[utterance]].frames for utterance in utterances])
    orders = {f"batch-frames {budget}": BucketOrder(lengths, 0, budget) for budget in (7_000, 15_000, 30_000)}
    orders["at random, 8 at a time"] = EpochOrder(len(lengths), 0, 8)
    shares: dict[str, Any] = {"utterances": len(lengths)}
    for name, order in orders.items():
        place, real, padded = 0, 0, 0
        while place < 3 * len(lengths):
            batch = order.batch(place)
            frames = lengths[[order[place] for place in batch]]
            real, padded, place = real + int(frames.sum()), padded + len(frames) * int(frames.max()), batch.stop
        shares[name] = round(1 - real / padded, 4)
    return shares


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "padding": padding,
    "loader": loader,
    "ranks": ranks,
    "compiled": compiled,
    "memory": memory,
}

if __name__ == "__main__":
    sys.exit(main())
