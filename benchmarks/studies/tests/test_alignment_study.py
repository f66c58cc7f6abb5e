"""Boundary errors: phones found among tokens, edges of frames, figures of made-up alignments, the whole benchmark."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shown_commands import load_script

import preprocess
import train_tacomamba
from benchmarks.studies.synthesis.boundaries import (
    Timing,
    Utterance,
    average_aligner,
    edge,
    estimated_starts,
    figures,
    locate,
    match,
    read_phones,
    uniform_durations,
)
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.corpus.demo_voice import Settings, build_demo_voice
from utils.features.mel import MelExtractor
from utils.features.recipe import RECIPES
from utils.features.store import FeatureStore
from utils.files import read_json
from utils.tts.synthesizer import Synthesizer
from utils.tts.text_lists import read_text_lists

RECIPE = RECIPES["hifigan-22k"]
HOP = 1000 * RECIPE.seconds(1)  # ms


def symbols_of(text: str) -> tuple[str, ...]:
    return ("<s>", *text, "</s>")


def test_phones_start_at_their_first_letter_or_at_the_stress_mark_before_it():
    symbols = symbols_of("ðə dʒˈʌdʒ, tˈuː")
    found = match(symbols, ["ð", "ə", "dʒ", "ˈʌ", "dʒ", "", "", "t", "ˈuː", ""])
    assert found == {0: 1, 1: 2, 2: 4, 3: 6, 4: 8, 7: 12, 8: 13}
    assert [symbols[token] for token in found.values()] == ["ð", "ə", "d", "ˈ", "d", "t", "ˈ"]


def test_only_what_differs_is_left_out():
    phones = ["w", "ˈɔː", "ɾ", "ɚ", "ɪ", "z", "h", "ˈɑː", "t"]
    found = match(symbols_of("wˈɔːtɚ ɪz hˈɑːt"), phones)
    assert set(found) == set(range(len(phones))) - {2}
    found = match(symbols_of("ɪz hˈɑːt"), phones)  # a word that the tokens lack
    assert found == {4: 1, 5: 2, 6: 4, 7: 5, 8: 8}
    for other in ("bˈɛɪt", "bˈet"):  # one letter of a phone is not enough
        assert match(symbols_of(other), ["b", "ˈeɪ", "t"]) == {0: 1, 2: len(other)}
    assert match(symbols_of("?!"), phones) == {}
    assert match(symbols_of("s"), ["s"]) == {0: 1}  # the letter of <s> is none


@pytest.mark.parametrize("name", RECIPES)
def test_edges_lie_around_the_frame_that_hears_a_click_best(name):
    recipe = RECIPES[name]
    extract = MelExtractor(recipe)
    for place in range(4000, 4000 + 2 * recipe.hop_length, 7):
        samples = np.zeros(8000, dtype=np.float32)
        samples[place] = 1.0
        frame = int(np.exp(extract(samples)).sum(axis=1).argmax())
        begin, end = edge(recipe, frame), edge(recipe, frame + 1)
        assert begin - 1 / recipe.sample_rate <= place / recipe.sample_rate <= end + 1 / recipe.sample_rate


@pytest.fixture
def utterances() -> list[Utterance]:
    """Utterances of letters that begin anywhere in time, with pauses."""
    draw = np.random.default_rng(0)
    made = []
    for item in range(20):
        text = "".join(draw.choice(list("abdefgstz "), 30))
        starts = 0.05 + np.cumsum(draw.uniform(0.03, 0.15, len(text)))
        phones = [(symbol.strip(), float(start)) for symbol, start in zip(text, starts, strict=True)]
        end = float(starts[-1] + 0.1)
        frames = RECIPE.frames(int(end * RECIPE.sample_rate))
        made.append(locate(item, symbols_of(text), frames, Timing(phones, end)))
    return made


def true_durations(utterance: Utterance) -> np.ndarray:
    """Frames of each token by the true starts, each rounded to the nearest edge."""
    tokens = [0, *utterance.tokens, len(utterance.symbols)]
    edges = np.rint(np.array([0.0, *utterance.starts, utterance.end]) / RECIPE.seconds(1))
    return np.diff(np.rint(np.interp(np.arange(len(utterance.symbols) + 1), tokens, edges)))


def test_true_durations_err_by_less_than_half_a_frame(utterances):
    durations = [true_durations(utterance) for utterance in utterances]
    for utterance, lengths in zip(utterances, durations, strict=True):
        errors = estimated_starts(utterance, lengths, RECIPE) - utterance.starts
        assert len(errors) > 20 and np.abs(errors).max() <= RECIPE.seconds(1) / 2 + 1e-9
    right = figures(utterances, durations, RECIPE, 100)
    assert 0.2 * HOP < right["mean_ms"] < 0.3 * HOP and right["within_25_ms"] == 1  # the mean of |uniform(-1/2, 1/2)|
    assert right["mean_ci_ms"][0] < right["mean_ms"] < right["mean_ci_ms"][1]
    assert 0 < right["stops"]["phones"] < right["stops"]["phones"] + right["others"]["phones"]
    weighted = sum(right[part]["phones"] * right[part]["mean_ms"] for part in ("stops", "others"))
    assert weighted / sum(len(each.tokens) for each in utterances) == pytest.approx(right["mean_ms"])


@pytest.mark.parametrize(("shift", "within"), [(-3, (0, 1)), (3, (0, 1)), (5, (0, 0))])
def test_shifted_durations_err_by_the_shift(utterances, shift, within):
    """3 frames are 34.8 ms and 5 are 58 ms, each give or take half a frame of rounding."""
    right = [true_durations(utterance) for utterance in utterances]
    late = [lengths + shift * (np.arange(len(lengths)) == 0) for lengths in right]
    wrong = figures(utterances, late, RECIPE, 100)
    before = figures(utterances, right, RECIPE, 100)["signed_mean_ms"]
    assert wrong["signed_mean_ms"] - before == pytest.approx(shift * HOP)
    assert wrong["mean_ms"] == pytest.approx(abs(wrong["signed_mean_ms"]))
    assert wrong["median_ms"] == pytest.approx(abs(shift) * HOP, abs=HOP / 2)
    assert (wrong["within_25_ms"], wrong["within_50_ms"]) == within


def test_aligners_that_do_not_listen():
    """Symbols that always last as long are aligned by their averages, but for the ends that no phone marks."""
    seconds = {"<s>": 0.05, "a": 0.2, "s": 0.1, "t": 0.04, "</s>": 0.07}
    made = []
    for item, text in enumerate(["satsa", "ttas", "assat", "tsta"]):
        starts = np.cumsum([seconds[symbol] for symbol in symbols_of(text)])
        phones = [(symbol, float(start)) for symbol, start in zip(text, starts, strict=False)]
        frames = RECIPE.frames(int(starts[-1] * RECIPE.sample_rate))
        made.append(locate(item, symbols_of(text), frames, Timing(phones, float(starts[-1]))))
    uniform = [uniform_durations(utterance) for utterance in made]
    assert all(np.allclose(lengths * len(lengths), each.frames) for lengths, each in zip(uniform, made, strict=True))
    average = average_aligner(made)
    averages = [average(utterance) for utterance in made]
    assert [lengths.sum() for lengths in averages] == pytest.approx([utterance.frames for utterance in made])
    assert figures(made, averages, RECIPE, 10)["mean_ms"] < 0.5 * figures(made, uniform, RECIPE, 10)["mean_ms"]


def train(root: Path, name: str, *words: str) -> None:
    """A small model in ROOT/NAME that has made one step."""
    model = ["--d-model", "32", "--n-layers", "1", "--encoder-layers", "1", "--headdim", "16", "--d-state", "8"]
    training = ["--steps", "1", "--batch-size", "2", "--valid-utterances", "1", "--no-tensorboard", "--threads", "1"]
    places = ["--task", "tts", "--data", str(root / "data"), "--out", str(root / name), "--postnet-channels", "16"]
    assert train_tacomamba.main([*places, *model, *training, *words]) == 0


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A small one-voice corpus, its features, and a run with a model that has hardly learned anything."""
    root = tmp_path_factory.mktemp("spoken")
    build_demo_voice(root, Settings(utterances=24, seed=0))
    words = ["--dataset", "demo-voice", "--raw", str(root / "demo-voice"), "--out", str(root / "data")]
    assert preprocess.main([*words, "--units", "phoneme", "--num-proc", "1"]) == 0
    train(root, "run")
    return root


