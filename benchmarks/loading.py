"""CPU time of a training crop from a store of audio, with each augmentation, beside that of the training step.

    python preprocess.py --layout librispeech --raw SPEECH --store audio --out data/processed/audio
    python benchmarks/loading.py --data data/processed/audio --noise-folder NOISE

One thread. Each augmentation of samples is measured alone with a share of 1, then all with the shares of
configs/speaker-robust.yaml, in this process. Nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_training import task_of  # noqa: E402
from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402

CONFIG = ROOT / "configs" / "speaker-robust.yaml"


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder of preprocess.py, of audio")
    parser.add_argument("--protocol", default="default", metavar="NAME", help="protocol of the data")
    parser.add_argument("--noise-folder", type=Path, required=True, metavar="FOLDER", help="folder of noises")
    parser.add_argument("--rir-folder", type=Path, metavar="FOLDER", help="impulse responses (default: simulated)")
    parser.add_argument("--crops", type=cli.positive_int, default=200, metavar="N", help="crops to measure each on")
    parser.add_argument("--steps", type=cli.positive_int, default=6, metavar="N", help="training steps to measure")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    import torch

    from utils.speaker.training.augment import AUGMENTATIONS, WaveAugmentation

    torch.set_num_threads(1)
    kinds = {name: kind for name, kind in AUGMENTATIONS.items() if issubclass(kind, WaveAugmentation)}
    flags = {name: cli.flag_name(kind().share_name) for name, kind in kinds.items()}
    none = [*(word for flag in flags.values() for word in (flag, "0")), "--no-speed-perturbation"]
    cases = {"none: reading and mel": none}
    cases |= {name.replace("_", " "): [*none, flag, "1"] for name, flag in flags.items()}
    cases |= {"speed": [*none, "--speed-perturbation"], f"all of {CONFIG.name}": []}
    rows = [[name, f"{_crop_milliseconds(args, words):.1f}"] for name, words in cases.items()]
    rows.append([f"training step of {CONFIG.name}, per crop", f"{_step_milliseconds(args):.1f}"])
    print(table(["augmentation", "CPU ms a crop"], rows))


def _task(args: argparse.Namespace, words: list[str]) -> Any:
    words = ["--data", str(args.data), "--protocol", args.protocol, "--out", "none", "--config", str(CONFIG), *words]
    words += ["--noise-folder", str(args.noise_folder)]
    words += ["--rir-folder", str(args.rir_folder)] if args.rir_folder else []
    return task_of(words)[0]


def _crop_milliseconds(args: argparse.Namespace, words: list[str]) -> float:
    """CPU time of a crop, after a few that fill caches."""
    dataset = _task(args, words).dataset
    for place in range(args.crops, args.crops + 20):
        dataset[place]
    begun = time.process_time()
    for place in range(args.crops):
        dataset[place]
    return 1000 * (time.process_time() - begun) / args.crops


def _step_milliseconds(args: argparse.Namespace) -> float:
    """CPU time of forward, backward and AdamW, divided by the crops of a batch; the first step is left out."""
    import torch

    task = _task(args, [])
    model, size = task.model.train(), task.training.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = task.collate([task.dataset[place] for place in range(size)])
    for step in range(args.steps + 1):
        if step == 1:
            begun = time.process_time()
        loss = model(**task.inputs(batch, step))["loss_sum"] / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 1000 * (time.process_time() - begun) / args.steps / size


if __name__ == "__main__":
    sys.exit(main())
