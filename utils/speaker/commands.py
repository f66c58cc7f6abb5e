"""The subcommands of test.py for speaker recognition."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.commands import REPORT, add_command, add_report_arguments, counted, print_json, report_folder, show_report
from utils.errors import UserError
from utils.lists import DEFAULT_PROTOCOL

if TYPE_CHECKING:
    from utils.speaker.recognizer import SpeakerRecognizer


_COMPARE = """Compare recognizers on the same trials: differences of EERs to the first, with paired intervals.

python test.py compare runs/a/report runs/b/report --out comparison
python test.py compare a0,a1,a2 b0,b1,b2 --out comparison

Each condition and duration that all evaluations have gets a line, and so do the means over the conditions, of which
clean recordings are one. The intervals are of the difference, over the same draws of the speakers for all systems.
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
        "conditions in which the recordings of the trials are tested as well, separated by commas: level, noise, "
        "babble, telephone, mp3, reverb, tilt, cut (to 1 s and to 2 s); they need audio (default: clean)"
    )
    group = parser.add_argument_group("test conditions")
    group.add_argument("--conditions", type=_conditions, metavar="NAMES", help=help)
    help = "take cosines after the back end of the checkpoint; without it there are no thresholds (default: yes)"
    group.add_argument("--back-end", action=argparse.BooleanOptionalAction, default=None, help=help)


