"""The demo corpus: its bytes depend on its settings alone, its voices differ, and it says that it is synthetic."""

import concurrent.futures
import dataclasses
import itertools
import re
import sys
import time

import numpy as np
import pytest
import soundfile
from folders import contents

import download
from utils.corpus.demo import SAMPLE_RATE, Settings, _resample, build_demo, make_plan
from utils.corpus.sentences import transcript
from utils.corpus.voices import VOICES, Voice
from utils.errors import UserError
from utils.espeak import synthesize
from utils.files import read_json

SMALL = Settings(voices=3, utterances_per_voice=2, seed=5)
USUAL = download.build_parser(["--dataset", "demo"]).parse_args(["--dataset", "demo"])
FULL = Settings(USUAL.voices, USUAL.utterances_per_voice, USUAL.seed)


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    build_demo(root, SMALL, num_proc=1)
    return root


@pytest.fixture
def corpus(small_root):
    return small_root / "demo" / "LibriSpeech"


def test_bytes_do_not_depend_on_the_number_of_processes(small_root, tmp_path):
    build_demo(tmp_path, SMALL, num_proc=2)
    assert contents(tmp_path) == contents(small_root)


def test_librispeech_layout(corpus):
    recordings = sorted(corpus.glob("demo/*/*/*.flac"))
    assert [path.relative_to(corpus).as_posix() for path in recordings] == [
        f"demo/{speaker}/{speaker}{chapter}/{speaker}-{speaker}{chapter}-0000.flac"
        for speaker in (90001, 90002, 90003)
        for chapter in (1, 2)
    ]
    for recording, texts in zip(recordings, sorted(corpus.glob("demo/*/*/*.trans.txt")), strict=True):
        assert re.fullmatch(rf"{recording.stem} [A-Z' ]+\n", texts.read_text())
        info = soundfile.info(recording)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        assert 2 < info.duration < 7


def test_audio_has_the_level_and_noise_of_its_chapter(corpus):
    for speaker in make_plan(SMALL):
        for chapter in speaker.chapters:
            path = corpus / "demo" / speaker.name / chapter.name / f"{speaker.name}-{chapter.name}-0000.flac"
            samples, _ = soundfile.read(path)
            with_noise = chapter.level + 10 * np.log10(1 + 10 ** (-chapter.snr / 10))
            assert 10 * np.log10(np.mean(samples**2)) == pytest.approx(with_noise, abs=0.3)
            assert np.abs(samples).max() < 0.99
            quietest = np.sort((samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2).mean(axis=1))[:8]
            assert 10 * np.log10(quietest.mean()) == pytest.approx(chapter.level - chapter.snr, abs=6)


def test_everything_says_synthetic(corpus):
    assert "SYNTHETIC" in (corpus / "README.TXT").read_text()
    rows = (corpus / "SPEAKERS.TXT").read_text().splitlines()
    speakers = [row.split("|") for row in rows if not row.startswith(";")]
    assert [(row[0].strip(), row[1].strip(), row[2].strip()) for row in speakers] == [
        ("90001", VOICES[0].sex, "demo"),
        ("90002", VOICES[1].sex, "demo"),
        ("90003", VOICES[2].sex, "demo"),
    ]
    assert all("SYNTHETIC" in row[4] and voice.name in row[4] for row, voice in zip(speakers, VOICES, strict=False))
    assert read_json(corpus / "demo" / ".complete")["synthetic"] is True


def test_a_rerun_does_nothing(small_root, capsys):
    before = {path: path.stat().st_mtime_ns for path in small_root.rglob("*")}
    build_demo(small_root, SMALL)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "already complete, 3 voices, 6 utterances" in capsys.readouterr().out


def test_other_settings_are_refused_and_replace_on_demand(small_root, tmp_path):
    with pytest.raises(UserError, match=r"other settings \(voices 3 -> 2, seed 5 -> 6\): --overwrite"):
        build_demo(small_root, Settings(2, 2, 6))
    first = Settings(voices=1, utterances_per_voice=2, seed=5)
    build_demo(tmp_path, first)
    build_demo(tmp_path, dataclasses.replace(first, seed=6), overwrite=True)
    mine = contents(tmp_path / "demo" / "LibriSpeech" / "demo" / "90001")
    theirs = contents(small_root / "demo" / "LibriSpeech" / "demo" / "90001")
    assert mine.keys() == theirs.keys()
    assert not set(mine.values()) & set(theirs.values())
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"LibriSpeech"}


def test_a_folder_that_is_in_the_way_is_left_alone(tmp_path):
    precious = tmp_path / "demo" / "LibriSpeech" / "mine.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(UserError, match="move it away"):
        build_demo(tmp_path, SMALL, overwrite=True)
    assert precious.read_text() == "mine"


