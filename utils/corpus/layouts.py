"""Folder layouts of speech corpora, read as lists of utterances.

A further layout is one entry of `LAYOUTS`: how to recognize a split, and how to read it. The flag --layout of
preprocess.py offers every entry.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import read_text
from utils.lists import BLANKS, unlistable

FFMPEG_SUFFIXES = (".m4a", ".mp4", ".aac", ".webm", ".mkv", ".mov", ".avi", ".wma", ".amr", ".3gp")
SNDFILE_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
AUDIO_SUFFIXES = (*SNDFILE_SUFFIXES, *FFMPEG_SUFFIXES)
_TABLES = (".trans.txt", "metadata.csv", "SPEAKERS.TXT", "vox1_meta.csv", "vox2_meta.csv")
_COMPANIONS = (*_TABLES, "README", "README.TXT", "phones.jsonl")  # files beside recordings that nobody misses
_SPLIT_NAME = re.compile(r"(train|dev|valid|test|eval)([-_].*)?")


class NoSpeech(UserError):
    """A folder does not hold the speech that was asked for."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one speaker.

    `path` is POSIX, relative to the raw root that was read. `chapter` names the recording session. `sex` is "F", "M",
    or "" where it is not known; `text` is None where there is no transcript.
    """

    utterance: str
    path: str
    split: str
    speaker: str
    chapter: str
    sex: str
    text: str | None


@dataclass(frozen=True)
class Layout:
    """How the folders of a corpus are arranged.

    Attributes:
        expected: the arrangement in words, for the message to a user whose folder does not have it.
        is_split: whether a folder is a split.
        read: yields the utterances of a split, given the raw root, the split's name and its folder.
        task: the task that such a corpus usually serves, "speaker" or "tts".
        nested: names of folders that may lie between a split and its recordings.
    """

    expected: str
    is_split: Callable[[Path], bool]
    read: Callable[[Path, str, Path], Iterator[Utterance]]
    task: str
    nested: tuple[str, ...] = ()


def find_splits(raw: str | Path, layout: str, wanted: Collection[str] = ()) -> dict[str, Path]:
    """Finds the splits under `raw`: `raw` itself, or folders up to three levels below it.

    Folders that look like a split are searched further unless they are among `wanted`, if any are.

    Returns:
        Name to the folder that holds the recordings, sorted by name. A split is named after its folder.

    Raises:
        NoSpeech: `raw` is missing, empty, or not in this layout.
        UserError: two splits have one name.
    """
    raw, kind = _require_folder(raw), LAYOUTS[layout]
    if kind.is_split(raw) and (not wanted or raw.resolve().name in wanted):
        return {raw.resolve().name: raw}
    found = list(_splits_below(raw, kind, wanted, levels=3))
    splits = dict(sorted(found))
    if len(splits) < len(found):
        raise UserError(f"{raw} holds two splits of the same name: give the folder of one of them")
    if not splits:
        raise NoSpeech(f"{raw} holds no speech in {layout} layout ({kind.expected})")
    return splits


def _find_wanted(raw: Path, layout: str, wanted: Collection[str]) -> dict[str, Path]:
    """The splits under `raw`; if they lack some of `wanted`, but those exist further down, only those."""
    found = find_splits(raw, layout)
    if found.keys() >= set(wanted):
        return found
    with contextlib.suppress(NoSpeech):
        deeper = find_splits(raw, layout, wanted)
        return deeper if deeper.keys() >= set(wanted) else found
    return found


def _splits_below(folder: Path, layout: Layout, wanted: Collection[str], levels: int) -> Iterator[tuple[str, Path]]:
    """Names and folders of the splits in `folder`, or in those of its folders that are not splits."""
    for split in _folders(folder):
        place = _recordings_of(split, layout)
        if place and (not wanted or split.name in wanted):
            yield split.name, place
        elif levels > 1:
            yield from _splits_below(split, layout, wanted, levels - 1)


def _recordings_of(split: Path, layout: Layout) -> Path | None:
    """The folder of a split that holds its recordings, which may be one in between; None if it is no split."""
    places = (split, *map(split.joinpath, layout.nested))
    return next((place for place in places if place.is_dir() and layout.is_split(place)), None)


def read_corpus(raw: str | Path, layout: str, splits: Sequence[str] | None = None) -> list[Utterance]:
    """Reads the utterances of `splits` (all that exist if None), sorted by utterance id.

    Raises:
        NoSpeech: a missing or empty folder, an unknown split, or no recording that can be listed.
        UserError: a broken transcript, or an id that occurs twice.
    """
    raw = Path(raw)
    found = _find_wanted(raw, layout, splits or ())
    unknown = [split for split in splits or () if split not in found]
    if unknown:
        raise NoSpeech(f"{raw} has no split {', '.join(unknown)}; it has {', '.join(found)}")
    by_id: dict[str, Utterance] = {}
    for split in dict.fromkeys(splits or found):
        for utterance in LAYOUTS[layout].read(raw, split, found[split]):
            if any(map(unlistable, (utterance.utterance, utterance.path, utterance.speaker, utterance.chapter))):
                continue  # `ignored_files` reports it
            other = by_id.setdefault(utterance.utterance, utterance)
            if other is not utterance:
                raise UserError(f"utterance {other.utterance} occurs twice: {other.path} and {utterance.path}")
    if not by_id:
        raise NoSpeech(f"{raw} holds no recording with a name that a list can hold: UTF-8 without tabs and line breaks")
    return [by_id[name] for name in sorted(by_id)]


def ignored_files(raw: str | Path, layout: str, utterances: Sequence[Utterance]) -> list[str]:
    """Lists the files that are not among `utterances`, as paths relative to `raw`.

    These are all files in the splits of `utterances`, and the recordings outside of all splits.
    """
    raw = Path(raw)
    read, splits = {utterance.path for utterance in utterances}, {utterance.split for utterance in utterances}
    folders_of = _find_wanted(raw, layout, splits)
    chosen, others = [], []
    for split, folder in folders_of.items():
        (chosen if split in splits else others).append(folder)
    found = []
    for place, folders, names in os.walk(raw):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and here / name not in others)
        is_inside = any(here.is_relative_to(folder) for folder in chosen)
        for name in sorted(names):
            of_interest = not name.endswith(_COMPANIONS) if is_inside else is_audio(name)
            path = (here / name).relative_to(raw).as_posix()
            if of_interest and not name.startswith(".") and path not in read:
                found.append(path)
    return found


def sexes(folder: str | Path) -> dict[str, str]:
    """Reads the sex of each speaker from all tables in `folder` and one level below, and from the nearest one above.

    Tables are LibriSpeech's SPEAKERS.TXT, and VoxCeleb's vox1_meta.csv and vox2_meta.csv. The nearest ones count where
    they contradict each other.

    Returns:
        Speaker to "F" or "M"; empty if there is no table.
    """
    folder = Path(folder).resolve()
    above = next((place for place in folder.parents[:3] if _speaker_tables(place)), folder)
    tables = [table for place in (above, *_folders(folder), folder) for table in _speaker_tables(place)]
    pairs = [pair for table in tables for pair in _SPEAKER_TABLES[table.name](table)]
    return {speaker: sex.upper() for speaker, sex in pairs if sex.upper() in ("F", "M")}


def _speaker_tables(folder: Path) -> list[Path]:
    return [folder / name for name in _SPEAKER_TABLES if (folder / name).is_file()]


def parse_path(path: str | Path) -> tuple[str, str]:
    """Derives speaker and chapter from SPEAKER/CHAPTER/ or SPEAKER/ folders, or from a SPEAKER-CHAPTER-NUMBER name."""
    path = Path(path)
    chapter = path.parent.name
    speaker = path.parent.parent.name or chapter
    if path.stem.startswith(f"{speaker}-{chapter}-"):
        return speaker, chapter
    match = re.fullmatch(r"([^-]+)-([^-]+)-[^-]+", path.stem)
    return (match[1], match[2]) if match else (speaker, chapter)


def _read_speakers(raw: Path, split: str, folder: Path) -> Iterator[Utterance]:
    """SPEAKER/CHAPTER/* recordings, with LibriSpeech's transcripts where a chapter has them.

    Recordings that lie in SPEAKER/ itself are one chapter.
    """
    sex = sexes(folder)
    for speaker in _folders(folder):
        for chapter in (speaker, *_folders(speaker)):
            texts = _transcripts(chapter)
            prefix = f"{speaker.name}-{chapter.name}-"
            for audio in _audio_files(chapter):
                yield Utterance(
                    # Files may be numbered from 1 in every chapter (VoxCeleb's are): the id needs the full name.
                    utterance=audio.stem if audio.stem.startswith(prefix) else prefix + audio.stem,
                    path=audio.relative_to(raw).as_posix(),
                    split=split,
                    speaker=speaker.name,
                    chapter=chapter.name,
                    sex=sex.get(speaker.name, ""),
                    text=texts.get(audio.stem),
                )


def _transcripts(chapter: Path) -> dict[str, str]:
    """Utterance to text from the `*.trans.txt` of a chapter, lines of `ID TEXT`."""
    texts = {}
    for file in sorted(chapter.glob("*.trans.txt")):
        for line in _read_lines(file):
            name, _, text = line.strip(BLANKS).partition("\t" if "\t" in line else " ")
            if name and text and texts.setdefault(name, text.strip()) != text.strip():
                raise UserError(f"{file} holds two transcripts of {name}")
    return texts


def _read_ljspeech(raw: Path, split: str, folder: Path) -> Iterator[Utterance]:
    speaker = folder.resolve().name
    sex = sexes(folder).get(speaker, "")
    table = folder / "metadata.csv"
    for number, line in enumerate(_read_lines(table), start=1):
        if not line.strip():
            continue
        name, *row = line.split("|")  # nothing is quoted
        name, row = name.strip(BLANKS), [field.strip() for field in row]
        if len(row) not in (1, 2) or not name or Path(name).name != name:
            raise UserError(f"line {number} of {table} is not `id|text` or `id|text|normalized text`")
        text = row[-1] or row[0]  # the first where nobody normalized it
        yield Utterance(
            utterance=name,
            path=_clip(folder, name).relative_to(raw).as_posix(),
            split=split,
            speaker=speaker,
            chapter=name.rpartition("-")[0] or speaker,
            sex=sex,
            text=text or None,
        )


def _clip(folder: Path, name: str) -> Path:
    """The audio of a line of metadata.csv; the .wav that should be there if there is none."""
    candidates = [folder / "wavs" / f"{name}{suffix}" for suffix in (".wav", *AUDIO_SUFFIXES)]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _holds_speakers(folder: Path) -> bool:
    """Whether the folders in `folder` are speakers, and neither splits nor the chapters of one speaker."""
    speakers = _folders(folder)
    if speakers and all(_SPLIT_NAME.fullmatch(speaker.name) for speaker in speakers):
        return False
    chapters = (chapter for speaker in speakers for chapter in _folders(speaker))
    if any(_audio_files(chapter) for chapter in chapters):
        return True
    named = ((f"{folder.resolve().name}-{speaker.name}-", _audio_files(speaker)) for speaker in speakers)
    return any(not audio.stem.startswith(chapter) for chapter, files in named for audio in files)


def _librispeech_sexes(table: Path) -> list[tuple[str, str]]:
    """Lines of `ID | SEX | ...`; comments begin with a semicolon."""
    rows = [line.split("|") for line in _read_lines(table) if not line.startswith(";")]
    return [(row[0].strip(BLANKS), row[1].strip()) for row in rows if len(row) > 1]


def _voxceleb_sexes(table: Path) -> list[tuple[str, str]]:
    """A header and lines of ID, VGGFace ID, gender; VoxCeleb1 separates them by tabs, VoxCeleb2 by " ,"."""
    lines = _read_lines(table)
    mark = "\t" if "\t" in lines[0] else ","
    rows = [[field.strip(BLANKS) for field in line.split(mark)] for line in lines if line.strip()]
    if not rows or "Gender" not in rows[0]:
        raise UserError(f"{table} has no column Gender")
    column = rows[0].index("Gender")
    return [(row[0], row[column]) for row in rows[1:] if len(row) > column]


_SPEAKER_TABLES = {
    "SPEAKERS.TXT": _librispeech_sexes,
    "vox1_meta.csv": _voxceleb_sexes,
    "vox2_meta.csv": _voxceleb_sexes,
}


def _folders(folder: Path) -> list[Path]:
    """Visible folders in `folder`, by name; a hidden one may be an unfinished download."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_audio(path.name) and not path.name.startswith("."))


def is_audio(name: str) -> bool:
    """Whether a file of this name is a recording."""
    return name.lower().endswith(AUDIO_SUFFIXES)


def _require_folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise NoSpeech(f"the folder {path} is missing" if not path.exists() else f"{path} is not a folder")
    if not any(path.iterdir()):
        raise NoSpeech(f"the folder {path} is empty")
    return path


def _read_lines(path: Path) -> list[str]:
    return read_text(path).split("\n")  # splitlines would also cut at U+2028


LAYOUTS = {
    "librispeech": Layout(
        expected="SPEAKER/CHAPTER/*.flac folders, or a folder of splits that hold them",
        is_split=_holds_speakers,
        read=_read_speakers,
        task="speaker",
    ),
    "voxceleb": Layout(
        expected="SPEAKER/VIDEO/*.wav folders, also below wav/, dev/ and test/",
        is_split=_holds_speakers,
        read=_read_speakers,
        task="speaker",
        nested=("wav", "aac"),
    ),
    "ljspeech": Layout(
        expected="metadata.csv beside wavs/, or folders that hold these",
        is_split=lambda folder: (folder / "metadata.csv").is_file(),
        read=_read_ljspeech,
        task="tts",
    ),
}
