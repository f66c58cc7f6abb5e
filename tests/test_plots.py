"""Pictures: written at once, with every curve, and the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from utils.plots import COLORS
from utils.speaker import plots
from utils.speaker.metrics import det_curve, eer
from utils.training import curves as curves_module


def colors_in(path: Path) -> list[bool]:
    """Which of the palette's colors cover at least ten pixels of a picture."""
    pixels = imread(path)[..., :3].reshape(-1, 3)
    return [bool((np.abs(pixels - to_rgb(color)).max(axis=1) < 0.01).sum() >= 10) for color in COLORS[:6]]


def scores(seed: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.random(2000) < 0.3
    return np.tanh(draw.normal(size=2000) / 3 + distance * targets), targets


def curve(values: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    return *det_curve(values, targets), eer(values, targets)[0]


def test_det_shows_every_curve(tmp_path: Path):
    curves = {f"system {distance}": curve(*scores(1, distance)) for distance in (0.1, 0.7, 2.0)}
    plots.draw_det(tmp_path / "a.png", curves, "three systems")
    plots.draw_det(tmp_path / "b.png", curves, "three systems")
    assert colors_in(tmp_path / "a.png") == [True, True, True, False, False, False]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("distance", [0.0, -2.0, 50.0])
def test_det_of_useless_reversed_and_perfect_systems(tmp_path: Path, distance: float):
    """Rates of 0 and 1 have no normal deviate; the axes end before them."""
    plots.draw_det(tmp_path / "det.png", {"system": curve(*scores(2, distance))}, "extreme")
    assert colors_in(tmp_path / "det.png")[0]


def test_scores_with_and_without_spread(tmp_path: Path):
    values, targets = scores(3, 1.0)
    plots.draw_scores(tmp_path / "a.png", values, targets, {"EER threshold": 0.3, "other": 0.9}, "scores")
    plots.draw_scores(tmp_path / "b.png", np.full(2, 0.5), np.array([True, False]), {}, "constant")
    assert colors_in(tmp_path / "a.png")[:2] == [True, True]


def test_most_confused_are_chosen_and_keep_their_order():
    counts = np.diag([9, 9, 9, 9, 9])
    counts[3, 1], counts[0, 3] = 4, 1
    assert plots.most_confused(counts, keep=2).tolist() == [1, 3]
    assert plots.most_confused(counts, keep=9).tolist() == [0, 1, 2, 3, 4]


def test_confusions_of_many_speakers_stay_readable(tmp_path: Path):
    names = [f"speaker-{number}" for number in range(200)]
    many = (names, np.eye(200, dtype=int))
    plots.draw_confusions(tmp_path / "many.png", {"by utterance": many}, "200 speakers")
    plots.draw_confusions(tmp_path / "few.png", {"by utterance": (["a", "b"], np.array([[1, 2], [0, 0]]))}, "two")
    height, width = imread(tmp_path / "many.png").shape[:2]
    assert width < 2500 and height < 2500


def write_log(run: Path, lines: list[dict], tail: str = "") -> Path:
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    return run


def test_curves_of_several_runs(tmp_path: Path):
    steps = [{"step": step, "loss": 5 / step, "loss_hex": "0x0p+0", "lr": 1e-3} for step in range(1, 30)]
    first = write_log(tmp_path / "first", [*steps, {"step": 29, "valid_eer": 0.1, "valid_threshold": 0.5}])
    second = write_log(tmp_path / "second", steps[:20], tail='{"step": 21, "lo')  # the run is still writing
    out = tmp_path / "curves.png"
    assert curves_module.main([str(first), str(second), "--out", str(out)]) == 0
    assert colors_in(out) == [True, True, False, False, False, False]


def test_curves_of_no_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert curves_module.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "curves.png")]) == 2
    assert "no log lines in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
