"""Work and memory that streams need, on one core: of identify --stream, and of a causal model's running embedding.

    python benchmarks/streaming.py --speech ../shared/data/speakers_dev/LibriSpeech
    python benchmarks/streaming.py --checkpoint runs/causal --speech SPEECH --minutes 60

Prints CPU time for the answer of a window, without the comparison with the enrolled; of a causal model also for a
chunk of a stream and for the embedding after it, and resident memory along a stream of --minutes. Times are medians
over half a minute of speech, and in parentheses what one of a hundred exceeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.embedding_speed import joined_speech  # noqa: E402
from benchmarks.grid.markdown import table  # noqa: E402
from benchmarks.pretrained import RATE  # noqa: E402
from utils import cli  # noqa: E402

if TYPE_CHECKING:
    from utils.speaker.recognizer import SpeakerRecognizer

CHUNKS = (20, 100, 500, 1000)  # ms
WINDOWS = (1, 3)  # s
SECONDS = 30  # of speech, for times


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="FOLDER", help="folder of FLAC files at 16 kHz")
    add("--checkpoint", default="speaker", metavar="MODEL", help="recognizer: checkpoint, run folder or packed model")
    add("--minutes", type=cli.positive_int, default=5, metavar="N", help="length of the stream for memory")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the tables."""
    return cli.run(_measure, build_parser().parse_args(argv))


def _measure(args: argparse.Namespace) -> None:
    import torch

    from utils.speaker.recognizer import SpeakerRecognizer

    torch.set_num_threads(1)
    recognizer = SpeakerRecognizer.load(args.checkpoint, "cpu")
    speech = joined_speech(args.speech)
    rows = [[f"{window} s", _cell(_window_times(recognizer, speech, window))] for window in WINDOWS]
    print(table(["window", "an answer, ms"], rows))
    if not recognizer.model.can_stream:
        return
    rows = [[f"{chunk} ms", *_chunk_times(recognizer, speech, chunk)] for chunk in CHUNKS]
    print("\n" + table(["chunk", "a chunk, ms", "the embedding, ms", "share of real time"], rows))
    rows = _memory(recognizer, speech, args.minutes)
    print("\n" + table(["streamed, min", "resident, MiB", "CPU, s"], rows))


def _window_times(recognizer: SpeakerRecognizer, speech: np.ndarray, window: int) -> list[float]:
    """CPU time in ms of each second's answer."""
    from utils.features.speech import speech_seconds

    times = []
    for start in range(0, SECONDS * RATE, RATE):
        samples, before = speech[start : start + window * RATE], time.process_time()
        speech_seconds(samples, RATE)
        recognizer.embed_samples(samples, RATE)
        times.append(1000 * (time.process_time() - before))
    return times


def _cell(times: Sequence[float]) -> str:
    return f"{np.median(times):.1f} ({np.quantile(times, 0.99):.1f})"


def _chunk_times(recognizer: SpeakerRecognizer, speech: np.ndarray, chunk: int) -> list[str]:
    """CPU time of chunks, of the embedding after each, and both for a second of speech."""
    size, stream, times = chunk * RATE // 1000, recognizer.embed_stream(), []
    for start in range(0, SECONDS * RATE, size):
        before = time.process_time()
        stream.push(speech[start : start + size])
        middle = time.process_time()
        assert stream.embedding is not None or start == 0
        times.append((1000 * (middle - before), 1000 * (time.process_time() - middle)))
    return [*map(_cell, np.transpose(times)), f"{np.median(times, axis=0).sum() / chunk:.3f}"]


def _memory(recognizer: SpeakerRecognizer, speech: np.ndarray, minutes: int) -> list[list[str]]:
    """Resident memory and CPU time after 1 minute, and after each sixth of the stream, in chunks of 0.1 s."""
    stream, rows, size = recognizer.embed_stream(), [], RATE // 10
    before = time.process_time()
    for minute in cli.progress(range(1, minutes + 1), unit="minute"):
        for start in range(0, 60 * RATE, size):
            place = (60 * RATE * minute + start) % (len(speech) - size)
            stream.push(speech[place : place + size])
        if minute == 1 or minute % max(1, minutes // 6) == 0:
            rows.append([str(minute), f"{_resident():.1f}", f"{time.process_time() - before:.1f}"])
    assert stream.embedding is not None
    return rows


def _resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
