"""Distances of learned alignments from the phone times that espeak-ng reports for its own speech.

    python download.py --dataset demo-voice
    python preprocess.py --dataset demo-voice --units phoneme
    python train_tacomamba.py --task tts --data data/processed/demo-voice --steps 500 --out runs/a
    python benchmarks/studies/alignment.py --data data/processed/demo-voice \\
        --phones data/raw/demo-voice/DemoVoice-1.0/phones.jsonl --checkpoint runs/a runs/b --out runs/alignment

A model's durations give each token a start: that of frame t is the edge between frames t - 1 and t, halfway between
their centers. A phone of espeak-ng, one or more IPA letters, starts with the token of its first letter, or with a
stress mark right before that one. Blanks, punctuation, and pauses have no counterpart and are not measured; letters on
which the tokens and espeak-ng's events disagree are left out, and the share of phones that remain is shown.

An error is the distance in ms of the two starts. espeak-ng's start of a plosive is its release, after up to 53 ms of
silence, which a model may well assign to the plosive: plosives and affricates are therefore also listed separately. The
models are compared with two aligners that ignore the audio: `uniform` gives all tokens of an utterance the same time,
`average` gives each symbol its mean true duration in the training list, stretched to the length of the utterance. A
third one, `symbols`, has one mean mel per symbol, estimated on the training list from equal durations by a few
iterations of alignment and averaging (hard EM). 95 % intervals are of the mean, over utterances.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.studies.synthesis.boundaries import Timing, Utterance
    from utils.features.store import FeatureStore
    from utils.tts.synthesizer import Synthesizer

    Aligner = Callable[[Sequence[Utterance]], list[np.ndarray]]  # durations (N,) in frames of each utterance

LISTS = ("train", "held-out")
BASES = ("uniform", "average", "symbols")  # what the others are held against
ROUNDS = 4  # of alignment and averaging; further ones change nothing that matters


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="features of speech whose phone times are known")
    parser.add_argument("--phones", type=Path, required=True, help="phones.jsonl of that speech")
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="text-to-mel runs or checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="where results.json and table.md go")
    parser.add_argument("--protocol", default="default", help="text lists: train, and held-out (valid and test)")
    parser.add_argument("--batch-size", type=cli.positive_int, default=16, help="utterances at once")
    parser.add_argument("--bootstrap", type=cli.positive_int, default=1000, help="draws of utterances for intervals")
    cli.add_device_arguments(parser.add_argument_group("device"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures all checkpoints and prints the table."""
    return cli.run(_benchmark, build_parser().parse_args(argv))


def _benchmark(args: argparse.Namespace) -> None:
    from benchmarks.studies.synthesis.boundaries import figures, read_phones
    from utils.features.store import FeatureStore
    from utils.files import write_json, write_text
    from utils.tts.text_lists import read_text_lists

    store = FeatureStore.open(args.data)
    if store.vocabulary is None or store.vocabulary.units != "phoneme":
        raise UserError(f"{args.data} has no phonemes as tokens: preprocess.py --task tts --units phoneme")
    lists = read_text_lists(args.data / "protocols" / args.protocol)
    timings = read_phones(args.phones)
    parts = {
        part: _utterances(store, part, names, timings, args.phones)
        for part, names in zip(LISTS, (lists.train, [*lists.valid, *lists.test]), strict=True)
    }
    results = []
    for name, aligner in _aligners(args, store, lists.train, parts["train"]):
        for part in LISTS:
            durations = aligner(parts[part])
            counts = {"utterances": len(parts[part]), "phones": sum(each.phones for each in parts[part])}
            counts["matched"] = sum(len(each.tokens) for each in parts[part])
            errors = figures(parts[part], durations, store.recipe, args.bootstrap)
            results.append({"aligner": name, "list": part, **counts, **errors})
    _add_ratios(results)
    table = _table(results)
    write_json(args.out / "results.json", results)
    write_text(args.out / "table.md", table)
    print(table)


def _utterances(
    store: FeatureStore, part: str, names: Sequence[str], timings: dict[str, Timing], source: Path
) -> list[Utterance]:
    """The utterances of a list that have a frame for every token, with their phones."""
    from benchmarks.studies.synthesis.boundaries import locate

    missing = [name for name in names if name not in timings]
    if missing:
        raise UserError(f"{source} lacks {len(missing)} of the utterances, {missing[0]} for one")
    utterances = []
    for item in store.with_a_frame_a_token(store.listed(names, part)):
        symbols, row = [store.vocabulary.symbols[token] for token in store.tokens(item)], store.rows[item]
        utterances.append(locate(item, symbols, row.frames, timings[row.utterance]))
    if not utterances:
        raise UserError(f"no utterance of a list of {source.parent.name} has a frame for every token")
    return utterances


def _aligners(
    args: argparse.Namespace, store: FeatureStore, names: Sequence[str], training: Sequence[Utterance]
) -> Iterator[tuple[str, Aligner]]:
    """The aligners without a model, and the checkpoints; `training` are the usable utterances of the list `names`."""
    from benchmarks.studies.synthesis.boundaries import average_aligner, uniform_durations

    average = average_aligner(training)
    yield "uniform", lambda utterances: [uniform_durations(each) for each in utterances]
    yield "average", lambda utterances: [average(each) for each in utterances]
    yield "symbols", _symbol_aligner(store, training)
    for path in args.checkpoint:
        yield str(path), _learned(args, path, store, names)


