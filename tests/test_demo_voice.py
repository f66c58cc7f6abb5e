"""The one-voice demo corpus: reproducible bytes, LJSpeech layout, many words, correct phone times."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
import yaml
from folders import contents

import download
from utils.corpus.demo_voice import BLOCK, LEVEL, SILENCE, VOICE, Settings, build_demo_voice, make_plan
from utils.corpus.layouts import read_corpus
from utils.corpus.sentences import transcript
from utils.errors import UserError
from utils.espeak import synthesize, synthesize_with_phones
from utils.files import read_json

RATE = 22_050
SMALL = Settings(utterances=BLOCK + 3, seed=5)
USUAL = download.build_parser(["--dataset", "demo-voice"]).parse_args(["--dataset", "demo-voice"])
FULL = Settings(USUAL.utterances_per_voice, USUAL.seed)
# The phones of American English as espeak-ng writes them, without those that it uses in some positions only.
CONSONANTS = "p b t d k ɡ tʃ dʒ f v θ ð s z ʃ ʒ h m n ŋ l ɹ w j ɾ".split()
STOPS = ("p", "b", "t", "d", "k", "ɡ", "tʃ", "dʒ")
VOWELS = "iː ɪ ɛ æ ʌ ə ᵻ ɐ ɚ ɜː ɑː ɔː ʊ uː eɪ aɪ ɔɪ oʊ aʊ ɑːɹ ɔːɹ".split()


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    build_demo_voice(root, SMALL, num_proc=1)
    return root


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder of the corpus with the defaults of download.py."""
    root = tmp_path_factory.mktemp("full")
    assert download.main(["--dataset", "demo-voice", "--root", str(root)]) == 0
    return root / "demo-voice" / "DemoVoice-1.0"


def test_bytes_do_not_depend_on_the_number_of_processes(small_root, tmp_path):
    build_demo_voice(tmp_path, SMALL, num_proc=2)
    assert contents(tmp_path) == contents(small_root)
    assert len(contents(tmp_path / "demo-voice" / "DemoVoice-1.0" / "wavs")) == SMALL.utterances


def test_smaller_corpus_is_the_beginning_of_a_larger_one(small_root, tmp_path):
    build_demo_voice(tmp_path, Settings(3, SMALL.seed))
    mine, theirs = (contents(root / "demo-voice" / "DemoVoice-1.0" / "wavs") for root in (tmp_path, small_root))
    assert len(mine) == 3 and mine.items() <= theirs.items()
    assert set(make_plan(Settings(20, 6))[0].texts).isdisjoint(make_plan(Settings(20, 5))[0].texts)


def test_ljspeech_layout(full):
    utterances = read_corpus(full.parent, "ljspeech")
    assert len(utterances) == FULL.utterances
    first = utterances[0]
    assert (first.utterance, first.path) == ("DV001-0001", "DemoVoice-1.0/wavs/DV001-0001.wav")
    assert {each.speaker for each in utterances} == {"DemoVoice-1.0"}
    assert [each.text for each in utterances] == [text for block in make_plan(FULL) for text in block.texts]
    for line in (full / "metadata.csv").read_text("utf-8").splitlines():
        name, text, normalized = line.split("|")
        info = soundfile.info(full / "wavs" / f"{name}.wav")
        assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
        assert 1.9 < info.duration < 5.5 and text == normalized
    assert 11 < read_json(full / ".complete")["seconds"] / 60 < 14


def test_audio_has_one_level_and_silent_edges(full):
    silence = round(SILENCE * RATE)
    for path in sorted(full.glob("wavs/*.wav"))[::7]:
        samples, _ = soundfile.read(path)
        assert not samples[:silence].any() and not samples[-silence:].any()
        assert 10 * np.log10(np.mean(samples[silence:-silence] ** 2)) == pytest.approx(LEVEL, abs=0.01)
        assert np.abs(samples).max() < 0.9


def test_everything_says_synthetic(full):
    assert "SYNTHETIC" in (full / "README.TXT").read_text()
    record = read_json(full / ".complete")
    assert record["synthetic"] is True and record["voice"] == VOICE.name


def read_phones(corpus):
    return [json.loads(line) for line in (corpus / "phones.jsonl").read_text("utf-8").splitlines()]