def test_missing_espeak_is_reported_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-demo\.txt"):
        build_demo(tmp_path, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("voice", ["en-us+nobody", "xx", "en-us+ALICIA"])
def test_voices_that_do_not_exist_are_refused(voice):
    with pytest.raises(UserError, match="could not speak"):
        synthesize({"voice": voice, "sentences": [{"text": "Hello.", "rate": 160, "pitch": 50}]})


def test_breath_noise_does_not_depend_on_the_time():
    job = {"voice": "en-us+victor", "sentences": [{"text": "It was a long way home.", "rate": 160, "pitch": 50}]}
    _, (first,) = synthesize(job)
    time.sleep(1.1)  # espeak-ng would seed its breath noise with the time in seconds
    _, (second,) = synthesize(job)
    assert np.array_equal(first, second)


def test_the_plan_keeps_its_limits():
    plan = make_plan(FULL)
    assert len({speaker.voice for speaker in plan}) == len(plan) == FULL.voices >= 40
    assert {speaker.voice.sex for speaker in plan[:10]} == {"F", "M"}
    texts = [text for speaker in plan for chapter in speaker.chapters for text in chapter.texts]
    assert len(set(map(transcript, texts))) == len(texts) == FULL.voices * FULL.utterances_per_voice
    for speaker in plan:
        first, second = speaker.chapters
        assert len(first.texts) == len(second.texts) == FULL.utterances_per_voice // 2
        assert 0.02 < abs(second.rate / first.rate - 1) <= 0.08
        assert 1 <= abs(second.pitch - first.pitch) <= 3  # 3 of espeak's steps are at most 5 %
        assert abs(second.level - first.level) >= 2.9
        assert first.snr != second.snr and first.colour != second.colour


def test_plan_of_fewer_voices_is_the_beginning_of_a_larger_one():
    assert make_plan(dataclasses.replace(FULL, voices=5)) == make_plan(FULL)[:5]


def test_plan_follows_the_seed():
    mine, theirs = make_plan(SMALL), make_plan(dataclasses.replace(SMALL, seed=6))
    assert not {text for s in mine for c in s.chapters for text in c.texts} & {
        text for s in theirs for c in s.chapters for text in c.texts
    }
    assert [c.level for s in mine for c in s.chapters] != [c.level for s in theirs for c in s.chapters]


@pytest.mark.parametrize(("frequency", "kept"), [(440, True), (7000, True), (8500, False), (10000, False)])
def test_resampling_keeps_tones_below_half_the_rate_and_removes_those_above(frequency, kept):
    seconds = np.arange(22_050) / 22_050
    resampled = _resample(np.rint(20_000 * np.sin(2 * np.pi * frequency * seconds)).astype(np.int16), 22_050)
    assert len(resampled) == SAMPLE_RATE
    wanted = 20_000 / 32_768 * np.sin(2 * np.pi * frequency * np.arange(SAMPLE_RATE) / SAMPLE_RATE) * kept
    assert np.abs(resampled - wanted)[800:-800].max() < 2e-4


def mean_spectrum(samples, rate):
    """Long-term average log spectrum of the loud frames, in 40 bands equally wide in log frequency, without level."""
    frames = np.lib.stride_tricks.sliding_window_view(samples / 32768, 1024)[::256] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)) ** 2
    loud = power[power.sum(axis=1) > power.sum(axis=1).max() / 100]
    edges = np.searchsorted(np.fft.rfftfreq(1024, 1 / rate), np.geomspace(80, 8000, 41))
    bands = np.log(np.stack([loud[:, a : max(b, a + 1)].mean(axis=1) for a, b in itertools.pairwise(edges)], axis=1))
    mean = bands.mean(axis=0)
    return mean - mean.mean()


def spectra_of(voices):
    """Mean spectra (voices, 2, 40): each voice speaks two sentences that share most of their words."""
    texts = [f"{subject} moved the yellow boat near the old harbour." for subject in ("The teacher", "Our uncle")]

    def speak(voice):
        rate, spoken = synthesize(
            {"voice": voice.name, "sentences": [{"text": t, "rate": 165, "pitch": voice.pitch} for t in texts]}
        )
        return [mean_spectrum(samples, rate) for samples in spoken]

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        return np.array(list(threads.map(speak, voices)))


def distances_between(spectra):
    """Distance (voices, voices) of row's first sentence to column's second; the diagonal is within a voice."""
    return np.sqrt(((spectra[:, None, 0] - spectra[None, :, 1]) ** 2).mean(axis=2))


def test_no_two_voices_are_near_copies():
    distances = distances_between(spectra_of(VOICES[: FULL.voices]))
    within, between = np.diag(distances), distances[~np.eye(len(distances), dtype=bool)]
    assert between.min() > 1.2 * within.max()
    copies = distances_between(spectra_of([Voice("en-us", "iven", 50, "M"), Voice("en-us", "iven3", 50, "M")]))
    assert copies.max() < 1.2 * within.max()  # the measure detects the copies among espeak-ng's variants
