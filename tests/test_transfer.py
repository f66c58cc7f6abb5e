"""Downloads from a real server on this machine: nothing lost, nothing duplicated, nothing trusted."""

import dataclasses
import hashlib
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from file_server import BESIDE, SPEECH, FileServer, make_tar
from root import ROOT

from utils.corpus.catalog import Archive
from utils.corpus.transfer import Patience, obtain
from utils.errors import UserError
from utils.files import read_json

PATIENCE = Patience(attempts=3, wait=0.01, timeout=5)


CONTENT = make_tar(BESIDE + SPEECH)  # 3 MB that do not compress


def archive_of(content, *servers, **changes):
    urls = tuple(f"{server.url}/dev-clean.tar.gz" for server in servers) or ("http://127.0.0.1:9/dev-clean.tar.gz",)
    archive = Archive(
        dataset="librispeech",
        split="dev-clean",
        urls=urls,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        md5=hashlib.md5(content).hexdigest(),
        folder="LibriSpeech/dev-clean",
        unpacked_bytes=len(content),
    )
    return dataclasses.replace(archive, **changes)


def serve(content=CONTENT, **behavior):
    return FileServer({"/dev-clean.tar.gz": content}, **behavior)


def place_part(root, content):
    part = root / "librispeech" / "dev-clean.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def unpacked(root):
    return root / "librispeech" / "LibriSpeech" / "dev-clean"


def assert_whole(root):
    for name, content in BESIDE + SPEECH:
        assert (root / "librispeech" / name).read_bytes() == content
    assert read_json(unpacked(root) / ".complete")["utterances"] == len(SPEECH)
    left = {path.name for path in (root / "librispeech").iterdir()}
    assert left - {"dev-clean.tar.gz.bad"} == {"LibriSpeech"}


def test_arrives_complete_and_is_not_fetched_again(tmp_path, capsys):
    with serve() as server:
        archive = archive_of(CONTENT, server, utterances=len(SPEECH))
        obtain([archive], tmp_path, PATIENCE)
        assert_whole(tmp_path)
        capsys.readouterr()
        obtain([archive], tmp_path, PATIENCE)
        assert len(server.requests) == 1
    assert "already complete" in capsys.readouterr().out


def test_keeps_the_archive_on_request(tmp_path):
    with serve() as server:
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE, keep_archive=True)
    assert (tmp_path / "librispeech" / "dev-clean.tar.gz").read_bytes() == CONTENT


def test_an_archive_put_there_by_hand_needs_no_server(tmp_path):
    (tmp_path / "librispeech").mkdir()
    (tmp_path / "librispeech" / "dev-clean.tar.gz").write_bytes(CONTENT)
    obtain([archive_of(CONTENT)], tmp_path, PATIENCE)
    assert_whole(tmp_path)


DOWNLOADER = """
import sys
from pathlib import Path
from utils.cli import run
from utils.corpus.catalog import Archive
from utils.corpus.transfer import Patience, obtain
url, size, sha256, root = sys.argv[1:]
archive = Archive("librispeech", "dev-clean", (url,), int(size), sha256, None, "LibriSpeech/dev-clean", int(size))
sys.exit(run(lambda _: obtain([archive], Path(root), Patience(3, 0.01, 5)), None))
"""


def start_downloader(archive, root, **options):
    words = [archive.urls[0], str(archive.bytes), archive.sha256, str(root)]
    command = [sys.executable, "-c", DOWNLOADER, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, **options)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_download_fetches_only_what_is_missing(tmp_path):
    part = tmp_path / "librispeech" / "dev-clean.tar.gz.part"
    with serve(slow=0.02) as server:
        archive = archive_of(CONTENT, server, md5=None)
        process = start_downloader(archive, tmp_path)
        wait_for(lambda: part.exists() and part.stat().st_size > 500_000)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = part.stat().st_size
        assert kept < len(CONTENT)
        server.slow = 0
        obtain([archive], tmp_path, PATIENCE)
        assert server.ranges_asked == [None, f"bytes={kept}-"]
        assert server.requests[1][1]["If-Range"] == server.etag
    assert_whole(tmp_path)


def test_two_processes_make_one_transfer(tmp_path, capsys):
    with serve(slow=0.02) as server:
        archive = archive_of(CONTENT, server, md5=None)
        process = start_downloader(archive, tmp_path)
        wait_for(lambda: server.requests)
        obtain([archive], tmp_path, PATIENCE)
        assert process.wait() == 0
        assert len(server.requests) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"process {process.pid} on ") and told[0].endswith("waiting for it")
    assert "already complete" in told[-1]
    assert_whole(tmp_path)


