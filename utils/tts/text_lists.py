"""Lists of the texts that train a text-to-mel model, that select its checkpoint, and that evaluate it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.features.store import Row
from utils.lists import as_lines, read_lines, read_splits_file, shuffled, write_splits

VALID_SHARE, TEST_SHARE = 0.05, 0.1
MOST_HELD = 500  # utterances in either list; more would hardly narrow the confidence intervals


@dataclass(frozen=True)
class TextLists:
    """Utterances to train on, to select a checkpoint by, and to report on."""

    train: list[str]
    valid: list[str]
    test: list[str]


def write_text_lists(directory: str | Path, rows: Iterable[Row], seed: int, request: Mapping[str, Any]) -> None:
    """Writes train, valid and test lists of utterances: 85, 5 and 10 %, drawn by the seed.

    `request` is stored in protocol.json. Raises `UserError` if there are too few utterances.
    """
    order = shuffled((row.utterance for row in rows), f"{seed}/text")
    valid, test = (min(MOST_HELD, max(1, round(share * len(order)))) for share in (VALID_SHARE, TEST_SHARE))
    if len(order) <= valid + test:
        raise UserError(f"{len(order)} utterances cannot be split into training, validation and test")
    lists = {"valid": order[:valid], "test": order[valid : valid + test], "train": order[valid + test :]}
    texts = {f"{name}.txt": as_lines(sorted(utterances)) for name, utterances in lists.items()}
    content = {"name": Path(directory).name, "seed": seed, "counts": {name: len(lists[name]) for name in lists}}
    write_splits(directory, texts, **content, files={}, request=dict(request))


def read_text_lists(directory: str | Path) -> TextLists:
    """Reads the lists of `write_text_lists`; `UserError` if they are missing or split speakers instead."""
    directory = Path(directory)
    read_splits_file(directory)
    if (directory / "heldout_speakers.txt").is_file():
        raise UserError(f"{directory} splits speakers, not texts: preprocess.py --task tts splits texts")
    return TextLists(*(read_lines(directory / f"{name}.txt") for name in ("train", "valid", "test")))
