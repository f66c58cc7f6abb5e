"""Written English to spoken words, in lower case with the punctuation that guides a voice.

    normalize("Dr. Smith paid $3.50 on Jan. 5, 1984.")
    # "doctor smith paid three dollars and fifty cents on january fifth, nineteen eighty-four."

num2words spells numbers, and anyascii removes accents of Latin script. Words in capitals stay words (nasa); letters
with periods are spelled and joined by hyphens (u-s-a), so that the letter A is not read as an article. What has no
English reading (Chinese, emoji) is kept, and the vocabulary counts it.
"""

from __future__ import annotations

import re

from utils.text.abbreviations import TITLE_WORDS, expand_abbreviations
from utils.text.ends import STARTERS, stop_before_starter
from utils.text.number_words import cardinal, ordinal
from utils.text.numbers import Match, expand_numbers
from utils.text.symbols import MINUS_ABOVE, SUPERSCRIPTS, fold

_RULERS = (
    "Alexander Benedict Catherine Charles Christian Clement Constantine Edward Elizabeth Ferdinand Francis Frederick "
    "George Gregory Gustav Henry Innocent Ivan James John Leo Leopold Louis Mary Max Napoleon Nicholas Otto Paul Peter "
    "Philip Pius Ramses Richard Robert Urban Victor Wilhelm William"
).split()
_NUMBERED = (
    "chapter book part volume act scene section article canto appendix phase type class stage level bowl".split()
)
_SYMBOLS = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "@": "at",
    "#": "hash",
    "%": "percent",
    "‰": "per mille",
    "*": "asterisk",
    "/": "slash",
    "\\": "backslash",
    "|": "bar",
    "<": "less than",
    ">": "greater than",
    "~": "tilde",
    "^": "caret",
    "_": "underscore",
    "$": "dollar",
    "£": "pound",
    "€": "euro",
    "¥": "yen",
    "₹": "rupee",
    "¢": "cent",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "≈": "about",
    "≠": "is not equal to",
    "≤": "at most",
    "≥": "at least",
    "∞": "infinity",
    "§": "section",
    "©": "copyright",
    "®": "registered",
    "²": "squared",
    "³": "cubed",
}
# Acronyms that are other words in lower case; FBI is not, and IT without an article may be a stressed "it".
_ACRONYM = re.compile(r"\b(?:UN|US|LA|VIP|EPA|YMCA)\b(?!\$)|(?<=\b[Tt]he )(?:IT|WHO)\b|(?<=\b[Aa]n )IT\b")
PASSES = 8  # a pass can expose an abbreviation ("Co.Mr."); the last pass, mostly the second, changes nothing
_ROMAN = "(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})"


def normalize(text: str) -> str:
    """Converts English text to speakable words: lower case, single blanks, and the marks . , ; : ? ! - ' " ( ).

    Normalized text is returned unchanged, and symbols without an English reading are kept. The time is linear.
    """
    if any(char.islower() for char in text):  # in a text in capitals, acronyms cannot be distinguished from words
        text = _ACRONYM.sub(lambda match: "-".join(match[0]), text)
    for _ in range(PASSES):
        spoken = _speak(text)
        if spoken == text:
            break
        text = spoken
    return text


def _speak(text: str) -> str:
    text = _EMPHASIS.sub(r"\2", fold(text))
    text = re.sub(rf"{MINUS_ABOVE}?[{SUPERSCRIPTS}]+", _power, text)
    text = expand_abbreviations(text)
    text = _expand_roman(text)
    text = expand_numbers(text)
    text = _spell_letters(text)
    text = _SYMBOL.sub(lambda match: f" {_SYMBOLS[match[0]]} ", text)
    return _tidy(text.lower())


