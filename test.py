"""Use and judge a trained speaker recogniser.

python test.py evaluate --checkpoint runs/demo --data data/processed/demo --out runs/demo/evaluation
python test.py evaluate --checkpoint runs/demo --trials trials.txt --audio-root data/raw/librispeech --out report
python test.py pool fold0 fold1 fold2 fold3 --out pooled
python test.py enroll --checkpoint runs/demo --store people.safetensors --name Ada ada1.flac ada2.wav
python test.py identify --checkpoint runs/demo --store people.safetensors unknown.flac
python test.py verify --checkpoint runs/demo a.flac b.flac
python test.py embed --checkpoint runs/demo a.flac b.flac --out embeddings.safetensors

A checkpoint is a file (best.pt) or a run folder. Audio is any file that soundfile reads, at any rate.
Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.protocol import DEFAULT_PROTOCOL

if TYPE_CHECKING:
    from utils.evaluation.recognizer import SpeakerRecognizer

_EVALUATE = """Measure verification and identification; writes report.json, scores, pictures and config.yaml.

python test.py evaluate --checkpoint runs/demo --data data/processed/demo --out evaluation
python test.py evaluate --checkpoint runs/demo --trials trials.txt --audio-root data/raw --out evaluation
python test.py evaluate --checkpoint runs/demo --identification train.txt test.txt --audio-root data/raw --out report

