"""Open-set identification: people found, and strangers named, by the number of people enrolled.

    python benchmarks/open_set.py --audio-root SPEECH --trials trials.txt

The recordings are those of a trial list of speakers whom the recognizer was never trained on. In each draw some of the
speakers are enrolled from three random recordings, and everything else is identified. "detected" is the share of the
enrolled people's recordings that are named right where 1 % of the strangers' are named. "stored" thresholds are the
checkpoint's. Those "of others" are what validation would take from one half of these speakers, tested on the other
half, both ways, for 20 random halves: no speaker is tested at thresholds that were taken from him.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402
from utils.commands import print_json  # noqa: E402
from utils.errors import UserError  # noqa: E402

SPLITS = 20  # of the speakers into halves

if TYPE_CHECKING:
    from numpy.typing import NDArray


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", default="speaker", metavar="MODEL", help="recognizer: checkpoint, run folder or packed model")
    add("--audio-root", type=Path, required=True, metavar="FOLDER", help="folder that the paths of the trials are in")
    add("--trials", type=Path, required=True, metavar="FILE", help="trial list of `1|0 path path` lines")
    add("--enrolled", type=cli.positive_int, nargs="+", default=[1, 2, 5, 10, 20], metavar="N", help="people enrolled")
    add("--draws", type=cli.positive_int, default=100, metavar="N", help="draws of the people, for each number")
    add("--seed", type=cli.non_negative_int, default=0, metavar="N", help="seed of the draws")
    add("--json", action="store_true", help="print the rates as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the table."""
    return cli.run(_measure, build_parser().parse_args(argv))


def _measure(args: argparse.Namespace) -> None:
    from utils.corpus.layouts import parse_path
    from utils.lists import read_trials
    from utils.speaker.operating import CUTS
    from utils.speaker.recognizer import SpeakerRecognizer

    recognizer = SpeakerRecognizer.load(args.checkpoint, "cpu")
    paths = sorted({path for trial in read_trials(args.trials) for path in (trial.a, trial.b)})
    seconds: list[float] = []

    def read(path: str) -> NDArray:
        mel = recognizer.mel_of_file(args.audio_root / path)
        seconds.append(recognizer.recipe.seconds(len(mel)))
        return mel

    *cut, whole = recognizer.embed_durations(paths, read, [*CUTS, None])
    speakers = [parse_path(path)[0] for path in paths]
    if known := sorted(set(speakers).intersection(recognizer.speakers)):
        raise UserError(f"the recognizer was trained on {len(known)} of these speakers, such as {known[0]}")
    try:
        rows = _rates(recognizer, dict(zip(CUTS, cut, strict=True)), whole, speakers, seconds, args)
    except ValueError as error:
        raise UserError(f"{args.trials}: {error}") from error
    if args.json:
        print_json({"speakers": len(set(speakers)), "recordings": len(paths), "rows": rows})
        return
    print(f"{recognizer.name} {recognizer.model_hash}, {len(set(speakers))} speakers, {len(paths)} recordings\n")
    head = ["enrolled", "detected", "stored: found", "confused", "strangers named"]
    print(table([*head, "of others: found", "confused", "strangers named"], map(_cells, rows)))


def _cells(row: dict[str, Any]) -> list[str]:
    others = row["of_others"] or dict.fromkeys(row["stored"])
    shares = [*row["stored"].values(), *list(others.values())[1:]]
    return [str(row["enrolled"]), *("-" if share is None else f"{100 * share:.1f} %" for share in shares)]


def _rates(
    recognizer: Any,
    cut: dict[float, NDArray],
    whole: NDArray,
    speakers: Sequence[str],
    seconds: Sequence[float],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """For each number of enrolled: rates at the stored thresholds, and at those of the other half of the speakers."""
    import numpy as np

    from utils.speaker.open_set import OpenSetRates, open_set_rates
    from utils.speaker.operating import OperatingPoints

    def stored(length: float, enrolled: int) -> float:
        return recognizer.identification_threshold(None, length, enrolled)

    labels, lengths = np.array(speakers), np.array(seconds)
    rows = []
    for enrolled in args.enrolled:
        rates = open_set_rates(whole, labels, lengths, stored, enrolled, args.draws, args.seed)
        rows.append({"enrolled": enrolled, "stored": rates._asdict(), "of_others": None})
    names, rng = np.unique(labels), np.random.default_rng(args.seed)
    few = [row for row in rows if row["enrolled"] < len(names) // 2]
    found: dict[int, list[OpenSetRates]] = {row["enrolled"]: [] for row in few}
    for split in range(SPLITS):
        is_first = np.isin(labels, rng.permutation(names)[: len(names) // 2])
        for fit, test in ((is_first, ~is_first), (~is_first, is_first)):
            cuts = {length: vectors[fit] for length, vectors in cut.items()}
            points = OperatingPoints.fit(cuts, whole[fit], labels[fit], lengths[fit])
            if points is None:
                raise ValueError("half of the speakers are too few to take thresholds from")
            data = whole[test], labels[test], lengths[test], points.identification
            for enrolled, rates in found.items():
                rates.append(open_set_rates(*data, enrolled, -(-args.draws // SPLITS), args.seed + split))
    for row in few:
        row["of_others"] = OpenSetRates(*np.mean(found[row["enrolled"]], axis=0).tolist())._asdict()
    return rows


if __name__ == "__main__":
    sys.exit(main())
