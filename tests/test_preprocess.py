import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from preprocess_runs import run, start, tree, write_noise
from root import ROOT

from utils.errors import UserError
from utils.features.store import FeatureStore
from utils.speaker.protocol import read_protocol
from utils.text.frontend import VERSION, FrontEnd

# Any connection is an error that the run cannot survive.
NO_NETWORK = """
import socket
def refuse(*arguments):
    import os
    print("the network was used", arguments, flush=True)
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory) -> Path:
    """300 short recordings of 4 speakers, which make 3 shards; the last one also has 15 minutes of silence."""
    root = tmp_path_factory.mktemp("long")
    for number in range(300):
        speaker = number // 75 + 1
        write_noise(root / "noise" / f"{speaker}" / "1" / f"{speaker}-1-{number:04d}.flac", 0.1, number)
    soundfile.write(root / "noise" / "4" / "1" / "4-1-9999.flac", np.zeros(900 * 16_000, dtype=np.int16), 16_000)
    return root


@pytest.fixture(scope="module")
def clean(long_corpus, tmp_path_factory) -> dict[str, bytes]:
    """The output of one uninterrupted process for `long_corpus`."""
    out = tmp_path_factory.mktemp("clean") / "out"
    assert run("--dataset", "librispeech", "--raw", long_corpus, "--out", out, "--heldout-speakers", 2) == 0
    return tree(out)


@pytest.fixture
def small(librispeech_root, tmp_path) -> Path:
    """A copy of four voices of the tiny corpus, to be damaged."""
    source = librispeech_root / "LibriSpeech" / "train-tiny"
    for voice in ("101", "103", "106", "107"):
        shutil.copytree(source / voice, tmp_path / "raw" / "train-small" / voice)
    return tmp_path / "raw"


def test_two_processes_make_the_same_bytes_without_network_caches_or_much_disk(long_corpus, clean, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    (tmp_path / "home").mkdir()
    common = ("--dataset", "librispeech", "--raw", long_corpus, "--heldout-speakers", 2)
    environment = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "site")}
    process = start(*common, "--out", tmp_path / "two", "--num-proc", 2, **environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, used(tmp_path / "two"))
        time.sleep(0.02)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert errors == "warning: no test of identification by chapter\n"
    assert tree(tmp_path / "two") == clean
    assert len(list((tmp_path / "two" / "features").iterdir())) == 3
    assert list((tmp_path / "home").iterdir()) == []
    assert not (tmp_path / "two" / ".staging").exists()
    assert 0 < peak <= 1.2 * used(tmp_path / "two")


def used(folder: Path) -> int:
    """Total size of the files under a folder in bytes; a file that vanishes meanwhile ends the count."""
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def test_a_killed_worker_loses_only_its_shard(long_corpus, clean, tmp_path):
    common = ("--dataset", "librispeech", "--raw", long_corpus, "--out", tmp_path / "out", "--heldout-speakers", 2)
    process = start(*common, "--num-proc", 2)
    records = wait_for(lambda: list((tmp_path / "out" / ".staging").glob("*.json")), process)
    for worker in workers_of(process.pid):
        os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 2 and errors.startswith("error: a worker process was killed") and errors.count("\n") == 1
    )
    kept = {path.name.removesuffix(".json") for path in records}
    assert kept and not (tmp_path / "out" / "meta.json").exists()
    made = {name: (tmp_path / "out" / "features" / name).stat().st_mtime_ns for name in kept}
    assert run(*common) == 0
    assert {name: (tmp_path / "out" / "features" / name).stat().st_mtime_ns for name in kept} == made
    assert tree(tmp_path / "out") == clean


def test_unfinished_files_of_a_killed_run_are_removed(processed, librispeech_root, tmp_path):
    out = tmp_path / "out"
    for leftover in (out / ".lock", out / ".meta.json.a1b2_3d4.tmp", out / ".staging" / ".shard.json.a1b2_3d4.tmp"):
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_text("{")
    assert run("--dataset", "librispeech", "--raw", librispeech_root, "--out", out) == 0
    assert tree(out) == tree(processed) and not (out / ".staging").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_a_killed_run(long_corpus, clean, tmp_path, how):
    common = ("--dataset", "librispeech", "--raw", long_corpus, "--out", tmp_path / "out", "--heldout-speakers", 2)
    process = start(*common, "--num-proc", 2)
    wait_for(lambda: list((tmp_path / "out" / ".staging").glob("*.json")), process)
    workers = workers_of(process.pid)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (130 if how is signal.SIGINT else -how) and workers
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert run(*common) == 0
    assert tree(tmp_path / "out") == clean


def wait_for(condition, process=None):
    for _ in range(6000):
        if result := condition():
            return result
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children.read_text().split()}
    return [child for child, command in commands.items() if "spawn_main" in command]


def test_a_rerun_does_nothing_and_says_so(processed, librispeech_root, capsys):
    times = {path: path.stat().st_mtime_ns for path in processed.rglob("*") if path.name != ".lock"}
    assert run("--dataset", "librispeech", "--raw", librispeech_root, "--out", processed) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in processed.rglob("*") if path.name != ".lock"} == times


def test_the_saved_arguments_make_the_same_again(processed, tmp_path):
    assert run("--config", processed / "config.yaml", "--out", tmp_path / "again") == 0
    assert tree(tmp_path / "again") == tree(processed)
    assert yaml.safe_load((processed / "config.yaml").read_text())["recipe"] == "speaker-16k"


def test_another_protocol_leaves_the_features_alone(processed, librispeech_root, tmp_path, capsys):
    out = shutil.copytree(processed, tmp_path / "out")
    (tmp_path / "speakers.txt").write_text("106\n102\n103\n")
    arguments = ("--dataset", "librispeech", "--raw", librispeech_root, "--out", out, "--protocol", "mine")
    assert run(*arguments, "--heldout-speakers", tmp_path / "speakers.txt") == 0
    assert "heldout_speakers 3" in capsys.readouterr().out
    mine, default = (read_protocol(out / "protocols" / name) for name in ("mine", "default"))
    assert mine.heldout_speakers == ["102", "103", "106"] and default.heldout_speakers != mine.heldout_speakers
    assert {k: v for k, v in tree(out).items() if not k.startswith("protocols/mine/")} == tree(processed)
    assert run(*arguments, "--heldout-speakers", 2) == 2
    assert "protocol mine exists with other settings (heldout" in capsys.readouterr().err


def test_parts_that_come_out_empty_are_warned_of(processed, librispeech_root, tmp_path, capsys):
    out = shutil.copytree(processed, tmp_path / "out")
    words = ["--dataset", "librispeech", "--raw", librispeech_root, "--out", out, "--heldout-speakers"]
    assert run(*words, 0, "--valid-speakers", 0, "--no-identification-tests", "--protocol", "all") == 0
    printed = capsys.readouterr()
    assert "valid 0" in printed.out and f"train {len(FeatureStore.open(out))}" in printed.out
    trials = [
        f"warning: no {kind} of {number}" for kind in ("validation trials", "trials") for number in ("one", "two")
    ]
    assert [line.partition(" speaker")[0].partition(" held")[0] for line in printed.err.splitlines()] == trials
    assert run(*words, 2, "--protocol", "some") == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "speakers.txt").write_text("101\n106\n")
    for speaker in ("101", "102", "103", "106", "107"):
        source = librispeech_root / "LibriSpeech" / "train-tiny" / speaker
        for number, path in enumerate(sorted(source.rglob("*.flac"))[:2]):
            target = tmp_path / "raw" / "train" / speaker / "1" / f"{speaker}-1-{number:04d}.flac"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    words = ["--layout", "librispeech", "--raw", tmp_path / "raw", "--out", tmp_path / "few", "--heldout-speakers"]
    assert run(*words, tmp_path / "speakers.txt") == 0
    lines = capsys.readouterr().err.splitlines()
    assert "warning: no test of identification by chapter" in lines
    assert "warning: no test of identification by utterance" in lines and len(lines) == 4


def test_a_split_is_added(small, tmp_path, capsys):
    shutil.copytree(small / "train-small" / "101", small / "train-other" / "201")
    common = ("--dataset", "librispeech", "--raw", small, "--out", tmp_path / "out", "--heldout-speakers", 2)
    assert run(*common, "--split", "train-small") == 0
    before = tree(tmp_path / "out")
    assert run(*common, "--split", "train-other", "--protocol", "both") == 0
    after = tree(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name.endswith(".arrow"))
    store = FeatureStore.open(tmp_path / "out")
    assert {row.speaker for row in store.rows} == {"101", "103", "106", "107", "201"}
    assert [row.utterance for row in store.rows] == sorted(row.utterance for row in store.rows)
    assert run(*common, "--protocol", "third") == 0
    capsys.readouterr()
    assert run(*common) == 2  # "default" was made when there was one split
    assert "protocol default exists with other settings (splits ['train-small'] then" in capsys.readouterr().err


def test_data_that_does_not_match_the_features_is_refused(small, tmp_path, capsys):
    common = ("--dataset", "librispeech", "--raw", small, "--out", tmp_path / "out", "--heldout-speakers", 2)
    assert run(*common) == 0
    before = tree(tmp_path / "out")
    capsys.readouterr()
    assert run(*common, "--recipe", "hifigan-22k", "--protocol", "b") == 2
    errors = capsys.readouterr().err
    assert "1c1b222a00c7" in errors and "0bb58dd8dee6" in errors and "sample_rate 16000 against 22050" in errors
    shutil.copytree(small / "train-small" / "101", small / "train-more" / "201")
    assert run(*common, "--split", "train-more", "--raw", small / "train-more", "--protocol", "b") == 2
    assert "was made from" in capsys.readouterr().err
    assert run(*common, "--split", "train-more", "--protocol", "b") == 0
    write_noise(small / "train-small" / "101" / "1011" / "101-1011-0000.flac", 1.0)
    assert run(*common, "--split", "train-small", "--protocol", "c") == 2
    assert "made from other recordings" in capsys.readouterr().err
    assert all(tree(tmp_path / "out")[name] == content for name, content in before.items() if name.endswith(".arrow"))


def harm(small: Path) -> list[Path]:
    """Makes four of 52 recordings unusable, in different ways."""
    folder = small / "train-small" / "101" / "1011"
    paths = [folder / f"101-1011-000{number}.flac" for number in range(4)]
    os.truncate(paths[0], paths[0].stat().st_size // 2)
    paths[1].write_text("not audio")
    paths[2].write_bytes(b"")
    write_noise(paths[3], 0.01)
    return paths


def test_bad_recordings_are_listed_and_tolerated_up_to_a_share(small, tmp_path, capsys):
    bad = harm(small)
    common = ("--dataset", "librispeech", "--raw", small, "--out", tmp_path / "out", "--heldout-speakers", 2)
    assert run(*common) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("error: 4 of 52 recordings (7.7%) are unusable") and captured.out == ""
    assert not (tmp_path / "out" / "meta.json").exists() and not (tmp_path / "out" / "protocols").exists()
    lines = (tmp_path / "out" / "bad_files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [path.relative_to(small).as_posix() for path in bad]
    for line, reason in zip(lines, ["truncated|damaged|not audio", "not audio", "is empty", "too short"], strict=True):
        assert any(words in line for words in reason.split("|"))
    assert run(*common, "--max-bad", 0.1) == 0
    assert "4 recordings are unusable" in capsys.readouterr().out
    assert len(FeatureStore.open(tmp_path / "out")) == 48 and len(tree(tmp_path / "out")["bad_files.txt"]) > 100


def test_a_recording_fixed_since_is_used_even_if_its_size_is_the_same(small, tmp_path):
    path = small / "train-small" / "101" / "1011" / "101-1011-0000.flac"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    common = ("--dataset", "librispeech", "--raw", small, "--out", tmp_path / "out", "--heldout-speakers", 2)
    assert run(*common) == 3
    path.write_bytes(whole)
    assert run(*common) == 0
    assert len(FeatureStore.open(tmp_path / "out")) == 52 and tree(tmp_path / "out")["bad_files.txt"] == b""


def test_text_to_mel(ljspeech_root, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--dataset", "ljspeech", "--raw", ljspeech_root, "--out", out) == 0
    store = FeatureStore.open(out)
    assert len(store) == 24 and store.recipe.sample_rate == 22_050
    assert store.vocabulary.decode(store.tokens(0)) == store.rows[0].text.lower()
    assert all(store.rows[i].frames == int(store.rows[i].seconds * 22_050) // 256 for i in range(24))
    lists = [(out / "protocols" / "default" / f"{name}.txt").read_text().split() for name in ("train", "valid", "test")]
    assert [len(lines) for lines in lists] == [21, 1, 2] and set(sum(lists, [])) == set(store.index)
    assert "unknown" not in capsys.readouterr().out
    with pytest.raises(UserError, match="splits texts, not speakers"):
        read_protocol(out / "protocols" / "default")


def test_unknown_symbols_are_reported(ljspeech_root, tmp_path, capsys):
    root = shutil.copytree(ljspeech_root, tmp_path / "Voice-1.0")
    metadata = (root / "metadata.csv").read_text().replace("number three", "n° 3")
    (root / "metadata.csv").write_text(metadata, encoding="utf-8")
    assert run("--dataset", "ljspeech", "--raw", root, "--out", tmp_path / "out") == 0
    assert "unknown    not in the vocabulary: '°' x 24\n" in capsys.readouterr().out
    store = FeatureStore.open(tmp_path / "out")
    assert store.vocabulary.decode(store.tokens(0)).endswith(", n<unk> three.")


def test_phoneme_tokens_are_those_of_the_front_end(ljspeech_root, tmp_path, capsys):
    common = ("--dataset", "ljspeech", "--raw", ljspeech_root, "--out", tmp_path / "out")
    assert run(*common, "--units", "phoneme") == 0
    before = tree(tmp_path / "out")
    store = FeatureStore.open(tmp_path / "out")
    front_end = FrontEnd.for_units("phoneme")
    assert store.vocabulary == front_end.vocabulary
    for i, text in enumerate(front_end.encode([row.text for row in store.rows])):
        np.testing.assert_array_equal(store.tokens(i), text.tokens)
    assert store.vocabulary.decode(store.tokens(0)).endswith(", nˈʌmbɚ θɹˈiː.")
    capsys.readouterr()
    assert run(*common) == 2  # characters, by default
    assert "are of --units phoneme, not char: choose another --out" in capsys.readouterr().err
    assert run(*common, "--units", "phoneme") == 0
    assert "nothing to do" in capsys.readouterr().out and tree(tmp_path / "out") == before


def test_tokens_of_another_front_end_are_refused(ljspeech_root, tmp_path, capsys):
    common = ("--dataset", "ljspeech", "--raw", ljspeech_root, "--out", tmp_path / "out")
    assert run(*common) == 0
    meta = tmp_path / "out" / "meta.json"
    meta.write_text(meta.read_text().replace(f'"version": {VERSION}', '"version": 0'))
    capsys.readouterr()
    assert run(*common) == 2
    assert f"were made by version 0 of the text front end, and this is version {VERSION}" in capsys.readouterr().err


def test_phonemes_without_espeak_are_refused_before_the_work(ljspeech_root, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "espeakng_loader.py").write_text("raise ImportError('not here')")
    common = ("--dataset", "ljspeech", "--raw", ljspeech_root, "--out", tmp_path / "out", "--units", "phoneme")
    process = start(*common, PYTHONPATH=str(tmp_path / "site"))
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "") and not (tmp_path / "out").exists()
    assert errors == "error: phonemes need espeak-ng, which is not installed: pip install -r requirements-demo.txt\n"


def test_one_speaker_gives_features_and_a_reason_for_no_protocol(small, tmp_path, capsys):
    speaker = min((small / "train-small").iterdir())
    shutil.copytree(speaker, tmp_path / "alone" / speaker.name)
    common = ("--dataset", "librispeech", "--raw", tmp_path / "alone", "--out", tmp_path / "out")
    for _ in range(2):
        assert run(*common) == 0
        assert "protocol   none" in capsys.readouterr().out
    assert {row.speaker for row in FeatureStore.open(tmp_path / "out").rows} == {speaker.name}
    assert run(*common, "--heldout-speakers", 1) == 2


def test_folders_without_transcripts_suit_task_speaker_and_not_tts(small, tmp_path, capsys):
    for path in (small / "train-small" / "106").rglob("*.trans.txt"):
        path.unlink()
    common = ("--dataset", "librispeech", "--raw", small, "--out", tmp_path / "out")
    assert run(*common, "--task", "tts") == 2
    assert "13 of 52 recordings have no transcript (in train-small; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*common, "--heldout-speakers", 2) == 0
    store = FeatureStore.open(tmp_path / "out")
    silent = [i for i, row in enumerate(store.rows) if row.text is None]
    assert {store.rows[i].speaker for i in silent} == {"106"} and len(silent) == 13
    assert all(len(store.tokens(i)) == 0 for i in silent) and len(store.tokens(0)) > 5


def test_refusals_leave_nothing_behind(small, tmp_path, capsys):
    out = tmp_path / "out"
    cases = [
        (["--raw", tmp_path / "nowhere"], "the folder .*nowhere is missing"),
        (["--raw", small, "--split", "dev-clean"], "has no split dev-clean; it has train-small"),
        (["--raw", small, "--heldout-speakers", 9], "9 speakers cannot be held out"),
        (["--raw", small, "--heldout-speakers", ROOT / "requirements.txt"], "the data has no speaker"),
    ]
    for arguments, sentence in cases:
        assert run("--dataset", "librispeech", "--out", out, *arguments) == 2
        errors = capsys.readouterr().err
        assert re.search(sentence, errors) and errors.startswith("error: ") and errors.count("\n") == 1
        assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert run("--dataset", "librispeech", "--raw", small, "--out", tmp_path / "mine") == 2
    assert "holds other files" in capsys.readouterr().err and len(list((tmp_path / "mine").iterdir())) == 1


def test_a_layout_reads_like_the_dataset_that_has_it(processed, librispeech_root, tmp_path):
    assert run("--layout", "librispeech", "--raw", librispeech_root, "--out", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == tree(processed)
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["dataset"] is None
    assert run("--config", tmp_path / "out" / "config.yaml") == 0


@pytest.mark.real
@pytest.mark.slow
def test_real_speech_from_its_own_folders(real_data, tmp_path):
    speakers = real_data / "speakers_dev"
    splits = ("train-clean-100", "train-clean-100-notext")
    common = ("--dataset", "librispeech", "--raw", speakers, "--split", *splits, "--out", tmp_path / "speakers")
    for fold in range(4):
        held = speakers / "splits" / f"fold{fold}_speakers.txt"
        assert run(*common, "--protocol", f"fold{fold}", "--heldout-speakers", held, "--num-proc", 2) == 0
    assert len(FeatureStore.open(tmp_path / "speakers")) == 527
    arguments = ("--dataset", "ljspeech", "--raw", real_data / "tts_dev", "--split", "LJSpeech-1.1", "Kathleen")
    assert run(*arguments, "--out", tmp_path / "voices") == 0
    assert len(FeatureStore.open(tmp_path / "voices")) == 486
