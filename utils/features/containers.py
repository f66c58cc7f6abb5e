"""Audio containers: what their headers state is checked against what they hold.

Decoders trust a stated length, or estimate one: they return a part of the audio without an error. `checked` finds files
that are cut off, and gives decoders a header with the true length where the file has none.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

_UNKNOWN = 0x7FFFF000  # WAV lengths from here on may be what writers to a pipe leave: sox, arecord, ffmpeg ...
_MOST = 0xFFFFFFFF  # bytes that a WAV header can state
_BIT_RATES = {  # kbit/s of MPEG layer III, by whether the version is 1
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by MPEG version bits


def checked(path: Path) -> Path | BinaryIO:
    """What a decoder should open for a file: its path, or the file with a corrected header.

    Raises:
        UserError: the file is truncated.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return _checked_wav(path, file, *struct.unpack("<I", head[4:8]))
        if head[:4] == b"OggS":
            _require_last_page(path, file)
        elif head[:3] == b"ID3" or _is_frame(head):
            return _checked_mp3(path, file)
    return path


class _Prefixed(io.RawIOBase):
    """A file whose first `offset` bytes are replaced by `prefix`; seekable, read only."""

    def __init__(self, path: Path, prefix: bytes, offset: int) -> None:
        self._file, self._prefix, self._offset = open(path, "rb"), prefix, offset  # noqa: SIM115  closed by close
        self._size = len(prefix) + path.stat().st_size - offset
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        if self._place < len(self._prefix):
            content = self._prefix[self._place : self._place + len(buffer)]
        else:
            self._file.seek(self._place - len(self._prefix) + self._offset)
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _checked_wav(path: Path, file: BinaryIO, stated: int) -> Path | BinaryIO:
    """Finds the data chunk; a length that its writer did not know is replaced by that of the file.

    `stated` is the length of the file after its first 8 bytes by its header, which says if a length of 0 is meant.
    """
    size = path.stat().st_size
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        begin = file.tell()
        if name != b"data":
            file.seek(begin + length + length % 2)
            continue
        present = size - begin
        if _UNKNOWN <= length and length > present or length == 0 and present and stated != size - 8:
            if size - 8 > _MOST:
                raise UserError(f"{path} has more than the 4 GiB that a WAV header can state: convert it to FLAC")
            file.seek(0)
            header = bytearray(file.read(begin))
            header[4:8] = struct.pack("<I", size - 8)
            header[-4:] = struct.pack("<I", present)
            return _Prefixed(path, bytes(header), begin)
        if length > present:
            raise UserError(f"{path} is truncated: it holds {present} of {length} bytes of audio")
        return path
    raise UserError(f"{path} is truncated: it is a WAV file without audio data")


def _require_last_page(path: Path, file: BinaryIO) -> None:
    """`UserError` unless the last Ogg page is complete and ends its stream (RFC 3533, section 6)."""
    size = path.stat().st_size
    file.seek(max(0, size - 2 * 65307))  # no page is longer than 65,307 bytes
    tail = file.read()
    begin = tail.rfind(b"OggS")
    page = tail[begin:]
    is_complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if begin < 0 or not is_complete or not page[5] & 4:
        raise UserError(f"{path} is truncated: its Ogg stream has no last page")


def _is_frame(header: bytes) -> bool:
    """Whether an MPEG layer III frame of known size begins here."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[1] >> 3 & 3 == 1:
        return False
    return header[2] >> 4 not in (0, 15) and header[2] >> 2 & 3 != 3


def _frame_size(header: bytes) -> int:
    """Bytes of an MPEG layer III frame (ISO 11172-3, section 2.4.3.1)."""
    version = header[1] >> 3 & 3
    bits = _BIT_RATES[version == 3][header[2] >> 4] * 1000 * (144 if version == 3 else 72)
    return bits // _SAMPLE_RATES[version][header[2] >> 2 & 3] + (header[2] >> 1 & 1)


def _checked_mp3(path: Path, file: BinaryIO) -> Path | BinaryIO:
    """Counts the frames; a file whose first frame does not state their number gets a frame that does."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = 0
        if content[:3] == b"ID3":
            place = 10 + sum((byte & 127) << 7 * (3 - k) for k, byte in enumerate(content[6:10]))
        while place < len(content) and not _is_frame(content[place : place + 4]):  # padding after a tag
            place = content.find(b"\xff", place + 1)
            if place < 0:
                return path
        begin, frames = place, 0
        while _is_frame(header := content[place : place + 4]):
            size = _frame_size(header)
            frames += place + size <= len(content)
            place += size
        first = content[begin : begin + _frame_size(content[begin : begin + 4])]
    stated = _stated_frames(first)
    if stated is None:
        return _Prefixed(path, _info_frame(first[:4], frames), begin)
    if frames - 1 < stated - 1:  # the first one holds no sound; encoders count it or not
        raise UserError(f"{path} is truncated: it holds {frames - 1} of {stated} MP3 frames")
    return path


def _stated_frames(frame: bytes) -> int | None:
    """The number of frames in a Xing, Info or VBRI header; None if there is none."""
    for mark, flags, place in ((b"Xing", True, 8), (b"Info", True, 8), (b"VBRI", False, 14)):
        found = frame.find(mark)
        if found >= 0 and (not flags or frame[found + 7] & 1):
            return struct.unpack(">I", frame[found + place : found + place + 4])[0]
    return None


def _info_frame(header: bytes, frames: int) -> bytes:
    """A silent frame with an Info header that states the number of frames, in the format of the others."""
    is_version_1, is_mono = header[1] >> 3 & 3 == 3, header[3] >> 6 == 3
    side = (17 if is_mono else 32) if is_version_1 else (9 if is_mono else 17)
    for rate in range(1, 15):
        own = bytes([0xFF, header[1] | 1, rate << 4 | header[2] & 0x0C, header[3]])
        content = own + bytes(side) + b"Info" + struct.pack(">II", 1, frames)
        if _frame_size(own) >= len(content):
            break
    return content.ljust(_frame_size(own), b"\0")
