"""Use and judge a trained model: a speaker recogniser, or text to mel.

python test.py evaluate --checkpoint runs/demo --data data/processed/demo --out runs/demo/evaluation
python test.py evaluate --checkpoint runs/demo --trials trials.txt --audio-root data/raw/librispeech --out report
python test.py pool fold0 fold1 fold2 fold3 --out pooled
python test.py enroll --checkpoint runs/demo --store people.safetensors --name Ada ada1.flac ada2.wav
python test.py identify --checkpoint runs/demo --store people.safetensors unknown.flac
python test.py verify --checkpoint runs/demo a.flac b.flac
python test.py embed --checkpoint runs/demo a.flac b.flac --out embeddings.safetensors
python test.py synthesize --checkpoint runs/voice --text "Good morning." --out morning.wav

A checkpoint is a file (best.pt) or a run folder. Audio is any file that soundfile reads, at any rate.
Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import sys

from utils import cli
from utils.commands.evaluation import add_evaluation
from utils.commands.recognition import add_recognition
from utils.commands.synthesis import add_synthesis


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_evaluation(commands)
    add_recognition(commands)
    add_synthesis(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, runs the subcommand, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.report(args.problems(args))
    return cli.run(args.body, args)


if __name__ == "__main__":
    sys.exit(main())
