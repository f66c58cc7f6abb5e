"""The subcommand of test.py that exports a recognizer for projects without this code; docs/export.md shows its use."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.commands import add_command, print_json
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.speaker.export.embedder import Plan, Run
    from utils.speaker.recognizer import SpeakerRecognizer

FORMATS = ("onnx", "torchscript", "torch-export")
FORMAT = "tacomamba-embedding-1"  # of the metadata
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # that a format needs beyond requirements.txt
TOLERANCE = 1e-4  # of each number of an embedding
SECONDS = (0.5, 1.7, 3.0, 10.0, 70.0)  # of the recordings of the check; the longest has two windows
BLOCK, LONGEST_BLOCK = 0.1, 10  # s

_EXPORT = """Export a recognizer as one file for a project without this code: samples in, embeddings out.

python test.py export --out speaker.onnx
python test.py export --checkpoint runs/demo --format torchscript --out demo.pt
python test.py export --checkpoint runs/causal --streaming --out stream.onnx

The file takes samples (batch, n) float32 at the model's sample rate, any number of them, and gives embeddings (batch,
e) of length 1. It is loaded and compared with the recognizer before it is written. Its metadata are JSON: rate, recipe
of the features, and what decisions need. With --streaming, for causal models, the file takes a block of samples and a
state, and gives the embedding so far and the next state. docs/export.md shows the use of each format.
"""


def add_commands(commands: Any) -> None:
    """Adds the subcommand."""
    parser = add_command(commands, "export", _export, _EXPORT, _problems, model=False)
    parser.add_config()
    help = "checkpoint file, run folder, or packed model (default: the one in pretrained/)"
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help=help)
    help = "onnx for onnxruntime and the like, torchscript for torch.jit.load, torch-export for torch.export.load"
    parser.add_argument("--format", choices=FORMATS, default="onnx", help=help)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    help = "write a file that takes a stream block by block; the model must be causal"
    parser.add_argument("--streaming", action=argparse.BooleanOptionalAction, default=False, help=help)
    help = f"length of a block of --streaming, rounded up to whole groups of frames (default: {BLOCK:g})"
    parser.add_argument("--block", type=cli.positive_float, metavar="SECONDS", help=help)


def _problems(args: argparse.Namespace) -> list[str]:
    found = [f"--out {args.out} is a folder; a file is needed"] if args.out.is_dir() else []
    if args.block is not None and not args.streaming:
        found.append("--block is for files that take a stream: it needs --streaming")
    if args.block is not None and args.block > LONGEST_BLOCK:
        found.append(f"--block {args.block:g} is too long: a block has at most {LONGEST_BLOCK} s")
    return found


def _export(args: argparse.Namespace) -> None:
    exported = export(args.checkpoint, args.format, args.out, (args.block or BLOCK) if args.streaming else None)
    if args.json:
        print_json(exported)
        return
    written = (
        f"exported {exported['name']}, model {exported['model_hash']}, {exported['bytes'] / 1e6:.1f} MB, "
        f"to {exported['out']}; "
    )
    if args.streaming:
        checked = (
            f"a block has {exported['block_samples']} samples, the state {exported['state_bytes']} bytes; embeddings "
            f"of noise and of a voice after 1, 2, 4, ... {exported['blocks'][-1]} blocks"
        )
    else:
        lengths = ", ".join(f"{seconds:g}" for seconds in SECONDS)
        checked = f"embeddings of noise and of a voice of {lengths} s, alone and together,"
    print(f"{written}{checked} differ by at most {exported['difference']:.1g} from those of the recognizer")


def export(checkpoint: Path | None, format: str, out: Path, block: float | None = None) -> dict[str, Any]:
    """Writes a recognizer to `out` in a format, if the file embeds as the recognizer does.

    Args:
        block: the length in s of the blocks of a stream that the file takes; None if it takes recordings.

    Returns:
        The file, its size, the model's name and hash, and the largest difference of an embedding's number; of a stream
        also the block and the state.

    Raises:
        UserError: the checkpoint or a package is missing, the model cannot be exported or cannot stream, or the
            difference is larger than `TOLERANCE`; `out` is untouched then.
    """
    _require_packages(format)
    from utils.files import write_bytes
    from utils.speaker.export import block_embedder, embedder
    from utils.speaker.recognizer import SpeakerRecognizer

    recognizer = SpeakerRecognizer.load(checkpoint, "cpu")
    if block is not None:
        recognizer.embed_stream()  # says why a model cannot
    about, suffix = metadata(recognizer), format.replace("-", "_")
    with embedder.without_notes():
        try:
            if block is None:
                plan = _of_recordings(recognizer, about)
            else:
                plan = block_embedder.of_blocks(recognizer, about, block)
            content = getattr(embedder, f"to_{suffix}")(plan.graph, json.dumps(plan.metadata))
            difference = plan.difference(getattr(embedder, f"from_{suffix}")(content))
        except (UserError, MemoryError):
            raise
        except Exception as error:  # exporters and runtimes raise what they like, with long explanations
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"{recognizer.name} cannot be exported to {format}: {reason}") from error
    if not difference <= TOLERANCE:
        raise UserError(
            f"{recognizer.name} cannot be exported to {format}: embeddings differ by {difference:.2g}, more than "
            f"{TOLERANCE:g}"
        )
    write_bytes(out, content)
    model = {"name": recognizer.name, "model_hash": recognizer.model_hash}
    return {"out": str(out), "bytes": len(content), **model, "format": format, **plan.facts, "difference": difference}


def _of_recordings(recognizer: SpeakerRecognizer, metadata: dict[str, Any]) -> Plan:
    from utils.speaker.export import embedder

    graph = embedder.trace(embedder.SamplesToEmbedding(recognizer), recognizer.recipe)
    difference = functools.partial(largest_difference, recognizer=recognizer, lengths=SECONDS)
    return embedder.Plan(graph, metadata, difference, {"seconds": list(SECONDS)})


def _require_packages(format: str) -> None:
    missing = [name for name in PACKAGES.get(format, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {format} needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}: "
            "pip install -r requirements-export.txt"
        )


def metadata(recognizer: SpeakerRecognizer) -> dict[str, Any]:
    """What a user of the file has to know, as plain values; `decisions` has the tensors of the scoring."""
    from utils.speaker.recognizer import WINDOW_SECONDS

    groups = {
        group: {name: _numbers(each) for name, each in tensors.items()}
        for group, tensors in recognizer.scoring.to_tensors().items()
    }
    recipe = recognizer.recipe
    return {
        "format": FORMAT,
        "model": {"name": recognizer.name, "hash": recognizer.model_hash, "step": recognizer.step},
        "sample_rate": recipe.sample_rate,
        "least_samples": recipe.samples(2),
        "window_seconds": WINDOW_SECONDS,
        "embedding_dim": recognizer.model.embedding_dim,
        "recipe": {"hash": recipe.hash, **recipe.to_dict()},
        "decisions": {"threshold": recognizer.threshold, **groups},
    }


def _numbers(tensor: Any) -> Any:
    """Plain numbers; embeddings to 5 digits, which are a quarter of the characters."""
    import numpy as np

    is_embeddings = tensor.dim() > 1 and tensor.dtype.itemsize == 4
    return np.round(tensor.double().numpy(), 5).tolist() if is_embeddings else tensor.tolist()


def largest_difference(run: Run, recognizer: SpeakerRecognizer, lengths: Sequence[float]) -> float:
    """The largest difference of a number of an embedding, over noise and a voice of `lengths` in s; NaN if one is.

    The recordings are embedded alone and as a batch of two.
    """
    import numpy as np

    from utils.speaker.packing import generated_voice

    rate, differences = recognizer.recipe.sample_rate, []
    for number, seconds in enumerate(lengths):
        voice = generated_voice(number, seconds, rate)
        noise = 0.1 * np.random.default_rng(number).standard_normal(len(voice)).astype(np.float32)
        both = np.stack([voice, noise])
        wanted = np.stack([recognizer.embed_samples(each, rate) for each in both])
        for samples, embeddings in ((both, wanted), (both[:1], wanted[:1]), (both[1:], wanted[1:])):
            (found,) = run(samples)
            differences.append(np.abs(found - embeddings).max())
    return float(np.max(differences))
