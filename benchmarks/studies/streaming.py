"""Streaming of text to mel: exactness, memory over time, time to the first piece.

    python benchmarks/studies/streaming.py --checkpoint runs/voice --vocoder HIFIGAN --out runs/streaming
    python benchmarks/studies/streaming.py --checkpoint runs/voice --out runs/streaming --parts exactness \\
        state first-piece

The texts are long enough for the model: a sentence of some 10 s, one of a minute, and texts of 6 s and of a minute read
sentence by sentence. Peak memory is that of fresh processes. Without --vocoder only the mel is streamed. Everything
runs on one thread of the CPU. Writes OUT/streaming.json, part by part, and OUT/streaming.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

PARTS = ("exactness", "state", "memory", "first-piece")
MIB = 2**20


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint of a model that can stream")
    parser.add_argument("--vocoder", help="file or folder of a HiFi-GAN checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument(
        "--chunks", nargs="+", type=cli.positive_int, default=[1, 16, 32, 64], help="frames of a piece, for exactness"
    )
    parser.add_argument("--repeats", type=cli.positive_int, default=20, help="of the times to the first piece")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes, prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    import torch

    from benchmarks.studies.synthesis.runs import machine
    from utils.files import read_json, write_json, write_text
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.vocoder import load_vocoder

    torch.set_num_threads(1)
    synthesizer = Synthesizer.load(args.checkpoint, "cpu")
    synthesizer.require_streaming()
    vocoder = None if args.vocoder is None else load_vocoder(args.vocoder, synthesizer.recipe)
    if vocoder is not None and not vocoder.can_stream:
        raise UserError(f"{vocoder.name} cannot stream: give a HiFi-GAN")
    path = args.out / "streaming.json"
    about = {**synthesizer.description(args.checkpoint), "vocoder": args.vocoder}
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    if any(found.get(name) != value for name, value in about.items()):
        found = about
    for part in args.parts:
        figures = _measure(part, args, synthesizer, vocoder)
        found[part] = {**figures, "load_average": os.getloadavg(), **machine()}
        write_json(path, found)
    made = table(found)
    write_text(args.out / "streaming.md", made)
    print(made)


def _measure(part: str, args: argparse.Namespace, synthesizer: Any, vocoder: Any) -> dict[str, Any]:
    from benchmarks.studies.synthesis import streaming

    if part == "exactness":
        return streaming.exactness(synthesizer, vocoder, args.chunks)
    if part == "state":
        return {"sizes": streaming.state_sizes(synthesizer)}
    if part == "memory":
        return streaming.peak_memory(synthesizer, args.checkpoint, args.vocoder)
    return streaming.first_pieces(synthesizer, vocoder, args.repeats)


def table(found: dict[str, Any]) -> str:
    """Markdown: one row per measurement."""
    from benchmarks.grid import markdown

    rows = [row for part in PARTS if part in found for row in _ROWS[part](found[part])]
    return f"### Streaming, {found['model']['name']}\n\n{markdown.table(('measured', 'value'), rows)}\n"


def _exactness_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for row in part["chunks"]:
        audio = f"; audio {row['audio']:.1e} of full scale" if "audio" in row else ""
        rows.append((f"streamed against offline, pieces of {row['chunk']}", f"mel {row['mel']:.1e} in ln{audio}"))
    return rows


def _state_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"decoder state after {name}", f"{size['values'] / 1024:.1f} KiB, in storage of {size['held'] / 1024:.1f} KiB")
        for name, size in part["sizes"].items()
    ]


def _memory_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for cell in part["cells"]:
        what = "with the vocoder" if cell["vocoder"] else "acoustic model alone"
        text = "one sentence" if cell["one_sentence"] else "many sentences"
        long, short = cell["long"], cell["short"]
        figure = f"{long['peak'] / MIB:.0f} MiB for {long['seconds']:.0f} s, {short['peak'] / MIB:.0f} MiB for "
        figure += f"{short['seconds']:.0f} s: ratio {cell['ratio']:.3f}"
        grown = ", ".join(f"{(one['peak'] - one['loaded']) / MIB:.0f}" for one in (long, short))
        rows.append((f"peak memory, {what}, {text}", f"{figure} ({grown} MiB above what is loaded)"))
    return rows


def _first_piece_rows(part: dict[str, Any]) -> list[tuple[str, str]]:
    """Wall time, and CPU time in brackets."""
    rows = [
        (f"acoustic model, first {part['chunk']} frames of {part['seconds']:.1f} s", _milliseconds(part["first_mel"])),
        ("the entire stream", f"{_milliseconds(part['all_mel'])}: the first piece is {_shares(part['share'])} of it"),
        ("the entire mel at once", f"{_milliseconds(part['offline'])}: {_shares(part['share_of_offline'])}"),
        ("reading the text before that", _milliseconds(part["reading"])),
    ]
    if "first_audio" in part:
        sound = f"{_milliseconds(part['first_audio'])} of {_milliseconds(part['all_audio'])}"
        rows.append(("first sound, from the text on", sound))
    return rows


def _milliseconds(times: list[float]) -> str:
    return f"{1000 * times[0]:.0f} ms ({1000 * times[1]:.0f} ms)"


def _shares(shares: list[float]) -> str:
    return f"{100 * shares[0]:.1f} % ({100 * shares[1]:.1f} %)"


_ROWS = {
    "exactness": _exactness_rows,
    "state": _state_rows,
    "memory": _memory_rows,
    "first-piece": _first_piece_rows,
}

if __name__ == "__main__":
    sys.exit(main())
