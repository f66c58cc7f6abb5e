"""The study of pitch on a model that was hardly trained, and what it refuses."""

import json

import test_text_to_mel
from shown_commands import load_script
from test_text_to_mel import train

data, run, voices = test_text_to_mel.data, test_text_to_mel.run, test_text_to_mel.voices  # fixtures


def test_the_benchmark_of_pitch_finds_what_pyin_finds(run, data, tmp_path, capsys):
    """The voice swings by a semitone about 175 Hz. A model that was hardly trained hears it and cannot predict it."""
    assert (
        load_script("benchmarks/studies/pitch.py").main(
            ["--data", str(data), "--checkpoint", str(run), "--out", str(tmp_path / "pitch"), "--limit", "2"]
        )
        == 0
    )
    results = json.loads((tmp_path / "pitch" / "results.json").read_text())
    assert results["recordings"] == 2 and results["both_voiced"] > 0.5 * results["frames"]
    assert results["differences"]["frame"]["median"] < 30 and results["differences"]["frame"]["far"] < 0.05
    assert "| of symbols |" in capsys.readouterr().out


def test_the_benchmark_of_pitch_refuses_what_it_cannot_measure(run, data, voices, tmp_path, capsys):
    main = load_script("benchmarks/studies/pitch.py").main
    plain = tmp_path / "plain"
    assert train(data, plain, "--steps", "1", "--no-tensorboard", "--no-pitch") == 0
    for folder, checkpoint, sentence in ((data, plain, "is a model without pitch"), (voices, run, "another list")):
        capsys.readouterr()
        words = ["--data", str(folder), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "pitch")]
        assert main(words) == 2
        assert sentence in capsys.readouterr().err
