"""Download of archives: resumed after interruptions, verified before they are unpacked, one transfer at a time.

All files of a dataset are in ROOT/DATASET. During the download of an archive NAME its bytes are in NAME.part, and
NAME.part.json identifies the server and the version of its file; NAME exists only once its hash is verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from utils.cli import progress
from utils.corpus.catalog import Archive
from utils.corpus.records import disk_errors, read_record
from utils.corpus.unpack import unpack
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.locks import only_writer

BLOCK = 1 << 18
ENOUGH_PROGRESS = 1 << 20  # bytes; an attempt that receives as many counts as a success, however it ended
LONGEST_WAIT = 60.0
PERMANENT = (401, 404, 410)  # status codes that a retry does not change


@dataclass(frozen=True)
class Patience:
    """Limits on retries.

    Attributes:
        attempts: number of consecutive failures, over all mirrors together, after which the download fails.
        wait: seconds before the second attempt; doubled after each further failure.
        timeout: seconds without any byte after which an attempt fails.
    """

    attempts: int
    wait: float
    timeout: float


class _Failed(Exception):
    """An attempt failed; a retry may succeed."""


class _Nameless(_Failed):
    """The server's name has no address: there is no network, or no such server."""


class _Useless(_Failed):
    """This server does not have the archive; a retry is useless."""


def obtain(archives: Sequence[Archive], root: Path, patience: Patience, keep_archive: bool = False) -> None:
    """Downloads, verifies and unpacks each archive that is not already complete under `root`.

    Raises:
        UserError: the disk is too small, no server delivered an archive, or its bytes are not the official ones.
    """
    with disk_errors(root):
        pending = [archive for archive in archives if not _is_complete(archive, root)]
        _check_space(pending, root, keep_archive)
        for archive in pending:
            with only_writer(root / archive.dataset, print):
                if not _is_complete(archive, root):  # another process may have finished it meanwhile
                    _land(archive, root / archive.dataset, patience, keep_archive)


def _land(archive: Archive, folder: Path, patience: Patience, keep_archive: bool) -> None:
    path = download(archive, folder, patience)
    print(f"{archive.name}: unpacking")
    record = unpack(path, archive, folder)
    if not keep_archive:
        path.unlink()
    print(f"{archive.dataset} {archive.split}: {record['utterances']} recordings in {folder / archive.folder}")


def _is_complete(archive: Archive, root: Path) -> bool:
    target = root / archive.dataset / archive.folder
    record = read_record(target, archive.audio_suffix)
    if record is None:
        return False
    if (record.get("sha256"), record.get("md5")) != (archive.sha256, archive.md5):
        raise UserError(f"{target} was not unpacked from the official {archive.name}: move it away")
    print(f"{archive.dataset} {archive.split}: already complete, {record['utterances']} recordings in {target}")
    return True


def _check_space(archives: Sequence[Archive], root: Path, keep_archive: bool) -> None:
    """Raises `UserError` if the disk is too small; archives that are removed again need space one at a time."""
    if not archives:
        return
    missing = [max(0, archive.bytes - _already_here(archive, root / archive.dataset)) for archive in archives]
    needed = sum(archive.unpacked_bytes for archive in archives) + (sum(missing) if keep_archive else max(missing))
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        names = ", ".join(archive.split for archive in archives)
        raise UserError(f"{root} has {_gigabytes(free)} free, but {names} needs {_gigabytes(needed)}")


def _already_here(archive: Archive, folder: Path) -> int:
    return max(_size(folder / archive.name), _size(folder / f"{archive.name}.part"))


def download(archive: Archive, folder: Path, patience: Patience) -> Path:
    """Downloads and verifies `folder`/NAME; resumes NAME.part if it exists.

    A partial file of an earlier run that turns out to be damaged is set aside as NAME.bad; the download then restarts,
    once.
    """
    complete, part = folder / archive.name, folder / f"{archive.name}.part"
    if complete.exists():
        os.replace(complete, part)  # an archive that was kept or put here by hand is verified like any other
    inherited = part.exists()
    while True:
        if _size(part) < archive.bytes:
            _fetch(archive, part, patience)
        problem = _mismatch(part, archive)
        if problem is None:
            break
        aside = part.with_suffix(".bad")
        os.replace(part, aside)
        _note(part).unlink(missing_ok=True)
        if not inherited:
            raise UserError(f"{problem}; it is set aside as {aside}, and nothing was unpacked")
        print(f"{problem}; it is set aside as {aside}: starting over")
        inherited = False
    _note(part).unlink(missing_ok=True)
    os.replace(part, complete)
    return complete


