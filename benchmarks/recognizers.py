"""Recognizers on real speech, all with the same front end, augmentation, loss and back end: trained and compared.

    python benchmarks/recognizers.py --models mamba2 no-mixer no-mixer:22319 --steps 3000
    python benchmarks/recognizers.py --models mamba2 xvector --steps 3000 --out runs/recognizers \\
        --speech ../shared/data --noise-folder ../shared/data/speakers_more/noise

The first command prints tables of rates that are kept in benchmarks/rates; the second trains what is missing there.
SPEECH has the folders speakers_dev and speakers_more. The speakers of a fold of speakers_dev are held out, and with
`--corpora both`, which adds the second corpus to training, its 24 held-out speakers as well. All models read the same
mels, of the recordings and of versions of them that benchmarks/degraded.py wrote. Every cell (model, steps, fold, seed)
is one run of train_tacomamba.py; finished cells are kept, an interrupted one resumes. Its last checkpoint is evaluated
in all test conditions on the trial lists of --tests, by plain cosines; the folds of a seed are pooled, because an
interval over five speakers is meaningless. The kept files are the rates.safetensors of evaluations, which
`test.py compare` reads too: it prints all conditions.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid.markdown import table  # noqa: E402
from utils import cli  # noqa: E402
from utils.commands import REPORT, counted  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import read_text, write_text  # noqa: E402

CONFIG = "configs/speaker-small.yaml"
MODELS = {
    "mamba2": (),
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
    "causal": ("--causal",),
    "level": ("--no-level",),
    "last-layer": ("--no-all-layers",),
    "no-mel-statistics": ("--no-mel-statistics",),
    "attentive": ("--pooling", "attentive"),
    "subsampling-4": ("--subsampling", "4"),
    "crop-range": ("--shortest-crop-seconds", "0.8", "--crop-seconds", "2.2"),
    "no-back-end": (),  # a flag of the evaluation
    "no-versions": (),
    "one-corpus": (),
}
DATA = {"no-versions": {"versions": 0}, "one-corpus": {"corpora": "dev"}}  # flags of variants by their training data
SPLITS = {"dev": ("train-clean-100", "train-clean-100-notext"), "more": ("speechocean762",)}
CORPORA = {"dev": ("dev",), "both": ("dev", "more")}
TESTS = {  # root of the recordings and trial list
    "dev": ("speakers_dev", "speakers_dev/splits/fold{fold}_trials.txt"),
    "more": ("speakers_more/speechocean762", "speakers_more/trials.txt"),
}
NO_BACK_END = "/no-back-end"
RATES = ROOT / "benchmarks" / "rates"


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--rates", type=Path, default=RATES, metavar="FOLDER", help="folder of the rates of finished cells")
    add("--speech", type=Path, metavar="FOLDER", help="folder of speakers_dev and speakers_more, to run missing cells")
    add("--noise-folder", type=Path, metavar="FOLDER", help="noises for the degraded versions")
    add("--versions", type=cli.non_negative_int, default=8, metavar="N", help="degraded versions of each recording")
    add("--out", type=Path, metavar="FOLDER", help="folder for features and runs of missing cells")
    add("--corpora", choices=CORPORA, default="both", help="corpora to train on")
    help = f"models to compare: {', '.join(MODELS)}; or variants of them, as mamba2/level: {', '.join(VARIANTS)}"
    help += "; or with steps of their own, as no-mixer:22319"
    add("--models", nargs="+", type=_model, default=["mamba2", "no-mixer", "xvector"], metavar="MODEL", help=help)
    add("--folds", nargs="+", type=int, default=[0], metavar="K", help="folds of held-out speakers, 0 to 3")
    help = "trials to test on: of the folds, or of the second corpus"
    add("--tests", nargs="+", choices=tuple(TESTS), default=list(TESTS), help=help)
    add("--seeds", type=cli.positive_int, default=3, metavar="N", help="number of seeds, from 0")
    add("--steps", type=cli.positive_int, default=3000, metavar="N", help="training steps of 32 x 2 s")
    add("--jobs", type=cli.positive_int, default=1, metavar="N", help="cells at once, each of one thread and a loader")
    help = "draws of the speakers for intervals"
    add("--bootstrap", type=cli.positive_int, default=400, metavar="N", help=help)
    help = "rows of a comparison in the tables"
    add("--rows", nargs="+", default=["mean, one side", "mean", "1.5s"], metavar="ROW", help=help)
    return parser


def _model(text: str) -> str:
    """argparse type: a model, or a variant of one, and its steps."""
    name, colon, steps = text.partition(":")
    model, slash, variant = name.partition("/")
    if model not in MODELS or (slash and variant not in VARIANTS):
        raise argparse.ArgumentTypeError(f"there is no model {name}")
    if colon and not (steps.isdecimal() and int(steps)):
        raise argparse.ArgumentTypeError(f"{steps!r} is not a number of steps")
    return text


def main(argv: list[str] | None = None) -> int:
    """Runs the missing cells and prints the tables."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    args.folds = _folds(args, args.tests)
    systems = [System(args, model) for model in args.models]
    missing = [(system, seed) for seed in range(args.seeds) for system in systems if not system.is_finished(seed)]
    if missing:
        needed = {"speech": args.speech, "noise-folder": args.noise_folder, "out": args.out}
        if lacking := [f"--{name}" for name, value in needed.items() if value is None]:
            names = ", ".join(sorted({system.name for system, _ in missing}))
            raise UserError(f"{names}: not all rates are in {args.rates}; to run these, give {', '.join(lacking)}")
        stores = {system.features: system.args for system, _ in missing}
        for fold, flags in itertools.product(args.folds, stores.values()):
            _preprocess(flags, fold)
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = pool.map(lambda cell: cell[0].run(cell[1]), missing)
            list(cli.progress(runs, total=len(missing), unit="run"))
    print("\n\n".join([_costs(systems), *(_differences(systems, corpus) for corpus in args.tests)]))


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


