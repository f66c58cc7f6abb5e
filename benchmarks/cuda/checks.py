"""Checks that need two runs of a script: a resumed training beside a straight one, a device beside the CPU.

    python -m benchmarks.cuda.checks resume --straight RUN --out FOLDER -- --task speaker --data DATA --steps 20
    python -m benchmarks.cuda.checks evaluate --checkpoint RUN --data DATA --out FOLDER --device cuda
    python -m benchmarks.cuda.checks embed --checkpoint RUN --device cuda a.wav b.wav
    python -m benchmarks.cuda.checks synthesize --checkpoint VOICE --out FOLDER --device cuda --text "Good morning."

Each prints the largest difference, and ends with exit code 1 if it is above its bound: 1e-3 between devices, of which
the CPU uses the backend torch; for a resumed run none, or ten times that of a repeated run if that differs too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1e-3
SLACK = 10  # of a resumed run, as a multiple of the difference of a repeated one


def build_parser() -> cli.Parser:
    """The flags of this module."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, body in (("resume", _resume), ("evaluate", _evaluate), ("embed", _embed), ("synthesize", _synthesize)):
        command = commands.add_parser(name, help=f"check {name}")
        command.set_defaults(body=body)
        if name != "resume":
            command.add_argument("--checkpoint", required=True, metavar="RUN", help="a trained run")
            command.add_argument("--device", default="cuda", help="device to hold against the CPU")
        if name != "embed":
            command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for what is written")
        if name == "evaluate":
            command.add_argument("--data", required=True, metavar="FOLDER", help="features")
        if name == "embed":
            command.add_argument("audio", nargs="+", help="recordings")
        if name == "synthesize":
            command.add_argument("--text", required=True, metavar="TEXT", help="text to speak")
        if name == "resume":
            help = "a finished run with two checkpoints to resume from"
            command.add_argument("--straight", type=Path, required=True, metavar="RUN", help=help)
            help = "its flags of train_tacomamba.py, without --out"
            command.add_argument("flags", nargs="+", metavar="FLAG", help=help)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a check; one between devices that fails is run again without TF32, which cuDNN uses unasked."""
    args = build_parser().parse_args(argv)
    code = cli.run(args.body, args)
    if code == 1 and args.body is not _resume:
        import torch

        torch.backends.cudnn.allow_tf32 = False
        print("without TF32:")
        cli.run(args.body, args)
    return code


def _resume(args: argparse.Namespace) -> int:
    """Resumes from the checkpoint before the last of a finished run, and compares the weights at the end.

    Where they differ, the run is repeated from its start, to tell what is lost from what varies anyway.
    """
    straight, resumed, again = args.straight, args.out / "resumed", args.out / "again"
    _train(args.flags, resumed, "--resume", str(straight / "last-1.pt"))
    lost = _distance(straight, resumed)
    if lost == 0:
        print("resumed: equal to the last bit")
        return 0
    _train(args.flags, again)
    noise = _distance(straight, again)
    print(f"resumed: weights up to {lost:.1e} apart, the first loss in step {_first_difference(straight, resumed)}")
    print(f"repeated: weights up to {noise:.1e} apart, the first loss in step {_first_difference(straight, again)}")
    return int(lost > SLACK * noise)


def _train(flags: list[str], out: Path, *more: str) -> None:
    command = [sys.executable, "train_tacomamba.py", *flags, "--out", str(out), *more]
    subprocess.run(command, cwd=ROOT, check=True)


def _distance(one: Path, other: Path) -> float:
    """Largest difference of a weight or statistic at the end of two runs."""
    from utils.checkpoint import load_checkpoint

    models = [load_checkpoint(run / "last.pt")["model"] for run in (one, other)]
    return max(float((models[0][name].double() - models[1][name].double()).abs().max()) for name in models[0])


def _first_difference(one: Path, other: Path) -> int | None:
    """The first step whose loss differs, as far as both logs have it."""
    from utils.training.runlog import read_log

    logs = [{line["step"]: line.get("loss_hex") for line in read_log(run) if "step" in line} for run in (one, other)]
    return min((step for step, loss in logs[0].items() if logs[1].get(step, loss) != loss), default=None)


def _run(words: list[str]) -> Any:
    """What `test.py` prints as JSON; its own exit code ends this process if it fails."""
    import test as script

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = script.main(words)
    if code:
        raise SystemExit(code)
    return json.loads(output.getvalue())


def _sides(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Device and backend of the two sides."""
    return {"cpu": ("cpu", "torch"), "device": (args.device, "auto")}


def _flags(device: str, backend: str) -> list[str]:
    return ["--device", device, "--backend", backend, "--json"]


def _evaluate(args: argparse.Namespace) -> int:
    found = {}
    for side, where in _sides(args).items():
        out = args.out / side
        common = ["--checkpoint", args.checkpoint, "--data", args.data, "--out", str(out), "--bootstrap", "10"]
        _run(["evaluate", *common, *_flags(*where)])
        what, found[side] = _values(out)
    return _judge(what, **found)


def _values(report: Path) -> tuple[str, Any]:
    """What an evaluation found of single trials, or of single texts: the error of the mel, and the length."""
    import numpy as np

    scores = report / "scores.txt"
    if scores.exists():
        return "scores", np.array([float(line.split()[0]) for line in scores.read_text("utf-8").splitlines()])
    lines = [json.loads(line) for line in (report / "utterances.jsonl").read_text("utf-8").splitlines()]
    return "errors and seconds", np.array([[line["mel_l1"], line["predicted_seconds"]] for line in lines])


def _embed(args: argparse.Namespace) -> int:
    import numpy as np

    found = {}
    for side, where in _sides(args).items():
        printed = _run(["embed", "--checkpoint", args.checkpoint, *args.audio, *_flags(*where)])
        found[side] = np.array([item["embedding"] for item in printed["embeddings"]])
    cosines = (found["cpu"] * found["device"]).sum(1)  # of vectors of length 1
    print(f"least cosine {cosines.min():.7f}")
    return _judge("embeddings", **found)


def _synthesize(args: argparse.Namespace) -> int:
    """Speaks a text by the script on both sides, and compares the mels, of which the vocoder makes a waveform."""
    from utils.tts.synthesizer import Synthesizer

    spoken = {}
    for side, where in _sides(args).items():
        out = args.out / f"{side}.wav"
        common = ["--checkpoint", args.checkpoint, "--text", args.text, "--out", str(out)]
        _run(["synthesize", *common, *_flags(*where)])
        spoken[side] = Synthesizer.load(Path(args.checkpoint), *where).speak(args.text)
    durations = {side: speech.durations.tolist() for side, speech in spoken.items()}
    if durations["cpu"] != durations["device"]:
        print(f"durations differ: {durations['cpu']} and {durations['device']} frames")
        return 1
    return _judge("mels", **{side: speech.mel for side, speech in spoken.items()})


def _judge(what: str, cpu: Any, device: Any) -> int:
    """1 if a value is further than `BOUND` from the CPU's, else 0; prints the largest difference."""
    import numpy as np

    largest = float(np.abs(device - cpu).max())
    print(f"{what}: at most {largest:.1e} from the CPU's {cpu.size}, the largest of which is {np.abs(cpu).max():.3g}")
    return int(not largest <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
