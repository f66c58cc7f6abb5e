"""Recognizers on real speech, all with the same front end, augmentation, loss and back end: trained and compared.

    python benchmarks/recognizers.py --speech ../shared/data --noise-folder ../shared/data/speakers_more/noise \\
        --models mamba2 no-mixer xvector --steps 3000 --equal-cpu --out runs/recognizers

SPEECH has the folders speakers_dev and speakers_more. The speakers of a fold of speakers_dev are held out, and with
`--corpora both`, which adds the second corpus to training, its 24 held-out speakers as well. All models read the same
mels, of the recordings and of versions of them that benchmarks/degraded.py wrote. Every cell (model, steps, fold, seed)
is one run of train_tacomamba.py; finished cells are kept, an interrupted one resumes. Its last checkpoint is evaluated
in all test conditions on the trial lists of both corpora; the folds of a seed are pooled, because an interval over five
speakers is meaningless. Scores are plain cosines. The differences to the first of --models have paired
intervals.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import read_json, read_text, write_text  # noqa: E402

CONFIG = "configs/speaker-small.yaml"
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
VARIANTS = {  # of any model, as in mamba2/utterance-mean, for ablations
    "utterance-mean": ("--normalize", "utterance"),
    "level": ("--no-level",),
    "last-layer": ("--no-all-layers",),
    "no-mel-statistics": ("--no-mel-statistics",),
    "attentive": ("--pooling", "attentive"),
    "subsampling-4": ("--subsampling", "4"),
    "no-back-end": (),  # a flag of the evaluation
    "no-versions": (),
    "one-corpus": (),
}
DATA = {"no-versions": {"versions": 0}, "one-corpus": {"corpora": "dev"}}  # flags of variants by their training data
SPLITS = {"dev": ("train-clean-100", "train-clean-100-notext"), "more": ("speechocean762",)}
CORPORA = {"dev": ("dev",), "both": ("dev", "more")}
NO_BACK_END = "/no-back-end"
PROBE = 30  # steps that tell a model's CPU time


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="FOLDER", help="folder of speakers_dev and speakers_more")
    add("--noise-folder", type=Path, required=True, metavar="FOLDER", help="noises for the degraded versions")
    add("--versions", type=cli.non_negative_int, default=8, metavar="N", help="degraded versions of each recording")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for features, runs and tables")
    add("--corpora", choices=CORPORA, default="both", help="corpora to train on")
    help = f"models to compare: {', '.join(MODELS)}; or variants of them, as mamba2/level: {', '.join(VARIANTS)}"
    add("--models", nargs="+", type=_model, default=["no-mixer", "mamba2", "xvector"], metavar="MODEL", help=help)
    add("--folds", nargs="+", type=int, default=[0], metavar="K", help="folds of held-out speakers, 0 to 3")
    add("--seeds", type=cli.positive_int, default=3, metavar="N", help="number of seeds, from 0")
    add("--steps", type=cli.positive_int, default=240, metavar="N", help="training steps of 32 x 2 s")
    help = "give each model the steps that cost the CPU time of --steps of the first"
    add("--equal-cpu", action=argparse.BooleanOptionalAction, default=False, help=help)
    add("--jobs", type=cli.positive_int, default=1, metavar="N", help="cells at once, each of one thread and a loader")
    help = "draws of the speakers for intervals"
    add("--bootstrap", type=cli.positive_int, default=1000, metavar="N", help=help)
    return parser


def _model(text: str) -> str:
    """argparse type: a model, or a variant of one."""
    model, slash, variant = text.partition("/")
    if model not in MODELS or (slash and variant not in VARIANTS):
        raise argparse.ArgumentTypeError(f"there is no model {text}")
    return text


def main(argv: list[str] | None = None) -> int:
    """Runs the missing cells and prints the tables."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    given = {model: _with_data(args, model) for model in args.models}
    stores = {(flags.corpora, flags.versions): flags for flags in given.values()}
    for fold, flags in itertools.product(args.folds, stores.values()):
        _preprocess(flags, fold)
    steps = _steps(args)
    places = [(fold, seed) for seed in range(args.seeds) for fold in args.folds]
    cells = [Cell(given[model], model, steps[model], *place) for place in places for model in args.models]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(cli.progress(pool.map(Cell.run, cells), total=len(cells), unit="run"))
    print(_costs(cells))
    for corpus in ("dev", "more"):
        systems = [
            [_pooled(given[model], corpus, model, steps[model], seed) for seed in range(args.seeds)] for model in steps
        ]
        words = [",".join(map(str, seeds)) for seeds in systems]
        out = _place(args) / f"compared-{corpus}"
        print(f"\n{corpus}: {', '.join(args.models)}", flush=True)
        print(_script("test.py", "compare", *words, "--bootstrap", args.bootstrap, "--out", out))


