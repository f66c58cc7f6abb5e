"""Files are complete or absent, whatever happens during the write."""

import hashlib
import math
import os
import signal
import subprocess
import sys

import pytest

from utils import files
from utils.errors import UserError


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_atomic_write_makes_a_file_with_the_usual_permissions(mask, mode, umask, tmp_path):
    umask(mask)
    path = tmp_path / "new" / "folder" / "file.bin"
    with files.atomic_write(path) as file:
        file.write(b"\x00\xff")
        assert not path.exists()
    assert path.read_bytes() == b"\x00\xff"
    assert path.stat().st_mode & 0o777 == mode
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_write_leaves_the_old_file_when_the_block_raises(error, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error):
        with files.atomic_write(path) as file:
            file.write(b"half of the new")
            file.flush()
            raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_atomic_write_leaves_nothing_when_a_folder_has_the_name(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        files.write_text(tmp_path / "taken", "text")
    assert os.listdir(tmp_path) == ["taken"]


def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import sys, time\nfrom utils.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    assert writer.wait(timeout=30) == -signal.SIGKILL
    writer.stdout.close()
    assert path.read_text() == "old"
    files.write_text(path, "new")  # the leftovers of the killed writer do not interfere
    assert path.read_text() == "new"


def test_text_is_utf8_with_line_ends_as_given(tmp_path):
    files.write_text(tmp_path / "text", "Zoë\nß\n")
    assert (tmp_path / "text").read_bytes() == "Zoë\nß\n".encode()


def test_staging_directory_takes_its_name_at_the_end(umask, tmp_path):
    umask(0o027)
    path = tmp_path / "deep" / "folder"
    with files.staging_directory(path) as staging:
        assert staging.parent == path.parent
        assert not path.exists()
        (staging / "inside").write_text("x")
    assert [entry.name for entry in path.iterdir()] == ["inside"]
    assert path.stat().st_mode & 0o777 == 0o750
    assert os.listdir(path.parent) == ["folder"]


def test_staging_directory_is_removed_when_the_block_raises(tmp_path):
    with pytest.raises(RuntimeError):
        with files.staging_directory(tmp_path / "folder") as staging:
            (staging / "inside").write_text("x")
            raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_staging_directory_never_replaces_an_existing_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    with pytest.raises(OSError):
        with files.staging_directory(tmp_path / "folder"):
            pass
    assert os.listdir(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "precious").exists()


def test_json_round_trip_keeps_order_and_every_float(tmp_path):
    content = {"z": [1, 0.1 + 0.2, None, True], "a": {"ä": "ß"}, "tiny": 5e-324}
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content
    assert list(files.read_json(tmp_path / "a.json")) == ["z", "a", "tiny"]
    assert "ß" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", [math.nan, math.inf, object()])
def test_json_that_is_not_strict_is_never_written(bad, tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        files.write_json(tmp_path / "a.json", {"score": bad})
    assert files.read_json(tmp_path / "a.json") == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_unreadable_json_is_reported_in_a_sentence(tmp_path):
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(UserError, match="broken.json is not JSON: "):
        files.read_json(tmp_path / "broken.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.json cannot be read as text: "):
        files.read_json(tmp_path / "binary.json")
    with pytest.raises(UserError, match="missing.json cannot be read: No such file"):
        files.read_json(tmp_path / "missing.json")


def test_digests(tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert files.sha256_text("ß") == hashlib.sha256("ß".encode()).hexdigest()


def test_a_replaced_file_keeps_mode_owner_and_link(tmp_path):
    """A store that its owner made private stays private, also behind a link."""
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600
    files.write_text(tmp_path / "fresh.txt", "new")
    assert (tmp_path / "fresh.txt").stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_text_is_read_without_mark_and_with_one_kind_of_line_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8three\rfour\x0c\n")
    assert files.read_text(tmp_path / "a.txt") == "one\ntwo\u2028three\nfour\x0c\n"


def test_names_that_utf8_lacks_are_shown_with_escapes():
    assert files.shown(os.fsdecode(b"caf\xe9.wav")) == "caf\\udce9.wav"
    assert files.shown("caf\u00e9.wav") == "caf\u00e9.wav"


def test_a_replaced_folder_keeps_mode_and_link(umask, tmp_path):
    umask(0o022)
    target, link = tmp_path / "elsewhere" / "corpus", tmp_path / "corpus"
    target.mkdir(parents=True)
    target.chmod(0o700)
    (target / "old").touch()
    link.symlink_to(target)
    with files.replacing_directory(link) as staging:
        (staging / "new").touch()
    assert link.is_symlink() and os.listdir(link) == ["new"] and os.listdir(target.parent) == ["corpus"]
    assert target.stat().st_mode & 0o777 == 0o700
