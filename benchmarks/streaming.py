"""Work and memory that streams need, on one core: of identify --stream, and of a causal model's running embedding.

    python benchmarks/streaming.py --speech ../shared/data/speakers_dev/LibriSpeech
    python benchmarks/streaming.py --checkpoint runs/causal --speech SPEECH --minutes 60
    python benchmarks/streaming.py --checkpoint runs/causal --speech SPEECH --exported stream.onnx

Prints CPU time for the answer of a window, without the comparison with the enrolled; of a causal model also for a
chunk of a stream and for the embedding after it, and resident memory along a stream of --minutes; of ONNX files by
test.py export --streaming, for a block and its embedding. Times are medians over half a minute of speech, and in
parentheses what one of a hundred exceeds. What a file leaves out at a stream's end is less than a block: the cosine of
the embeddings of 3 s without and with one sample less than a block, the median of 50 and the least.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.embedding_speed import joined_speech, one_thread_session  # noqa: E402
from benchmarks.grid.markdown import table  # noqa: E402
from benchmarks.grid.memory import memory  # noqa: E402
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
    add("--exported", type=Path, nargs="*", default=[], metavar="FILE", help="ONNX files of the model, for streams")
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
    if recognizer.model.can_stream:
        _print_stream(recognizer, speech, args.minutes)
    if args.exported:
        rows = [[str(path), *_exported(path, recognizer, speech)] for path in args.exported]
        titles = ["block, ms", "a block, ms", "share of real time", "state, bytes", "cosine without the end"]
        print("\n" + table(["file", *titles], rows))


def _print_stream(recognizer: SpeakerRecognizer, speech: np.ndarray, minutes: int) -> None:
    rows = [[f"{chunk} ms", *_chunk_times(recognizer, speech, chunk)] for chunk in CHUNKS]
    print("\n" + table(["chunk", "a chunk, ms", "the embedding, ms", "share of real time"], rows))
    rows = _memory(recognizer, speech, minutes)
    print("\n" + table(["streamed, min", "resident, MiB", "CPU, s"], rows))


def _window_times(recognizer: SpeakerRecognizer, speech: np.ndarray, window: int) -> list[float]:
    """CPU time in ms of each second's answer."""
    from utils.features.speech import spoken

    times = []
    for start in range(0, SECONDS * RATE, RATE):
        samples, before = speech[start : start + window * RATE], time.process_time()
        recognizer.embed_samples(spoken(samples, RATE).samples, RATE)
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


def _exported(path: Path, recognizer: SpeakerRecognizer, speech: np.ndarray) -> list[str]:
    """Length of a file's blocks, their CPU time, that for a second, the state's size, and what the end changes."""
    session = one_thread_session(path)
    about, times = json.loads(session.get_modelmeta().custom_metadata_map["tacomamba"]), []
    size, lead = about["block_samples"], about["lead_samples"]
    state = {each["name"]: np.full(each["shape"], each["initial"], each["dtype"]) for each in about["state"]}
    state["state_samples"] = speech[None, :lead]
    for start in range(lead, SECONDS * RATE, size):
        before = time.process_time()
        _, *new = session.run(None, {"samples": speech[None, start : start + size], **state})
        times.append(1000 * (time.process_time() - before))
        state = dict(zip(state, new, strict=True))
    length = 1000 * size / RATE
    occupied = sum(each.nbytes for each in state.values())
    cell = f"{np.median(times):.2f} ({np.quantile(times, 0.99):.2f})"
    cosines = _without_end(recognizer, speech, lead + (3 * RATE - lead) // size * size, size - 1)
    ends = f"{np.median(cosines):.4f} ({min(cosines):.4f})"
    return [f"{length:g}", cell, f"{np.median(times) / length:.4f}", str(occupied), ends]


def _without_end(recognizer: SpeakerRecognizer, speech: np.ndarray, size: int, rest: int) -> list[float]:
    """Cosines of embeddings of `size` samples with those of `rest` more."""
    starts = np.linspace(0, len(speech) - size - rest, 50, dtype=int)
    pieces = [(speech[start : start + size], speech[start : start + size + rest]) for start in starts]
    return [float(np.dot(*(recognizer.embed_samples(each, RATE) for each in pair))) for pair in pieces]


def _memory(recognizer: SpeakerRecognizer, speech: np.ndarray, minutes: int) -> list[list[str]]:
    """Resident memory and CPU time after 1 minute, and after each sixth of the stream, in chunks of 0.1 s."""
    stream, rows, size = recognizer.embed_stream(), [], RATE // 10
    before = time.process_time()
    for minute in cli.progress(range(1, minutes + 1), unit="minute"):
        for start in range(0, 60 * RATE, size):
            place = (60 * RATE * minute + start) % (len(speech) - size)
            stream.push(speech[place : place + size])
        if minute == 1 or minute % max(1, minutes // 6) == 0:
            rows.append([str(minute), f"{memory('VmRSS') / 2**20:.1f}", f"{time.process_time() - before:.1f}"])
    assert stream.embedding is not None
    return rows


if __name__ == "__main__":
    sys.exit(main())
