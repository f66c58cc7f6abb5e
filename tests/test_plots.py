"""Pictures: written at once, with every curve, readable, and the same bytes each time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from utils import plots as plots_module
from utils.plots import COLORS
from utils.speaker.evaluation import plots
from utils.speaker.evaluation.det import Det, make_det
from utils.speaker.evaluation.metrics import bootstrap_rates, det_curve, interval, normal_deviate
from utils.training import curves as curves_module
from utils.training.runlog import cpu_time


def colors_in(path: Path) -> list[bool]:
    """Which of the palette's colors cover at least ten pixels of a picture."""
    pixels = imread(path)[..., :3].reshape(-1, 3)
    return [bool((np.abs(pixels - to_rgb(color)).max(axis=1) < 0.01).sum() >= 10) for color in COLORS[:6]]


def scores(seed: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.random(2000) < 0.3
    return np.tanh(draw.normal(size=2000) / 3 + distance * targets), targets


MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.mark.parametrize("kind", plots_module.FORMATS)
def test_det_shows_every_curve_in_each_format(tmp_path: Path, kind: str):
    curves = {f"system {distance}, $5 to $6": [make_det(*scores(1, distance))] for distance in (0.1, 0.7, 2.0)}
    for name in "ab":
        plots_module.save_figure(plots.det_figure(curves, "three systems"), tmp_path / f"{name}.{kind}")
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
    assert first == second and first.startswith(MAGIC[kind])
    if kind == "png":
        assert colors_in(tmp_path / "a.png") == [True, True, True, False, False, False]
    if kind == "svg":
        assert all(label in first.decode() for label in curves)
        assert [color.lower() in first.decode() for color in COLORS[:4]] == [True, True, True, False]


@pytest.mark.parametrize("distance", [0.0, -2.0, 50.0])
def test_det_of_useless_reversed_and_perfect_systems(tmp_path: Path, distance: float):
    """Rates of 0 and 1 have no normal deviate; the axes end before them."""
    curves = {"system": [make_det(*scores(2, distance))]}
    plots_module.save_figure(plots.det_figure(curves, "extreme"), tmp_path / "det.png")
    assert colors_in(tmp_path / "det.png")[0]


def test_a_curve_ends_where_fewer_than_three_errors_are_left():
    values, targets = scores(1, 0.7)
    curve, (fpr, fnr) = make_det(values, targets), det_curve(values, targets)
    false_accepts, false_rejects = curve.fpr * (~targets).sum(), curve.fnr * targets.sum()
    assert false_accepts.min() == pytest.approx(3) and false_rejects.min() == pytest.approx(3)
    assert 0 < len(curve.fpr) < len(fpr) and fnr.min() == 0 and fpr.min() == 0


def test_the_band_holds_the_curve_and_ends_at_the_interval_of_the_eer():
    """Trials of 40 speakers of unequal ease; the band is read where it crosses the diagonal."""
    draw = np.random.default_rng(4)
    ease, (a, b) = draw.normal(size=40), draw.integers(40, size=(2, 20_000))
    a[:4000] = b[:4000]
    targets = a == b
    values = draw.normal(size=len(a)) + targets * (2 + 0.5 * ease[a])
    curve = make_det(values, targets, (a, b))
    edges = [float(np.interp(0, y - x, (x + y) / 2)) for x, y in curve.band]
    low, high = interval(bootstrap_rates(values, targets, a, b, n=1000))
    assert [NormalDist().cdf(edge) for edge in edges] == pytest.approx([low, high], abs=0.003)
    assert low < curve.eer < high and high - low > 0.01
    x, y = normal_deviate(curve.fpr), normal_deviate(curve.fnr)
    for (edge_x, edge_y), sign in zip(curve.band, (1, -1), strict=True):
        height = np.interp(y - x, edge_y - edge_x, (edge_x + edge_y) / 2)
        assert (sign * ((x + y) / 2 - height) > 0).mean() > 0.99


@pytest.mark.parametrize("low", [1e-5, 3e-4, 0.002, 0.02, 0.1, 0.2])
def test_labels_of_det_axes_do_not_collide(low: float):
    rates = np.array([0.4, low])
    figure = plots.det_figure({"system": [Det(rates, rates[::-1], 0.1, (low, low))]}, "axes")
    figure.canvas.draw()
    (axes,) = figure.axes
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) >= 2
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_scores_with_and_without_spread(tmp_path: Path):
    values, targets = scores(3, 1.0)
    thresholds = {"EER threshold": 0.3, "other": 0.9}
    for kind in ("png", "svg"):
        plots.draw_scores(tmp_path / f"a.{kind}", values, targets, thresholds, "scores")
    plots.draw_scores(tmp_path / "b.png", np.full(2, 0.5), np.array([True, False]), {}, "constant")
    assert colors_in(tmp_path / "a.png")[:2] == [True, True]
    rejected, accepted = (values[targets] < 0.3).mean(), (values[~targets] >= 0.3).mean()
    label = f"EER threshold 0.300: {100 * rejected:.2f} % false rejects, {100 * accepted:.2f} % false accepts"
    assert label in (tmp_path / "a.svg").read_text()


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


def test_curves_mark_the_best_checkpoint_and_the_cpu_time(tmp_path: Path):
    lines = [{"step": 10 * n, "loss": 1.0, "lr": 1e-3, "cpu_s_per_step": 3.0} for n in range(1, 21)]  # 10 minutes
    for place, rate in ((4, 0.3), (9, 0.1), (14, 0.1), (19, 0.2)):
        lines[place]["valid_eer"] = rate
    assert curves_module.main([str(write_log(tmp_path / "run", lines)), "--out", str(tmp_path / "curves.svg")]) == 0
    text = (tmp_path / "curves.svg").read_text()
    assert "best checkpoint: 0.1 at step 100<" in text and "CPU time (min)" in text


def test_cpu_time_of_a_run_that_was_interrupted():
    """Steps 21 to 25 were done, but their line was lost: they count as the mean of the others."""
    log = [{"step": 20, "cpu_s_per_step": 1.0}, {"resumed_from": 25}, {"step": 40, "cpu_s_per_step": 2.0}]
    steps, seconds = cpu_time(log)
    assert steps.tolist() == [0, 20, 25, 40]
    assert seconds == pytest.approx([0, 20, 20 + 5 * 50 / 35, 50 + 5 * 50 / 35])
    again = [{"step": 20, "cpu_s_per_step": 1.0}, {"resumed_from": 20}, {"step": 30, "cpu_s_per_step": 4.0}]
    assert cpu_time(again)[1].tolist() == [0, 20, 60] and cpu_time([{"step": 1, "loss": 2.0}])[1].tolist() == [0]


@pytest.mark.parametrize("name", ["curves", "curves.jpg"])
def test_curves_of_no_run_and_pictures_of_no_format_are_refused(tmp_path: Path, capsys, name: str):
    with pytest.raises(SystemExit) as stopped:
        curves_module.main([str(tmp_path), "--out", str(tmp_path / name)])
    assert stopped.value.code == 2 and "must end in .png, .pdf, .svg" in capsys.readouterr().err
    assert curves_module.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "curves.png")]) == 2
    assert "no log lines in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
