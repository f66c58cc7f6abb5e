"""CPU time and memory of the metrics of verification, on synthetic scores.

    python benchmarks/metrics.py --trials 10000000 --speakers 1000 --draws 1000

One line for each step: seconds of CPU, and the peak of the process's memory so far.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--trials", type=cli.positive_int, default=1_000_000, metavar="N", help="number of trials")
    add("--speakers", type=cli.positive_int, default=1000, metavar="N", help="number of speakers")
    add("--draws", type=cli.positive_int, default=1000, metavar="N", help="draws of the speakers for the interval")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the costs."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    import numpy as np

    from utils.speaker.evaluation.metrics import bootstrap_rates, det_curve, error_rates, interval

    def point_metrics() -> None:
        rates = error_rates(scores, targets)
        rates.eer(), rates.min_dcf(0.01), rates.min_dcf(0.05)

    rng = np.random.default_rng(0)
    first, second = rng.integers(args.speakers, size=(2, args.trials), dtype=np.int32)
    same = rng.random(args.trials) < 0.03
    second[same] = first[same]
    targets = first == second
    if targets.all() or not targets.any():
        raise UserError("the trials are of one kind: give more --trials and --speakers")
    scores = rng.normal(size=args.trials) + 3.2 * targets + 0.3 * rng.normal(size=args.speakers)[first]
    steps = {
        "EER, minDCF": point_metrics,
        "DET curve": lambda: det_curve(scores, targets),
        "interval": lambda: interval(bootstrap_rates(scores, targets, first, second, n=args.draws)),
    }
    for name, step in steps.items():
        start = time.process_time()
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {time.process_time() - start:.2f} s, {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
