"""Speed, memory and accuracy of the Mamba engine and of other Mambas in plain torch; writes docs/benchmarks.md.

    python benchmarks/peers.py --out ../peers
    python benchmarks/mixers.py --peers ../peers --quick
    python benchmarks/mixers.py --peers ../peers --write
    python benchmarks/mixers.py --sections errors length step --malloc default

Each cell (a system at a shape) is measured in a fresh process with one thread and the same malloc settings, in process
CPU time, and kept as one file in OUT/cells: finished cells are not measured again unless the system, torch or the
limits have changed. A process that exceeds its memory or time limit is ended, and its cell says so. Nothing else should
run at the same time; other load is recorded. Without PEERS only our own systems are measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.plan import MALLOC_SETTINGS, PLANS  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

DOCUMENT = ROOT / "docs" / "benchmarks.md"
QUICK_SECTIONS = ["mixers", "errors"]
BUSY = 0.25  # cores at work on other things from which a time is in doubt


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/mixers"), help="folder for cells and tables")
    parser.add_argument("--peers", type=Path, help="folder from benchmarks/peers.py")
    text = "sections to measure (default: all; mixers and errors with --quick)"
    parser.add_argument("--sections", nargs="+", choices=PLANS, help=text)
    parser.add_argument(
        "--systems", nargs="+", metavar="NAME", help="only these systems, named as in benchmarks/grid/systems.py"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats, at most 10 s per pass")
    text = "malloc settings: those of training, the default, or keeping all memory; section malloc compares them"
    parser.add_argument("--malloc", choices=MALLOC_SETTINGS, default="training", help=text)
    parser.add_argument("--memory-gib", type=cli.positive_float, default=16.0, help="memory limit of a cell in GiB")
    text = "CPU time limit of a pass in seconds (default: 120; 10 with --quick)"
    parser.add_argument("--pass-seconds", type=cli.positive_float, help=text)
    parser.add_argument("--show", action="store_true", help="measure nothing, print the tables of the stored cells")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures the missing cells and prints the tables."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    from benchmarks.grid import tables
    from benchmarks.grid.cells import Store
    from utils.files import write_text

    store = Store(args.out / "cells")
    if not args.show:
        _measure(args, store)
    text = tables.render(store)
    write_text(args.out / "tables.md", text + "\n")
    print(text)
    if args.write:
        document = DOCUMENT.read_text(encoding="utf-8")
        write_text(DOCUMENT, tables.replace_between_markers(document, text))


def _measure(args: argparse.Namespace, store: object) -> None:
    from benchmarks.grid import cells
    from benchmarks.grid.plan import plan
    from benchmarks.grid.systems import SYSTEMS

    cells.require_linux()
    unknown = sorted(set(args.systems or ()) - set(SYSTEMS))
    if unknown:
        raise UserError(f"there is no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if args.peers and not args.peers.is_dir():
        raise UserError(f"there is no folder {args.peers}; benchmarks/peers.py creates it")
    if os.getloadavg()[0] > BUSY:
        _warn(f"the load average is {os.getloadavg()[0]:.2f}: something else is running, or has just stopped")
    limits = cells.Limits(args.memory_gib, args.pass_seconds or (10.0 if args.quick else 120.0))
    sections = args.sections or (QUICK_SECTIONS if args.quick else list(PLANS))
    wanted = args.systems or SYSTEMS
    todo = [cell for cell in plan(sections, args.quick, args.malloc) if cell["system"] in wanted]
    for number, cell in enumerate(todo, 1):
        record = cells.measure(cell, store, args.peers, limits, 1.5 if args.quick else 6.0)
        place = f"{cell['section']}/{cells.name_of(cell)}"
        print(f"{number}/{len(todo)} {place}: {_outcome(record)}", file=sys.stderr, flush=True)


def _outcome(record: dict) -> str:
    text = " ".join([record["status"], record["why"]]).strip()
    for key in ("cpu_s", "wall_s"):
        if key in record.get("figures", {}):
            text += f", {record['figures'][key]['median']:.3g} s"
    if record.get("others", 0) > BUSY:
        text += f", while {record['others']:.2f} cores were busy with other things"
    return text


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
