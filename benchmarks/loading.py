"""CPU time of a training crop from a store of audio, with each augmentation, beside that of the training step.

    python preprocess.py --layout librispeech --raw SPEECH --store audio --out data/processed/audio
    python benchmarks/loading.py --data data/processed/audio --noise-folder NOISE

One thread. Each augmentation is measured alone with a share of 1, then all with the shares of `USUAL`, as a step of
configs/speaker-small.yaml would load them without --workers. Nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402

CONFIG = ROOT / "configs" / "speaker-small.yaml"
USUAL = {
    "reverb": 0.3,
    "babble": 0.15,
    "recorded_noise": 0.3,
    "colored_noise": 0.15,
    "equalizer": 0.3,
    "bandwidth": 0.2,
    "level": 0.3,
    "clipping": 0.1,
    "telephone": 0.1,
    "codec": 0.2,
}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder of preprocess.py, of audio")
    parser.add_argument("--protocol", default="default", metavar="NAME", help="protocol of the data")
    parser.add_argument("--noise-folder", type=Path, metavar="FOLDER", help="noises (default: none are measured)")
    parser.add_argument("--rir-folder", type=Path, metavar="FOLDER", help="impulse responses (default: simulated)")
    parser.add_argument("--crops", type=cli.positive_int, default=200, metavar="N", help="crops to measure each on")
    parser.add_argument("--steps", type=cli.positive_int, default=6, metavar="N", help="training steps to measure")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    usual = {name: share for name, share in USUAL.items() if name != "recorded_noise" or args.noise_folder}
    cases = {"none: reading and mel": [], **{name.replace("_", " "): _words({name: 1.0}) for name in usual}}
    cases |= {"speed": ["--speed-perturbation"], "all": [*_words(usual), "--speed-perturbation"]}
    rows = [[name, f"{_crop_milliseconds(args, words):.1f}"] for name, words in cases.items()]
    rows.append([f"training step of {CONFIG.name}, per crop", f"{_step_milliseconds(args):.1f}"])
    print(table(["augmentation", "CPU ms a crop"], rows))
    print(f"all: {' '.join(cases['all'])}")


def _words(shares: dict[str, float]) -> list[str]:
    return [word for name, share in shares.items() for word in (f"--{name.replace('_', '-')}-share", str(share))]


def _task(args: argparse.Namespace, words: list[str]) -> Any:
    import torch

    import train_tacomamba
    from utils.features.store import FeatureStore
    from utils.speaker.training.task import SpeakerTask
    from utils.training.options import TrainingOptions

    words = ["--data", str(args.data), "--protocol", args.protocol, "--out", "none", "--config", str(CONFIG), *words]
    for name in ("noise_folder", "rir_folder"):
        if getattr(args, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    parser = train_tacomamba.build_parser(words)
    parsed = parser.parse_args(words)
    classes = TrainingOptions, SpeakerTask.model_config, *SpeakerTask.option_classes()
    training, config, *options = parser.read_options(parsed, *classes)
    torch.manual_seed(0)
    folder = args.data / "protocols" / args.protocol
    return SpeakerTask(FeatureStore.open(args.data), folder, config, training, options)


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
