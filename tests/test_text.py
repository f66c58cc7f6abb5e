"""Vocabularies, the front end, and the splitting of long texts."""

from collections import Counter

import numpy as np
import pytest

from utils.errors import UserError
from utils.text.frontend import LONGEST_SENTENCE, FrontEnd, split_sentences
from utils.text.normalize import normalize
from utils.text.vocabulary import VOCABULARIES, Vocabulary

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
CHARACTERS = VOCABULARIES["char"]


@pytest.fixture(scope="module")
def characters():
    return FrontEnd.for_units("char")


def test_the_vocabularies_of_stored_data_do_not_change():
    assert [*VOCABULARIES] == ["char", "phoneme"]
    for vocabulary in VOCABULARIES.values():
        assert list(vocabulary.symbols[:4]) == SPECIAL
        assert "".join(vocabulary.symbols[4:16]) == " .,;:?!-'\"()"
    assert "".join(CHARACTERS.symbols[16:]) == "abcdefghijklmnopqrstuvwxyz"
    sounds = "".join(VOCABULARIES["phoneme"].symbols[16:])
    assert sounds == "ˈˌːaæɐɑeəɚɛɜiɪᵻoɔuʊʌbdðfɡhjklɬmnŋprɹɾsʃtθvwxzʒʔ\u0329\u0303ʲ"


def test_exact_tokens(characters):
    (text,) = characters.encode(["  Don't  PANIC!\n"])
    assert text.tokens.dtype == np.int32
    assert text.tokens.tolist() == [2, 19, 30, 29, 12, 35, 4, 31, 16, 29, 24, 18, 10, 3]
    assert text.symbols == ("<s>", *"don't panic!", "</s>") and text.spoken == "don't panic!"
    assert not text.unknown and characters.vocabulary.decode(text.tokens) == "don't panic!"


def test_unknown_symbols_are_counted_and_keep_their_place(characters):
    (text,) = characters.encode(["Café 中 3, 中👍"])
    assert text.unknown == Counter({"中": 2, "👍": 1})
    assert text.symbols[1:-1] == tuple("cafe 中 three, 中👍")
    assert characters.vocabulary.decode(text.tokens) == "cafe <unk> three, <unk><unk>"
    assert np.flatnonzero(text.tokens == 1).tolist() == [6, 15, 16]


def test_each_text_is_encoded_independently(characters):
    texts = ["One.", "", "two 中", "One."]
    together = characters.encode(texts)
    assert [text.spoken for text in together] == ["one.", "", "two 中", "one."]
    assert [text.unknown for text in together] == [{}, {}, {"中": 1}, {}]
    assert together[0].tokens.tolist() == together[3].tokens.tolist() == characters.encode(["One."])[0].tokens.tolist()
    assert characters.encode([]) == []


@pytest.mark.parametrize("text", ["", " ", "...", "?!", '" - "', "中文", "👍", "°"])
def test_texts_that_say_nothing(characters, text):
    (encoded,) = characters.encode([text])
    assert encoded.says_nothing and encoded.tokens[[0, -1]].tolist() == [2, 3]


@pytest.mark.parametrize("text", ["a", "7", "é", "%", "&", "(中 b)"])
def test_texts_that_say_something(characters, text):
    assert not characters.encode([text])[0].says_nothing


def test_padding_and_ends_decode_to_nothing():
    assert CHARACTERS.decode([2, 16, 17, 3, 0, 0]) == "ab"


def test_a_table_survives_json():
    assert Vocabulary.from_dict(CHARACTERS.to_dict()) == CHARACTERS
    assert Vocabulary("char", (*SPECIAL, "a")) != CHARACTERS
    assert Vocabulary("phoneme", CHARACTERS.symbols) != CHARACTERS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        [],
        None,
        {"units": "char", "symbols": ["a"]},
        {"units": "char", "symbols": ["<pad>", "<unk>", " ", "a"]},  # of a store of format 1
        {"units": "word", "symbols": SPECIAL},
        {"units": "char", "symbols": 5},
        {"units": "char", "symbols": [*SPECIAL, ["a"]]},
    ],
)
def test_broken_vocabularies_are_refused(fields):
    with pytest.raises(UserError, match="a vocabulary"):
        Vocabulary.from_dict(fields)


def test_a_repeated_symbol_is_refused():
    with pytest.raises(UserError, match="each symbol once"):
        Vocabulary("char", (*SPECIAL, "a", "a"))


def test_unknown_units_are_refused():
    with pytest.raises(UserError, match="units are char or phoneme, not 'word'"):
        FrontEnd.for_units("word")


SENTENCES = {
    "": [],
    " . ": ["."],
    "One": ["one"],
    "Dr. Who met J. Smith at 3.5 km. Really? Yes!": [
        "doctor who met j smith at three point five kilometers.",
        "really?",
        "yes!",
    ],
    'He said "no!" (Then...) He left.': ['he said "no!"', "(then...)", "he left."],
    '"Stop!" he cried. Well... maybe so, Yahoo! is.': ['"stop!" he cried.', "well... maybe so, yahoo! is."],
    'He said "no." and left?! so. Then': ['he said "no." and left?! so.', "then"],
    "At 5 p.m. Monday in the U.S. They do. Robert I. Bouck": [
        "at five p-m monday in the u-s.",
        "they do.",
        "robert i bouck",
    ],
    "Wait. - ! Ok": ["wait. -!", "ok"],
    "No. No. No.": ["no.", "no.", "no."],
    "中文. 👍": ["中文. 👍"],
}


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences(text):
    assert split_sentences(text) == SENTENCES[text]


def test_sentences_that_are_too_long_are_split_at_the_best_place():
    clause = "x" * 100
    assert split_sentences(f"{clause}; {clause}, {clause} {clause} {clause}")[0] == f"{clause};"
    assert split_sentences(f"{clause} {clause}, {clause} {clause} {clause}")[0] == f"{clause} {clause},"
    assert split_sentences(" ".join([clause] * 5)) == [f"{clause} {clause} {clause}", f"{clause} {clause}"]
    assert [len(piece) for piece in split_sentences("x" * 1000)] == [400, 400, 200]


@pytest.mark.parametrize(
    "text",
    [
        "word " * 1000,
        "a" * 10_000,
        "So it is. " * 1000,
        "a, " * 3000,
        '" ' * 3000,
        "- " * 3000,
        "1234567 " * 200,
        "!? " * 999,
    ],
)
def test_any_length_is_split_without_loss(text):
    pieces = split_sentences(text)
    assert "".join(pieces).replace(" ", "") == normalize(text).replace(" ", "")
    assert all(0 < len(piece) <= LONGEST_SENTENCE and normalize(piece) == piece for piece in pieces)