def words_of(root, **changed) -> list[str]:
    phones = root / "demo-voice" / "DemoVoice-1.0" / "phones.jsonl"
    flags = {"data": root / "data", "phones": phones, "checkpoint": root / "run", "out": root / "out", **changed}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def test_benchmark_measures_what_the_model_aligns(spoken, capsys):
    assert load_script("benchmarks/studies/alignment.py").main([*words_of(spoken), "--batch-size", "5"]) == 0
    table = capsys.readouterr().out
    results = read_json(spoken / "out" / "results.json")
    assert [(each["aligner"], each["list"]) for each in results] == [
        (name, part)
        for name in ("uniform", "average", "symbols", str(spoken / "run"))
        for part in ("train", "held-out")
    ]
    assert [each["utterances"] for each in results] == [21, 3] * 4
    assert all(each["matched"] == each["phones"] > 30 * each["utterances"] for each in results)
    assert "(100.0 %)" in table and (spoken / "out" / "table.md").read_text("utf-8") in table
    errors = {each["aligner"]: each["mean_ms"] for each in results if each["list"] == "held-out"}
    assert errors["symbols"] < 0.7 * min(errors["uniform"], errors["average"])
    store = FeatureStore.open(spoken / "data")
    lists = read_text_lists(spoken / "data" / "protocols" / "default")
    timings = read_phones(spoken / "demo-voice" / "DemoVoice-1.0" / "phones.jsonl")
    model = Synthesizer.load(spoken / "run", "cpu").model
    errors = []
    for name in [*lists.valid, *lists.test]:
        item = store.index[name]
        tokens, mel = torch.from_numpy(store.tokens(item)).long(), torch.from_numpy(store.mel(item))
        lengths = torch.tensor([len(tokens)]), torch.tensor([len(mel)])
        (durations,) = model.compare(tokens[None], lengths[0], mel[None], lengths[1]).durations
        starts = 256 / 22_050 * (durations.cumsum(0) - durations)
        symbols = [store.vocabulary.symbols[token] for token in tokens]
        phones = timings[name].phones
        errors += [abs(float(starts[token]) - phones[phone][1]) for phone, token in
                   match(symbols, [symbol for symbol, _ in phones]).items()]  # fmt: skip
    assert results[-1]["mean_ms"] == pytest.approx(1000 * np.mean(errors), rel=1e-6)
    assert results[-1]["median_ms"] == pytest.approx(1000 * np.median(errors), rel=1e-6)
    assert results[-1]["uniform_ratio"] == pytest.approx(results[1]["mean_ms"] / results[-1]["mean_ms"])


