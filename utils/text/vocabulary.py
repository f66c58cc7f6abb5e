"""Symbols to integer tokens, by a table that is stored with the data and with the model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from utils.errors import UserError

PAD, UNKNOWN, BOS, EOS = SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PUNCTUATION = ".,;:?!-'\"()"
UNITS = ("char", "phoneme")


@dataclass(frozen=True)
class Vocabulary:
    """Table of symbols; a token is the index of its symbol.

    Token 0 pads batches, token 1 stands for every symbol that is not in the table, 2 begins and 3 ends a text.
    """

    units: str
    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise UserError(f"a vocabulary's units are {' or '.join(UNITS)}, not {self.units!r}")
        if self.symbols[:4] != SPECIAL or len(self._tokens) != len(self.symbols):
            raise UserError(f"a vocabulary begins with {' '.join(SPECIAL)} and holds each symbol once")

    @functools.cached_property
    def _tokens(self) -> dict[str, int]:
        return {symbol: token for token, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, symbols: Sequence[str]) -> tuple[np.ndarray, Counter[str]]:
        """Encodes `symbols` (of a string, its characters) as tokens (N,) int32; also counts each unknown symbol."""
        tokens = [self._tokens.get(symbol, 1) for symbol in symbols]
        return np.array(tokens, dtype=np.int32), Counter(symbol for symbol in symbols if symbol not in self._tokens)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Joins the symbols of tokens, without padding, beginning and end."""
        return "".join(self.symbols[int(token)] for token in tokens if int(token) not in (0, 2, 3))

    def to_dict(self) -> dict[str, Any]:
        """Returns the table as plain JSON values."""
        return {"units": self.units, "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, fields: Any) -> Vocabulary:
        """Inverse of `to_dict`; `UserError` if `fields` is not a vocabulary."""
        if not isinstance(fields, dict) or set(fields) != {"units", "symbols"}:
            raise UserError("a vocabulary has exactly the fields units and symbols")
        if not isinstance(fields["symbols"], list) or not all(isinstance(symbol, str) for symbol in fields["symbols"]):
            raise UserError("a vocabulary's symbols are a list of strings")
        return cls(fields["units"], tuple(fields["symbols"]))


# All characters of espeak-ng 1.52's en-us for 135,000 dictionary words, all words of three letters, and 100,000 words
# of random letters. One character is one token, so a syllabic or nasal mark is a separate token after its letter.
_IPA = "ˈˌː" + "aæɐɑeəɚɛɜiɪᵻoɔuʊʌ" + "bdðfɡhjklɬmnŋprɹɾsʃtθvwxzʒʔ" + "\u0329\u0303ʲ"

VOCABULARIES = MappingProxyType(
    {
        "char": Vocabulary("char", (*SPECIAL, " ", *PUNCTUATION, *"abcdefghijklmnopqrstuvwxyz")),
        "phoneme": Vocabulary("phoneme", (*SPECIAL, " ", *PUNCTUATION, *_IPA)),
    }
)
