"""The subcommands of test.py that evaluate, compare and publish speaker recognizers."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import cli
from utils.commands import (
    COMPARISON,
    REPORT,
    add_command,
    add_report_arguments,
    add_report_folder,
    counted,
    print_json,
    report_folder,
    show_report,
)
from utils.lists import DEFAULT_PROTOCOL
from utils.speaker.export import command as export
from utils.speaker.people import commands as people
from utils.speaker.people import verification
from utils.speaker.people.commands import load_recognizer
from utils.speaker.timeline import command as timeline

_COMPARE = """Compare recognizers on the same trials: differences of EERs to the first, with paired intervals.

python test.py compare runs/a/report runs/b/report --out comparison
python test.py compare a0,a1,a2 b0,b1,b2 --out comparison

Each condition and duration that all evaluations have gets a line, and so do the means over the conditions, of which
clean recordings are one. The intervals are of the difference, over the same draws of the speakers for all systems,
which evaluate made (its --bootstrap and --seed). Rates of published systems have no scores, and so no DET curves.
comparison.html shows them with DET curves, costs, and flags that differ; it needs no other file and no server.
"""


def add_evaluate_arguments(parser: cli.Parser) -> None:
    """Adds the flags of `evaluate` that only speaker recognition has."""
    raw = parser.add_argument_group("raw audio")
    raw.add_argument(
        "--audio-root", type=Path, metavar="FOLDER", help="folder that the paths in the lists are relative to"
    )
    raw.add_argument("--trials", type=Path, metavar="FILE", help="trial list of `1|0 path path` lines")
    raw.add_argument(
        "--identification", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="lists of `speaker path` lines"
    )
    help = (
        "keep the features of the trials' recordings, in all conditions, in this folder, and take them from there: "
        "other models of the same recipe are then evaluated in half the time"
    )
    raw.add_argument("--keep-features", type=Path, metavar="FOLDER", help=help)
    help = (
        "conditions in which the recordings of the trials are tested as well, separated by commas: level, noise, "
        "babble, telephone, mp3, reverb, tilt, cut (to 1 s and to 2 s); they need audio (default: clean)"
    )
    group = parser.add_argument_group("test conditions")
    group.add_argument("--conditions", type=_conditions, metavar="NAMES", help=help)
    help = "take cosines after the back end of the checkpoint; without it there are no thresholds (default: yes)"
    group.add_argument("--back-end", action=argparse.BooleanOptionalAction, default=None, help=help)
    group = parser.add_argument_group("score normalization")
    help = (
        "embeddings of other speakers (`test.py embed --out`), to normalize scores by instead of the checkpoint's; "
        "without log-likelihood ratios, which are of its scores"
    )
    group.add_argument("--cohort", type=Path, metavar="FILE", help=help)
    help = "normalize scores by the checkpoint's cohort; without it there are no log-likelihood ratios (default: yes)"
    group.add_argument("--s-norm", action=argparse.BooleanOptionalAction, default=None, help=help)
    help = "embeddings of --cohort, nearest to a recording, that count (default: half of them)"
    group.add_argument("--cohort-top", type=cli.two_or_more, metavar="N", help=help)


def _conditions(text: str) -> str:
    """argparse type: a list of conditions, as it is, because configurations keep it."""
    from utils.speaker.evaluation.conditions import parse_conditions

    try:
        parse_conditions(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates a recognizer on stored features or on raw audio, and writes the report."""
    from utils.speaker.evaluation.conditions import parse_conditions
    from utils.speaker.evaluation.evaluate import evaluate_audio, evaluate_features

    recognizer, conditions = load_recognizer(args), parse_conditions(args.conditions or "clean")
    if args.cohort is not None:
        from utils.speaker.scoring.cohort import Cohort
        from utils.speaker.scoring.scoring import Scoring

        recognizer.remove_cohort()
        recognizer.scoring = Scoring(Cohort.load(args.cohort, recognizer.model_hash, args.cohort_top))
    elif args.s_norm is False:
        recognizer.remove_cohort()
    if args.back_end is False:
        recognizer.remove_back_end()
    if args.data is not None:
        evaluation = evaluate_features(recognizer, args.data, args.protocol or DEFAULT_PROTOCOL, conditions)
    else:
        lists = args.trials, args.identification
        evaluation = evaluate_audio(recognizer, args.audio_root, *lists, conditions, args.keep_features)
    _finish(args, evaluation, recognizer.description(args.checkpoint))


def _finish(args: argparse.Namespace, evaluation: Any, about: dict[str, Any]) -> None:
    """Writes and prints the report."""
    from utils.speaker.evaluation.rates import Rates
    from utils.speaker.evaluation.report import build_report, table, write_report

    rates = Rates.of(evaluation, args.bootstrap, args.seed)
    report = build_report(evaluation, rates, {**about, "config": cli.plain_arguments(args)})
    write_report(args.out, report, evaluation, rates, args.format)
    show_report(args, report, table(report))


