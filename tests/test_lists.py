"""Lists survive what editors, other systems and file names do to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.files import write_text
from utils.lists import (
    Trial,
    as_lines,
    join_fields,
    read_identification,
    read_lines,
    read_speakers,
    read_trials,
    split_fields,
    trial_lines,
    unlistable,
)

BLANKS = "\u00a0\u3000\u2009\u2028\u2029\x85\x1c\x1d\x1e\x1f\x0b\x0c"
characters = st.sampled_from("ab \t\n\r\ufeff\udce9" + BLANKS) | st.characters(exclude_characters="\0")
names = st.text(characters, min_size=1, max_size=8)
listable = names.filter(lambda name: not unlistable(name))


@given(st.lists(listable, min_size=2, max_size=4))
def test_fields_survive_a_line(fields):
    line = join_fields(*fields)
    assert line.endswith("\n") and split_fields(line) == fields


@given(st.lists(names, min_size=1, max_size=3))
def test_what_a_line_cannot_hold_is_refused(fields):
    refused = any(map(unlistable, fields))
    assert refused == any(
        name != name.strip(" \t") or set("\t\n\r") & set(name) or name.startswith("\ufeff") or not _is_utf8(name)
        for name in fields
    )
    if refused:
        with pytest.raises(UserError, match="cannot be written into a list: it "):
            join_fields(*fields)


def _is_utf8(name: str) -> bool:
    return name.encode("utf-8", "replace").decode() == name


@given(st.lists(st.tuples(st.booleans(), listable, listable), min_size=1, max_size=4))
def test_lists_survive_their_files(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    trials = list({frozenset((a, b)): Trial(target, a, b) for target, a, b in drawn if a != b}.values())
    write_text(path, trial_lines(trials))
    assert read_trials(path, allow_empty=True) == trials
    pairs = [(b, a) for a, b in {a: b for _, a, b in drawn}.items()]
    write_text(path, "".join(join_fields(*pair) for pair in pairs))
    assert read_identification(path) == pairs
    lines = [a for _, a, _ in drawn]
    write_text(path, as_lines(lines))
    assert read_lines(path) == read_speakers(path) == lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_of_other_editors_are_read_alike(tmp_path, mark, end):
    path = tmp_path / "list.txt"
    path.write_bytes(mark + end.join(["1 a\u00a0b.wav c.wav", "", " ", "0\ta d.wav\t c.wav ", ""]).encode())
    assert read_trials(path) == [Trial(True, "a\u00a0b.wav", "c.wav"), Trial(False, "a d.wav", "c.wav")]
    path.write_bytes(mark + end.join(["\u3000a", " b c ", ""]).encode())
    assert read_speakers(path) == ["\u3000a", "b c"]
