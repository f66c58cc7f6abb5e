"""Text to mel by the real scripts: train, resume, many voices, synthesize, stream, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fake_whisper
import forked
import numpy as np
import pytest
import soundfile
import torch
from root import ROOT

import preprocess
import test as test_script
import train_tacomamba
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.training.runlog import read_log

SMALL = "--d-model 32 --n-layers 1 --encoder-layers 1 --headdim 16 --d-state 8 --postnet-channels 16".split()
STEPS = "--batch-frames 900 --lr 0.003 --save-every 4 --log-every 1 --threads 1 --task tts".split()


def train(data: Path, out: Path, *words: str) -> int:
    return train_tacomamba.main(["--data", str(data), "--out", str(out), *SMALL, *STEPS, *words])


@pytest.fixture(scope="module")
def data(processed_voice) -> Path:
    """Features of one voice, in characters."""
    return processed_voice


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A run of 8 steps with pictures and sounds."""
    out = tmp_path_factory.mktemp("runs") / "voice"
    assert train(data, out, "--steps", "8") == 0
    return out


@pytest.fixture(scope="module")
def voices(librispeech_root, tmp_path_factory) -> Path:
    """Features of eight voices, in characters, for text to mel."""
    out = tmp_path_factory.mktemp("processed") / "voices"
    words = ["--dataset", "librispeech", "--task", "tts", "--raw", str(librispeech_root), "--out", str(out)]
    assert preprocess.main([*words, "--num-proc", "1"]) == 0
    return out


def synthesize(run: Path, out: Path, *words: str) -> int:
    return test_script.main(["synthesize", "--checkpoint", str(run), "--out", str(out), *words])


def test_a_run_leaves_checkpoints_metrics_pictures_and_sounds(run):
    checkpoint = load_checkpoint(run)
    assert checkpoint["task"] == "tts" and checkpoint["vocabulary"]["units"] == "char"
    lines = [line for line in read_log(run) if "step" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"loss", "mel", "prior", "duration", "pitch"} <= set(lines[0])
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["valid_mel"] < 3
    assert "valid_length_bias" in lines[-1] and 0 < lines[-1]["valid_pitch"] < 2400
    for step in (4, 8):
        assert (run / "pictures" / f"speech-{step:08d}.png").stat().st_size > 10_000
        samples, rate = soundfile.read(run / "sounds" / f"speech-{step:08d}.wav")
        assert rate == 22_050 and len(samples) > 1000 and np.abs(samples).max() <= 1


def test_a_model_without_pitch_speaks_and_does_not_resume_with_it(data, tmp_path):
    plain = tmp_path / "plain"
    assert train(data, plain, "--steps", "1", "--no-tensorboard", "--no-pitch") == 0
    assert synthesize(plain, tmp_path / "x.wav", "--text", "Two boats.") == 0
    assert train(data, plain, "--steps", "2", "--no-tensorboard", "--resume", "auto") == 2


