"""A file server on this machine that fails in the ways that real ones do, and archives for it to serve."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import tarfile
import threading
import time
from dataclasses import dataclass, field


@dataclass
class FileServer:
    """Serves `files` (path to bytes) on 127.0.0.1, and notes every request's path and headers.

    Attributes:
        ranges: answer Range requests with 206; else with 200 and the whole file.
        cut_after: bytes of body after which each of the first `cuts` answers breaks off.
        statuses: answers to give to the first requests instead of the file.
        slow: seconds to wait before each block of 64 KiB.
        content_type: what it says the files are; without a length where that is a web page.
    """

    files: dict[str, bytes]
    ranges: bool = True
    cut_after: int = 0
    cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    etag: str = '"first"'
    slow: float = 0.0
    content_type: str = "application/gzip"
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> FileServer:
        state = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(state, self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


def answer(state: FileServer, handler: http.server.BaseHTTPRequestHandler) -> None:
    state.requests.append((handler.path, dict(handler.headers)))
    content = state.files.get(handler.path)
    if state.statuses:
        return handler.send_error(state.statuses.pop(0))
    if content is None:
        return handler.send_error(404)
    asked = handler.headers.get("Range")
    unchanged = handler.headers.get("If-Range") in (None, state.etag)
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges and unchanged else 0
    if start >= len(content):
        return handler.send_error(416)
    body = content[start:]
    handler.send_response(206 if start else 200)
    handler.send_header("ETag", state.etag)
    handler.send_header("Content-Type", state.content_type)
    if state.content_type != "text/html":
        handler.send_header("Content-Length", str(len(body)))
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.end_headers()
    if state.cuts > 0:
        state.cuts -= 1
        body = body[: state.cut_after]
    handler.close_connection = True
    with contextlib.suppress(ConnectionError):  # a client may be killed, or lose its patience
        for offset in range(0, len(body), 1 << 16):
            time.sleep(state.slow)
            handler.wfile.write(body[offset : offset + (1 << 16)])


def make_tar(members, compression="gz"):
    """Returns the bytes of a tar of (name, content) pairs or TarInfo objects."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


SPEECH = [(f"LibriSpeech/dev-clean/84/121123/84-121123-{n:04}.flac", os.urandom(300_000)) for n in range(10)]
BESIDE = [("LibriSpeech/SPEAKERS.TXT", b"; speakers\n")]