def add_commands(commands: Any) -> None:
    """Adds the subcommands."""
    description = "Report several evaluations as one, such as the folds of a cross-validation."
    parser = add_command(commands, "pool", _pool, description, _pool_problems, model=False)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION", help="--out folders of evaluate")
    add_report_arguments(parser)

    parser = add_command(commands, "compare", _compare, _COMPARE, _compare_problems, model=False)
    help = (
        "--out folder of evaluate, or its rates.safetensors; or several, separated by commas: seeds of one system, "
        "whose EERs are averaged"
    )
    parser.add_argument("systems", nargs="+", type=_paths, metavar="EVALUATION", help=help)
    add_report_folder(parser)

    description = "Pack a recognizer to publish it: 16-bit weights without its training speakers' vectors, and a card."
    parser = add_command(commands, "pack", _pack, description, _pack_problems, model=False)
    help = "checkpoint file, run folder, or packed model"
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help=help)
    help = "folder of the packed model; its card keeps what is outside of the figures"
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=help)
    help = "--out folders of evaluate or pool, for the figures in the card"
    parser.add_argument("--report", type=Path, nargs="+", default=[], metavar="EVALUATION", help=help)
    help = "folder that preprocess.py wrote: fit cohort, calibration and thresholds to its speakers anew"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=help)
    parser.add_argument("--protocol", metavar="NAME", help=f"protocol of the data (default: {DEFAULT_PROTOCOL})")
    help = "replace another model in the folder"
    parser.add_argument("--replace", action=argparse.BooleanOptionalAction, default=False, help=help)

    export.add_commands(commands)
    people.add_commands(commands)
    verification.add_commands(commands)
    timeline.add_commands(commands)


def _pool(args: argparse.Namespace) -> None:
    from utils.files import read_json
    from utils.speaker.evaluation.results import pool, read_evaluation
    from utils.speaker.evaluation.systems import models_of

    evaluations = [read_evaluation(folder) for folder in args.evaluations]
    reports = [read_json(folder / REPORT) for folder in args.evaluations]
    models = [model for report in reports for model in models_of(report)]
    names = " and ".join(sorted({model["name"] for model in models}))
    with report_folder(args.out):
        _finish(args, pool(f"{names}, {len(evaluations)} evaluations pooled", evaluations), {"models": models})


def _pool_problems(args: argparse.Namespace) -> list[str]:
    folders = [path.resolve() for path in args.evaluations]
    twice = [f"{path} is given twice" for path, count in Counter(folders).items() if count > 1]
    return twice + _problems_of_report(args.out, folders)


def _problems_of_report(out: Path, evaluations: Sequence[Path]) -> list[str]:
    """A sentence if a report would replace one of the evaluations, folders or files in them, that it is made of."""
    folders = {(path if path.is_dir() else path.parent).resolve() for path in evaluations}
    return [f"--out {out} is one of the evaluations"] * (out.resolve() in folders)


def _paths(text: str) -> list[Path]:
    return [Path(path) for path in text.split(",")]


def _compare_problems(args: argparse.Namespace) -> list[str]:
    problems = [] if len(args.systems) > 1 else ["compare needs two evaluations or more"]
    return problems + _problems_of_report(args.out, [path for system in args.systems for path in system])


def _compare(args: argparse.Namespace) -> None:
    from utils.files import write_json, write_text
    from utils.speaker.evaluation.comparison import compare, comparison_table
    from utils.speaker.evaluation.comparison_page import comparison_page
    from utils.speaker.evaluation.report import clear_report

    with report_folder(args.out):
        title = f"{counted(len(args.systems), 'system')} on the same trials"
        compared, curves = compare(args.systems)
        report = {"title": title, **compared, "config": cli.plain_arguments(args)}
        page = comparison_page(report, curves)
        clear_report(args.out)
        write_text(args.out / COMPARISON, page)
        write_json(args.out / REPORT, report)
        show_report(args, report, comparison_table(report))


def _pack_problems(args: argparse.Namespace) -> list[str]:
    problems = ["--protocol needs --data"] if args.protocol is not None and args.data is None else []
    here = args.out.resolve() == Path.cwd()
    return problems + [f"--out {args.out} is the folder that you are in, and would be replaced: name another"] * here


def _pack(args: argparse.Namespace) -> None:
    from utils.speaker.packing import pack

    packed = pack(args.checkpoint, args.out, args.report, args.data, args.protocol or DEFAULT_PROTOCOL, args.replace)
    if args.json:
        print_json(packed)
    else:
        print(
            f"packed model {packed['model_hash']}, {packed['bytes'] / 1e6:.1f} MB, to {packed['out']}; "
            f"embeddings have a cosine of at least {packed['least_cosine']:.6f} with those of the checkpoint"
        )
