"""Verified archives unpacked into folders: atomically, with every member checked, and with a completion record."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any

from utils.cli import progress
from utils.corpus.catalog import Archive
from utils.corpus.records import RECORD, count_recordings
from utils.errors import UserError
from utils.files import remove_leftovers, take_owner_and_mode, write_json

STAGING = ".unpacking-"
BLOCK = 1 << 20


def unpack(path: Path, archive: Archive, folder: Path) -> dict[str, Any]:
    """Unpacks the tar at `path`; `folder`/`archive.folder` appears only when it is complete, with its record.

    Files beside that folder in the archive (SPEAKERS.TXT, licenses), the same in all archives of a corpus, are
    moved beside it.

    Returns:
        The completion record: archive, hashes, counts.

    Raises:
        UserError: the archive is damaged, unsafe, or does not hold the expected recordings.
    """
    remove_leftovers(folder, f"{STAGING}*")
    with tempfile.TemporaryDirectory(dir=folder, prefix=STAGING) as name:
        staging = Path(name)
        files = _extract(path, staging)
        source, target = staging / archive.folder, folder / archive.folder
        if not source.is_dir():
            raise UserError(f"{path} does not contain the folder {archive.folder}")
        utterances = count_recordings(source, archive.audio_suffix)
        if utterances != (archive.utterances or utterances) or not utterances:
            expected = archive.utterances or "some"
            raise UserError(f"{path} holds {utterances} recordings where {expected} are expected")
        facts = {name: getattr(archive, name) for name in ("bytes", "sha256", "md5")}
        record = {"dataset": archive.dataset, "split": archive.split, "archive": archive.name, **facts}
        record |= {"files": files, "utterances": utterances}
        write_json(source / RECORD, record)
        os.sync()  # the record must not survive a power failure that the recordings do not
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.parent != staging:
            for beside in source.parent.iterdir():
                if beside.is_file():
                    take_owner_and_mode(beside, target.parent / beside.name)
                    os.replace(beside, target.parent / beside.name)
        os.rename(source, target)
    return record


def _extract(path: Path, staging: Path) -> int:
    """Extracts the regular files and folders of a tar; returns the number of files."""
    files = 0
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in progress(tar, unit=" files", desc="unpack"):
                target = staging / _safe_name(member, path)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy)
                files += 1
            # tarfile stops at the end-of-archive mark, but gzip and bz2 verify their checksums at the end of the file.
            while tar.fileobj.read(BLOCK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the disk; errors of the decompressors have no number
        raise UserError(f"{path} is damaged or not a tar archive: {error}") from error
    return files


def _safe_name(member: tarfile.TarInfo, path: Path) -> PurePosixPath:
    """Relative name of a member; `UserError` unless it is a file or folder below the target."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise UserError(f"{path} is refused: its member {member.name!r} lies outside the target folder")
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{path} is refused: its member {member.name!r} is a link or a device")
    return name
