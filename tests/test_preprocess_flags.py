"""Flags of preprocess.py that it refuses."""

import pytest

import preprocess
from utils.corpus.layouts import LAYOUTS


def refused(capsys, *words: object) -> list[str]:
    """Returns the sentences with which the flags are refused."""
    with pytest.raises(SystemExit) as caught:
        preprocess.main([str(word) for word in words])
    assert caught.value.code == 2
    return [line.removeprefix("preprocess.py: error: ") for line in capsys.readouterr().err.splitlines()[:-1]]


def test_all_bad_flags_are_shown_at_once(capsys):
    words = ["--dataset", "ljspeech", "--num-proc", "0", "--protocol", "../up", "--heldout-speakers", "gone.txt"]
    errors = "\n".join(refused(capsys, *words))
    for flag in ("--num-proc", "--protocol", "--heldout-speakers"):
        assert f"argument {flag}" in errors


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (
            "--dataset ljspeech --heldout-speakers 3 --valid-speakers 1",
            ["--heldout-speakers needs --task speaker", "--valid-speakers needs --task speaker"],
        ),
        ("--dataset librispeech --units phoneme", ["--units needs --task tts"]),
        ("--raw here", ["no corpus: give --dataset, or --layout with --raw and --out"]),
        ("--layout voxceleb", ["--layout needs --raw", "--layout needs --out"]),
        ("--layout voxceleb --raw here --units char", ["--layout needs --out", "--units needs --task tts"]),
        (
            "--dataset demo --layout ljspeech --units char --task speaker",
            ["--dataset and --layout contradict each other: a dataset implies its layout", "--units needs --task tts"],
        ),
    ],
)
def test_flags_that_contradict_each_other(words, sentences, capsys):
    assert refused(capsys, *words.split()) == sentences


def test_every_layout_is_offered(capsys):
    (error,) = refused(capsys, "--layout", "timit", "--raw", "here", "--out", "there")
    assert "invalid choice: 'timit'" in error and all(name in error for name in LAYOUTS)