def test_disk_that_fills_up_keeps_what_arrived(tmp_path):
    part = tmp_path / "librispeech" / "dev-clean.tar.gz.part"

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    with serve() as server:
        archive = archive_of(CONTENT, server, md5=None)
        process = start_downloader(archive, tmp_path, preexec_fn=limit_files, stderr=subprocess.PIPE, text=True)
        _, error = process.communicate()
        assert process.returncode == 2
        assert "no space left" in error and "Traceback" not in error
        kept = part.read_bytes()
        assert 0 < len(kept) <= 1_000_000 and CONTENT.startswith(kept)
        obtain([archive], tmp_path, PATIENCE)
        assert server.ranges_asked == [None, f"bytes={len(kept)}-"]
    assert_whole(tmp_path)


def test_server_without_ranges_starts_over_and_never_appends(tmp_path):
    place_part(tmp_path, CONTENT[:1_000_000])
    with serve(ranges=False) as server:
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
        assert server.ranges_asked == ["bytes=1000000-"]
    assert_whole(tmp_path)


@pytest.mark.parametrize("ranges", [True, False])
def test_connection_that_closes_early_is_tried_again(tmp_path, ranges):
    with serve(ranges=ranges, cut_after=700_000, cuts=2) as server:
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
        expected = [None, "bytes=700000-", "bytes=1400000-" if ranges else "bytes=700000-"]
        assert server.ranges_asked == expected
    assert_whole(tmp_path)


def test_damaged_partial_file_is_set_aside_and_fetched_once_more(tmp_path):
    place_part(tmp_path, b"x" * 1_000_000)
    with serve() as server:
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
        assert server.ranges_asked == ["bytes=1000000-", None]
    assert_whole(tmp_path)
    assert (tmp_path / "librispeech" / "dev-clean.tar.gz.bad").read_bytes().startswith(b"x" * 1_000_000)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_wrong_hash_is_refused_and_nothing_is_unpacked(tmp_path, algorithm):
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with serve(wrong) as server:
        archive = archive_of(CONTENT, server, **({"sha256": None} if algorithm == "md5" else {"md5": "0" * 32}))
        with pytest.raises(UserError, match=rf"{algorithm} .* official .* nothing was unpacked"):
            obtain([archive], tmp_path, PATIENCE)
        assert len(server.requests) == 1
    left = {path.name for path in (tmp_path / "librispeech").iterdir()}
    assert left == {"dev-clean.tar.gz.bad"}


def test_wrong_size_is_refused_before_it_is_fetched(tmp_path):
    with serve(CONTENT + b"more") as server:
        with pytest.raises(UserError, match="offers .* bytes where the official archive has"):
            obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
    assert not (tmp_path / "librispeech").exists()


def test_archive_that_changed_on_the_server_is_fetched_again(tmp_path):
    with serve(cut_after=700_000, cuts=1, etag='"old"') as server:
        with pytest.raises(UserError, match="700,000 bytes are kept"):
            obtain([archive_of(CONTENT, server)], tmp_path, dataclasses.replace(PATIENCE, attempts=1))
        server.etag = '"new"'
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
        assert server.requests[-1][1]["If-Range"] == '"old"'
        assert server.ranges_asked == [None, "bytes=700000-"]
    assert_whole(tmp_path)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_next_mirror_when_the_first_fails(tmp_path, status):
    with serve(statuses=[status]) as first, serve() as second:
        obtain([archive_of(CONTENT, first, second)], tmp_path, PATIENCE)
        assert (len(first.requests), len(second.requests)) == (1, 1)
    assert_whole(tmp_path)


def test_web_page_instead_of_an_archive_is_not_kept(tmp_path):
    with serve(b"<html>", content_type="text/html") as portal, serve() as second:
        obtain([archive_of(CONTENT, portal, second)], tmp_path, PATIENCE)
        assert second.ranges_asked == [None]
    assert_whole(tmp_path)


def test_the_partial_file_is_kept_if_every_server_fails(tmp_path):
    part = place_part(tmp_path, CONTENT[:1_000_000])
    with serve(statuses=[503] * 10) as server:
        with pytest.raises(UserError, match=r"answered 503 .*1,000,000 bytes are kept"):
            obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
        assert len(server.requests) == PATIENCE.attempts
    assert part.read_bytes() == CONTENT[:1_000_000]