def _symbol_aligner(store: FeatureStore, training: Sequence[Utterance]) -> Aligner:
    """Aligns by one mean mel per symbol, in standard deviations, found on `training` from equal durations."""
    import numpy as np
    import torch

    from benchmarks.studies.synthesis.boundaries import uniform_durations
    from models.tts.alignment import gaussian_score, monotonic_path

    frames = np.concatenate([store.mel(each.item) for each in training])
    center, scale = frames.mean(axis=0), np.maximum(frames.std(axis=0), 1e-5)
    means: dict[str, np.ndarray] = {}

    def mel(utterance: Utterance) -> np.ndarray:
        return (store.mel(utterance.item) - center) / scale

    def durations(utterance: Utterance) -> np.ndarray:
        of_tokens = np.stack([means.get(symbol, np.zeros_like(center)) for symbol in utterance.symbols])
        score = gaussian_score(torch.from_numpy(mel(utterance))[None], torch.from_numpy(of_tokens)[None])
        lengths = torch.tensor([len(utterance.symbols)]), torch.tensor([utterance.frames])
        return monotonic_path(score, *lengths)[0].numpy()

    equal = [np.diff(np.rint(np.cumsum([0, *uniform_durations(each)]))).astype(int) for each in training]
    for number in range(ROUNDS):
        found = [durations(each) for each in training] if number else equal
        parts: dict[str, list[np.ndarray]] = defaultdict(list)
        for each, lengths in zip(training, found, strict=True):
            for symbol, part in zip(each.symbols, np.split(mel(each), np.cumsum(lengths)[:-1]), strict=True):
                parts[symbol].append(part)
        means = {symbol: np.concatenate(mels).mean(axis=0) for symbol, mels in parts.items()}
    return lambda utterances: [durations(each) for each in utterances]


def _learned(args: argparse.Namespace, path: Path, store: FeatureStore, training: Sequence[str]) -> Aligner:
    """The alignments that a checkpoint's model finds between tokens and true mels."""
    from benchmarks.studies.synthesis.trained import load_trained

    synthesizer = load_trained(path, store, training, args.device, args.backend)

    def durations(utterances: Sequence[Utterance]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        items = sorted((each.item for each in utterances), key=lambda item: store.rows[item].frames)
        for start in cli.progress(range(0, len(items), args.batch_size), desc=str(path), unit="batch"):
            batch = items[start : start + args.batch_size]
            found |= _durations_of_batch(synthesizer, store, batch)
        return [found[each.item] for each in utterances]

    return durations


def _durations_of_batch(synthesizer: Synthesizer, store: FeatureStore, items: Sequence[int]) -> dict[int, np.ndarray]:
    """Frames (n,) of each token by the model, for an utterance by its place in the store."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = [torch.from_numpy(store.tokens(item)).long() for item in items]
    mels = [torch.from_numpy(store.mel(item)) for item in items]
    device = synthesizer.device
    found = synthesizer.model.compare(
        pad_sequence(tokens, batch_first=True).to(device),
        torch.tensor([len(each) for each in tokens], device=device),
        pad_sequence(mels, batch_first=True).to(device),
        torch.tensor([len(each) for each in mels], device=device),
    ).durations.cpu()
    pairs = zip(items, tokens, found, strict=True)
    return {item: durations[: len(each)].numpy() for item, each, durations in pairs}


def _add_ratios(results: list[dict[str, Any]]) -> None:
    """Ratios of the mean errors of the aligners without a model to the model's, on the same phones."""
    means = {(each["aligner"], each["list"]): each["mean_ms"] for each in results}
    for each in results:
        for base in BASES:
            each[f"{base}_ratio"] = means[base, each["list"]] / each["mean_ms"] if each["mean_ms"] else None


def _table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row per aligner and list."""
    from benchmarks.grid import markdown
    from benchmarks.studies.synthesis.boundaries import WITHIN

    header = ["aligner", "list", "mean error [95 %]", "median", *(f"within {limit} ms" for limit in WITHIN), "signed"]
    header += ["stops: mean, signed", "others: mean, signed", *(f"{base} / this" for base in BASES)]
    rows = []
    for each in results:
        interval = " [{:.1f}, {:.1f}]".format(*each["mean_ci_ms"]) if each["mean_ci_ms"] else ""
        row = [each["aligner"], each["list"], f"{each['mean_ms']:.1f} ms{interval}"]
        row += [f"{each['median_ms']:.1f} ms", *(f"{100 * each[f'within_{limit}_ms']:.1f} %" for limit in WITHIN)]
        row += [f"{each['signed_mean_ms']:+.1f} ms", _part_cell(each["stops"]), _part_cell(each["others"])]
        row += ["–" if each[f"{base}_ratio"] is None else f"{each[f'{base}_ratio']:.2f}" for base in BASES]
        rows.append(row)
    counts = {each["list"]: each for each in results}
    shares = (
        f"{name}: {counts[name]['utterances']} utterances, {counts[name]['matched']} of {counts[name]['phones']} phones"
        f" matched ({100 * counts[name]['matched'] / counts[name]['phones']:.1f} %)"
        for name in LISTS
    )
    return f"{markdown.table(header, rows)}\n\n{'; '.join(shares)}.\n"


def _part_cell(part: dict[str, Any]) -> str:
    return f"{part['mean_ms']:.1f}, {part['signed_mean_ms']:+.1f} ms" if part["phones"] else "–"


if __name__ == "__main__":
    sys.exit(main())
