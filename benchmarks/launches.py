"""Operations that the torch backend starts, each a kernel launch on an accelerator, counted without one.

    python benchmarks/launches.py --batch 16 --frames 512 --d-model 512

Prints a table of forward and of forward with backward, with blocks for a CPU's cache and with blocks by memory, as on
an accelerator (models/engine/plan.py). Tensors are fake: they have shapes and no memory. Views and allocations are not
counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--batch", type=cli.positive_int, default=16, metavar="N", help="sequences of a batch")
    add("--frames", type=cli.positive_int, default=512, metavar="N", help="frames of a sequence")
    add("--d-model", type=cli.positive_int, default=512, metavar="N", help="channels of a mixer; a multiple of 32")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report([] if args.d_model % 32 == 0 else [f"--d-model: must be a multiple of 32, not {args.d_model}"])
    return cli.run(_print, args)


def _print(args: argparse.Namespace) -> None:
    print("| | by cache: forward | with backward | by memory: forward | with backward |")
    print("| --- | --- | --- | --- | --- |")
    tables = [dict(count(args.batch, args.frames, args.d_model, by_cache)) for by_cache in (True, False)]
    for name, cached in tables[0].items():
        print("|", " | ".join([name, *(f"{number:,}" for number in (*cached, *tables[1][name]))]), "|")


def count(batch: int, frames: int, d_model: int, by_cache: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields each operation's name with its launches of forward, and of forward and backward."""
    from unittest.mock import patch

    from torch._subclasses import FakeTensorMode
    from torch.autograd import grad

    from benchmarks.grid.inside import Inside
    from models.engine import plan

    with FakeTensorMode(), patch.object(plan, "by_cache", lambda device: by_cache):
        for name, function, inputs in _cases(batch, frames, d_model):
            with Inside() as inside:
                y = function(*inputs)
                forward = inside.launches
                grad(y, inputs, y.detach())
            yield name, (forward, inside.launches)


def _cases(batch: int, frames: int, d_model: int) -> Iterator[tuple[str, Any, list[Tensor]]]:
    """Yields the operations as Mamba and Mamba-2 call them, and both mixers; each as a function of its inputs."""
    import torch
    from torch.func import functional_call

    from models.engine import interface
    from models.mamba import Mamba, Mamba2

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, requires_grad=True)

    d, n, heads = 2 * d_model, 16, 2 * d_model // 64
    x, dt, B = new(batch, frames, d), new(batch, frames, d), new(batch, frames, n)
    for name, taps in (("causal conv", 4), ("causal conv of the mixer conv", 15)):
        yield name, lambda *v: interface.causal_conv(*v, silu=True), [x, new(d, taps), new(d)]
    yield (
        "selective scan",
        lambda *v: interface.selective_scan(*v, dt_softplus=True)[0],
        [x, dt, new(d, n), B, new(batch, frames, n), new(d), new(batch, frames, d), new(d)],
    )
    B = new(batch, frames, 1, 64)
    yield (
        "SSD",
        lambda *v: interface.ssd(*v, dt_softplus=True)[0],
        [
            new(batch, frames, heads, 64),
            new(batch, frames, heads),
            new(heads),
            B,
            new(*B.shape),
            new(heads),
            new(heads),
        ],
    )
    for name, kind in (("Mamba", Mamba), ("Mamba-2", Mamba2)):
        mixer = kind(d_model, backend="torch")
        names, parameters = zip(*mixer.named_parameters(), strict=True)
        yield (
            f"the mixer {name}",
            lambda x, *v, mixer=mixer, names=names: functional_call(mixer, dict(zip(names, v, strict=True)), (x,)),
            [new(batch, frames, d_model), *parameters],
        )


if __name__ == "__main__":
    sys.exit(main())
