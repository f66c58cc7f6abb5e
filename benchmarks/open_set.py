"""Open-set identification, by the number of people enrolled, and calibration, on speakers of the fit and on others.

    python benchmarks/open_set.py --audio-root SPEECH --trials trials.txt

The recordings are those of a trial list of speakers whom the recognizer was never trained on. In each draw some of the
speakers are enrolled from three random recordings, and everything else is identified. "detected" is the share of the
enrolled people's recordings that are named right where 1 % of the strangers' are named. "stored" thresholds are the
checkpoint's. Those "of others" are what validation would take from these speakers without the one who is tested, as an
enrolled person and as a stranger, each speaker in turn. Cllr is of all pairs of recordings, entire or cut to their
middle, by the stored calibration and by one that is fitted to half of the speakers and tested on the other half, both
ways, for 20 random halves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
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

    from utils.speaker.recognizer import SpeakerRecognizer
    from utils.speaker.scoring.scoring import Scoring
    from utils.speaker.scoring.validation import Validation

    Halves = Sequence[tuple[Scoring, Validation]]


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
    from utils.speaker.recognizer import SpeakerRecognizer
    from utils.speaker.scoring.validation import CUTS, Validation

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
        validation = Validation.of(dict(zip(CUTS, cut, strict=True)), whole, speakers, seconds)
        halves = list(_halves(recognizer.scoring, validation, args.seed))
        rows = _rates(recognizer, validation, args)
    except ValueError as error:
        raise UserError(f"{args.trials}: {error}") from error
    costs = _costs(recognizer.scoring, validation, halves)
    if args.json:
        print_json({"speakers": len(set(speakers)), "recordings": len(paths), "rows": rows, "costs": costs})
        return
    print(f"{recognizer.name} {recognizer.model_hash}, {len(set(speakers))} speakers, {len(paths)} recordings\n")
    head = ["enrolled", "detected", "stored: found", "confused", "strangers named"]
    print(table([*head, "of others: found", "confused", "strangers named"], map(_cells, rows)))
    lines = [[f"{cost['seconds']:.2f} s", *(f"{cost[name]:.3f}" for name in ("stored", "of_others"))] for cost in costs]
    print("\n" + table(["length", "Cllr, stored", "of others"], lines))


def _cells(row: dict[str, Any]) -> list[str]:
    shares = [*row["stored"].values(), *list(row["of_others"].values())[1:]]
    return [str(row["enrolled"]), *(f"{100 * share:.1f} %" for share in shares)]


def _halves(scoring: Scoring, validation: Validation, seed: int) -> Iterator[tuple[Scoring, Validation]]:
    """Scorings fitted to random halves of the speakers, each with the other half; ValueError if they are too few."""
    import numpy as np

    from utils.speaker.scoring.scoring import Scoring

    names, rng = np.unique(validation.labels), np.random.default_rng(seed)
    for _ in range(SPLITS):
        is_first = np.isin(validation.labels, rng.permutation(names)[: len(names) // 2])
        for chosen in (is_first, ~is_first):
            fitted = Scoring.fit(scoring.cohort, validation.subset(chosen))
            if fitted.operating_points is None or fitted.calibration is None:
                raise ValueError("half of the speakers are too few to fit thresholds and calibration to")
            yield fitted, validation.subset(~chosen)


def _rates(recognizer: SpeakerRecognizer, validation: Validation, args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each number of enrolled: rates at the stored thresholds, and of each speaker at those of all others."""
    import numpy as np

    from utils.speaker.evaluation.open_set import OpenSetRates, open_set_rates
    from utils.speaker.scoring.operating import OperatingPoints

    speakers = np.unique(validation.labels)
    others = [OperatingPoints.fit(validation.subset(validation.labels != name)) for name in speakers]

    def stored(length: float, enrolled: int) -> float:
        return recognizer.identification_threshold(None, length, enrolled)

    def rates(threshold: Callable[[float, int], float], *settings: Any) -> OpenSetRates:
        return open_set_rates(validation.whole, validation.labels, validation.seconds, threshold, *settings)

    rows = []
    for enrolled in args.enrolled:
        settings = enrolled, max(args.draws, 2), args.seed  # one as a stranger, one as somebody enrolled
        found = [rates(points.identification, *settings, name) for points, name in zip(others, speakers, strict=True)]
        row = {"stored": rates(stored, *settings), "of_others": OpenSetRates(*np.mean(found, axis=0).tolist())}
        rows.append({"enrolled": enrolled} | {name: each._asdict() for name, each in row.items()})
    return rows


def _costs(scoring: Scoring, validation: Validation, halves: Halves) -> list[dict[str, float]]:
    """Cllr of all pairs of each part, by the stored calibration and by those of the other half of the speakers."""
    import numpy as np

    costs = []
    for place, part in enumerate(validation.parts()):
        others = [_cllr(fitted, tested, place) for fitted, tested in halves if place < len(tested.parts())]
        costs.append(
            {"seconds": part.seconds, "stored": _cllr(scoring, validation, place), "of_others": np.mean(others)}
        )
    return costs


def _cllr(scoring: Scoring, validation: Validation, place: int) -> float:
    import numpy as np

    from utils.speaker.evaluation.metrics import cllr
    from utils.speaker.scoring.validation import Recordings

    part = validation.parts()[place]
    recordings, labels = Recordings(part.embeddings, part.lengths), validation.labels[part.chosen]
    a, b = np.triu_indices(len(labels), 1)
    return cllr(scoring.llrs(recordings, recordings)[a, b], labels[a] == labels[b])


if __name__ == "__main__":
    sys.exit(main())