def test_silent_server_is_abandoned(tmp_path):
    with serve(slow=3) as silent, serve() as second:
        obtain([archive_of(CONTENT, silent, second)], tmp_path, dataclasses.replace(PATIENCE, timeout=0.3))
        assert len(silent.requests) == len(second.requests) == 1
    assert_whole(tmp_path)


def test_too_small_a_disk_is_refused_before_the_start(tmp_path):
    with serve() as server:
        with pytest.raises(UserError, match=r"has [\d.]+ GB free, but dev-clean needs 1000000\.\d\d GB"):
            obtain([archive_of(CONTENT, server, unpacked_bytes=10**15)], tmp_path, PATIENCE)
        assert not server.requests


def link(name, kind, target="LibriSpeech/SPEAKERS.TXT"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    "parent": ("LibriSpeech/dev-clean/../../../../evil.flac", b"x"),
    "absolute": ("/tmp/tacomamba-evil.flac", b"x"),
    "symlink": link("LibriSpeech/dev-clean/84/evil.flac", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": link("LibriSpeech/dev-clean/84/evil.flac", tarfile.LNKTYPE),
    "device": link("LibriSpeech/dev-clean/84/evil.flac", tarfile.CHRTYPE, ""),
    "pipe": link("LibriSpeech/dev-clean/84/evil.flac", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused(tmp_path, kind):
    content = make_tar([*BESIDE, *SPEECH[:1], HOSTILE[kind]])
    root = tmp_path / "inner" / "root"
    with serve(content) as server, pytest.raises(UserError, match="is refused: its member"):
        obtain([archive_of(content, server)], root, PATIENCE)
    assert not unpacked(root).parent.exists()
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/tacomamba-evil.flac").exists()
    assert {path.name for path in (root / "librispeech").iterdir()} == {"dev-clean.tar.gz"}


@pytest.mark.parametrize("compression", ["gz", "bz2"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_archive_is_never_complete(tmp_path, compression, damage):
    content = bytearray(make_tar(BESIDE + SPEECH[:3], compression))
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    with serve(bytes(content)) as server, pytest.raises(UserError, match=r"damaged|recordings"):
        obtain([archive_of(content, server, utterances=3)], tmp_path, PATIENCE)
    assert not unpacked(tmp_path).exists()


def test_count_catches_a_tar_that_ends_between_members(tmp_path):
    content = make_tar(BESIDE + SPEECH[:-1])
    with serve(content) as server, pytest.raises(UserError, match="holds 9 recordings where 10 are expected"):
        obtain([archive_of(content, server, utterances=len(SPEECH))], tmp_path, PATIENCE)
    assert not unpacked(tmp_path).exists()


def test_folder_of_unknown_origin_is_left_alone(tmp_path):
    unpacked(tmp_path).mkdir(parents=True)
    with serve() as server, pytest.raises(UserError, match="exists, but was not made by download.py"):
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
    assert not server.requests


def test_recording_that_went_missing_is_noticed(tmp_path):
    with serve() as server:
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
        next(unpacked(tmp_path).rglob("*.flac")).unlink()
        with pytest.raises(UserError, match="holds 9 of its 10 recordings"):
            obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)


def test_leftovers_of_a_killed_extraction_are_removed(tmp_path):
    leftover = tmp_path / "librispeech" / ".unpacking-killed" / "LibriSpeech" / "dev-clean"
    leftover.mkdir(parents=True)
    (leftover / "half.flac").write_bytes(b"x")
    with serve() as server:
        obtain([archive_of(CONTENT, server)], tmp_path, PATIENCE)
    assert_whole(tmp_path)


def test_second_split_is_put_beside_the_first(tmp_path):
    other = make_tar([*BESIDE, ("LibriSpeech/test-clean/61/70968/61-70968-0000.flac", b"x" * 1000)])
    with FileServer({"/dev-clean.tar.gz": CONTENT, "/test-clean.tar.gz": other}) as server:
        archives = [archive_of(CONTENT, server)]
        archives.append(
            archive_of(
                other, split="test-clean", folder="LibriSpeech/test-clean", urls=(f"{server.url}/test-clean.tar.gz",)
            )
        )
        obtain(archives, tmp_path, PATIENCE)
    assert_whole(tmp_path)
    assert (unpacked(tmp_path).parent / "test-clean" / ".complete").exists()
