"""Recognizers on real speech, all with the same front end, augmentation, loss and back end: trained and compared.

    python benchmarks/recognizers.py --speech ../shared/data --out runs/recognizers
    python benchmarks/recognizers.py --speech ../shared/data --out runs/recognizers --corpora dev \
        --models mamba2 no-mixer xvector --folds 0 1 2 3 --seeds 3

SPEECH has the folders speakers_dev and speakers_more. The speakers of a fold of speakers_dev are held out, and with
`--corpora both`, which adds the second corpus to training, its 24 held-out speakers as well. Every cell (model, fold,
seed) is one run of train_tacomamba.py; finished cells are kept, an interrupted one resumes. Its last checkpoint is
evaluated in all test conditions on the trial lists of both corpora; the folds of a seed are pooled, because an interval
over five speakers is meaningless. The differences to the first of --models have paired intervals.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

CONFIG = "configs/speaker-robust.yaml"
MODELS = {
    "mamba2": (),
    "mamba2-causal": ("--causal",),
    "mamba": ("--mixer", "mamba"),
    "attention": ("--mixer", "attention", "--mlp-ratio", "2", "--directions", "both"),
    "lstm": ("--mixer", "lstm"),
    "conv": ("--mixer", "conv", "--directions", "both"),
    "no-mixer": ("--n-layers", "0"),
    "statistics": ("--model", "statistics"),
    "xvector": ("--model", "xvector"),
    "ecapa": ("--model", "ecapa"),
}
SPLITS = {"dev": ("train-clean-100", "train-clean-100-notext"), "more": ("speechocean762",)}
CORPORA = {"dev": ("dev",), "both": ("dev", "more")}
CONDITIONS = "clean,level,noise,babble,telephone,mp3,reverb,tilt,cut"


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="FOLDER", help="folder of speakers_dev and speakers_more")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for features, runs and tables")
    add("--corpora", choices=CORPORA, default="both", help="corpora to train on")
    add("--models", nargs="+", choices=MODELS, default=["no-mixer", "mamba2", "xvector"], help="models to compare")
    add("--folds", nargs="+", type=int, default=[0], metavar="K", help="folds of held-out speakers, 0 to 3")
    add("--seeds", type=cli.positive_int, default=3, metavar="N", help="number of seeds, from 0")
    add("--steps", type=cli.positive_int, default=240, metavar="N", help="training steps of 32 x 2 s")
    add("--jobs", type=cli.positive_int, default=1, metavar="N", help="cells at once, each of one thread and a loader")
    help = "draws of the speakers for intervals"
    add("--bootstrap", type=cli.positive_int, default=1000, metavar="N", help=help)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the missing cells and prints the tables."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    for fold in args.folds:
        _preprocess(args, fold)
    cells = [(model, fold, seed) for seed in range(args.seeds) for fold in args.folds for model in args.models]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(cli.progress(pool.map(lambda cell: _run_cell(args, *cell), cells), total=len(cells), unit="run"))
    print(_costs(args))
    for corpus in ("dev", "more"):
        systems = [[_pooled(args, corpus, model, seed) for seed in range(args.seeds)] for model in args.models]
        words = [",".join(map(str, seeds)) for seeds in systems]
        out = _place(args) / f"compared-{corpus}"
        print(f"\n{corpus}: {', '.join(args.models)}", flush=True)
        print(_script("test.py", "compare", *words, "--bootstrap", args.bootstrap, "--out", out))


def _place(args: argparse.Namespace) -> Path:
    return args.out / f"{args.corpora}-{args.steps}"


def _protocol(args: argparse.Namespace, fold: int) -> tuple[Path, str]:
    """Folder of features, and name of the protocol."""
    return args.out / f"features-{args.corpora}", f"fold{fold}"


def _preprocess(args: argparse.Namespace, fold: int) -> None:
    data, protocol = _protocol(args, fold)
    lists = [args.speech / "speakers_dev" / "splits" / f"fold{fold}_speakers.txt"]
    lists += [args.speech / "speakers_more" / "heldout_speakers.txt"] if args.corpora == "both" else []
    heldout = args.out / f"heldout-{args.corpora}-{protocol}.txt"
    heldout.parent.mkdir(parents=True, exist_ok=True)
    heldout.write_text("".join(path.read_text(encoding="utf-8") for path in lists), encoding="utf-8")
    words = ["--layout", "librispeech", "--raw", args.speech, "--store", "audio", "--out", data, "--split"]
    words += [split for corpus in CORPORA[args.corpora] for split in SPLITS[corpus]]
    words += ["--protocol", protocol, "--heldout-speakers", heldout, "--valid-speakers", 0, "--no-identification-tests"]
    _script("preprocess.py", *words)


def _run_cell(args: argparse.Namespace, model: str, fold: int, seed: int) -> None:
    run = _run(args, model, fold, seed)
    data, protocol = _protocol(args, fold)
    words = ["--task", "speaker", "--data", data, "--protocol", protocol, "--steps", args.steps, "--seed", seed]
    words += ["--config", CONFIG, "--noise-folder", args.speech / "speakers_more" / "noise"]
    words += ["--valid-every", args.steps, "--resume", "auto", "--no-tensorboard", *MODELS[model]]
    _script("train_tacomamba.py", *words, "--out", run)
    trials = {
        "dev": ("speakers_dev", args.speech / "speakers_dev" / "splits" / f"fold{fold}_trials.txt"),
        "more": ("speakers_more/speechocean762", args.speech / "speakers_more" / "trials.txt"),
    }
    for corpus, (root, listed) in trials.items():
        if not (run / corpus / "report.json").exists():
            words = ["--checkpoint", run / "last.pt", "--audio-root", args.speech / root, "--trials", listed]
            words += ["--conditions", CONDITIONS, "--bootstrap", 1, "--device", "cpu", "--out", run / corpus]
            _script("test.py", "evaluate", *words)


def _run(args: argparse.Namespace, model: str, fold: int, seed: int) -> Path:
    return _place(args) / f"{model}-fold{fold}-seed{seed}"


def _pooled(args: argparse.Namespace, corpus: str, model: str, seed: int) -> Path:
    """The evaluation of a model and a seed: of all folds of speakers_dev, or of the first fold on speakers_more."""
    folders = [_run(args, model, fold, seed) / corpus for fold in args.folds]
    if corpus == "more" or len(folders) == 1:
        return folders[0]
    out = _place(args) / f"{model}-seed{seed}-{corpus}"
    _script("test.py", "pool", *folders, "--bootstrap", 1, "--out", out)
    return out


def _script(name: str, *words: object) -> str:
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def _costs(args: argparse.Namespace) -> str:
    """Markdown: parameters, CPU time of a step, and losses of each model, medians over its runs."""
    from utils.files import read_json
    from utils.training.runlog import read_log

    rows = []
    for model in args.models:
        runs = [_run(args, model, fold, seed) for fold in args.folds for seed in range(args.seeds)]
        logs = [[line for line in read_log(run) if "cpu_s_per_step" in line] for run in runs]
        cpu = statistics.median(line["cpu_s_per_step"] for log in logs for line in log)
        losses = [statistics.median(log[place]["loss"] for log in logs) for place in (0, -1)]
        parameters = read_json(runs[0] / "run.json")["parameters"]
        rows.append([model, f"{parameters / 1e6:.2f} M", f"{cpu:.3f}", f"{losses[0]:.2f}, {losses[1]:.2f}"])
    return table(["model", "parameters", "CPU s/step", "loss first, last"], rows)


if __name__ == "__main__":
    sys.exit(main())
