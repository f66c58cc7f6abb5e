"""A recognizer fine-tuned on a few new speakers: what it gains on them, and what it loses on others.

    python benchmarks/adaptation.py --speech SPEECH/speakers_more/speechocean762 \\
        --speakers SPEECH/speakers_more/heldout_speakers.txt --out runs/adaptation

Each draw takes --new of the speakers and --seconds of speech of each, fine-tunes --checkpoint on them by
configs/speaker-adapt.yaml, and enrolls them from the same recordings. Tested are the other recordings of the new
speakers, and all of the other speakers, cut to their middle: EERs of the trials among either group, own recordings
found and strangers named at the stored thresholds. Means over the draws; differences have their range.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.lists import read_speakers  # noqa: E402

MEASURES = ("EER, new speakers", "EER, others", "own found", "strangers named")


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="FOLDER", help="speech in LibriSpeech layout")
    add("--speakers", type=Path, required=True, metavar="FILE", help="speakers that the model was not trained on")
    add("--checkpoint", default="speaker", metavar="MODEL", help="recognizer: checkpoint, run folder or packed model")
    add("--new", type=cli.positive_int, default=5, metavar="N", help="new speakers")
    add("--seconds", type=cli.positive_float, default=30.0, metavar="S", help="speech of each to train on")
    add("--cut", type=cli.positive_float, default=1.5, metavar="S", help="length of a test recording")
    add("--draws", type=cli.positive_int, default=3, metavar="N", help="draws of the new speakers")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for features and runs")
    add("flags", nargs="*", metavar="-- FLAG", help="further flags of train_tacomamba.py")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Trains what is missing and prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    speakers = read_speakers(args.speakers)
    recordings = {speaker: _recordings(args.speech, speaker) for speaker in speakers}
    before, after, seconds = [], [], []
    for draw in cli.progress(range(args.draws), unit="draw"):
        new = sorted(np.random.default_rng(draw).permutation(speakers)[: args.new].tolist())
        chosen = {speaker: _enough(recordings[speaker], args.seconds) for speaker in new}
        left = {
            speaker: [path for path in recordings[speaker] if path not in chosen.get(speaker, [])]
            for speaker in speakers
        }
        run, taken = _fine_tuned(args, draw, chosen)
        seconds.append(taken)
        before.append(_measures(args.checkpoint, chosen, left, args.cut))
        after.append(_measures(run, chosen, left, args.cut))
    rows = []
    for name, old, new in zip(MEASURES, np.transpose(before), np.transpose(after), strict=True):
        low, high = (new - old).min(), (new - old).max()
        rows.append([name, *(f"{100 * x.mean():.1f}" for x in (old, new)), f"{100 * low:+.1f} to {100 * high:+.1f}"])
    print(table(["%", args.checkpoint, "fine-tuned", "difference, range over draws"], rows))
    print(f"\nfine-tuning: {np.median(seconds):.0f} s, the slowest {max(seconds):.0f} s")


def _recordings(speech: Path, speaker: str) -> list[Path]:
    from utils.corpus.layouts import is_audio

    found = [path for path in sorted((speech / speaker).rglob("*")) if is_audio(path.name)]
    if not found:
        raise UserError(f"{speech / speaker} has no recordings")
    return found


def _enough(recordings: Sequence[Path], seconds: float) -> list[Path]:
    """The first recordings that have `seconds` together."""
    import soundfile

    chosen, total = [], 0.0
    for path in recordings:
        if total < seconds:
            chosen.append(path)
            total += soundfile.info(path).duration
    return chosen


def _fine_tuned(args: argparse.Namespace, draw: int, chosen: dict[str, list[Path]]) -> tuple[Path, float]:
    """The run folder of the model fine-tuned on `chosen`, and the wall time of the training in s."""
    raw, data, run = (args.out / f"{kind}-{draw}" for kind in ("raw", "data", "run"))
    shutil.rmtree(raw, ignore_errors=True)  # links of another --seconds or --new
    for paths in chosen.values():
        for path in paths:
            link = raw / "new" / path.relative_to(args.speech)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    words = ["--layout", "librispeech", "--raw", raw, "--split", "new", "--store", "audio", "--out", data]
    _script("preprocess.py", *words, "--heldout-speakers", 0, "--valid-speakers", 0, "--no-identification-tests")
    start = time.perf_counter()
    words = ["--config", ROOT / "configs" / "speaker-adapt.yaml", "--init", args.checkpoint, "--data", data]
    _script("train_tacomamba.py", *words, "--out", run, "--resume", "auto", *args.flags)
    return run, time.perf_counter() - start


def _script(name: str, *words: object) -> None:
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {result.stderr.strip()}")


def _measures(
    checkpoint: str | Path, chosen: dict[str, list[Path]], left: dict[str, list[Path]], cut: float
) -> list[float]:
    """The `MEASURES` of a recognizer; `chosen` are enrolled, `left` are tested."""
    from utils.speaker.people.enrollment import EnrollmentStore
    from utils.speaker.recognizer import SpeakerRecognizer

    recognizer = SpeakerRecognizer.load(checkpoint, "cpu")
    store = EnrollmentStore("", "")
    for speaker, paths in chosen.items():
        store.enroll(speaker, recognizer.embed_files(paths, disable=True), 1.0)
    labels = np.array([speaker for speaker, paths in left.items() for _ in paths])
    tested = recognizer.embed_files([path for paths in left.values() for path in paths], cut, disable=True)
    threshold = recognizer.identification_threshold(None, cut, len(chosen))
    named = np.array([store.identify(embedding, threshold).name for embedding in tested])
    is_own = np.isin(labels, list(chosen))
    found, wrong = (named == labels)[is_own].mean(), (named[~is_own] != "unknown").mean()
    return [
        *(_eer(recognizer.scoring.scores(tested[part], tested[part]), labels[part]) for part in (is_own, ~is_own)),
        found,
        wrong,
    ]


def _eer(scores: np.ndarray, labels: np.ndarray) -> float:
    """EER of all pairs, by scores (n, n)."""
    from utils.speaker.evaluation.metrics import eer

    a, b = np.triu_indices(len(labels), 1)
    return eer(scores[a, b], labels[a] == labels[b])[0]


if __name__ == "__main__":
    sys.exit(main())
