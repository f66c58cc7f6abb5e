"""The page of a comparison: what it shows, and that a browser shows it without any other file."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from test_comparison import call, scores, written

from utils.plots import COLORS, percent
from utils.speaker.evaluation.comparison import signed
from utils.speaker.evaluation.systems import differing_flags, facts_of, system_labels

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def about(seed: int, cpu_s: float, **flags: object) -> dict:
    """What an evaluation records of its model."""
    training = {"steps": 50, "flags": {"seed": seed, "lr": 0.01, **flags}, "cpu_s": cpu_s, "memory_mib": 700.0 + seed}
    return {"model": {"name": "tiny", "parameters": 1234, "hash": "0", "training": training}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two seeds of a system, a system with an odd name, and one of which nothing is recorded."""
    base = tmp_path_factory.mktemp("systems")
    models = about(0, 10.0, mixer="mamba2"), about(1, 30.0, mixer="mamba2"), about(0, 5.0, mixer="<lstm> & co")
    first = [written(base / f"a{seed}", scores(2, seed), about=models[seed], noise=scores(1, seed)) for seed in (0, 1)]
    odd = written(base / "b<i>&amp;$x$", scores(1.5, 3), about=models[2], noise=scores(1, 4))
    bare = written(base / "c", scores(1, 5), noise=scores(0.5, 6))
    out = base / "out"
    assert call("compare", f"{first[0]},{first[1]}", odd, bare, "--out", out) == 0
    return out


class Page(HTMLParser):
    """Collects the words of a page, its tables as rows of cells, its pictures, and what it refers to."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.words, self.tables, self.pictures, self.references, self.tags = [], [], [], [], set()
        self.in_cell = False
        self.feed((folder / "comparison.html").read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.tags.add(tag)
        self.references += [values[name] for name in ("src", "href", "action", "data", "srcset") if name in values]
        if tag == "img":
            self.pictures.append((values["alt"], values["src"]))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append([])
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.tables[-1][-1][-1].append(data)


def test_the_page_has_the_figures_of_the_report(folder: Path):
    page, report = Page(folder), json.loads((folder / "report.json").read_text())
    systems, flags, rates, differences = page.tables
    labels = ["1: a0 (2 seeds)", "2: b<i>&amp;$x$", "3: c"]
    assert [row[0][0] for row in systems[1:]] == labels
    assert systems[1][1:] == [["tiny"], ["1,234"], ["50"], ["20 s"], ["701 MiB"]] and systems[3][1:] == [["-"]] * 5
    assert flags[1:] == [
        [["--mixer"], ["mamba2"], ["<lstm> & co"], ["-"]],
        [["--seed"], ["0, 1"], ["0"], ["-"]],
    ]
    for table, key, show in ((rates, "eer", percent), (differences, "difference", signed)):
        assert [row[0] for row in table[1:]] == [[name] for name in report["rows"]]
        for (name,), *cells in table[1:]:
            row = report["rows"][name]
            pairs = zip(row[key], row[f"{key}_ci"], strict=True)
            assert cells == [[show(value), f"{show(low)} to {show(high)}"] for value, (low, high) in pairs]


def test_the_page_needs_no_other_file_and_shows_names_as_they_are(folder: Path):
    page, report = Page(folder), json.loads((folder / "report.json").read_text())
    assert {reference.partition(",")[0] for reference in page.references} == {"data:image/svg+xml;base64"}
    assert not {"script", "link", "i", "lstm"} & page.tags
    assert any("b<i>&amp;$x$" in word for word in page.words)
    rows = [name for name in report["rows"] if "mean" not in name and "one side" not in name]
    pictures = [base64.b64decode(source.partition(",")[2]).decode() for _, source in page.pictures]
    assert len(pictures) == 1 + len(rows)  # differences, and a DET curve for each row
    for (alternative, _), picture, row in zip(page.pictures[1:], pictures[1:], rows, strict=True):
        assert row in alternative and "b&lt;i&gt;&amp;amp;$x$" in picture
        assert all(f"EER {percent(rate)}" in picture for rate in report["rows"][row]["eer"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)")
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page(folder: Path, tmp_path: Path, scheme: int, width: int):
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--hide-scrollbars"]
    words += ["--enable-logging=stderr", f"--blink-settings=preferredColorScheme={scheme}"]
    words += [f"--window-size={width},3500", f"--screenshot={tmp_path / 'page.png'}"]
    process = subprocess.run([*words, (folder / "comparison.html").as_uri()], capture_output=True, text=True)
    assert process.returncode == 0 and not re.findall(r".*CONSOLE.*", process.stderr)
    picture = imread(tmp_path / "page.png")[..., :3]
    assert picture.shape[1] == width and (picture[2, 2].mean() > 0.9) == (scheme == 1)
    if scheme == 1:
        for color in COLORS[:3]:
            found = np.abs(picture - to_rgb(color)).max(axis=-1) < 0.02
            assert found[2000:].sum() > 100  # the curves, below the tables


def test_labels_are_what_differs_in_paths():
    paths = [[Path("/x/runs/a/report"), Path("/x/runs/b/report")], [Path("/x/runs/c/report")], [Path("/x/peer/report")]]
    assert system_labels(paths) == ["runs/a (2 seeds)", "runs/c", "peer"]
    assert system_labels([[Path("a")], [Path("a")]]) == ["a", "a"]
    assert system_labels([[Path("\udcff")], [Path("a")]]) == ["\\udcff", "a"]  # a byte that is not UTF-8


def test_flags_of_pooled_and_of_bare_evaluations():
    pooled = {"models": [about(seed, 5.0)["model"] for seed in (0, 1)], "config": {"out": "x", "back_end": None}}
    single = {**about(0, 7.0, lr=0.02), "config": {"out": "y", "back_end": False}}
    assert differing_flags([[pooled], [single], [{"model": None}]]) == {
        "--lr": [[0.01], [0.02], None],
        "--seed": [[0, 1], [0], None],
        "evaluate --back-end": [[None], [False], None],
    }
    assert facts_of([pooled])["cpu_s"] == 5 and facts_of([pooled, single])["memory_mib"] == 701
    assert set(facts_of([{"model": None}]).values()) == {None, ""}


def test_an_evaluation_in_its_place_removes_the_page(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    assert call("pool", folder.parent / "a0", folder.parent / "a1", "--out", out, "--bootstrap", 2) == 0
    assert not (out / "comparison.html").exists() and (out / "det.png").exists()
