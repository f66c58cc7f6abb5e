"""Speech corpora on disk, in LibriSpeech or LJSpeech layout, as lists of utterances."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_EXPECTED = {
    "librispeech": "SPEAKER/CHAPTER/*.flac folders, or a folder of splits that hold them",
    "ljspeech": "metadata.csv beside wavs/, or folders that hold these",
}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one speaker.

    `path` is POSIX, relative to the raw root that was read; `sex` is "F", "M" or "" where it is not known;
    `text` is None where there is no transcript.
    """

    utterance: str
    path: str
    split: str
    speaker: str
    chapter: str
    sex: str
    text: str | None


def find_splits(raw: str | Path, layout: str) -> dict[str, Path]:
    """The splits under `raw`: name to folder, sorted by name.

    LibriSpeech layout: `raw` may be a folder of speakers (a split; its name is the split's), a folder of splits, or
    a folder with such a folder in it (`LibriSpeech/`). LJSpeech layout: `raw` holds metadata.csv, or its children do.
    """
    raw = _require_folder(raw)
    is_split = _holds_speakers if layout == "librispeech" else _holds_metadata
    if is_split(raw):
        return {raw.resolve().name: raw}
    for level in (_folders(raw), [inner for folder in _folders(raw) for inner in _folders(folder)]):
        found = [folder for folder in level if is_split(folder)]
        splits = {folder.name: folder for folder in sorted(found, key=lambda folder: folder.name)}
        if len(splits) < len(found):
            raise UserError(f"{raw} holds two splits of one name: give the folder of one of them")
        if splits:
            return splits
    raise UserError(f"{raw} holds no speech in {layout} layout ({_EXPECTED[layout]})")


def read_corpus(raw: str | Path, layout: str, splits: Sequence[str] | None = None) -> list[Utterance]:
    """The utterances of `splits` (all that exist if None), sorted by utterance id.

    Raises:
        UserError: a missing or empty folder, an unknown split, a broken transcript, or ids that occur twice.
    """
    raw = Path(raw)
    found = find_splits(raw, layout)
    unknown = [split for split in splits or () if split not in found]
    if unknown:
        raise UserError(f"{raw} has no split {', '.join(unknown)}; it has {', '.join(found)}")
    read = _read_librispeech if layout == "librispeech" else _read_ljspeech
    by_id: dict[str, Utterance] = {}
    for split in dict.fromkeys(splits or found):
        for utterance in read(raw, split, found[split]):
            other = by_id.setdefault(utterance.utterance, utterance)
            if other is not utterance:
                raise UserError(f"utterance {other.utterance} occurs twice: {other.path} and {utterance.path}")
    return [by_id[name] for name in sorted(by_id)]


def sexes(folder: str | Path) -> dict[str, str]:
    """Speaker to "F" or "M" from the nearest SPEAKERS.TXT: in `folder`, up to three levels above, or one below."""
    folder = Path(folder).resolve()
    for place in (folder, *folder.parents[:3], *_folders(folder)):
        table = place / "SPEAKERS.TXT"
        if table.is_file():
            rows = [line.split("|") for line in _read_lines(table) if not line.startswith(";")]
            pairs = {row[0].strip(): row[1].strip().upper() for row in rows if len(row) > 1}
            return {speaker: sex for speaker, sex in pairs.items() if sex in ("F", "M")}
    return {}


def parse_path(path: str | Path) -> tuple[str, str]:
    """Speaker and chapter of a recording: from SPEAKER/CHAPTER/ folders, or from a SPEAKER-CHAPTER-NUMBER name."""
    path = Path(path)
    chapter, speaker = path.parent.name, path.parent.parent.name
    if path.stem.startswith(f"{speaker}-{chapter}-"):
        return speaker, chapter
    match = re.fullmatch(r"([^-]+)-([^-]+)-[^-]+", path.stem)
    return (match[1], match[2]) if match else (speaker, chapter)


def _read_librispeech(raw: Path, split: str, folder: Path) -> Iterator[Utterance]:
    sex = sexes(folder)
    for speaker in _folders(folder):
        for chapter in _folders(speaker):
            texts = _transcripts(chapter)
            prefix = f"{speaker.name}-{chapter.name}-"
            for audio in _audio_files(chapter):
                yield Utterance(
                    # Corpora that only borrow the layout may number from 1 in every chapter: make their ids whole.
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
            name, _, text = line.strip().partition(" ")
            if name and text:
                texts[name] = text.strip()
    return texts


def _read_ljspeech(raw: Path, split: str, folder: Path) -> Iterator[Utterance]:
    sex = sexes(folder).get(folder.resolve().name, "")
    speaker = folder.resolve().name
    table = folder / "metadata.csv"
    for number, line in enumerate(_read_lines(table), start=1):
        if not line.strip():
            continue
        row = [field.strip() for field in line.split("|")]  # nothing is quoted
        name = row[0]
        if len(row) not in (2, 3) or not name or Path(name).name != name:
            raise UserError(f"line {number} of {table} is not `id|text` or `id|text|normalized text`")
        text = row[-1] or row[1]  # the second where nobody normalized it
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
    chapters = (chapter for speaker in _folders(folder) for chapter in _folders(speaker))
    return any(next(iter(_audio_files(chapter)), None) for chapter in chapters)


def _holds_metadata(folder: Path) -> bool:
    return (folder / "metadata.csv").is_file()


def _folders(folder: Path) -> list[Path]:
    """Visible folders in `folder`, by name; a hidden one may be a download or extraction under way."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
    )


def _require_folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"the folder {path} is missing" if not path.exists() else f"{path} is not a folder")
    if not any(path.iterdir()):
        raise UserError(f"the folder {path} is empty")
    return path


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also cut at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
