"""Comparisons of text-to-mel systems: equal CPU time, longer runs, hard sentences, two voices in one model.

    python preprocess.py --dataset ljspeech --raw ../shared/data/tts_dev/LJSpeech-1.1 --out data/processed/lj_phone \\
        --units phoneme
    python benchmarks/studies/text_to_mel.py --data data/processed/lj_phone --out runs/text_to_mel --parts table-a \\
        --jobs 2
    python benchmarks/studies/text_to_mel.py --data data/processed/lj_phone --out runs/text_to_mel --parts table-b \\
        hard --jobs 2 --vocoder HIFIGAN --asr WHISPER
    python benchmarks/studies/text_to_mel.py --data data/processed/lj_phone --out runs/text_to_mel --parts voices \\
        --voices ../shared/data/tts_dev/LJSpeech-1.1 ../shared/data/tts_dev/Kathleen --vocoder HIFIGAN \\
        --judge-python JUDGE/bin/python
    python benchmarks/studies/text_to_mel.py --data data/processed/lj_phone --out runs/text_to_mel --parts

table-a trains six systems of equal size (synthesis/systems.py) for equal CPU time, table-b some of them for longer;
both evaluate the best checkpoints by the validation list, on the test list. hard speaks hard_sentences.txt with the
models of table-b. voices trains one model on several voices, and Resemblyzer identifies the speakers. HIFIGAN and
WHISPER are described in the README, JUDGE in synthesis/judge.py.

Every training runs on one thread and resumes after an interruption. A calibration, kept in OUT/steps.json, turns the
budget into steps; runs at the same time take more CPU time for them, which the tables show. Results are in OUT/results,
one file each. The tables in OUT/tables.md are computed from these files; `--parts` without a part computes only them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.studies.synthesis.systems import SYSTEMS  # noqa: E402
from utils import cli  # noqa: E402

PRESET = ROOT / "configs" / "tts-small.yaml"
SPEECH = ROOT.parent / "shared" / "data" / "tts_dev"


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="features of one voice that preprocess.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, results and tables")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="parts to measure")
    _add_judging(parser.add_argument_group("judging"))
    _add_budget(parser.add_argument_group("budget"))
    _add_comparison(parser.add_argument_group("table-a, table-b and hard"))
    _add_voices(parser.add_argument_group("voices"))
    return parser


def _add_judging(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--vocoder", default="griffin-lim", help="griffin-lim, or file or folder of a HiFi-GAN")
    group.add_argument("--asr", type=Path, metavar="FOLDER", help="faster-whisper model; hard needs one")
    group.add_argument("--limit", type=cli.positive_int, help="largest number of clips and sentences, for a trial")


def _add_budget(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cpu-minutes", type=cli.positive_float, default=15.0, help="per training of table-a")
    group.add_argument("--cpu-minutes-b", type=cli.positive_float, default=75.0, help="per training of table-b")
    group.add_argument("--cpu-minutes-voices", type=cli.positive_float, default=20.0, help="of the training for voices")
    group.add_argument("--steps", type=cli.positive_int, help="steps of every run, instead of a budget")
    group.add_argument("--jobs", type=cli.positive_int, default=1, help="trainings at once, one thread each")
    group.add_argument("--device", default="cpu", help="device for training; evaluation is on the CPU")
    group.add_argument("--calibration-steps", type=cli.positive_int, default=14, help="steps of a calibration run")
    group.add_argument(
        "--recalibrate",
        nargs="+",
        choices=SYSTEMS,
        default=[],
        help="measure the CPU time per step of these systems again; runs whose steps change restart",
    )


def _add_comparison(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="systems of table-a")
    group.add_argument("--seeds", nargs="+", type=cli.non_negative_int, default=[0, 1], help="seeds of table-a")
    group.add_argument("--config-a", type=Path, default=PRESET, help="preset of table-a")
    group.add_argument(
        "--systems-b", nargs="+", choices=SYSTEMS, default=["causal", "tacotron2"], help="systems of table-b and hard"
    )
    group.add_argument("--seeds-b", nargs="+", type=cli.non_negative_int, default=[0], help="seeds of table-b")
    group.add_argument("--config-b", type=Path, default=PRESET, help="preset of table-b")
    group.add_argument(
        "--flags-b",
        nargs="+",
        type=_flags,
        default=[],
        metavar="SYSTEM=FLAGS",
        help='flags of train_tacomamba.py for a system of table-b, such as "tacotron2=--decoder-dim 448"',
    )
    sentences = ROOT / "benchmarks" / "studies" / "hard_sentences.txt"
    group.add_argument("--sentences", type=Path, default=sentences, help="file of `category|text` lines for hard")
    group.add_argument(
        "--checkpoint",
        nargs="+",
        type=_named_path,
        default=[],
        metavar="NAME=PATH",
        help="models for hard instead of those of table-b",
    )


def _add_voices(group: argparse._ArgumentGroup) -> None:
    folders = [SPEECH / "LJSpeech-1.1", SPEECH / "Kathleen"]
    group.add_argument("--voices", type=Path, nargs="+", default=folders, help="folders in LJSpeech layout")
    group.add_argument("--voice-units", choices=("char", "phoneme"), default="phoneme", help="units of the tokens")
    group.add_argument("--voice-system", choices=SYSTEMS, default="causal", help="system to train on all voices")
    group.add_argument(
        "--voice-kind",
        choices=("table", "embedding"),
        default="table",
        help="source of the voice: a table, or the embedding of a held-out recording, a new one for each sentence",
    )
    group.add_argument("--speaker-encoder", type=Path, help="speaker checkpoint for --voice-kind embedding")
    group.add_argument("--config-voices", type=Path, default=PRESET, help="preset of the training")
    group.add_argument("--voice-sentences", type=cli.positive_int, default=20, help="sentences per voice")
    group.add_argument("--judge-python", default=sys.executable, help="Python interpreter with Resemblyzer")


def _flags(text: str) -> tuple[str, list[str]]:
    """argparse type: SYSTEM=FLAGS."""
    system, mark, flags = text.partition("=")
    if not mark or system not in SYSTEMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not SYSTEM=FLAGS with one of {', '.join(SYSTEMS)}")
    return system, shlex.split(flags)


def _named_path(text: str) -> tuple[str, Path]:
    """argparse type: NAME=PATH."""
    name, _, path = text.partition("=")
    if not name or not path or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the missing parts and prints the tables."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report(_problems(args))
    return cli.run(_benchmark, args)


def _problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if "hard" in args.parts and args.asr is None:
        problems.append("hard sentences are judged by a recognizer: give --asr, or other --parts")
    if args.asr is not None and not (args.asr / "model.bin").is_file():
        problems.append(f"--asr {args.asr} is not a folder of a faster-whisper model")
    if args.vocoder != "griffin-lim" and not Path(args.vocoder).exists():
        problems.append(f"there is no vocoder {args.vocoder}")
    if (args.voice_kind == "embedding") != (args.speaker_encoder is not None):
        problems.append("--voice-kind embedding and --speaker-encoder need each other")
    if "voices" in args.parts:
        problems += [f"the folder {folder} of --voices is missing" for folder in args.voices if not folder.is_dir()]
    return problems


def _benchmark(args: argparse.Namespace) -> None:
    from benchmarks.studies.synthesis.tables import tables
    from utils.files import write_text

    args.to_recalibrate = {
        f"{part}/{system}" for part in ("table-a", "table-b", "voices") for system in args.recalibrate
    }
    for part in PARTS:
        if part in args.parts:
            PARTS[part](args)
    made = tables(args.out / "results")
    write_text(args.out / "tables.md", made)
    print(made)


def _table_a(args: argparse.Namespace) -> None:
    from benchmarks.studies.synthesis.runs import training

    systems = [(system, seed) for seed in args.seeds for system in args.systems]
    _compare(args, [training(args, "table-a", *pair, args.config_a, args.cpu_minutes) for pair in systems])


def _table_b(args: argparse.Namespace) -> None:
    from benchmarks.studies.synthesis.runs import training

    extra = {system: [flag for name, flags in args.flags_b if name == system for flag in flags] for system in SYSTEMS}
    systems = [(system, seed) for seed in args.seeds_b for system in args.systems_b]
    runs = [training(args, "table-b", *pair, args.config_b, args.cpu_minutes_b, extra[pair[0]]) for pair in systems]
    _compare(args, runs)


def _compare(args: argparse.Namespace, runs: list) -> None:
    """Calibrates one after another, trains `--jobs` at once, judges one after another."""
    from benchmarks.studies.synthesis.runs import planned_steps, result, train

    steps = [planned_steps(args, one) for one in runs]
    pool = ThreadPoolExecutor(args.jobs)
    try:
        folders = list(cli.progress(pool.map(lambda one, n: train(args, one, n), runs, steps), total=len(runs)))
    finally:
        pool.shutdown(cancel_futures=True)
    for one, folder in zip(cli.progress(runs), folders, strict=True):
        result(args, one, folder)


def _hard(args: argparse.Namespace) -> None:
    from benchmarks.studies.synthesis import hard

    for name, checkpoint, evaluation in hard.models(args):
        hard.measure(args, name, checkpoint, evaluation)


def _voices(args: argparse.Namespace) -> None:
    from benchmarks.studies.synthesis import voices

    voices.measure(args)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "table-a": _table_a,
    "table-b": _table_b,
    "hard": _hard,
    "voices": _voices,
}

if __name__ == "__main__":
    sys.exit(main())