With --data, stored features and their protocol: trials of the held-out speakers, and the classifier's answers on the
identification lists. With --audio-root, raw audio that was never preprocessed: a trial list (`1|0 path path`), or two
lists of `speaker path` lines: each speaker of the first is enrolled, each recording of the second identified.
"""


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_evaluate(commands)
    _add_pool(commands)
    _add_embed(commands)
    _add_enroll(commands)
    _add_identify(commands)
    _add_verify(commands)
    return parser


def _add_command(commands: Any, name: str, body: Any, description: str, model: bool = True) -> cli.Parser:
    """A subcommand with the flags that all of them share."""
    parser = commands.add_parser(name, help=description.partition("\n")[0], description=description)
    parser.set_defaults(body=body)
    if model:
        parser.add_config()
        group = parser.add_argument_group("model")
        group.add_argument("--checkpoint", type=Path, required=True, help="checkpoint file, or run folder")
        cli.add_device_arguments(group)
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False, help="print the result as JSON")
    return parser


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(commands, "evaluate", _evaluate, _EVALUATE)
    stored = parser.add_argument_group("stored features")
    stored.add_argument("--data", type=Path, help="folder that preprocess.py wrote")
    stored.add_argument("--protocol", help=f"which of its protocols (default: {DEFAULT_PROTOCOL})")
    raw = parser.add_argument_group("raw audio")
    raw.add_argument("--audio-root", type=Path, help="folder that the paths in the lists start from")
    raw.add_argument("--trials", type=Path, help="list of `1|0 path path` lines")
    raw.add_argument(
        "--identification", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="lists of `speaker path` lines"
    )
    _add_report_arguments(parser)


def _add_pool(commands: Any) -> None:
    description = "Report several evaluations as one, such as the folds of a cross-validation."
    parser = _add_command(commands, "pool", _pool, description, model=False)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION", help="--out folders of evaluate")
    _add_report_arguments(parser)


def _add_report_arguments(parser: cli.Parser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--out", type=Path, required=True, help="folder for the report and its pictures")
    group.add_argument("--bootstrap", type=cli.positive_int, default=1000, help="draws of the speakers for an interval")
    group.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the draws")


def _add_embed(commands: Any) -> None:
    description = "Print or store the embedding of each recording, scaled to length 1."
    parser = _add_command(commands, "embed", _embed, description)
    parser.add_argument("audio", nargs="+", type=Path, metavar="AUDIO", help="recordings")
    parser.add_argument("--out", type=Path, help="safetensors file for the embeddings, instead of printing them")


def _add_enroll(commands: Any) -> None:
    description = "Add a speaker to a store: the mean embedding of the recordings."
    parser = _add_command(commands, "enroll", _enroll, description)
    parser.add_argument("audio", nargs="+", type=Path, metavar="AUDIO", help="recordings of the one speaker")
    parser.add_argument("--store", type=Path, required=True, help="store of enrolled speakers, made if there is none")
    parser.add_argument("--name", required=True, help="the speaker's name")
    parser.add_argument(
        "--replace", action=argparse.BooleanOptionalAction, default=False, help="enroll anew a name that is enrolled"
    )


def _add_identify(commands: Any) -> None:
    description = "Say who of the enrolled speakers is speaking, or that it is nobody of them."
    parser = _add_command(commands, "identify", _identify, description)
    parser.add_argument("audio", nargs="+", type=Path, metavar="AUDIO", help="recordings, each judged by itself")
    parser.add_argument("--store", type=Path, required=True, help="store of enrolled speakers")
    _add_threshold(parser)


def _add_verify(commands: Any) -> None:
    parser = _add_command(commands, "verify", _verify, "Say whether two recordings are of the same speaker.")
    parser.add_argument("a", type=Path, metavar="A", help="a recording")
    parser.add_argument("b", type=Path, metavar="B", help="another recording")
    _add_threshold(parser)


def _add_threshold(parser: cli.Parser) -> None:
    help = "cosine from which on it is the same speaker (default: the checkpoint's, tuned on its validation trials)"
    parser.add_argument("--threshold", type=_cosine, help=help)


def _cosine(text: str) -> float:
    value = float(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie between -1 and 1, not {text}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, runs the subcommand, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report(_problems(args))
    return cli.run(args.body, args)


def _problems(args: argparse.Namespace) -> list[str]:
    """Sentences about flags that contradict each other."""
    problems = []
    if args.body is _evaluate:
        raw = {"--trials": args.trials, "--identification": args.identification, "--audio-root": args.audio_root}
        given = [flag for flag, value in raw.items() if value is not None]
        if args.data is not None:
            problems += [f"--data and {flag} contradict: stored features have their own lists" for flag in given]
        elif not given:
            problems.append("nothing to evaluate on: give --data, or --audio-root with --trials or --identification")
        elif given == ["--audio-root"]:
            problems.append("--audio-root needs --trials or --identification")
        elif args.audio_root is None:
            problems.append(f"{' and '.join(given)} need --audio-root, the folder that the paths start from")
        if args.protocol is not None and args.data is None:
            problems.append("--protocol needs --data")
    if args.body is _embed and args.out is not None and args.json:
        problems.append("--out and --json contradict: embeddings are stored or printed")
    if args.body is _enroll:
        twice = sorted({str(path) for path in args.audio if args.audio.count(path) > 1})
        problems += [f"{path} is given twice: it would count twice in the mean" for path in twice]
    return problems


def _load(args: argparse.Namespace) -> SpeakerRecognizer:
    from utils.evaluation.recognizer import SpeakerRecognizer

    return SpeakerRecognizer.load(args.checkpoint, args.device, args.backend)


def _evaluate(args: argparse.Namespace) -> None:
    from utils.evaluation.evaluate import evaluate_audio, evaluate_features
    from utils.evaluation.report import CONFIG, require_out

    require_out(args.out)
    recognizer = _load(args)
    if args.data is not None:
        evaluation = evaluate_features(recognizer, args.data, args.protocol or DEFAULT_PROTOCOL)
    else:
        lists = tuple(args.identification) if args.identification else None
        evaluation = evaluate_audio(recognizer, args.audio_root, args.trials, lists)
    _finish(args, evaluation, recognizer.description(args.checkpoint))
    cli.save_config(args.out / CONFIG, args)


def _pool(args: argparse.Namespace) -> None:
    from utils.evaluation.pooled import pool, read_evaluation
    from utils.evaluation.report import REPORT, require_out
    from utils.files import read_json

    evaluations = [read_evaluation(folder) for folder in args.evaluations]
    reports = [read_json(folder / REPORT) for folder in args.evaluations]
    models = [model for report in reports for model in report.get("models", [report.get("model")])]
    require_out(args.out)
    names = " and ".join(sorted({model["name"] for model in models}))
    _finish(args, pool(f"{names}, {len(evaluations)} evaluations pooled", evaluations), {"models": models})


def _finish(args: argparse.Namespace, evaluation: Any, about: dict[str, Any]) -> None:
    """Writes and prints the report."""
    from utils.evaluation.report import build_report, table, write_report

    about = {**about, "config": cli.plain_arguments(args)}
    report = build_report(evaluation, about, args.bootstrap, args.seed)
    write_report(args.out, report, evaluation)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        _print_json(report)
    else:
        print(f"{report['title']}\n\n{table(report)}\n\nreport and pictures: {args.out}")


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def _embed(args: argparse.Namespace) -> None:
    recognizer = _load(args)
    embeddings = recognizer.embed_files(args.audio)
    names = [str(path) for path in args.audio]
    if args.out is not None:
        from utils.evaluation.enrolment import write_embeddings

        write_embeddings(args.out, names, embeddings, recognizer.model_hash)
        print(f"wrote {len(names)} embeddings of {embeddings.shape[1]} numbers to {args.out}")
    elif args.json:
        items = [{"audio": name, "embedding": row.tolist()} for name, row in zip(names, embeddings, strict=True)]
        _print_json({"model_hash": recognizer.model_hash, "embeddings": items})
    else:
        for name, row in zip(names, embeddings, strict=True):
            print(name, *(f"{value:.6f}" for value in row))


def _enroll(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from utils.evaluation.enrolment import EnrolmentStore, locked_store

    recognizer = _load(args)
    owner = recognizer.model_hash, recognizer.recipe.hash
    EnrolmentStore.begin(args.store, *owner).check_name(args.name, args.replace)
    embeddings, seconds = recognizer.embed_speech(args.audio)
    with locked_store(args.store, *owner) as store:
        added = store.enroll(args.name, embeddings, sum(seconds), args.replace)
    if args.json:
        _print_json({"store": str(args.store), "model_hash": recognizer.model_hash, "enrolled": asdict(added)})
    else:
        print(
            f"enrolled {added.name} from {added.count} recordings, {added.seconds:.1f} s; "
            f"{args.store} holds {len(store.speakers)} speakers"
        )


def _identify(args: argparse.Namespace) -> None:
    from utils.evaluation.enrolment import EnrolmentStore

    recognizer = _load(args)
    threshold = recognizer.decision_threshold(args.threshold)
    store = EnrolmentStore.load(args.store, recognizer.model_hash)
    embeddings, _ = recognizer.embed_speech(args.audio)
    results = [store.identify(embedding, threshold) for embedding in embeddings]
    if args.json:
        answers = [{"audio": str(path), **result.to_dict()} for path, result in zip(args.audio, results, strict=True)]
        _print_json({"store": str(args.store), "model_hash": recognizer.model_hash, "results": answers})
        return
    for path, result in zip(args.audio, results, strict=True):
        margin = "no other speaker" if result.margin is None else f"margin {result.margin:.3f}"
        print(f"{path}: {result.name} (best {result.best} {result.score:.3f}, threshold {threshold:.3f}, {margin})")
        print("".join(f"  {score:7.3f}  {name}\n" for name, score in result.scores), end="")


def _verify(args: argparse.Namespace) -> None:
    recognizer = _load(args)
    threshold = recognizer.decision_threshold(args.threshold)
    (first, second), _ = recognizer.embed_speech([args.a, args.b])
    score = float(first @ second)
    answer = {"a": str(args.a), "b": str(args.b), "score": score, "threshold": threshold, "same": score >= threshold}
    if args.json:
        _print_json({**answer, "model_hash": recognizer.model_hash})
    else:
        decision = "same speaker" if answer["same"] else "different speakers"
        print(f"{decision} (score {score:.3f}, threshold {threshold:.3f})")


if __name__ == "__main__":
    sys.exit(main())