def _conditions(text: str) -> str:
    """argparse type: a list of conditions, as it is, because configurations keep it."""
    from utils.speaker.conditions import parse_conditions

    try:
        parse_conditions(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates a recognizer on stored features or on raw audio, and writes the report."""
    from utils.speaker.conditions import parse_conditions
    from utils.speaker.evaluate import evaluate_audio, evaluate_features

    recognizer, conditions = _load(args), parse_conditions(args.conditions or "clean")
    if args.back_end is False:
        recognizer.remove_back_end()
    if args.data is not None:
        evaluation = evaluate_features(recognizer, args.data, args.protocol or DEFAULT_PROTOCOL, conditions)
    else:
        evaluation = evaluate_audio(recognizer, args.audio_root, args.trials, args.identification, conditions)
    _finish(args, evaluation, recognizer.description(args.checkpoint))


def _finish(args: argparse.Namespace, evaluation: Any, about: dict[str, Any]) -> None:
    """Writes and prints the report."""
    from utils.speaker.report import build_report, table, write_report

    report = build_report(evaluation, {**about, "config": cli.plain_arguments(args)}, args.bootstrap, args.seed)
    write_report(args.out, report, evaluation)
    show_report(args, report, table(report))


def add_commands(commands: Any) -> None:
    """Adds the subcommands."""
    description = "Report several evaluations as one, such as the folds of a cross-validation."
    parser = add_command(commands, "pool", _pool, description, model=False)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION", help="--out folders of evaluate")
    add_report_arguments(parser)

    parser = add_command(commands, "compare", _compare, _COMPARE, _compare_problems, model=False)
    help = "--out folder of evaluate, or several, separated by commas: seeds of one system, whose EERs are averaged"
    parser.add_argument("systems", nargs="+", type=_folders, metavar="EVALUATION", help=help)
    add_report_arguments(parser)

    description = "Pack a recognizer to publish it: 16-bit weights without its training speakers' vectors, and a card."
    parser = add_command(commands, "pack", _pack, description, model=False)
    help = "checkpoint file, run folder, or packed model"
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help=help)
    help = "folder of the packed model; its card keeps what is outside of the figures"
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=help)
    help = "--out folders of evaluate or pool, for the figures in the card"
    parser.add_argument("--report", type=Path, nargs="+", default=[], metavar="EVALUATION", help=help)

    description = "Print or store the embedding of each recording, scaled to length 1."
    parser = add_command(commands, "embed", _embed, description, _embed_problems, shipped=True)
    _add_recordings(parser, "recordings")
    help = "safetensors file for the embeddings, instead of printing them"
    parser.add_argument("--out", type=Path, metavar="FILE", help=help)

    description = "Enroll a speaker: add the mean embedding of the recordings to a store."
    parser = add_command(commands, "enroll", _enroll, description, _enroll_problems, shipped=True)
    _add_recordings(parser, "recordings of the one speaker")
    _add_store(parser, "store of enrolled speakers; created if missing")
    parser.add_argument("--name", required=True, metavar="NAME", help="the speaker's name")
    parser.add_argument(
        "--replace", action=argparse.BooleanOptionalAction, default=False, help="replace a speaker of this name"
    )

    description = "Name the enrolled speaker who is speaking, or report that it is none of them."
    parser = add_command(commands, "identify", _identify, description, shipped=True)
    _add_recordings(parser, "recordings, each judged by itself")
    _add_store(parser, "store of enrolled speakers")
    default = (
        "the checkpoint's, by the number of enrolled and the length, which names 5 %% of the strangers in validation"
    )
    _add_threshold(parser, default)

    description = "Decide whether two recordings are of the same speaker."
    parser = add_command(commands, "verify", _verify, description, shipped=True)
    parser.add_argument("a", type=Path, metavar="A", help="a recording")
    parser.add_argument("b", type=Path, metavar="B", help="another recording")
    _add_threshold(parser, "the checkpoint's, by the lengths: at the EER of validation recordings like these")


def _add_recordings(parser: cli.Parser, help: str) -> None:
    parser.add_argument("audio", nargs="+", type=Path, metavar="AUDIO", help=help)


def _add_store(parser: cli.Parser, help: str) -> None:
    parser.add_argument("--store", type=Path, required=True, metavar="FILE", help=help)


def _add_threshold(parser: cli.Parser, default: str) -> None:
    help = f"least cosine of the same speaker (default: {default})"
    parser.add_argument("--threshold", type=_cosine, metavar="X", help=help)


def _cosine(text: str) -> float:
    value = float(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between -1 and 1, not {text}")
    return value


def _pool(args: argparse.Namespace) -> None:
    from utils.files import read_json
    from utils.speaker.report import pool, read_evaluation

    evaluations = [read_evaluation(folder) for folder in args.evaluations]
    reports = [read_json(folder / REPORT) for folder in args.evaluations]
    models = [model for report in reports for model in report.get("models", [report.get("model")])]
    names = " and ".join(sorted({model["name"] for model in models}))
    with report_folder(args.out):
        _finish(args, pool(f"{names}, {len(evaluations)} evaluations pooled", evaluations), {"models": models})


def _folders(text: str) -> list[Path]:
    return [Path(folder) for folder in text.split(",")]


def _compare_problems(args: argparse.Namespace) -> list[str]:
    problems = [] if len(args.systems) > 1 else ["compare needs two evaluations or more"]
    inside = [folder for system in args.systems for folder in system if folder.resolve() == args.out.resolve()]
    return problems + [f"--out {args.out} is one of the evaluations" for _ in inside]


def _compare(args: argparse.Namespace) -> None:
    from utils.escapes import json_text
    from utils.files import write_text
    from utils.speaker.comparison import compare, comparison_table
    from utils.speaker.report import clear_report

    with report_folder(args.out):
        title = f"{counted(len(args.systems), 'system')} on the same trials"
        report = {"title": title, **compare(args.systems, args.bootstrap, args.seed)}
        report["config"] = cli.plain_arguments(args)
        clear_report(args.out)
        write_text(args.out / REPORT, json_text(report) + "\n")
        show_report(args, report, comparison_table(report))


def _pack(args: argparse.Namespace) -> None:
    from utils.speaker.packing import pack

    packed = pack(args.checkpoint, args.out, args.report)
    if args.json:
        print_json(packed)
    else:
        print(
            f"packed model {packed['model_hash']}, {packed['bytes'] / 1e6:.1f} MB, to {packed['out']}; "
            f"embeddings have a cosine of at least {packed['least_cosine']:.6f} with those of the checkpoint"
        )


def _embed_problems(args: argparse.Namespace) -> list[str]:
    if args.out is not None and args.json:
        return ["--out and --json contradict: embeddings are either stored or printed"]
    return []


def _enroll_problems(args: argparse.Namespace) -> list[str]:
    twice = sorted({str(path) for path in args.audio if args.audio.count(path) > 1})
    return [f"{path} is given twice: it would count twice in the mean" for path in twice]


def _load(args: argparse.Namespace, *recordings: Path) -> SpeakerRecognizer:
    """Loads the recognizer, unless one of the recordings that it is needed for is missing."""
    from utils.speaker.recognizer import SpeakerRecognizer

    missing = next((path for path in recordings if not path.exists()), None)
    if missing is not None:
        raise UserError(f"{missing} is missing; python download.py --dataset demo makes recordings to try")
    return SpeakerRecognizer.load(args.checkpoint, args.device, args.backend)


def _embed(args: argparse.Namespace) -> None:
    recognizer = _load(args, *args.audio)
    embeddings = recognizer.embed_files(args.audio)
    names = [str(path) for path in args.audio]
    if args.out is not None:
        from utils.speaker.enrollment import write_embeddings

        write_embeddings(args.out, names, embeddings, recognizer.model_hash)
        print(f"wrote {counted(len(names), 'embedding')} of {embeddings.shape[1]} numbers to {args.out}")
    elif args.json:
        items = [{"audio": name, "embedding": row.tolist()} for name, row in zip(names, embeddings, strict=True)]
        print_json({"model_hash": recognizer.model_hash, "embeddings": items})
    else:
        for name, row in zip(names, embeddings, strict=True):
            print(name, *(f"{value:.6f}" for value in row))


def _enroll(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from utils.speaker.enrollment import EnrollmentStore, locked_store

    recognizer = _load(args, *args.audio)
    owner = recognizer.model_hash, recognizer.recipe.hash
    EnrollmentStore.begin(args.store, *owner).check_name(args.name, args.replace)
    embeddings, seconds = recognizer.embed_speech(args.audio)
    with locked_store(args.store, *owner) as store:
        added = store.enroll(args.name, embeddings, sum(seconds), args.replace)
    if args.json:
        print_json({"store": str(args.store), "model_hash": recognizer.model_hash, "enrolled": asdict(added)})
    else:
        print(
            f"enrolled {added.name} from {counted(added.count, 'recording')}, {added.seconds:.1f} s; "
            f"{args.store} holds {counted(len(store.speakers), 'speaker')}"
        )


def _identify(args: argparse.Namespace) -> None:
    from utils.speaker.enrollment import EnrollmentStore

    recognizer = _load(args, *args.audio)
    store = EnrollmentStore.load(args.store, recognizer.model_hash)
    count = len(store.speakers)
    recognizer.identification_threshold(args.threshold, 1.0, count)  # refuses before the work if there is none
    embeddings, seconds = recognizer.embed_speech(args.audio)
    results = [
        store.identify(embedding, recognizer.identification_threshold(args.threshold, length, count))
        for embedding, length in zip(embeddings, seconds, strict=True)
    ]
    if args.json:
        answers = [{"audio": str(path), **result.to_dict()} for path, result in zip(args.audio, results, strict=True)]
        print_json({"store": str(args.store), "model_hash": recognizer.model_hash, "results": answers})
        return
    for path, result in zip(args.audio, results, strict=True):
        margin = "no other speaker" if result.margin is None else f"margin {result.margin:.3f}"
        best = f"best {result.best} {result.score:.3f}"
        print(f"{path}: {result.name} ({best}, threshold {result.threshold:.3f}, {margin})")
        print("".join(f"  {score:7.3f}  {name}\n" for name, score in result.scores), end="")


def _verify(args: argparse.Namespace) -> None:
    recognizer = _load(args, args.a, args.b)
    recognizer.verification_threshold(args.threshold, 1.0, 1.0)  # refuses before the work if there is none
    (first, second), seconds = recognizer.embed_speech([args.a, args.b])
    score, threshold = float(first @ second), float(recognizer.verification_threshold(args.threshold, *seconds))
    answer = {"a": str(args.a), "b": str(args.b), "score": score, "threshold": threshold, "same": score >= threshold}
    if args.json:
        print_json({**answer, "model_hash": recognizer.model_hash})
    else:
        decision = "same speaker" if answer["same"] else "different speakers"
        print(f"{decision} (score {score:.3f}, threshold {threshold:.3f})")