def test_what_cannot_be_measured_is_refused_with_a_sentence(spoken, tmp_path, capsys):
    main = load_script("benchmarks/studies/alignment.py").main

    def refused(**changed) -> str:
        assert main(words_of(spoken, out=tmp_path / "out", **changed)) == 2
        return capsys.readouterr().err

    phones = tmp_path / "phones.jsonl"
    assert "phones.jsonl cannot be read" in refused(phones=phones)
    phones.write_text('{"utterance": "DV001-0001", "phones": 3}\n')
    assert "is not a list of phone times" in refused(phones=phones)
    phones.write_text('{"utterance": "DV001-0001", "phones": [], "end_s": 2.0}\n')
    assert "lacks 20 of the utterances" in refused(phones=phones)
    checkpoint = load_checkpoint(spoken / "run")
    for name, changes, sentence in (
        ("list", {"training_list": "0" * 16}, "was trained on another list of utterances"),
        ("recipe", {"recipe": RECIPES["speaker-16k"].to_dict()}, "is not that of"),
        ("task", {"task": "speaker"}, "one of --task tts is needed"),
    ):
        save_checkpoint(tmp_path / name / "best.pt", {**checkpoint, **changes})
        assert sentence in refused(checkpoint=tmp_path / name)
    train(spoken, "table", "--voice", "table")
    assert "is a model of several voices" in refused(checkpoint=spoken / "table")
    assert not (tmp_path / "out").exists()
