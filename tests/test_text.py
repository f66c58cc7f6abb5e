from collections import Counter

import numpy as np
import pytest

from utils.cli import UserError
from utils.features.text import CHARACTERS, Vocabulary


def test_the_table_stays_what_stored_data_were_made_with():
    assert "".join(CHARACTERS.symbols[2:]) == " abcdefghijklmnopqrstuvwxyz'.,;:?!-\"()"
    assert CHARACTERS.symbols[:2] == ("<pad>", "<unk>") and len(CHARACTERS) == 40


def test_exact_tokens():
    tokens, unknown = CHARACTERS.encode("  Don't  PANIC!\n")
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [6, 17, 16, 29, 22, 2, 18, 3, 16, 11, 5, 35]
    assert not unknown and CHARACTERS.decode(tokens) == "don't panic!"


def test_unknown_symbols_are_counted_and_keep_their_place():
    tokens, unknown = CHARACTERS.encode("Café №3, café")
    assert unknown == Counter({"é": 2, "№": 1, "3": 1})
    assert tokens.tolist() == [5, 3, 8, 1, 2, 1, 1, 31, 2, 5, 3, 8, 1]
    assert CHARACTERS.decode(tokens) == "caf<unk> <unk><unk>, caf<unk>"


def test_nothing_and_padding():
    assert CHARACTERS.encode(" \t ")[0].shape == (0,)
    assert CHARACTERS.decode([3, 4, 0, 0]) == "ab"


def test_a_table_survives_json():
    assert Vocabulary.from_dict(CHARACTERS.to_dict()) == CHARACTERS
    assert Vocabulary("char", ("<pad>", "<unk>", "a")) != CHARACTERS


@pytest.mark.parametrize("fields", [{}, [], {"units": "char", "symbols": ["a"]}, None])
def test_what_is_no_vocabulary_is_refused(fields):
    with pytest.raises(UserError, match="a vocabulary"):
        Vocabulary.from_dict(fields)


def test_a_symbol_stands_once():
    with pytest.raises(UserError, match="each symbol once"):
        Vocabulary("char", ("<pad>", "<unk>", "a", "a"))
