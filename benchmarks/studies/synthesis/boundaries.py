"""Boundary errors: distances between the starts of phones in an alignment and their true starts.

A phone, one or more IPA letters, starts with the token of its first letter, or with a stress mark right before that
one; blanks, punctuation and pauses have no counterpart and are not measured.
"""

from __future__ import annotations

import difflib
import itertools
import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError
from utils.features.recipe import MelRecipe
from utils.tts.speech_metrics import bootstrap_ratio

STRESS = "ˈˌ"
STOPS = ("p", "b", "t", "d", "k", "ɡ", "tʃ", "dʒ")
WITHIN = (25, 50)  # ms


class Timing(NamedTuple):
    """Report of espeak-ng on an utterance: symbols (empty for a pause) with their starts, and the end, in s."""

    phones: list[tuple[str, float]]
    end: float


@dataclass(frozen=True)
class Utterance:
    """An utterance whose phones have been found among its tokens.

    Attributes:
        item: its place in the store.
        symbols: one a token.
        tokens: (k,) the token that each matched phone starts with, rising.
        starts: (k,) where espeak-ng starts these phones, s.
        stops: (k,) whether they are plosives or affricates.
        phones: how many phones there are, matched or not.
        end: length, s.
        frames: length in mel frames.
    """

    item: int
    symbols: tuple[str, ...]
    tokens: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    phones: int
    end: float
    frames: int


def read_phones(path: Path) -> dict[str, Timing]:
    """The timings of a phones.jsonl by utterance; `UserError` if it is not such a file."""
    timings = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = json.loads(line)
            phones = [(str(symbol), float(start)) for symbol, start in fields["phones"]]
            timings[str(fields["utterance"])] = Timing(phones, float(fields["end_s"]))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a list of phone times as download.py --dataset demo-voice makes it") from error
    return timings


def locate(item: int, symbols: Sequence[str], frames: int, timing: Timing) -> Utterance:
    """An utterance with the phones that are found among its tokens."""
    found = match(symbols, [symbol for symbol, _ in timing.phones])
    matched = [timing.phones[phone] for phone in found]
    return Utterance(
        item=item,
        symbols=tuple(symbols),
        tokens=np.array(list(found.values()), dtype=int),
        starts=np.array([start for _, start in matched]),
        stops=np.array([symbol in STOPS for symbol, _ in matched], dtype=bool),
        phones=sum(bool(_letters(symbol)) for symbol, _ in timing.phones),
        end=timing.end,
        frames=frames,
    )


def match(symbols: Sequence[str], phones: Sequence[str]) -> dict[int, int]:
    """For the phones that are found among the tokens' symbols, the token that each starts with."""
    of_tokens = [(letter, token) for token, symbol in enumerate(symbols) for letter in _letters(symbol)]
    of_phones = [(letter, phone) for phone, symbol in enumerate(phones) for letter in _letters(symbol)]
    letters = ["".join(letter for letter, _ in pairs) for pairs in (of_phones, of_tokens)]
    token_of: dict[int, int] = {}  # the token of a letter of the phones
    for block in difflib.SequenceMatcher(None, *letters, autojunk=False).get_matching_blocks():
        token_of |= {block.a + step: of_tokens[block.b + step][1] for step in range(block.size)}
    found = {}
    for phone, group in itertools.groupby(range(len(of_phones)), key=lambda place: of_phones[place][1]):
        places = list(group)
        if all(place in token_of for place in places):
            first = token_of[places[0]]
            found[phone] = first - 1 if first > 0 and symbols[first - 1] in STRESS else first
    return found


def _letters(symbol: str) -> str:
    """The letters, length marks and diacritics of a symbol; none in marks of the text such as <s>."""
    if symbol.startswith("<"):
        return ""
    return "".join(letter for letter in symbol if unicodedata.category(letter)[0] in "LM" and letter not in STRESS)


def edge(recipe: MelRecipe, frame: Any) -> Any:
    """The second at which frame number `frame` begins: halfway between its center and that of the one before.

    Frame t is centered at (t + 1/2) hop_length with "hifigan" padding, and at t hop_length + win_length / 2 without.
    """
    offset = 0.0 if recipe.padding == "hifigan" else (recipe.win_length - recipe.hop_length) / 2
    return (frame * recipe.hop_length + offset) / recipe.sample_rate


def estimated_starts(utterance: Utterance, durations: np.ndarray, recipe: MelRecipe) -> np.ndarray:
    """The starts (k,) in s of the matched phones by the tokens' durations (n,) in frames, which may be fractions."""
    before = np.cumsum(durations) - durations
    return edge(recipe, before[utterance.tokens])


def uniform_durations(utterance: Utterance) -> np.ndarray:
    """The same time for every token: durations (n,) in frames."""
    count = len(utterance.symbols)
    return np.full(count, utterance.frames / count)


def average_aligner(training: Sequence[Utterance]) -> Callable[[Utterance], np.ndarray]:
    """Durations (n,) in frames by each symbol's mean in `training`, stretched to the utterance's length.

    Between the starts of two phones true time is shared evenly by the tokens there.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for utterance in training:
        tokens = [0, *utterance.tokens, len(utterance.symbols)]
        starts = [0.0, *utterance.starts, utterance.end]
        shares = np.interp(np.arange(len(utterance.symbols) + 1), tokens, starts)
        for symbol, seconds in zip(utterance.symbols, np.diff(shares), strict=True):
            seen[symbol].append(float(seconds))
    means = {symbol: sum(values) / len(values) for symbol, values in seen.items()}
    unseen = sum(means.values()) / len(means)

    def durations(utterance: Utterance) -> np.ndarray:
        seconds = np.array([means.get(symbol, unseen) for symbol in utterance.symbols])
        return seconds * (utterance.frames / seconds.sum())

    return durations


def figures(
    utterances: Sequence[Utterance], durations: Sequence[np.ndarray], recipe: MelRecipe, bootstrap: int
) -> dict[str, Any]:
    """Boundary errors of an aligner in ms: mean and its interval (None for one utterance), median, signed mean (late
    is above 0), shares.
    """
    pairs = zip(utterances, durations, strict=True)
    signed = [1000 * (estimated_starts(each, lengths, recipe) - each.starts) for each, lengths in pairs]
    errors, stops = np.concatenate(signed), np.concatenate([each.stops for each in utterances])
    if not errors.size:
        raise UserError("none of the phones is found among the tokens: are these the phones of this text?")
    matched = [np.abs(part) for part in signed if len(part)]
    return {
        "mean_ms": float(np.abs(errors).mean()),
        "mean_ci_ms": bootstrap_ratio([part.sum() for part in matched], [len(part) for part in matched], bootstrap),
        "median_ms": float(np.median(np.abs(errors))),
        **{f"within_{limit}_ms": float((np.abs(errors) <= limit).mean()) for limit in WITHIN},
        "signed_mean_ms": float(errors.mean()),
        "stops": _part(errors[stops]),
        "others": _part(errors[~stops]),
    }


def _part(errors: np.ndarray) -> dict[str, Any]:
    if not errors.size:
        return {"phones": 0, "mean_ms": None, "signed_mean_ms": None}
    return {
        "phones": len(errors),
        "mean_ms": float(np.abs(errors).mean()),
        "signed_mean_ms": float(errors.mean()),
    }
