"""Corpora that the tests make themselves, and what the real scripts make of them."""

from __future__ import annotations

import os
from pathlib import Path

from root import ROOT

# Before torch is imported, here and in the processes that tests start: their models are too small for two threads, and
# threads that wait for each other on a busy machine cost ten times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from voices import VOICES, speak  # noqa: E402

pytest.register_assert_rewrite("training_runs")  # so that its failures show what differs
WORDS = "the river carried small boats past quiet houses while children watched from an open window".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seeds`: how often a test whose inputs are drawn is repeated, with other inputs each time."""
    help = "seeds of each test that takes a `seed`, and examples of each test of Hypothesis if that is more"
    parser.addoption("--seeds", type=int, default=1, metavar="N", help=help)


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws the same examples in each run."""
    examples = max(15, config.getoption("--seeds"))
    settings.register_profile("seeds", derandomize=True, deadline=None, max_examples=examples)
    settings.load_profile("seeds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `seed` is marked `drawn`, and runs with as many of them as `--seeds` says."""
    if "seed" in metafunc.fixturenames:
        seeds = range(metafunc.config.getoption("--seeds"))
        metafunc.parametrize("seed", [pytest.param(seed, marks=pytest.mark.drawn) for seed in seeds])


def write_chapter(folder: Path, voice: str, utterances: int, draw: np.random.Generator, level: float = 1.0) -> None:
    """One chapter in LibriSpeech layout, FLAC with transcripts; `folder` is SPEAKER/CHAPTER."""
    import soundfile  # which the tests on a GPU do without

    folder.mkdir(parents=True)
    lines = []
    for number in range(utterances):
        name = f"{folder.parent.name}-{folder.name}-{number:04d}"
        speech = level * speak(draw, voice, draw.uniform(1.5, 2.5))
        soundfile.write(folder / f"{name}.flac", speech, 16_000, subtype="PCM_16")
        lines.append(f"{name} {' '.join(draw.choice(WORDS, 5)).upper()}\n")
    (folder / f"{folder.parent.name}-{folder.name}.trans.txt").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="session")
def librispeech_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw root in LibriSpeech layout: 8 voices, 94 utterances; 6 voices have chapters of 8 and 5, 2 have one of 8."""
    root = tmp_path_factory.mktemp("raw")
    draw = np.random.default_rng(0)
    split = root / "LibriSpeech" / "train-tiny"
    table = [";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for voice, (sex, *_) in VOICES.items():
        write_chapter(split / voice / f"{voice}1", voice, 8, draw)
        if voice not in ("104", "108"):
            write_chapter(split / voice / f"{voice}2", voice, 5, draw, level=0.7)
        table.append(f"{voice}  | {sex} | train-tiny       | 0.40 | Voice {voice}\n")
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text("".join(table), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def ljspeech_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in LJSpeech layout: one voice, 24 clips of about 1 s at 22,050 Hz."""
    import soundfile

    root = tmp_path_factory.mktemp("raw") / "Voice-1.0"
    (root / "wavs").mkdir(parents=True)
    draw = np.random.default_rng(1)
    lines = []
    for number in range(24):
        name = f"VX{1 + number // 12:03d}-{number:04d}"
        soundfile.write(root / "wavs" / f"{name}.wav", speak(draw, "105", draw.uniform(0.8, 1.2), 22_050), 22_050)
        words = " ".join(draw.choice(WORDS, 4))
        lines.append(f"{name}|{words.capitalize()}, No. 3.|{words.capitalize()}, number three.\n")
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return root


def _preprocess(dataset: str, raw: Path, out: Path, *more: str) -> Path:
    import preprocess

    assert preprocess.main(["--dataset", dataset, "--raw", str(raw), "--out", str(out), "--num-proc", "1", *more]) == 0
    return out


@pytest.fixture(scope="session")
def processed(librispeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What preprocess.py makes of `librispeech_root`, with the protocol "default" (two speakers held out)."""
    return _preprocess("librispeech", librispeech_root, tmp_path_factory.mktemp("processed") / "tiny")


@pytest.fixture(scope="session")
def stored(librispeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings of `processed` as a store of audio."""
    out = tmp_path_factory.mktemp("processed") / "audio"
    return _preprocess("librispeech", librispeech_root, out, "--store", "audio")


@pytest.fixture(scope="session")
def processed_voice(ljspeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What preprocess.py makes of `ljspeech_root`: features of one voice, in characters."""
    return _preprocess("ljspeech", ljspeech_root, tmp_path_factory.mktemp("processed") / "voice")


@pytest.fixture(scope="session")
def trained_run(processed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model that train_tacomamba.py trained on `processed` for a few seconds."""
    import train_tacomamba

    run = tmp_path_factory.mktemp("runs") / "trained"
    model = ["--d-model", "32", "--n-layers", "1", "--headdim", "16", "--d-state", "8", "--pooled-channels", "32"]
    training = ["--steps", "60", "--save-every", "60", "--batch-size", "16", "--crop-seconds", "1", "--lr", "0.003"]
    arguments = ["--data", str(processed), "--out", str(run), "--threads", "1", "--no-tensorboard"]
    assert train_tacomamba.main([*arguments, *model, *training]) == 0
    return run


@pytest.fixture(scope="session")
def packed_model(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that test.py pack makes of `trained_run`, in a folder of shipped models."""
    from utils.speaker.packing import pack

    out = tmp_path_factory.mktemp("shipped") / "pretrained" / "speaker"
    pack(trained_run, out, [])
    return out


@pytest.fixture
def shipped(packed_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`packed_model`, as if the repository shipped it."""
    monkeypatch.setattr("utils.packed.SHIPPED", packed_model.parent)
    return packed_model


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real speech beside the repository; tests that use it are marked `real`."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real speech is not here")
    return folder


@pytest.fixture
def device():
    """Where Triton's kernels are tested: on the GPU, or with TRITON_INTERPRET=1 on the CPU."""
    import torch

    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture
def voices(librispeech_root: Path) -> dict[str, list[Path]]:
    """Speaker -> recordings."""
    split = librispeech_root / "LibriSpeech" / "train-tiny"
    return {folder.name: sorted(folder.rglob("*.flac")) for folder in sorted(split.iterdir())}
