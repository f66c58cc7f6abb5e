"""Real-time factors of recognizers on one core: seconds of work for a second of speech, from samples to the embedding.

    python benchmarks/embedding_speed.py --speech ../shared/data/speakers_dev/LibriSpeech
    python benchmarks/embedding_speed.py --speech SPEECH --checkpoint runs/a --systems resemblyzer campplus
    python benchmarks/embedding_speed.py --speech SPEECH --exported speaker.onnx

One recording at a time, of 3 and of 30 s, joined from recordings under --speech. The systems take turns within a round;
medians over the rounds, and their range. --systems are those of benchmarks/pretrained.py. Nothing else should run at
the same time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from benchmarks.pretrained import RATE, SYSTEMS  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SECONDS = (3, 30)
CALLS = {3: 10, 30: 2}  # in a round, each on other speech


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="FOLDER", help="folder of FLAC files at 16 kHz")
    add("--checkpoint", default="speaker", metavar="MODEL", help="recognizer: checkpoint, run folder or packed model")
    add("--systems", nargs="*", choices=SYSTEMS, default=[], help="pretrained recognizers to measure beside it")
    add("--exported", type=Path, nargs="*", default=[], metavar="FILE", help="ONNX files by test.py export, likewise")
    add("--rounds", type=cli.positive_int, default=15, metavar="N", help="rounds, after one that does not count")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the table."""
    return cli.run(_measure, build_parser().parse_args(argv))


def _measure(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    systems = {args.checkpoint: _ours(args.checkpoint)} | {name: SYSTEMS[name]() for name in args.systems}
    systems |= {str(path): _exported(path) for path in args.exported}
    speech = joined_speech(args.speech)
    factors = {(name, seconds): [] for name in systems for seconds in SECONDS}
    with torch.inference_mode():
        for number in cli.progress(range(args.rounds + 1), unit="round"):
            for name, seconds in factors:
                taken = _time(systems[name], speech, seconds, number) / (seconds * CALLS[seconds])
                factors[name, seconds] += [taken] if number else []
    ours = {seconds: statistics.median(factors[args.checkpoint, seconds]) for seconds in SECONDS}
    rows = [[name, *(_cell(factors[name, seconds], ours[seconds]) for seconds in SECONDS)] for name in systems]
    print(table(["recognizer", *(f"RTF at {seconds} s, range, ratio to the first" for seconds in SECONDS)], rows))


def _ours(checkpoint: str) -> Callable[[np.ndarray], np.ndarray]:
    from utils.speaker.recognizer import SpeakerRecognizer

    recognizer = SpeakerRecognizer.load(checkpoint, "cpu")
    return lambda samples: recognizer.embed_mels([recognizer.mel_of_samples("speech", samples)])[0]


def _exported(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    session = one_thread_session(path)
    return lambda samples: session.run(["embedding"], {"samples": samples[None]})[0]


def one_thread_session(path: Path) -> InferenceSession:
    """Opens a file by test.py export for one thread; `UserError` if that cannot be done."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("--exported needs the package onnxruntime: pip install -r requirements-export.txt") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options)
    except Exception as error:  # onnxruntime has a class of its own for each reason
        raise UserError(f"{path} is not an ONNX file that can be run: {error}") from error


def joined_speech(folder: Path) -> np.ndarray:
    """Recordings under a folder, joined: (S,) float32, ten minutes at most."""
    from utils.features.audio import load_audio

    parts: list[np.ndarray] = []
    for path in sorted(folder.rglob("*.flac")):
        parts.append(load_audio(path, RATE))
        if sum(map(len, parts)) > 600 * RATE:
            break
    if sum(map(len, parts)) < 2 * max(SECONDS) * RATE:
        raise UserError(f"{folder} has less than {2 * max(SECONDS)} s of speech in FLAC files")
    return np.concatenate(parts)


def _time(embed: Callable[[np.ndarray], np.ndarray], speech: np.ndarray, seconds: int, number: int) -> float:
    """Seconds that the calls of a round take."""
    length = seconds * RATE
    starts = [(number * CALLS[seconds] + call) * length % (len(speech) - length) for call in range(CALLS[seconds])]
    before = time.perf_counter()
    for start in starts:
        embed(speech[start : start + length])
    return time.perf_counter() - before


def _cell(factors: list[float], ours: float) -> str:
    middle = statistics.median(factors)
    return f"{middle:.4f} [{min(factors):.4f}, {max(factors):.4f}], {middle / ours:.2f}"


if __name__ == "__main__":
    sys.exit(main())
