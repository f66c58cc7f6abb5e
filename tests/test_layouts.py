import csv
import shutil
from collections import Counter

import pytest

from utils.corpus.layouts import find_splits, parse_path, read_corpus, sexes
from utils.errors import UserError


@pytest.mark.parametrize("below", ["", "LibriSpeech", "LibriSpeech/train-tiny"])
def test_a_corpus_reads_the_same_from_each_of_its_folders(librispeech_root, below):
    utterances = read_corpus(librispeech_root / below, "librispeech")
    assert len(utterances) == 94 and [u.utterance for u in utterances] == sorted(u.utterance for u in utterances)
    assert {u.split for u in utterances} == {"train-tiny"}
    assert all((librispeech_root / below / u.path).is_file() for u in utterances)
    assert Counter(u.sex for u in utterances) == {"M": 47, "F": 47}
    first = utterances[0]
    prefix = "LibriSpeech/train-tiny/"[len(below) + 1 if below else 0 :]
    assert (first.utterance, first.path) == ("101-1011-0000", prefix + "101/1011/101-1011-0000.flac")
    transcript = (librispeech_root / "LibriSpeech/train-tiny/101/1011/101-1011.trans.txt").read_text()
    assert transcript.startswith(f"101-1011-0000 {first.text}\n")


@pytest.fixture
def splits(librispeech_root, tmp_path):
    """Two splits, one of them without transcripts and without SPEAKERS.TXT, and a hidden one under way."""
    source = librispeech_root / "LibriSpeech" / "train-tiny"
    shutil.copytree(source / "101", tmp_path / "dev-a" / "101")
    shutil.copytree(source / "105", tmp_path / "dev-b" / "105")
    shutil.copytree(source / "106", tmp_path / ".dev-c.tmp" / "106")
    for path in (tmp_path / "dev-b").rglob("*.txt"):
        path.unlink()
    return tmp_path


def test_splits_are_found_and_chosen(splits):
    assert find_splits(splits, "librispeech") == {"dev-a": splits / "dev-a", "dev-b": splits / "dev-b"}
    assert Counter(u.split for u in read_corpus(splits, "librispeech")) == {"dev-a": 13, "dev-b": 13}
    assert {u.speaker for u in read_corpus(splits, "librispeech", ["dev-b"])} == {"105"}


def test_what_is_not_known_is_left_open(splits):
    utterance = read_corpus(splits, "librispeech", ["dev-b"])[0]
    assert utterance.text is None and utterance.sex == ""


def test_an_unknown_split_is_refused_with_those_that_exist(splits):
    with pytest.raises(UserError, match="no split test-clean; it has dev-a, dev-b"):
        read_corpus(splits, "librispeech", ["dev-a", "test-clean"])


def test_an_utterance_in_two_splits_is_refused(splits):
    shutil.copytree(splits / "dev-a" / "101", splits / "dev-b" / "101")
    with pytest.raises(UserError, match="101-1011-0000 occurs twice: .*dev-a/.* and .*dev-b/"):
        read_corpus(splits, "librispeech")


def test_ids_are_made_whole_where_chapters_number_from_one(splits):
    audio = splits / "dev-b" / "105" / "1051" / "105-1051-0000.flac"
    audio.rename(audio.with_name("1.flac"))
    assert "105-1051-1" in {u.utterance for u in read_corpus(splits, "librispeech", ["dev-b"])}


def test_missing_empty_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="the folder .*nowhere is missing"):
        read_corpus(tmp_path / "nowhere", "librispeech")
    with pytest.raises(UserError, match="the folder .* is empty"):
        read_corpus(tmp_path, "librispeech")
    (tmp_path / "speaker" / "chapter").mkdir(parents=True)
    (tmp_path / "speaker" / "chapter" / "notes.txt").write_text("no audio")
    with pytest.raises(UserError, match="holds no speech in librispeech layout"):
        read_corpus(tmp_path, "librispeech")
    with pytest.raises(UserError, match="holds no speech in ljspeech layout"):
        read_corpus(tmp_path, "ljspeech")
    with pytest.raises(UserError, match="is not a folder"):
        read_corpus(tmp_path / "speaker" / "chapter" / "notes.txt", "librispeech")


