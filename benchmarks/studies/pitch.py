"""The pitch that a text-to-mel model estimates from log-mels, against pYIN on the audio.

    python preprocess.py --dataset ljspeech --raw ../shared/data/tts_dev/LJSpeech-1.1 --out data/processed/lj_phone \\
        --units phoneme
    python benchmarks/studies/pitch.py --data data/processed/lj_phone --checkpoint runs/voice --out runs/pitch

On the held-out texts (valid and test): differences in cents on frames that are voiced for both, frames voiced for one
only, and CPU seconds per second of speech on one thread (for the model with mels and durations given), medians over
recordings. `of frames` is the pitch that draws harmonics in training, `of symbols` the line through the symbols'
pitches that the decoder is given, `predicted` the line that it speaks along, with the durations of the recordings. pYIN
is librosa's (requirements-demo.txt).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

    from utils.features.store import FeatureStore
    from utils.tts.synthesizer import Synthesizer

FAR = 300.0  # cents
HEARD = {"frame": "of frames", "line": "of symbols", "predicted": "predicted"}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="features whose raw audio has not moved")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a tacomamba model of that voice")
    parser.add_argument("--out", type=Path, required=True, help="where results.json and table.md go")
    parser.add_argument("--protocol", default="default", help="text lists; valid and test are measured")
    parser.add_argument("--limit", type=cli.positive_int, help="at most so many recordings")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    import torch

    from benchmarks.studies.synthesis.trained import load_trained
    from utils.features.store import FeatureStore
    from utils.files import write_json, write_text
    from utils.tts.text_lists import read_text_lists

    torch.set_num_threads(1)
    store, lists = FeatureStore.open(args.data), read_text_lists(args.data / "protocols" / args.protocol)
    synthesizer = load_trained(args.checkpoint, store, lists.train)
    if not synthesizer.model.draws_harmonics:
        raise UserError(f"{args.checkpoint} is a model without pitch")
    items = store.with_a_frame_a_token([*store.listed(lists.valid, "valid"), *store.listed(lists.test, "test")])
    items = items[: args.limit]
    if not items:
        raise UserError(f"no held-out text of {args.data} can be aligned")
    _compare(store, synthesizer, items[0])  # librosa compiles at its first use
    results = _results([_compare(store, synthesizer, item) for item in cli.progress(items)])
    write_json(args.out / "results.json", results)
    write_text(args.out / "table.md", table(results))
    print(table(results))


def _compare(store: FeatureStore, synthesizer: Synthesizer, item: int) -> dict[str, Any]:
    """Pitches of one recording in octaves, each (t,), the voiced frames, and CPU seconds per second of speech."""
    import numpy as np
    import torch

    from models.tts.durations import positions
    from models.tts.pitch import LOWEST, contour
    from utils.features.audio import load_audio
    from utils.tts.speech_metrics import pitch

    samples = load_audio(Path(store.meta["raw"]) / store.rows[item].path, store.recipe.sample_rate)
    model, mel = synthesizer.model, torch.from_numpy(store.mel(item))[None]
    lengths = torch.tensor([mel.shape[1]])
    tokens = torch.from_numpy(store.tokens(item)).long()[None]
    token_lengths = torch.tensor([tokens.shape[1]])
    compared = model.compare(tokens, token_lengths, mel, lengths)
    durations, heard = compared.durations, compared.pitch
    _, here = _timed(lambda: model.decoder.source.harmonics.track(mel, lengths, durations))
    truth, there = _timed(lambda: pitch(samples, store.recipe))
    if len(truth) != mel.shape[1]:
        raise UserError(f"{store.rows[item].path} has another length than when {store.directory} was made from it")
    where = positions(durations, 0, mel.shape[1])
    lines = {"line": heard, "predicted": compared.predicted_pitch}
    drawn = {name: contour(pitch.token, durations, where)[0].numpy() for name, pitch in lines.items()}
    voiced = where.of(heard.voiced / durations)
    seconds = store.rows[item].seconds
    return {
        "truth": np.log2(truth / LOWEST),
        "voiced": voiced[0].numpy() > 0.5,
        "frame": heard.frame[0].numpy(),
        **drawn,
        "cpu": here / seconds,
        "cpu_pyin": there / seconds,
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def _results(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All recordings together."""
    import numpy as np

    truth, voiced = (np.concatenate([row[name] for row in rows]) for name in ("truth", "voiced"))
    both = voiced & ~np.isnan(truth)
    if not both.any():
        raise UserError("no frame of these recordings is voiced for both")
    differences = {name: 1200 * np.abs(np.concatenate([row[name] for row in rows]) - truth)[both] for name in HEARD}
    deviation = float(1200 * truth[both].std())
    return {
        "recordings": len(rows),
        "frames": len(truth),
        "both_voiced": int(both.sum()),
        "voiced_here_only": float((voiced & np.isnan(truth)).mean()),
        "voiced_there_only": float((~voiced & ~np.isnan(truth)).mean()),
        "deviation": deviation,  # of pYIN's pitches about their mean, in cents
        "explained": 1 - float((differences["predicted"] ** 2).mean()) / deviation**2,  # of its square
        "differences": {name: _spread(values) for name, values in differences.items()},
        "cpu": {name: [float(row[name]) for row in rows] for name in ("cpu", "cpu_pyin")},
    }


def _spread(cents: np.ndarray) -> dict[str, float]:
    import numpy as np

    return {"median": float(np.median(cents)), "mean": float(cents.mean()), "far": float((cents > FAR).mean())}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    from benchmarks.grid import markdown

    rows = [
        [HEARD[name], f"{found['median']:.0f} cents", f"{found['mean']:.0f} cents", f"{found['far']:.1%}"]
        for name, found in results["differences"].items()
    ]
    ratio = [there / here for here, there in zip(results["cpu"]["cpu"], results["cpu"]["cpu_pyin"], strict=True)]
    medians = [statistics.median(results["cpu"][name]) for name in ("cpu", "cpu_pyin")]
    notes = [
        f"{results['recordings']} recordings; {results['both_voiced']} of {results['frames']} frames are voiced for "
        f"both, {results['voiced_here_only']:.1%} here only, {results['voiced_there_only']:.1%} for pYIN only.",
        f"pYIN's pitches deviate from their mean by {results['deviation']:.0f} cents (root of the mean square); the "
        f"prediction explains {results['explained']:.0%} of their variance.",
        f"CPU seconds a second of speech: {medians[0]:.5f} here, mels and durations given, {medians[1]:.5f} by pYIN, "
        f"{statistics.median(ratio):.0f} times as many ({min(ratio):.0f} to {max(ratio):.0f}).",
    ]
    header = ["pitch", "median difference from pYIN", "mean", f"more than {FAR:.0f} cents"]
    return f"{markdown.table(header, rows)}\n\n" + "\n".join(notes)


if __name__ == "__main__":
    sys.exit(main())
