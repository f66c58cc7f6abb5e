"""Features and recordings made of random numbers, for machines that have no corpus and nothing to read one with.

    python -m benchmarks.cuda.features --out FOLDER --tasks speaker tts

FOLDER/speaker and FOLDER/tts are stores with their protocols, as preprocess.py writes them, of mels that a model can
learn: each speaker and each symbol has a spectrum of its own. FOLDER/recordings has WAV files.
"""

from __future__ import annotations

import argparse
import sys
import wave
from pathlib import Path
from typing import Any

from utils import cli

WORDS = "the river carried small boats past quiet houses while children watched from an open window".split()
FRAMES_A_SYMBOL = 3, 9  # least and most of a symbol of text to mel
SHARD = 128  # utterances of a file


def build_parser() -> cli.Parser:
    """The flags of this module."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--tasks", nargs="+", choices=("speaker", "tts"), default=["speaker"], help="stores to make")
    parser.add_argument("--speakers", type=cli.positive_int, default=12, metavar="N", help="speakers of the first")
    parser.add_argument("--utterances", type=cli.positive_int, default=20, metavar="N", help="utterances of a speaker")
    parser.add_argument("--seconds", type=cli.positive_float, default=3.0, metavar="S", help="their mean length")
    parser.add_argument("--texts", type=cli.positive_int, default=40, metavar="N", help="utterances of the second")
    parser.add_argument("--words", type=cli.positive_int, default=4, metavar="N", help="words of a text")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Writes the stores and the recordings."""
    return cli.run(_make, build_parser().parse_args(argv))


def _make(args: argparse.Namespace) -> None:
    if "speaker" in args.tasks:
        make_speakers(args.out / "speaker", args.speakers, args.utterances, args.seconds)
        make_recordings(args.out / "recordings")
    if "tts" in args.tasks:
        make_texts(args.out / "tts", args.texts, args.words)


def make_speakers(out: Path, speakers: int, utterances: int, seconds: float) -> None:
    """A store of the speaker task, half of its speakers female, in two chapters each, with the protocol "default"."""
    import numpy as np

    from utils.features.recipe import RECIPES
    from utils.features.store import FeatureStore, Row
    from utils.speaker.protocol import make_protocol, write_protocol

    recipe, draw, rows, mels = RECIPES["speaker-16k"], np.random.default_rng(0), [], []
    for speaker in range(speakers):
        spectrum = draw.normal(-6, 1.5, recipe.n_mels)
        for number in range(utterances):
            length = seconds * draw.uniform(0.7, 1.3)
            frames = recipe.frames(round(length * recipe.sample_rate))
            name, chapter = f"{speaker:04d}-{number:04d}", f"{speaker:04d}-{number % 2}"
            facts = name, f"{name}.flac", "train", f"{speaker:04d}", chapter, "FM"[speaker % 2], None
            rows.append(Row(*facts, seconds=length, frames=frames))
            mels.append((spectrum + draw.normal(size=(frames, recipe.n_mels))).astype(np.float16))
    _write_store(out, recipe, rows, mels, [np.empty(0, np.int32)] * len(rows))
    store = FeatureStore.open(out)
    write_protocol(out / "protocols" / "default", make_protocol(store.rows), store.rows)


def make_texts(out: Path, utterances: int, words: int) -> None:
    """A store of text to mel, of one voice, with the protocol "default"."""
    import numpy as np

    from utils.features.recipe import RECIPES
    from utils.features.store import FeatureStore, Row
    from utils.text.vocabulary import BOS, EOS, VOCABULARIES
    from utils.tts.text_lists import write_text_lists

    recipe, vocabulary = RECIPES["hifigan-22k"], VOCABULARIES["char"]
    draw, rows, mels, tokens = np.random.default_rng(1), [], [], []
    spectra = draw.normal(-5, 1.5, (len(vocabulary), recipe.n_mels))
    for number in range(utterances):
        text = " ".join(draw.choice(WORDS, words)) + "."
        tokens.append(vocabulary.encode((BOS, *text, EOS))[0])
        spoken = np.repeat(tokens[-1], draw.integers(*FRAMES_A_SYMBOL, size=len(tokens[-1]), endpoint=True))
        facts = f"voice-{number:04d}", f"{number:04d}.wav", "train", "voice", "voice", "F", text
        rows.append(Row(*facts, seconds=recipe.seconds(len(spoken)), frames=len(spoken)))
        mels.append((spectra[spoken] + draw.normal(0, 0.3, (len(spoken), recipe.n_mels))).astype(np.float16))
    _write_store(out, recipe, rows, mels, tokens, vocabulary)
    write_text_lists(out / "protocols" / "default", FeatureStore.open(out).rows, 0, {"task": "tts"})


def make_recordings(folder: Path) -> None:
    """Three WAV files of harmonics at pitches of their own, which rise and fall."""
    import numpy as np

    rate = 16_000
    folder.mkdir(parents=True, exist_ok=True)
    seconds = np.arange(2 * rate) / rate
    for number in range(3):
        phase = 2 * np.pi * np.cumsum((100 + 40 * number) * (1 + 0.1 * np.sin(3 * seconds))) / rate
        sound = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(9 * seconds))
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((8000 * sound).astype("<i2").tobytes())


def _write_store(out: Path, recipe: Any, rows: list, mels: list, tokens: list, vocabulary: Any = None) -> None:
    """The files that utils/features/store.py describes, of mels (t, n_mels) float16 and tokens (n,) int32."""
    import pyarrow as pa

    from utils.features.store import COLUMNS, FORMAT
    from utils.files import write_json

    (out / "features").mkdir(parents=True)
    shards = []
    for begin in range(0, len(rows), SHARD):
        part = slice(begin, begin + SHARD)
        columns = {name: pa.array([getattr(row, name) for row in rows[part]]) for name in COLUMNS}
        columns["mel"] = _lists([mel.ravel() for mel in mels[part]])
        columns["tokens"] = _lists(tokens[part])
        batch = pa.record_batch(columns)
        shards.append(f"train-{len(shards):05d}.arrow")
        with (
            pa.OSFile(str(out / "features" / shards[-1]), "wb") as file,
            pa.ipc.new_stream(file, batch.schema) as stream,
        ):
            stream.write_batch(batch)
    if vocabulary is not None:
        write_json(out / "vocabulary.json", vocabulary.to_dict())
    write_json(out / "recipe.json", recipe.to_dict())
    counts = {"utterances": len(rows), "frames": sum(row.frames for row in rows), "shards": shards, "bad": []}
    counts |= {"seconds": sum(row.seconds for row in rows), "unknown": {}}
    text = {"units": "char", "version": 0}
    meta = {"format": FORMAT, "raw": str(out), "recipe": recipe.hash, "text": text, "splits": {"train": counts}}
    write_json(out / "meta.json", meta)


def _lists(arrays: list) -> Any:
    """A column of lists, of one-dimensional arrays."""
    import numpy as np
    import pyarrow as pa

    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


if __name__ == "__main__":
    sys.exit(main())