def _preprocess(args: argparse.Namespace, fold: int) -> None:
    """Writes the degraded versions and the features of a fold."""
    lists = [args.speech / "speakers_dev" / "splits" / f"fold{fold}_speakers.txt"]
    lists += [args.speech / "speakers_more" / "heldout_speakers.txt"] if args.corpora == "both" else []
    heldout = args.out / f"heldout-{args.corpora}-fold{fold}.txt"
    write_text(heldout, "".join(map(read_text, lists)))
    raw = args.out / f"corpus-{args.corpora}-fold{fold}"
    raw.mkdir(exist_ok=True)
    roots = {"dev": args.speech / "speakers_dev" / "LibriSpeech", "more": args.speech / "speakers_more/speechocean762"}
    for corpus in CORPORA[args.corpora]:
        with contextlib.suppress(FileExistsError):
            (raw / roots[corpus].name).symlink_to(roots[corpus].resolve())
    splits = [split for corpus in CORPORA[args.corpora] for split in SPLITS[corpus]]
    words = ["--raw", raw, "--split", *splits, "--without", heldout, "--noise-folder", args.noise_folder]
    if args.versions:
        _script("benchmarks/degraded.py", *words, "--versions", args.versions, "--out", raw)
    splits += [f"version{number}" for number in range(1, args.versions + 1)]
    words = ["--layout", "librispeech", "--raw", raw, "--split", *splits, "--out", _features(args, fold)]
    words += ["--heldout-speakers", heldout, "--valid-speakers", 0, "--no-identification-tests"]
    _script("preprocess.py", *words)


def _with_data(args: argparse.Namespace, model: str) -> argparse.Namespace:
    """The flags, with those of the training data that the model's variant changes."""
    return argparse.Namespace(**vars(args) | DATA.get(model.partition("/")[2], {}))


def _features(args: argparse.Namespace, fold: int) -> Path:
    return args.out / f"features-{args.corpora}-{args.versions}-fold{fold}"


def _place(args: argparse.Namespace) -> Path:
    """The folder of all cells with the same training data."""
    return args.out / f"{args.corpora}-{args.versions}"


def _file_name(model: str) -> str:
    return model.replace("/", "-")


def _trained(model: str) -> str:
    """The model without what concerns its evaluation alone."""
    return model.removesuffix(NO_BACK_END)


def _steps(args: argparse.Namespace) -> dict[str, int]:
    """Steps of each model; of equal CPU time if that is asked for."""
    if not args.equal_cpu:
        return dict.fromkeys(args.models, args.steps)
    costs = {model: _cost(_with_data(args, model), model) for model in args.models}
    return {model: round(args.steps * costs[args.models[0]] / cost) for model, cost in costs.items()}