_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})((?=[\w\"'(])[^*]*[\w\"'.,;:?!)])\1(?![\w*])")  # *so*, but not /*/*


def _power(match: Match) -> str:
    if match[0] in ("²", "³"):
        return match[0]
    sign = "minus " * match[0].startswith(MINUS_ABOVE)
    return f" to the power of {sign}" + "".join(
        str(SUPERSCRIPTS.index(digit)) for digit in match[0].lstrip(MINUS_ABOVE)
    )


_RULER = re.compile(
    rf"\b({'|'.join(_RULERS)}|{'|'.join(_RULERS).upper()}) "
    rf"({_ROMAN})(?![^\W_]|'(?!s\b))(?P<initial>\. [A-Z][\w']*)?(?P<first>[,.;:]|'s| of\b)?"
)
_NUMBERED_PART = re.compile(
    rf"\b((?i:{'|'.join(_NUMBERED)})) (?!I\b(?![.,:;)]|$))({_ROMAN})(?![^\W_]|'(?!s\b))|"
    rf"\b(World War|WORLD WAR) ({_ROMAN})(?![^\W_]|'(?!s\b))|"
    rf"\b((?i:{'|'.join(_NUMBERED)})) (?=[ivxl]{{2,7}}\b)({_ROMAN.lower()})(?![^\W_]|')|"
    r"\b(Phase|Type|Class|Stage|Level) (I)(?= [a-z])"
)
_SEQUEL = re.compile(
    rf"\b(?!(?:An|{'|'.join(sorted(STARTERS))})\b)([A-Z][A-Za-z]*[a-z]) (?=[IVX]{{2}})(?![IVX]*L)"
    rf"({_ROMAN})(?![^\W_]|'(?!s\b))"
)
_ROMAN_PLACE = re.compile(rf"\b(?!I\b)({_ROMAN})(?:(?<=[IVXL]{{2}})(?:st|nd|rd|th)\b|(?=[\s-][Cc]entur(?:y|ies)\b))")


def _expand_roman(text: str) -> str:
    text = _RULER.sub(_ruler, text)
    text = _NUMBERED_PART.sub(_numbered_part, text)
    text = _ROMAN_PLACE.sub(lambda match: ordinal(_roman(match[1])), text)
    return _SEQUEL.sub(_numbered_part, text)


def _ruler(match: Match) -> str:
    """Charles V is the fifth, Charles V. Smith has a middle initial, and an I without a mark after it may be a word."""
    name, numeral = match[1], match[2]
    rest = match[0][len(name) + 1 + len(numeral) :]
    follows = match["initial"]
    is_initial = len(numeral) == 1 and follows is not None and follows[2:] not in STARTERS
    if numeral == "L" or is_initial or (numeral == "I" and (follows or match["first"]) is None):
        return match[0]
    return f"{name} the {ordinal(_roman(numeral))}{rest}"


def _numbered_part(match: Match) -> str:
    name, numeral = (group for group in match.groups() if group is not None)
    return f"{name} {cardinal(str(_roman(numeral.upper())))}"


def _roman(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-value if value < after else value for value, after in zip(values, following, strict=True))


_LETTERS = re.compile(r"(?<![^\W_])(?<![^\W_][.'])[A-Za-z](?:\.[A-Za-z])+(?![^\W_])\.?(?![^\W_])")
_INITIALS = re.compile(
    rf"(?:(?<![\w'.])(?P<name>[A-Z][\w']*|{'|'.join(TITLE_WORDS)})(?P<blank> ))?(?<![^\W_])(?<![^\W_][.'])"
    r"(?P<letters>[A-Z]\.(?: [A-Z]\.)*)(?![^\W_])(?P<next>(?= [A-Z][\w'-]*))?"
)
_LETTERS_AND = re.compile(r"\b(?:[A-Z]{2}&[A-Z]|[A-Z]&A|A&[A-Z])\b")  # an isolated A is an article; R&D is words
_LETTER_A = re.compile(r"(?<=[a-z]) A(?= [a-z])")
_PERIOD = re.compile(r"(?<=[^\W_])\.(?=[^\W_])")


def _spell_letters(text: str) -> str:
    """Joins letters with periods by hyphens, to be spelled; speaks any other period inside a word, unless a sentence
    begins after it. Joins an isolated letter A to the word before it, as it would be an article otherwise.
    """
    text = _LETTERS.sub(lambda match: match[0].replace(".", "-").rstrip("-") + stop_before_starter(match), text)
    text = _INITIALS.sub(_initials, text)
    text = _LETTERS_AND.sub(lambda match: "-".join(match[0]).replace("&", "and"), text)
    text = _LETTER_A.sub("-A", text)
    return _PERIOD.sub(_say_dot, text)


def _initials(match: Match) -> str:
    """Removes the periods of initials; of a single letter only before a name, as it may end a sentence otherwise."""
    letters, name = re.findall("[A-Z]", match["letters"]), match["name"]
    end = stop_before_starter(match)
    if len(letters) == 1 and (end or match["next"] is None or (letters == ["I"] and name is None)):
        return match[0]
    joint = "-" if name and letters == ["A"] else match["blank"] or ""
    return f"{name or ''}{joint}{'-'.join(letters)}{end}"


def _say_dot(match: Match) -> str:
    before, after = match.string[match.start() - 1], match.string[match.end()]
    return ". " if before.islower() and after.isupper() else " dot "


_SYMBOL = re.compile(f"[{re.escape(''.join(_SYMBOLS))}]")


# "twelve:thirty", as in the normalized column of LJSpeech.
_CLOCK = re.compile(
    r"\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve):"
    r"(?=(?:oh|ten|eleven|twelve|[a-z]+teen|twenty|thirty|forty|fifty)\b)"
)


def _tidy(text: str) -> str:
    """Leaves single blanks, none before closing marks and one after those inside a line, and repeated marks once."""
    text = text.replace("–", " - ")
    text = re.sub("''+", '"', text)
    text = re.sub("-{2,}", " - ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" (?=[.,;:?!)])|(?<=\() ", "", text)
    text = re.sub(r"([,;:?!\"])\1+", r"\1", text)
    text = re.sub(r"\.{2,}", "...", text)
    text = _CLOCK.sub(r"\1 ", text)
    return re.sub(r"([,;:?!])(?=[^\W_])", r"\1 ", text).strip()