def test_a_checkpoint_of_another_version_says_so(run, tmp_path, capsys):
    checkpoint = load_checkpoint(run)
    checkpoint["model_config"]["breath"] = 0.3
    save_checkpoint(tmp_path / "old" / "best.pt", checkpoint)
    assert synthesize(tmp_path / "old", tmp_path / "x.wav", "--text", "Two boats.") == 2
    message = "by another version of this program (unknown settings breath): train the model again"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["--decoder", "ar", "--amp", "bf16"], ["--model", "tacotron2", "--reduction", "8", "--decoder-dim", "64"]],
    ids=" ".join,
)
def test_a_resumed_run_is_the_same_run(data, tmp_path, words):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(data, whole, "--steps", "6", "--no-tensorboard", *words) == 0
    flags = ["--data", str(data), "--out", str(parts), *SMALL, *STEPS, "--steps", "6", "--no-tensorboard", *words]
    process = forked.run("tests/signal_at_step.py", "3", "SIGTERM", "0", "1", *flags)
    assert process.returncode == 143, process.stderr
    assert train(data, parts, "--steps", "6", "--no-tensorboard", "--resume", "auto", *words) == 0
    losses = [[line["loss_hex"] for line in read_log(out) if "step" in line] for out in (whole, parts)]
    assert losses[0] == losses[1]
    first, second = (load_checkpoint(out / "last.pt")["model"] for out in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_text_becomes_a_wav_a_picture_and_an_account(run, tmp_path, capsys):
    picture = tmp_path / "speech.png"
    words = ["--text", "Rivers carried 3 boats. Quiet houses!", "--picture", str(picture), "--json"]
    assert synthesize(run, tmp_path / "speech.wav", *words) == 0
    (told,) = json.loads(capsys.readouterr().out)["spoken"]
    samples, rate = soundfile.read(tmp_path / "speech.wav")
    assert told["read_as"] == "rivers carried three boats. quiet houses!" and not told["truncated"]
    assert len(samples) / rate == pytest.approx(told["seconds"])
    assert picture.stat().st_size > 10_000
    before = (tmp_path / "speech.wav").read_bytes()
    assert synthesize(run, tmp_path / "speech.wav", *words) == 0
    assert (tmp_path / "speech.wav").read_bytes() == before


def test_standard_output_gets_samples_and_nothing_else(run, tmp_path):
    words = ["--checkpoint", run, "--text", "Two boats.", "--out", "-"]
    process = forked.run("test.py", "synthesize", *words, text=False)
    assert process.returncode == 0 and b"read as: two boats." in process.stderr
    assert synthesize(run, tmp_path / "x.wav", "--text", "Two boats.") == 0
    samples, _ = soundfile.read(tmp_path / "x.wav", dtype="int16")
    assert np.abs(np.frombuffer(process.stdout, "<i2").astype(int) - samples).max() <= 1  # rounded by another hand


def test_an_evaluation_by_the_script_judges_with_the_recognizer_that_was_given(
    run, data, tmp_path, monkeypatch, capsys
):
    asr = fake_whisper.install(tmp_path, monkeypatch)
    words = ["evaluate", "--checkpoint", str(run), "--data", str(data), "--out", str(tmp_path / "report"), "--json"]
    assert test_script.main([*words, "--split", "valid", "test", "--limit", "2", "--mcd", "--asr", str(asr)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["utterances"] == 2 and list(report["source"]["splits"]) == ["valid", "test"]
    assert report["source"]["vocoder"] == "griffin-lim" and report["source"]["asr"] == str(asr)
    assert report["synthesis"]["wer"] == report["copy_synthesis"]["wer"] > 0  # it hears the same of both
    assert report["synthesis"]["mcd"] > report["copy_synthesis"]["mcd"]
    lines = (tmp_path / "report" / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and all(fake_whisper.HEARD in line for line in lines)


def test_each_line_of_a_file_gets_a_wav(run, tmp_path):
    """As of an editor that marks UTF-8; U+2028 ends no line, in no list."""
    (tmp_path / "lines.txt").write_bytes("\ufeffOne\u2028window.\r\n\r\nThe river.\r\n".encode())
    assert synthesize(run, tmp_path / "out", "--text-file", str(tmp_path / "lines.txt"), "--each-line") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0001.wav", "0002.wav"]
    assert synthesize(run, tmp_path / "all.wav", "--text-file", str(tmp_path / "lines.txt"), "--pace", "2") == 0
    parts = sum(len(soundfile.read(path)[0]) for path in (tmp_path / "out").iterdir())
    assert len(soundfile.read(tmp_path / "all.wav")[0]) == pytest.approx(parts / 2, rel=0.2)


@pytest.mark.parametrize(
    "text",
    ["a", "Aaaaaaaaaaaaaaaaaaaaaa", "the the the the the the the", "?! ... hm", "w" * 900, "word " * 1000,
     "\u6f22\u5b57 and letters", "tabs\tand\nlines", "\U0001f600 smile"],
    ids=["one symbol", "long vowel", "repeats", "marks", "no blanks", "1,000 words", "unknown", "blanks", "emoji"],
)  # fmt: skip
def test_odd_texts_are_spoken_in_a_sane_time(run, text, capsys):
    from utils.tts.synthesizer import Synthesizer

    spoken = Synthesizer.load(run, "cpu").speak(text)
    assert np.isfinite(spoken.mel).all() and not spoken.truncated
    assert len(spoken.symbols) <= len(spoken.mel) <= 256 * len(spoken.symbols)
    assert not set(spoken.unknown) & set(spoken.symbols)


def test_symbols_that_the_model_never_heard_are_told_and_left_out(run, tmp_path, capsys):
    """In a sentence, as an entire sentence, and as a mark that no training text has."""
    from utils.tts.synthesizer import Synthesizer

    synthesizer = Synthesizer.load(run, "cpu")
    assert "?" not in synthesizer.trained and "." in synthesizer.trained
    for text in ("The river \u4f60 boats. \u4f60\u597d. House?", "\u4f60\u4f60\u597d. The river boats? House."):
        spoken = synthesizer.speak(text)
        assert spoken.unknown == {"\u4f60": 2, "\u597d": 1, "?": 1}
        assert set(spoken.symbols) <= synthesizer.trained
        assert spoken.symbols[-2:] == (".", "</s>")  # the point stands in for the question mark
    assert synthesize(run, tmp_path / "x.wav", "--text", "The river. \u4f60\u597d.", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["spoken"][0]["unknown"] == {"\u4f60": 1, "\u597d": 1}
    assert "no training text had '\u4f60', which occurs once" in captured.err


def test_a_line_that_says_nothing_is_named_before_anything_is_written(run, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("One window.\n?!\nThe river.\n...\n", encoding="utf-8")
    assert synthesize(run, tmp_path / "out", "--text-file", str(tmp_path / "lines.txt"), "--each-line") == 2
    message = capsys.readouterr().err
    assert "speak in the text '?!' (number 2) and the text '...' (number 4)" in message
    assert not (tmp_path / "out").exists()


def test_the_picture_of_a_long_text_has_no_alignment_and_needs_little_memory(run, tmp_path):
    picture = tmp_path / "long.png"
    assert synthesize(run, tmp_path / "x.wav", "--text", "quiet houses " * 250, "--picture", str(picture)) == 0
    assert 10_000 < picture.stat().st_size < 10_000_000


def test_training_without_validation_texts_says_so_and_goes_on(data, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "protocols" / "default" / "valid.txt").write_text("", encoding="utf-8")
    assert train(folder, tmp_path / "run", "--steps", "2") == 0
    assert "no validation" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run")["step"] == 2
    assert set(load_checkpoint(tmp_path / "run")["metrics"]) == {"duration_scale"}
    (folder / "protocols" / "default" / "valid.txt").write_text("nobody\n", encoding="utf-8")
    assert train(folder, tmp_path / "other", "--steps", "2") == 2
    assert "utterance nobody of the validation list is not in" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "   ", "?!", "\u6f22\u5b57"])
def test_a_text_with_nothing_to_say_is_refused_in_a_sentence(run, tmp_path, text, capsys):
    assert synthesize(run, tmp_path / "x.wav", "--text", text) == 2
    assert "there is nothing to speak in the text" in capsys.readouterr().err
    assert not (tmp_path / "x.wav").exists()


def test_bytes_that_are_no_text_are_refused_before_anything_is_written(run, tmp_path):
    words = ["--checkpoint", run, "--out", tmp_path / "x.wav", "--text", b"caf\xe9 noir"]
    process = forked.run("test.py", "synthesize", *words)
    assert process.returncode == 2 and process.stderr == "error: --text is not UTF-8 text\n"
    assert not (tmp_path / "x.wav").exists()


def test_streaming_needs_a_vocoder_and_a_decoder_that_can(run, data, tmp_path, capsys):
    assert synthesize(run, tmp_path / "x.wav", "--text", "river", "--stream") == 2
    assert "Griffin-Lim cannot stream" in capsys.readouterr().err
    assert train(data, tmp_path / "both", "--steps", "1", "--decoder", "bidirectional", "--no-tensorboard") == 0
    capsys.readouterr()
    assert synthesize(tmp_path / "both", tmp_path / "x.wav", "--text", "river", "--stream") == 2
    assert "tacomamba-bidirectional cannot stream" in capsys.readouterr().err
    assert train(data, tmp_path / "attention", "--steps", "1", "--model", "tacotron2", "--no-tensorboard") == 0
    for words, message in ((["--stream"], "tacotron2 cannot stream"), (["--pace", "1.2"], "--pace needs a model that")):
        capsys.readouterr()
        assert synthesize(tmp_path / "attention", tmp_path / "x.wav", "--text", "river", *words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.wav").exists()


def test_contradictions_are_shown_together(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        synthesize(run, tmp_path / "x.wav", "--stream", "--picture", "x.png", "--each-line")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert (
        "--each-line needs --text-file" in message
        and "either --text or --text-file" in message
        and "--picture" in message
    )


def test_flags_of_the_other_task_are_refused(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(data, tmp_path / "x", "--margin", "0.5", "--model", "xvector")
    message = capsys.readouterr().err
    assert "--margin is for --task speaker, not for --task tts" in message and "invalid choice: 'xvector'" in message
    with pytest.raises(SystemExit):
        train(data, tmp_path / "x", "--voice", "embedding", "--compile")
    message = capsys.readouterr().err
    assert "--speaker-encoder" in message and "--compile is not for --task tts" in message


def test_flags_of_another_model_family_are_refused(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(data, tmp_path / "x", "--model", "tacotron2", "--decoder", "ar", "--attention-dim", "8")
    message = capsys.readouterr().err
    assert "--decoder is for --model tacomamba, not for --model tacotron2" in message and "--attention" not in message


def test_an_autoregressive_decoder_needs_a_mixer_with_a_state(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(data, tmp_path / "x", "--decoder", "ar", "--mixer", "attention", "--steps", "1")
    assert "decoder ar needs a mixer with a state, which attention does not have" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_dropout_does_not_bias_durations(data, tmp_path, ema):
    """With dropout the mean of what is predicted is right, without it another; the checkpoint holds the factor."""
    from utils.features.store import FeatureStore
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.text_lists import read_text_lists

    words = ["--steps", "60", "--save-every", "60", "--dropout", "0.5", "--ema", ema, "--no-tensorboard"]
    words += ["--valid-utterances", "1"]  # the training texts alone tell the scale
    assert train(data, tmp_path / "run", *words) == 0
    scale = load_checkpoint(tmp_path / "run")["metrics"]["duration_scale"]
    synthesizer, store = Synthesizer.load(tmp_path / "run", "cpu"), FeatureStore.open(data)
    items = [store.index[name] for name in read_text_lists(data / "protocols" / "default").train]
    tokens = [torch.from_numpy(store.tokens(item)).long()[None] for item in items]
    said = sum(float(synthesizer.model.predicted_lengths(text, torch.tensor([text.shape[1]]))) for text in tokens)
    true = sum(store.rows[item].frames for item in items)
    assert said / true == pytest.approx(1, abs=0.01)
    assert abs(scale - 1) > 0.01  # there was something to mend
    assert len(synthesizer.speak("The river.").mel) == pytest.approx(
        scale * len(_at_scale_of_one(synthesizer).speak("The river.").mel), abs=1
    )


def _at_scale_of_one(synthesizer):
    synthesizer.model.duration_scale = 1.0
    return synthesizer


def test_checkpoints_of_the_wrong_task_are_refused(run, trained_run, data, tmp_path, capsys):
    assert synthesize(trained_run, tmp_path / "x.wav", "--text", "river") == 2
    assert "holds a model of --task speaker" in capsys.readouterr().err
    evaluate = ["evaluate", "--checkpoint", str(run), "--out", str(tmp_path / "report")]
    assert test_script.main([*evaluate, "--audio-root", str(tmp_path), "--trials", "x"]) == 2
    assert "has no use for --audio-root and --trials" in capsys.readouterr().err
    (tmp_path / "y.wav").touch()
    assert test_script.main(["embed", "--checkpoint", str(run), str(tmp_path / "y.wav")]) == 2
    assert "holds a model of --task tts" in capsys.readouterr().err
    assert test_script.main(["pack", "--checkpoint", str(run), "--out", str(tmp_path / "packed")]) == 2
    assert "holds a model of --task tts" in capsys.readouterr().err


def test_a_table_of_voices_speaks_as_each(voices, tmp_path, capsys):
    assert train(voices, tmp_path / "none", "--steps", "1") == 2
    assert "--voice table or embedding" in capsys.readouterr().err
    run = tmp_path / "table"
    assert train(voices, run, "--steps", "2", "--voice", "table", "--no-tensorboard") == 0
    assert load_checkpoint(run)["speakers"] == [str(number) for number in range(101, 109)]
    words = ["--text", "river", "--speaker"]
    for speaker in ("101", "107"):
        assert synthesize(run, tmp_path / f"{speaker}.wav", *words, speaker) == 0
    assert (tmp_path / "101.wav").read_bytes() != (tmp_path / "107.wav").read_bytes()
    assert synthesize(run, tmp_path / "first.wav", "--text", "river") == 0
    assert (tmp_path / "first.wav").read_bytes() == (tmp_path / "101.wav").read_bytes()
    capsys.readouterr()
    assert synthesize(run, tmp_path / "a.wav", "--text", "river", "--speaker", "999") == 2
    assert "speaks as 101, 102" in capsys.readouterr().err
    words = ["evaluate", "--checkpoint", str(run), "--data", str(voices), "--out", str(tmp_path / "report"), "--json"]
    assert test_script.main([*words, "--limit", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["utterances"] == 2 and not report["warnings"]


def test_a_recording_gives_the_voice(voices, trained_run, librispeech_root, tmp_path, capsys):
    run = tmp_path / "embedding"
    words = ["--voice", "embedding", "--speaker-encoder", str(trained_run), "--no-tensorboard"]
    assert train(voices, run, "--steps", "2", *words) == 0
    checkpoint = load_checkpoint(run)
    assert checkpoint["speaker_embeddings"].shape == (8, 192)
    torch.testing.assert_close(checkpoint["speaker_embeddings"].norm(dim=1), torch.ones(8))
    speakers = librispeech_root / "LibriSpeech" / "train-tiny"
    recordings = [str(next((speakers / name).rglob("*.flac"))) for name in ("103", "105")]
    files = []
    for number, speaker in enumerate(("105", *recordings)):
        files.append(tmp_path / f"{number}.wav")
        assert synthesize(run, files[-1], "--text", "river", "--speaker", speaker) == 0
    assert len({path.read_bytes() for path in files}) == 3  # a mean of recordings, one, one of another speaker
    capsys.readouterr()
    assert synthesize(run, tmp_path / "x.wav", "--text", "river", "--speaker", "nobody.flac") == 2
    assert "neither a recording nor one of this model's speakers" in capsys.readouterr().err


def test_two_ranks_train_as_one_process_does(data, tmp_path):
    """First loss to 1e-6; three float32 AdamW steps to 1e-3, since sums come in another order."""
    words = ["--steps", "3", "--no-tensorboard", "--dropout", "0"]
    assert train(data, tmp_path / "one", *words) == 0
    flags = ["--data", str(data), "--out", str(tmp_path / "two"), *SMALL, *STEPS, *words]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "train_tacomamba.py", *flags]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    one, two = ([line for line in read_log(tmp_path / name) if "step" in line] for name in ("one", "two"))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=1e-3)
    assert two[-1]["valid_mel"] == pytest.approx(one[-1]["valid_mel"], rel=1e-3)
