"""Degraded copies of a corpus: offline augmentation, so that many trainings share the work of one.

    python benchmarks/degraded.py --raw ../shared/data --split speechocean762 --versions 8 \\
        --noise-folder ../shared/data/speakers_more/noise --out data/raw/degraded

Each version is a folder SPEAKER/CHAPTER of FLAC files under OUT, a split for preprocess.py. Shares and ranges are those
of the augmentations of samples in --settings; without speed perturbation, which makes new speakers of old ones.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from models.config import options  # noqa: E402
from utils import cli  # noqa: E402
from utils.corpus.layouts import Utterance, read_corpus  # noqa: E402
from utils.features.audio import load_audio  # noqa: E402
from utils.features.degrade import Scene, cut  # noqa: E402
from utils.files import read_text, replacing_directory  # noqa: E402
from utils.speaker.training.augment import AUGMENTATIONS, WaveAugmentation  # noqa: E402

RATE = 16_000
SETTINGS = ROOT / "configs" / "speaker-robust.yaml"


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="FOLDER", help="folder of the corpus, arranged as LibriSpeech")
    add("--split", nargs="+", required=True, metavar="NAME", help="splits to copy")
    add("--without", type=Path, metavar="FILE", help="speakers to leave out, one per line (default: none)")
    add("--versions", type=cli.positive_int, default=8, metavar="N", help="copies of each recording")
    add("--settings", type=Path, default=SETTINGS, metavar="FILE", help="preset with the shares and ranges")
    add("--noise-folder", type=Path, required=True, metavar="FOLDER", help="folder of noises")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder of the versions")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Writes the versions that are missing."""
    return cli.run(_write, build_parser().parse_args(argv))


def _write(args: argparse.Namespace) -> None:
    left_out = set(read_text(args.without).split()) if args.without else set()
    utterances = [item for item in read_corpus(args.raw, "librispeech", args.split) if item.speaker not in left_out]
    augmentations = _augmentations(args)
    for version in range(1, args.versions + 1):
        folder = args.out / f"version{version}"
        if folder.exists():
            continue
        with replacing_directory(folder) as staging:
            for item in cli.progress(utterances, desc=folder.name, unit="file"):
                _write_one(args.raw, item, version, utterances, augmentations, staging)


def _augmentations(args: argparse.Namespace) -> list[WaveAugmentation]:
    """The augmentations of samples of the preset."""
    import yaml

    settings = {name.replace("-", "_"): value for name, value in yaml.safe_load(read_text(args.settings)).items()}
    settings["noise_folder"] = args.noise_folder
    kinds = [kind for kind in AUGMENTATIONS.values() if issubclass(kind, WaveAugmentation)]
    names = [{field.name for field in options(kind)} & settings.keys() for kind in kinds]
    return [kind.from_dict({name: settings[name] for name in own}) for kind, own in zip(kinds, names, strict=True)]


def _write_one(
    raw: Path,
    item: Utterance,
    version: int,
    utterances: Sequence[Utterance],
    augmentations: Sequence[WaveAugmentation],
    out: Path,
) -> None:
    """Degrades one recording; what is random is drawn by its name and the version."""
    import soundfile

    name = f"{item.utterance}-v{version}"
    generator = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    samples = load_audio(raw / item.path, RATE)
    others = _others(raw, item.speaker, utterances, generator)
    scene = Scene(RATE, lambda length: _piece(next(others), length, generator))
    for augment in augmentations:
        samples = augment(samples, generator, scene)
    path = out / item.speaker / item.chapter / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples / max(1.0, float(np.abs(samples).max())), RATE)


def _others(
    raw: Path, speaker: str, utterances: Sequence[Utterance], generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Random recordings of other speakers, without end."""
    while True:
        item = utterances[generator.integers(len(utterances))]
        if item.speaker != speaker:
            yield _read(raw / item.path)


@functools.lru_cache(256)
def _read(path: Path) -> np.ndarray:
    return load_audio(path, RATE)


def _piece(samples: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """A random part (length,) of samples; shorter ones are repeated."""
    return cut(samples, int(generator.integers(max(1, len(samples) - length + 1))), length)


if __name__ == "__main__":
    sys.exit(main())
