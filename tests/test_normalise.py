"""The normaliser: exact words, and what holds for any text."""

import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.text.normalise import normalise
from utils.text.symbols import fold

WORDS = {
    # Plain text.
    "": "",
    " \t\n ": "",
    "  Don't\n PANIC! ": "don't panic!",
    "THE QUICK BROWN FOX'S DEN": "the quick brown fox's den",
    "Hello , world !!! What ?! Wait....": "hello, world! what?! wait...",
    "one,two;three": "one, two; three",
    "( so ) [it] {is}": "(so) (it) (is)",
    # Whole numbers and decimals.
    "0 7 12 100": "zero seven twelve one hundred",
    "1,234 and 1,000,000": "one thousand two hundred and thirty-four and one million",
    "1234567": "one million two hundred and thirty-four thousand five hundred and sixty-seven",
    "3.14, .5 and 0.05": "three point one four, point five and zero point zero five",
    "version 3.5.2": "version three point five point two",
    "-5, −12 and 5 − 3, not 5 - 3": "minus five, minus twelve and five minus three, not five - three",
    "agent 007": "agent zero zero seven",
    "12345678901234567": "one two three four five six seven eight nine zero one two three four five six seven",
    "We need 12. Then 3": "we need twelve. then three",
    # Fractions, percent, ranges.
    "1/2, 3/4 and 2/3": "one half, three quarters and two thirds",
    "2 1/2 or 2½ cups": "two and one half or two and one half cups",
    "24/7": "twenty-four slash seven",
    "50% of 3.5 %": "fifty percent of three point five percent",
    "10-15 and 1914–1918": "ten to fifteen and nineteen fourteen to nineteen eighteen",
    "a ratio of 16:9": "a ratio of sixteen to nine",
    # Money.
    "$3.50": "three dollars and fifty cents",
    "$1 and $1.01": "one dollar and one dollar and one cent",
    "$0.05": "five cents",
    "£5 or €1,000": "five pounds or one thousand euros",
    "$2 million": "two million dollars",
    "$2.5bn": "two point five billion dollars",
    "5€, 50¢, ¥500, -$5": "five euros, fifty cents, five hundred yen, minus five dollars",
    "$5-$10": "five dollars to ten dollars",
    "$1,234.56": "one thousand two hundred and thirty-four dollars and fifty-six cents",
    # Years, decades, dates.
    "in 1984, 1905 and 2005": "in nineteen eighty-four, nineteen oh-five and two thousand and five",
    "1,984 people in 2024": "one thousand nine hundred and eighty-four people in twenty twenty-four",
    "the 1900s, the 1980s, the '80s": "the nineteen hundreds, the nineteen eighties, the 'eighties",
    "Jan. 5, 1984": "january fifth, nineteen eighty-four",
    "5 January 1984": "the fifth of january, nineteen eighty-four",
    "the 22nd of June, 1866": "the twenty-second of june, eighteen sixty-six",
    "2024-01-31": "january thirty-first, twenty twenty-four",
    "12/31/1999 or 31/12/99": "december thirty-first, nineteen ninety-nine or december thirty-first, ninety-nine",
    "on May 5th, in May 1984": "on may fifth, in may nineteen eighty-four",
    "I may 5 times": "i may five times",
    # Times.
    "at 3:45 p.m. today": "at three forty-five p m today",
    "12:00, 3:05 and 10:30 AM": "twelve o'clock, three oh five and ten thirty a m",
    "We met at 3 p.m. He left at 5pm.": "we met at three p m. he left at five p m.",
    # Ordinals, Roman numerals.
    "1st, 22nd, 103rd and 11TH": "first, twenty-second, one hundred and third and eleventh",
    "Henry VIII and Louis XIV": "henry the eighth and louis the fourteenth",
    "Chapter IV, part ii, World War II": "chapter four, part two, world war two",
    "For my part I will mix": "for my part i will mix",
    # Measures and digits in words.
    "5 km, 10 kg, 3 lbs, 1 km": "five kilometers, ten kilograms, three pounds, one kilometer",
    "20°C or 68 °F": "twenty degrees celsius or sixty-eight degrees fahrenheit",
    "60 mph, 5 m², 2.5 GHz": "sixty miles per hour, five square meters, two point five gigahertz",
    "He is 6 ft. tall. It is 5 ft.": "he is six feet tall. it is five feet.",
    "a 10-year MP3 of H2O": "a ten-year mp three of h two o",
    "x² and 10⁴": "x squared and ten to the power of four",
    "555-1234": "five five five, one two three four",
    "(555) 123-4567": "five five five, one two three, four five six seven",
    # Abbreviations and letters.
    "Mr. and Mrs. Smith": "mister and missus smith",
    "Dr. Jones of Elm Dr.": "doctor jones of elm drive.",
    "St. John lives on Main St. He is old.": "saint john lives on main street. he is old.",
    "Smith & Co. and John Brown, Jr.": "smith and company and john brown, junior.",
    "Nuts, etc. The rest, e.g. dates, i.e. fruit": "nuts, et cetera. the rest, for example dates, that is fruit",
    "No. 3, Nos. 4 and 5, #6. No. Never.": "number three, numbers four and five, number six. no. never.",
    "Roe v. Wade vs. all": "roe versus wade versus all",
    "Gen. Lee, gen. terms": "general lee, gen. terms",
    "p. 5, vol. 2": "page five, volume two",
    "the U.S. Army, NASA, Ph.D., U.S.A.": "the u s army, nasa, p h d, u s a.",
    "J. F. Kennedy": "j f kennedy",
    # Symbols and addresses.
    "R&D + x = y": "r and d plus x equals y",
    "and/or #tag 5 * 3": "and slash or hash tag five asterisk three",
    "me@example.com": "me at example dot com",
    "https://www.example.com/a_b": "w w w dot example dot com slash a underscore b",
    "The end.Next": "the end. next",
    # Unicode.
    "“It’s” ‘so’ — or – not…": "\"it's\" 'so' - or - not...",
    "one--two -- three": "one - two - three",
    "ﬁne café naïve Ærø straße": "fine cafe naive aero strasse",
    "cafe\u0301 soft\u00adware": "cafe software",
    "ＦＵＬＬ　１２ wide\u00a0blank": "full twelve wide blank",
    "中文, Привет 👍 n° 3": "中文, привет 👍 n° three",
}