def test_a_transcript_that_is_not_utf8_is_refused(splits):
    next((splits / "dev-a").rglob("*.trans.txt")).write_bytes(b"101-1011-0000 CAF\xc9\n")
    with pytest.raises(UserError, match="101-101.\\.trans\\.txt cannot be read as UTF-8"):
        read_corpus(splits, "librispeech")


def test_speakers_table_is_found_above_and_below(librispeech_root, tmp_path):
    expected = {str(number): "M" if number < 105 else "F" for number in range(101, 109)}
    deep = librispeech_root / "LibriSpeech" / "train-tiny" / "101"
    for folder in (librispeech_root, librispeech_root / "LibriSpeech", deep):
        assert sexes(folder) == expected
    assert sexes(tmp_path) == {}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LibriSpeech/dev-clean/84/121123/84-121123-0000.flac", ("84", "121123")),
        ("84/121123/84-121123-0000.flac", ("84", "121123")),
        ("uploads/84-121123-0000.flac", ("84", "121123")),
        ("en-us+f3/b/en-us+f3-b-0001.flac", ("en-us+f3", "b")),
        ("mary/monday/take one.wav", ("mary", "monday")),
        ("LJSpeech-1.1/wavs/LJ001-0001.wav", ("LJSpeech-1.1", "wavs")),
    ],
)
def test_speaker_and_chapter_from_a_path(path, expected):
    assert parse_path(path) == expected


def test_ljspeech_layout(ljspeech_root):
    utterances = read_corpus(ljspeech_root, "ljspeech")
    assert len(utterances) == 24 and {u.split for u in utterances} == {u.speaker for u in utterances} == {"Voice-1.0"}
    assert utterances[0].path == "wavs/VX001-0000.wav" and utterances[0].chapter == "VX001"
    assert utterances[0].text.endswith(", number three.")  # the normalized column
    above = read_corpus(ljspeech_root.parent, "ljspeech", ["Voice-1.0"])
    assert above[0].path == "Voice-1.0/wavs/VX001-0000.wav" and len(above) == 24


def test_ljspeech_metadata_is_never_quoted(ljspeech_root, tmp_path):
    lines = [
        'A-1|"Well|"Well\n',
        'B-2|he said."|he said\u2028."\n',
        "\n",
        "C-3|two columns\n",
        "D-4|not normalized|\r\n",
    ]
    (tmp_path / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    texts = {u.utterance: u.text for u in read_corpus(tmp_path, "ljspeech")}
    assert texts == {"A-1": '"Well', "B-2": 'he said\u2028."', "C-3": "two columns", "D-4": "not normalized"}


@pytest.mark.parametrize("line", ["../../etc/passwd|two|two", "alone", "a|b|c|d", "|text"])
def test_a_broken_line_of_metadata_is_named(line, tmp_path):
    (tmp_path / "metadata.csv").write_text(f"A-1|{'one ' * 50_000}\n{line}\n")
    with pytest.raises(UserError, match="line 2 of .*metadata.csv is not"):
        read_corpus(tmp_path, "ljspeech")


@pytest.mark.real
def test_speakers_dev_as_it_is(real_data):
    root = real_data / "speakers_dev"
    with open(root / "manifest.csv", newline="") as file:
        manifest = {row["utt"]: row for row in csv.DictReader(file)}
    utterances = {u.utterance: u for u in read_corpus(root, "librispeech")}
    assert Counter(u.split for u in utterances.values()) == {"train-clean-100": 437, "train-clean-100-notext": 90}
    assert set(utterances) == set(manifest)
    for name, u in utterances.items():
        row = manifest[name]
        expected = (row["path"], row["speaker"], row["chapter"], row["gender"], row["text"] or None)
        assert (u.path, u.speaker, u.chapter, u.sex, u.text) == expected


@pytest.mark.real
def test_tts_dev_as_it_is(real_data):
    utterances = read_corpus(real_data / "tts_dev", "ljspeech")
    assert Counter(u.speaker for u in utterances) == {"LJSpeech-1.1": 186, "Kathleen": 300}
    assert all((real_data / "tts_dev" / u.path).is_file() and u.text for u in utterances)
