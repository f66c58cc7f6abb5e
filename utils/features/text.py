"""Text to integer tokens by a symbol table that is stored with the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.cli import UserError

PAD, UNKNOWN = "<pad>", "<unk>"


class Vocabulary:
    """A table of symbols; a token is a symbol's place in it.

    Token 0 pads batches and token 1 stands for every symbol that the table lacks.
    """

    def __init__(self, units: str, symbols: Sequence[str]) -> None:
        self.units = units
        self.symbols = tuple(symbols)
        self._tokens = {symbol: token for token, symbol in enumerate(self.symbols)}
        if self.symbols[:2] != (PAD, UNKNOWN) or len(self._tokens) != len(self.symbols):
            raise UserError(f"a vocabulary begins with {PAD} and {UNKNOWN} and holds each symbol once")

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.units, self.symbols))

    def encode(self, text: str) -> tuple[np.ndarray, Counter[str]]:
        """Tokens (N,) int32 of `text` in lower case with single spaces, and how often each unknown symbol occurs."""
        symbols = " ".join(text.lower().split())
        unknown = Counter(symbol for symbol in symbols if symbol not in self._tokens)
        tokens = [self._tokens.get(symbol, 1) for symbol in symbols]
        return np.array(tokens, dtype=np.int32), unknown

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of tokens, without padding."""
        return "".join(self.symbols[int(token)] for token in tokens if int(token) != 0)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain JSON values."""
        return {"units": self.units, "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, fields: Any) -> Vocabulary:
        """The inverse of `to_dict`; `UserError` if `fields` is not a vocabulary."""
        if not isinstance(fields, dict) or set(fields) != {"units", "symbols"}:
            raise UserError("a vocabulary has exactly the fields units and symbols")
        return cls(fields["units"], fields["symbols"])


CHARACTERS = Vocabulary("char", (PAD, UNKNOWN, " ", *"abcdefghijklmnopqrstuvwxyz", *"'.,;:?!-\"()"))