def _features(args: argparse.Namespace, fold: int) -> Path:
    return args.out / f"features-{args.corpora}-{args.versions}-fold{fold}"


def _folds(args: argparse.Namespace, tests: Sequence[str]) -> list[int]:
    """The folds to test on; the trials of the second corpus are the same for all of them."""
    return args.folds if "dev" in tests else args.folds[:1]


class System:
    """A model with its steps and its training data, of several seeds, tested on all folds."""

    def __init__(self, args: argparse.Namespace, word: str) -> None:
        """Takes one of --models; `args` are the flags, whose training data a variant may change."""
        self.name, _, steps = word.partition(":")
        self.steps = int(steps or args.steps)
        self.model, _, self.variant = self.name.partition("/")
        self.args = argparse.Namespace(**vars(args) | DATA.get(self.variant, {}))

    @property
    def features(self) -> tuple[str, int]:
        """What its training data depend on."""
        return self.args.corpora, self.args.versions

    def rates(self, corpus: str, seed: int) -> Path:
        """The file of its rates on the trials of a corpus."""
        folds = "".join(map(str, self.args.folds))
        name = f"{self.name.replace('/', '-')}-{self.steps}-fold{folds}-seed{seed}-{corpus}.safetensors"
        return self.args.rates / "{}-{}".format(*self.features) / name

    def is_finished(self, seed: int) -> bool:
        """True if its rates are kept."""
        return all(self.rates(corpus, seed).exists() for corpus in self.args.tests)

    def run(self, seed: int) -> None:
        """Trains and evaluates what is missing of a seed, and keeps its rates."""
        from utils.speaker.evaluation.comparison import rates_file
        from utils.speaker.evaluation.rates import Rates

        for fold in self.args.folds:
            self._train(fold, seed)
        for corpus in self.args.tests:
            parts = [self._evaluate(corpus, fold, seed) for fold in _folds(self.args, [corpus])]
            out = parts[0]
            if len(parts) > 1:
                out = parts[0].parent.with_name(f"pooled-{self.rates(corpus, seed).stem}")
                _script("test.py", "pool", *parts, "--bootstrap", self.args.bootstrap, "--out", out)
            Rates.read(rates_file(out)).published().save(self.rates(corpus, seed), {})

    def _run_folder(self, fold: int, seed: int) -> Path:
        name = self.name.removesuffix(NO_BACK_END).replace("/", "-")
        return self.args.out / "{}-{}".format(*self.features) / f"{name}-{self.steps}-fold{fold}-seed{seed}"

    def _train(self, fold: int, seed: int) -> None:
        words = ["--task", "speaker", "--data", _features(self.args, fold), "--config", ROOT / CONFIG]
        words += [*MODELS[self.model], *VARIANTS.get(self.variant, ()), "--steps", self.steps, "--seed", seed]
        words += ["--valid-every", self.steps, "--resume", "auto", "--no-tensorboard"]
        _script("train_tacomamba.py", *words, "--out", self._run_folder(fold, seed))

    def _evaluate(self, corpus: str, fold: int, seed: int) -> Path:
        """Returns the folder of the evaluation, which is kept."""
        from utils.speaker.evaluation.conditions import CONDITIONS

        back_end = not self.name.endswith(NO_BACK_END)
        out = self._run_folder(fold, seed) / (corpus if back_end else corpus + NO_BACK_END.replace("/", "-"))
        if (out / REPORT).exists():
            return out
        root, trials = (part.format(fold=fold) for part in TESTS[corpus])
        words = ["--checkpoint", self._run_folder(fold, seed) / "last.pt", "--device", "cpu", "--out", out]
        words += ["--audio-root", self.args.speech / root, "--trials", self.args.speech / trials]
        words += ["--conditions", ",".join(CONDITIONS), "--bootstrap", self.args.bootstrap]
        words += ["--keep-features", self.args.out / "tested"]
        words += ["--no-s-norm"]  # models differ by their embeddings, not by their cohorts
        _script("test.py", "evaluate", *words, *([] if back_end else ["--no-back-end"]))
        return out