def test_text_is_varied_and_has_all_phones_of_english(full):
    texts = [transcript(text) for block in make_plan(FULL) for text in block.texts]
    assert len(set(texts)) == len(texts)
    words = Counter(word for text in texts for word in text.split())
    assert len(words) > 1200
    counts = Counter(symbol.strip("ˈˌ") for line in read_phones(full) for symbol, _ in line["phones"])
    assert {phone: counts[phone] for phone in CONSONANTS + VOWELS if counts[phone] < 10} == {}


def test_phones_start_where_the_sound_does(full):
    """A plosive that follows silence, if only its own closure, starts at the sample that ends it."""
    distances = []
    for line in read_phones(full):
        samples, _ = soundfile.read(full / "wavs" / f"{line['utterance']}.wav")
        starts = [start for _, start in line["phones"]]
        assert starts == sorted(starts) and line["end_s"] == pytest.approx(len(samples) / RATE, abs=1e-6)
        assert SILENCE - 1e-3 < starts[0] and starts[-1] < line["end_s"]
        for symbol, start in line["phones"]:
            place = round(start * RATE)
            if symbol in STOPS and not samples[place - 300 : place - 5].any():
                distances.append(np.flatnonzero(samples[place - 5 :])[0] - 5)
    assert len(distances) > 800
    assert np.abs(distances).max() <= 3


def test_requesting_phones_changes_no_sample():
    texts = ["The judge tore the tough brown paper, at last.", "Four oars or more?"]
    job = {"voice": VOICE.name, "sentences": [{"text": text, "rate": 160, "pitch": 40} for text in texts]}
    rate, plain = synthesize(job)
    assert (rate, len(plain)) == (RATE, 2)
    _, noted, phones = synthesize_with_phones(job)
    assert all(np.array_equal(one, other) for one, other in zip(plain, noted, strict=True))
    assert [phone.symbol for phone in phones[0]][:5] == ["ð", "ə", "dʒ", "ˈʌ", "dʒ"]
    assert [phone.symbol for phone in phones[1] if phone.symbol] == ["f", "ˈɔː", "ɹ", "ˈɔːɹ", "z", "ɔːɹ", "m", "ˈɔːɹ"]
    assert all(phone.start <= len(samples) for samples, found in zip(noted, phones, strict=True) for phone in found)


def test_a_rerun_does_nothing_and_other_settings_replace_on_demand(small_root, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in small_root.rglob("*")}
    build_demo_voice(small_root, SMALL)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert f"already complete, 1 voice, {SMALL.utterances} utterances" in capsys.readouterr().out
    build_demo_voice(tmp_path, Settings(2, 5))
    with pytest.raises(UserError, match=r"other settings \(utterances 2 -> 3, seed 5 -> 6\): --overwrite"):
        build_demo_voice(tmp_path, Settings(3, 6))
    build_demo_voice(tmp_path, Settings(3, 6), overwrite=True)
    assert {path.name for path in (tmp_path / "demo-voice").iterdir()} == {"DemoVoice-1.0"}
    assert len(read_corpus(tmp_path / "demo-voice", "ljspeech")) == 3


def test_missing_espeak_is_reported_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-demo\.txt"):
        build_demo_voice(tmp_path, SMALL)
    assert not list(tmp_path.iterdir())


def test_command_line_keeps_the_flags_that_apply_and_refuses_the_others(tmp_path, capsys):
    words = ["--dataset", "demo-voice", "--root", str(tmp_path), "--utterances-per-voice", "2"]
    assert download.main(words) == 0
    config = yaml.safe_load((tmp_path / "demo-voice" / "download.yaml").read_text())
    assert config["utterances_per_voice"] == 2 and config["seed"] == 0
    assert not {"voices", "timeout"} & set(config)
    capsys.readouterr()
    assert download.main(["--config", str(tmp_path / "demo-voice" / "download.yaml")]) == 0
    assert "already complete, 1 voice, 2 utterances" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        download.main([*words, "--voices", "3", "--attempts", "2", "--split", "demo"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--voices is for other corpora than --dataset demo-voice" in error
    assert "--attempts is for other corpora than --dataset demo-voice" in error
    assert "--split: invalid choice: 'demo'" in error
