"""The user interface of download.py: flags, messages, exit codes."""

import dataclasses
import hashlib
import os
import re
import resource
import subprocess
import sys

import pytest
import yaml
from file_server import BESIDE, SPEECH, FileServer, make_tar
from root import ROOT

import download
from utils.corpus import catalog

QUICK = ["--attempts", "2", "--retry-wait", "0.01", "--timeout", "5"]


def run_script(*words, **environment):
    command = [sys.executable, "download.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        download.main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_unknown_split_names_those_that_exist(capsys):
    error = refused(capsys, "--dataset", "mini-librispeech", "--split", "train-clean-5", "train-clean-100")
    assert re.search(r"invalid choice: 'train-clean-100' \(choose from '?train-clean-5'?, '?dev-clean-2", error)


def test_all_problems_are_shown_at_once(capsys, tmp_path):
    (tmp_path / "file").touch()
    words = ["--dataset", "ljspeech", "--split", "nope", "--voices", "3", "--seed", "3", "--root", tmp_path / "file"]
    error = refused(capsys, *words)
    for part in (
        "--split: invalid choice: 'nope'",
        "--voices is for other corpora than --dataset ljspeech",
        "--seed is for other corpora than --dataset ljspeech",
        "file is not a folder",
    ):
        assert part in error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--base-url", "http://127.0.0.1"], "--base-url is for other corpora than --dataset demo"),
        (["--no-keep-archive"], "--no-keep-archive is for other corpora than --dataset demo"),
        (["--voices", "65"], "there are only 64 distinct voices"),
        (["--utterances-per-voice", "1"], "each of the two chapters needs an utterance"),
    ],
)
def test_flags_that_the_demo_corpus_refuses(capsys, words, sentence):
    assert sentence in refused(capsys, "--dataset", "demo", *words)


def test_demo_corpus_from_the_command_line(tmp_path, capsys):
    words = ["--dataset", "demo", "--root", str(tmp_path), "--voices", "1", "--utterances-per-voice", "3"]
    assert download.main(words) == 0
    assert len(list(tmp_path.glob("demo/LibriSpeech/demo/90001/*/*.flac"))) == 3
    config = yaml.safe_load((tmp_path / "demo" / "download.yaml").read_text())
    assert (config["voices"], config["utterances_per_voice"], config["seed"]) == (1, 3, 0)
    assert "timeout" not in config
    capsys.readouterr()
    assert download.main(["--config", str(tmp_path / "demo" / "download.yaml")]) == 0
    assert "already complete, 1 voices, 3 utterances" in capsys.readouterr().out
    assert download.main([*words, "--seed", "1"]) == 2
    assert "(seed 0 -> 1): --overwrite" in capsys.readouterr().err


def test_wrong_bytes_are_refused_with_a_sentence(tmp_path):
    with FileServer({"/speech/dev-clean-2.tar.gz": b"no archive"}) as server:
        words = ["--dataset", "mini-librispeech", "--split", "dev-clean-2", "--root", tmp_path]
        result = run_script(*words, "--base-url", f"{server.url}/speech/", *QUICK)
    assert result.returncode == 2
    assert "offers 10 bytes where the official archive has 126,046,265" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "mini-librispeech" / "LibriSpeech").exists()


def test_missing_server(tmp_path, capsys):
    words = ["--dataset", "ljspeech", "--root", str(tmp_path), "--base-url", "http://127.0.0.1:9", *QUICK]
    assert download.main(words) == 2
    captured = capsys.readouterr()
    assert "could not be downloaded: http://127.0.0.1:9/LJSpeech-1.1.tar.bz2 failed" in captured.err
    assert "; retrying in 0.01 s\n" in captured.out


def test_without_a_network_it_gives_up_at_once_and_says_where_an_archive_belongs(tmp_path):
    words = ["--dataset", "ljspeech", "--root", tmp_path, "--base-url", "http://nowhere.invalid", "--retry-wait", "60"]
    result = run_script(*words)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "retrying" not in result.stdout
    place = tmp_path / "ljspeech" / "LJSpeech-1.1.tar.bz2"
    assert result.stderr.endswith(f"; an archive that was fetched by hand belongs at {place}\n")


def test_a_full_disk_names_the_file(tmp_path):
    """The limit on the size of files stands for a full disk."""

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = ["--dataset", "demo-voice", "--root", tmp_path, "--utterances-per-voice", "2"]
    command = [sys.executable, "download.py", *map(str, words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_files)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "there is no space left under" in result.stderr and "DV001-0001.wav: File too large" in result.stderr
    assert not (tmp_path / "demo-voice").exists()


def test_a_terminal_that_lacks_characters_shows_escapes(tmp_path):
    words = ["--dataset", "demo", "--voices", "1", "--utterances-per-voice", "2", "--root"]
    for name, encoding, shown in (("caf\u00e9", "ascii", "caf\\xe9"), (os.fsdecode(b"caf\xe9"), "utf-8", "caf\\udce9")):
        result = run_script(*words, tmp_path / name, PYTHONIOENCODING=encoding)
        assert (result.returncode, result.stderr) == (0, "") and f"{tmp_path}/{shown}/demo" in result.stdout


def test_public_corpus_from_the_command_line(tmp_path, capsys, monkeypatch):
    content = make_tar(BESIDE + SPEECH)
    facts = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "utterances": len(SPEECH),
        "unpacked_bytes": 1,
    }
    official = catalog.ARCHIVES["librispeech", "dev-clean"]
    monkeypatch.setitem(catalog.ARCHIVES, ("librispeech", "dev-clean"), dataclasses.replace(official, **facts))
    with FileServer({"/dev-clean.tar.gz": content}) as server:
        words = ["--dataset", "librispeech", "--split", "dev-clean", "--root", str(tmp_path), "--base-url", server.url]
        assert download.main([*words, *QUICK, "--keep-archive"]) == 0
        assert download.main([*words, *QUICK]) == 0
        assert len(server.requests) == 1
    assert "already complete, 10 recordings" in capsys.readouterr().out
    assert (tmp_path / "librispeech" / "dev-clean.tar.gz").read_bytes() == content
    assert len(list(tmp_path.glob("librispeech/LibriSpeech/dev-clean/*/*/*.flac"))) == len(SPEECH)


def test_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert download.main(["--dataset", "demo", "--root", str(tmp_path / "file" / "below"), "--voices", "1"]) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err