def _script(name: str, *words: object) -> str:
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"`{' '.join(command[1:])}` ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def _costs(systems: Sequence[System]) -> str:
    """Markdown: parameters, steps and CPU time of each system."""
    from utils.speaker.evaluation.rates import Rates
    from utils.speaker.evaluation.systems import facts_of

    rows = []
    for system in systems:
        files = [system.rates(system.args.tests[0], seed) for seed in range(system.args.seeds)]
        facts = facts_of([Rates.read(file).about for file in files])
        costs = [f"{facts['cpu_s'] / system.steps:.3f}", f"{facts['cpu_s'] / 60:.1f}"]
        rows.append([system.name, f"{facts['parameters'] / 1e6:.2f} M", str(system.steps), *costs])
    return table(["model", "parameters", "steps", "CPU s/step", "CPU min"], rows)


def _differences(systems: Sequence[System], corpus: str) -> str:
    """Markdown: EERs on the trials of a corpus, and differences to the first system with their intervals, in %."""
    from utils.speaker.evaluation.comparison import compare

    files = [[system.rates(corpus, seed) for seed in range(system.args.seeds)] for system in systems]
    rows = compare(files)[0]["rows"]
    shown = [name for name in systems[0].args.rows if name in rows]
    header = [f"{corpus}, {counted(systems[0].args.seeds, 'seed')}"]
    header += [word for name in shown for word in (name, "difference")]
    lines = [[f"{system.name}, {system.steps} steps"] for system in systems]
    for place, line in enumerate(lines):
        for row in (rows[name] for name in shown):
            line += [f"{100 * row['eer'][place]:.1f}", _difference(row, place - 1) if place else ""]
    return table(header, lines)


def _difference(row: dict[str, Any], place: int) -> str:
    bounds = row["difference_ci"][place]
    shown = f" [{', '.join(f'{100 * bound:+.1f}' for bound in bounds)}]" if bounds else ""
    return f"{100 * row['difference'][place]:+.1f}{shown}"


if __name__ == "__main__":
    sys.exit(main())