@pytest.mark.parametrize("written", WORDS)
def test_exact_words(written):
    assert normalise(written) == WORDS[written]


@pytest.mark.parametrize("spoken", WORDS.values())
def test_what_is_normalised_stays(spoken):
    assert normalise(spoken) == spoken


PIECES = st.sampled_from(
    "a I x mr. Mr. Co. St. dr. No. 5 1,000 12 . , ; : - -- – — ' \" ( ) [ $ £ % ° / & # _ é ß 中 👍 ½ ² U.S. e.g. etc. "
    "p.m. Jan. May VIII IV Henry chapter k m bn st nd th s ft km 1984 2024-01-31 3:45 1/2 555-1234 www. Ph.D. v. "
    "\u0301 \u00a0 … II Sen. vol. 0 007 .5 3.14 € ~".split(" ")
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(PIECES, st.sampled_from(["", " "])), max_size=9).map(lambda parts: "".join(map("".join, parts)))
)
def test_any_mixture_has_words_for_all_its_numbers_and_stays(text):
    spoken = normalise(text)
    assert normalise(spoken) == spoken
    assert not set(spoken) & set(string.digits + string.ascii_uppercase + "$£€%/&#_[]{}½²")
    assert spoken == spoken.strip() and "  " not in spoken


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_letter_of_another_script_is_lost(text):
    spoken = normalise(text)
    assert normalise(spoken) == spoken
    kept = [char for char in fold(text) if not char.isascii() and unicodedata.category(char)[0] == "L"]
    assert all(spoken.count(char.lower()) >= kept.count(char) for char in kept)


# Each would take hours with a pattern that begins anew at every character of a run, or backtracks over it.
@pytest.mark.parametrize("unit", ["a", "1", ",", ".", "-", "'", "1,000,", "a.", "Mr. ", "é\u0301"])
def test_very_long_texts_end(unit):
    text = (unit * 200_000)[:200_000]
    assert len(normalise(text)) <= 20 * len(text)


def test_a_thousand_words_are_all_there():
    text = "The 2 dogs of Mr. Jones ran 5 km. " * 125
    assert normalise(text).split() == "the two dogs of mister jones ran five kilometers.".split() * 125