def _cost(args: argparse.Namespace, model: str) -> float:
    """CPU seconds of a step of a model, measured once and kept."""
    run = _place(args) / f"{_file_name(_trained(model))}-probe"
    words = [*_training(args, model, args.folds[0]), "--steps", PROBE, "--log-every", PROBE // 3, "--no-tensorboard"]
    _script("train_tacomamba.py", *words, "--valid-every", PROBE, "--resume", "auto", "--out", run)
    return _cpu(run)[-1]


def _training(args: argparse.Namespace, model: str, fold: int) -> list[object]:
    words = ["--task", "speaker", "--data", _features(args, fold), "--config", ROOT / CONFIG]
    model, _, variant = model.partition("/")
    return [*words, *MODELS[model], *VARIANTS.get(variant, ())]


@dataclass(frozen=True)
class Cell:
    """One training with its evaluations."""

    args: argparse.Namespace
    model: str
    steps: int
    fold: int
    seed: int

    @property
    def folder(self) -> Path:
        """The run folder, with an evaluation in a subfolder for each corpus."""
        name = f"{_file_name(_trained(self.model))}-{self.steps}-fold{self.fold}-seed{self.seed}"
        return _place(self.args) / name

    def evaluation(self, corpus: str) -> Path:
        """The folder of the evaluation on the trials of a corpus."""
        return self.folder / (f"{corpus}-no-back-end" if self.model.endswith(NO_BACK_END) else corpus)

    def run(self) -> None:
        """Trains and evaluates what is missing."""
        from utils.speaker.evaluation.conditions import CONDITIONS

        speech, run = self.args.speech, self.folder
        words = [*_training(self.args, self.model, self.fold), "--steps", self.steps, "--seed", self.seed]
        words += ["--valid-every", self.steps, "--resume", "auto", "--no-tensorboard"]
        _script("train_tacomamba.py", *words, "--out", run)
        trials = {
            "dev": ("speakers_dev", speech / "speakers_dev" / "splits" / f"fold{self.fold}_trials.txt"),
            "more": ("speakers_more/speechocean762", speech / "speakers_more" / "trials.txt"),
        }
        for corpus, (root, listed) in trials.items():
            out = self.evaluation(corpus)
            if not (out / "report.json").exists():
                words = ["--checkpoint", run / "last.pt", "--audio-root", speech / root, "--trials", listed]
                words += ["--conditions", ",".join(CONDITIONS), "--bootstrap", 1, "--device", "cpu", "--out", out]
                words += ["--no-s-norm"]  # models differ by their embeddings, not by their cohorts
                _script("test.py", "evaluate", *words, *(["--no-back-end"] if self.model.endswith(NO_BACK_END) else []))


def _pooled(args: argparse.Namespace, corpus: str, model: str, steps: int, seed: int) -> Path:
    """The evaluation of a model and a seed: of all folds of speakers_dev, or of the first fold on speakers_more."""
    folders = [Cell(args, model, steps, fold, seed).evaluation(corpus) for fold in args.folds]
    if corpus == "more" or len(folders) == 1:
        return folders[0]
    out = _place(args) / f"{_file_name(model)}-{steps}-seed{seed}-{corpus}"
    _script("test.py", "pool", *folders, "--bootstrap", 1, "--out", out)
    return out


def _script(name: str, *words: object) -> str:
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def _costs(cells: Sequence[Cell]) -> str:
    """Markdown: parameters, steps, CPU time of a step, and losses of each model, medians over its cells."""
    rows = []
    for model in dict.fromkeys(cell.model for cell in cells):
        runs = [cell.folder for cell in cells if cell.model == model]
        steps = next(cell.steps for cell in cells if cell.model == model)
        cpu = statistics.median(seconds for run in runs for seconds in _cpu(run))
        losses = [statistics.median(_log(run)[place]["loss"] for run in runs) for place in (0, -1)]
        parameters = read_json(runs[0] / "run.json")["parameters"]
        costs = [f"{cpu:.3f}", f"{cpu * steps / 60:.1f}"]
        rows.append([model, f"{parameters / 1e6:.2f} M", str(steps), *costs, f"{losses[0]:.2f}, {losses[1]:.2f}"])
    return table(["model", "parameters", "steps", "CPU s/step", "CPU min", "loss first, last"], rows)


def _log(run: Path) -> list[dict]:
    from utils.training.runlog import read_log

    return [line for line in read_log(run) if "cpu_s_per_step" in line]


def _cpu(run: Path) -> list[float]:
    return [line["cpu_s_per_step"] for line in _log(run)]


if __name__ == "__main__":
    sys.exit(main())