def _mismatch(path: Path, archive: Archive) -> str | None:
    """Describes how an archive's bytes differ from the official ones; None if they do not."""
    if _size(path) != archive.bytes:
        return f"{archive.name} has {_size(path):,} bytes where the official archive has {archive.bytes:,}"
    algorithm, official = ("sha256", archive.sha256) if archive.sha256 else ("md5", archive.md5)
    print(f"{archive.name}: verifying its {algorithm}")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, progress(total=archive.bytes, unit="B", unit_scale=True, desc="verify") as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() == official:
        return None
    return f"{archive.name} has the {algorithm} {digest.hexdigest()} where the official archive has {official}"


def _fetch(archive: Archive, part: Path, patience: Patience) -> None:
    """Appends to `part` until it has the official size, alternating between mirrors with growing pauses."""
    urls = list(archive.urls)
    reasons: dict[str, _Failed] = {}
    failures, start = 0, _size(part)
    with requests.Session() as session, progress(unit="B", unit_scale=True, total=archive.bytes) as bar:
        while (before := _size(part)) < archive.bytes:
            url = urls[failures % len(urls)]
            print(f"{archive.name}: {_gigabytes(before)} of {_gigabytes(archive.bytes)} present; requesting {url}")
            try:
                _attempt(session, url, archive, part, patience, bar)
                reasons[url] = _Failed("closed the connection early")
            except _Failed as failure:
                reasons[url] = failure
                if isinstance(failure, _Useless):
                    urls.remove(url)
            failures = 0 if _size(part) - before >= ENOUGH_PROGRESS else failures + 1
            if _size(part) >= archive.bytes:
                return
            is_offline = _size(part) == start and all(isinstance(reasons.get(each), _Nameless) for each in urls)
            if not urls or is_offline or failures >= patience.attempts:
                raise _given_up(archive, part, reasons)
            wait = min(patience.wait * 2 ** max(failures - 1, 0), LONGEST_WAIT)
            print(f"{archive.name}: {url} {reasons[url]}; retrying in {wait:g} s")
            time.sleep(wait)


def _given_up(archive: Archive, part: Path, reasons: Mapping[str, _Failed]) -> UserError:
    causes = "; ".join(f"{url} {reason}" for url, reason in reasons.items())
    kept = f" ({_size(part):,} bytes are kept, and the next run resumes there)" if part.exists() else ""
    by_hand = f"an archive that was fetched by hand belongs at {part.parent / archive.name}"
    return UserError(f"{archive.name} could not be downloaded: {causes}{kept}; {by_hand}")


def _attempt(session: requests.Session, url: str, archive: Archive, part: Path, patience: Patience, bar: Any) -> None:
    """Makes one request; the bytes that it receives are in `part`, whether it succeeds or not."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # the hash is of the archive's own bytes, never decoded on the way
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := _validator_of(part, url):
            headers["If-Range"] = validator
    try:
        with session.get(url, headers=headers, stream=True, timeout=patience.timeout) as response:
            offset = _offset(response, have, archive)
            if offset == 0:
                _remember(part, url, response)
            _store(response, part, offset, archive, bar)
    except requests.Timeout as error:
        raise _Failed(f"did not respond within {patience.timeout:g} s") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        cause = _cause(error)
        kind = _Nameless if isinstance(cause, socket.gaierror) else _Failed
        text = re.sub(r"<[^>]*>:? ?", "", str(cause)) or type(cause).__name__  # without addresses of objects
        raise kind(f"failed ({text})") from error


def _offset(response: requests.Response, have: int, archive: Archive) -> int:
    """Offset in the archive at which this response's body begins."""
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise _Failed("answered with another range than the requested one")
        offered, offset = found[2], have
    elif response.status_code == 200:
        offered, offset = response.headers.get("Content-Length", "*"), 0  # no ranges: from the first byte
    else:
        kind = _Useless if response.status_code in PERMANENT else _Failed
        raise kind(f"answered {response.status_code} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/"):
        raise _Failed("answered with a web page")
    if offered.isdecimal() and int(offered) != archive.bytes:
        raise _Useless(f"offers {int(offered):,} bytes where the official archive has {archive.bytes:,}")
    return offset


def _store(response: requests.Response, part: Path, offset: int, archive: Archive, bar: Any) -> None:
    with open(part, "ab" if offset else "wb") as file:
        bar.update(offset - bar.n)
        for block in response.raw.stream(BLOCK, decode_content=False):
            file.write(block)
            bar.update(len(block))
            if file.tell() > archive.bytes:
                return  # too large to be right; the caller notices and sets the file aside


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(part: Path, url: str, response: requests.Response) -> None:
    """Stores the validator (RFC 9110: a strong ETag, else the date) by which this server detects a changed file."""
    tag = response.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
    write_json(_note(part), {"url": url, "validator": validator})


def _validator_of(part: Path, url: str) -> str | None:
    """Validator to send as If-Range; None for another mirror, whose validators differ for the same bytes."""
    if not _note(part).exists():
        return None
    note = read_json(_note(part))
    return note["validator"] if note["url"] == url else None


def _cause(error: BaseException) -> BaseException:
    """Innermost cause of an error of requests."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
