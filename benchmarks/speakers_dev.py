"""Speaker recognition on folds of real speech: trains every cell, pools the folds, writes a table.

    python benchmarks/speakers_dev.py --speech ../shared/data/speakers_dev --out runs/speakers_dev
    python benchmarks/speakers_dev.py --speech ../shared/data/speakers_dev --out runs/speakers_dev_short \
        --models mamba attention lstm conv ecapa --steps 20 --seeds 1 --folds 0

SPEECH is a folder with LibriSpeech/ and splits/foldK_{speakers,trials}.txt. Every cell (model, fold, seed) is one run
of train_tacomamba.py on one thread; finished cells are kept, an interrupted one resumes. The scores of all folds of a
seed are pooled for the equal error rate, because an interval over five speakers is meaningless. The last checkpoint is
evaluated, because the validation set is too small to choose one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

SPLITS = ("train-clean-100", "train-clean-100-notext")
SHAPE = ("--subsampling", "4")
MODELS = {
    "mamba2": ("--mixer", "mamba2", *SHAPE),
    "mamba2-causal": ("--mixer", "mamba2", "--causal", "--n-layers", "8", *SHAPE),
    "mamba": ("--mixer", "mamba", *SHAPE),
    "attention": ("--mixer", "attention", "--mlp-ratio", "2", *SHAPE),
    "lstm": ("--mixer", "lstm", *SHAPE),
    "conv": ("--mixer", "conv", *SHAPE),
    "xvector": ("--model", "xvector", "--embedding-dim", "512"),
    "ecapa": ("--model", "ecapa"),
}


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder with LibriSpeech/ and splits/")
    parser.add_argument("--out", type=Path, required=True, help="folder for features, runs and the table")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mamba2", "xvector"], help="models to compare")
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1, 2, 3], help="folds of held-out speakers")
    parser.add_argument("--seeds", type=cli.positive_int, default=3, help="number of seeds, from 0")
    parser.add_argument("--steps", type=cli.positive_int, default=240, help="training steps of 32 x 2 s")
    parser.add_argument("--jobs", type=cli.positive_int, default=2, help="cells at once, one thread each")
    parser.add_argument("--bootstrap", type=cli.positive_int, default=1000, help="draws of the speakers for intervals")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the missing cells and prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    from utils.files import write_json, write_text

    for fold in args.folds:
        _preprocess(args, fold)
    cells = [(model, fold, seed) for seed in range(args.seeds) for model in args.models for fold in args.folds]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(cli.progress(pool.map(lambda cell: _train(args, *cell), cells), total=len(cells), unit="run"))
    results = [_result(args, model, seed) for model in args.models for seed in range(args.seeds)]
    text = _table(args, results)
    write_json(args.out / "results.json", results)
    write_text(args.out / "table.md", text)
    print(text)


def _preprocess(args: argparse.Namespace, fold: int) -> None:
    heldout = args.speech / "splits" / f"fold{fold}_speakers.txt"
    words = ["--dataset", "librispeech", "--raw", args.speech, "--split", *SPLITS, "--out", args.out / "features"]
    _script("preprocess.py", *words, "--protocol", f"fold{fold}", "--heldout-speakers", heldout)


def _train(args: argparse.Namespace, model: str, fold: int, seed: int) -> None:
    words = ["--task", "speaker", "--data", args.out / "features", "--protocol", f"fold{fold}", "--steps", args.steps]
    words += ["--seed", seed, "--threads", 1, "--save-every", 60, "--resume", "auto", "--no-tensorboard"]
    _script("train_tacomamba.py", *words, *MODELS[model], "--out", _run(args, model, fold, seed))


def _run(args: argparse.Namespace, model: str, fold: int, seed: int) -> Path:
    return args.out / f"{model}-fold{fold}-seed{seed}"


def _script(name: str, *words: object) -> None:
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {result.stderr.strip()}")


def _result(args: argparse.Namespace, model: str, seed: int) -> dict[str, Any]:
    """Metrics of one model and seed over all folds, from its last checkpoints; kept in a file."""
    from utils.files import read_json, write_json
    from utils.speaker.report import identification_report, pool, verification_report
    from utils.training.runlog import read_log

    path = args.out / f"{model}-seed{seed}-folds{'_'.join(map(str, args.folds))}.json"
    if path.exists():
        return read_json(path)
    pooled = pool("pooled folds", [_evaluate(args, model, fold, seed) for fold in args.folds])
    lines = []
    for fold in args.folds:
        lines += [line for line in read_log(_run(args, model, fold, seed)) if "cpu_s_per_step" in line]
    result = {
        "model": model,
        "seed": seed,
        "parameters": read_json(_run(args, model, args.folds[0], seed) / "run.json")["parameters"],
        "cpu_s_per_step": statistics.median(line["cpu_s_per_step"] for line in lines),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "verification": verification_report(pooled.trials, pooled.scores, args.bootstrap, seed=0),
        "identification": identification_report(pooled.answers, None),
    }
    write_json(path, result)
    return result


def _evaluate(args: argparse.Namespace, model: str, fold: int, seed: int) -> Any:
    """The fold's trial list on raw audio, and identification among the training speakers of the run."""
    import torch

    from utils.speaker.evaluate import evaluate_audio, evaluate_features
    from utils.speaker.recognizer import SpeakerRecognizer

    torch.set_num_threads(args.jobs)
    recognizer = SpeakerRecognizer.load(_run(args, model, fold, seed) / "last.pt", "cpu")
    trials = args.speech / "splits" / f"fold{fold}_trials.txt"
    evaluation = evaluate_audio(recognizer, args.speech, trials, None)
    evaluation.answers = evaluate_features(recognizer, args.out / "features", f"fold{fold}").answers
    return evaluation


CONDITIONS = ("all", "same_sex", "cross_chapter", "1.5s", "3s")


def _table(args: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """Markdown: one row per model and seed, then the number of trials and the machine."""
    header = ["model", "seed", "parameters", "CPU s/step", "loss first, last"]
    header += [f"EER {name} [95 %]" for name in CONDITIONS] + ["by utterance", "by chapter"]
    rows = []
    for result in results:
        row = [result["model"], str(result["seed"]), f"{result['parameters'] / 1e6:.2f} M"]
        row += [f"{result['cpu_s_per_step']:.2f}", f"{result['first_loss']:.2f}, {result['last_loss']:.2f}"]
        row += [_rate(result["verification"][name]) for name in CONDITIONS]
        row += [_accuracy(result["identification"][part]) for part in ("utterance", "chapter")]
        rows.append(row)
    counts = {name: results[0]["verification"][name] for name in CONDITIONS}
    trials = ", ".join(f"{name} {part['targets']} + {part['nontargets']}" for name, part in counts.items())
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {args.jobs} cells at once on one thread each"
    note = f"Trials, targets + non-targets: {trials}. {args.steps} steps of 32 x 2 s. {machine}."
    return f"{table(header, rows)}\n\n{note}\n"


def _rate(part: dict[str, Any]) -> str:
    if part["eer"] is None:
        return "–"
    interval = part["eer_ci"]
    return f"{100 * part['eer']:.1f} %" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _accuracy(part: dict[str, Any]) -> str:
    return "–" if part["accuracy"] is None else f"{100 * part['accuracy']:.1f} % of {part['n']}"


if __name__ == "__main__":
    sys.exit(main())
