"""The benchmark of mixers: one small cell in a process of its own, its limits, going on after a stop, the tables."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from shown_commands import load_script

from benchmarks import peers
from benchmarks.grid import cells, sections, systems, tables
from benchmarks.grid.measure import Meter, Pass, kept_for_backward
from benchmarks.grid.plan import GRID, PLANS, is_checked, plan
from utils.errors import ExitCode

SMALL = {"section": "mixers", "system": "torch", "d_model": 64, "length": 32, "batch": 2, "malloc": "default"}
LIMITS = cells.Limits()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[cells.Store, dict]:
    """A store with one cell that a process of its own has measured."""
    store = cells.Store(tmp_path_factory.mktemp("cells"))
    return store, cells.measure(SMALL, store, None, LIMITS, 0.01)


def test_a_cell_is_measured_in_a_process_of_its_own(measured):
    store, record = measured
    assert record["status"] == "ok", record["why"]
    figures = record["figures"]
    assert 0 < figures["cpu_s"]["min"] <= figures["cpu_s"]["median"] <= figures["cpu_s"]["max"]
    activations = 2 * 32 * 128 * 4  # one (B, L, d_inner) in float32
    assert 4 * activations < figures["kept"] < 40 * activations
    assert figures["peak"] > figures["kept"]
    assert record["rss"] > 50 * 2**20 and record["others"] >= 0 and record["load"] >= 0
    assert json.loads(store.path(SMALL).read_text("utf-8")) == record


def test_the_version_of_a_cell_depends_on_how_memory_is_freed():
    """As training frees it, by default, it also depends on the sources of that."""
    default = cells.version_of({**SMALL, "malloc": "training"}, None)
    assert default is not None and default != cells.version_of(SMALL, None)


def test_a_finished_cell_is_kept_and_a_stale_or_failed_one_is_not(measured, monkeypatch):
    store, record = measured

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(cells, "run", fail)
    assert cells.measure(SMALL, store, None, LIMITS, 0.01) == record
    assert cells.measure(SMALL, store, None, dataclasses.replace(LIMITS, pass_s=1.0), 0.01) == record
    changed = {**record, "version": "of other sources"}
    for stale in (changed, {**record, "status": "failed"}):
        store.save(stale)
        with pytest.raises(AssertionError, match="measured again"):
            cells.measure(SMALL, store, None, LIMITS, 0.01)
    store.save(record)


def test_a_cell_over_its_limit_spares_the_larger_ones(measured, tmp_path, monkeypatch):
    store = cells.Store(tmp_path)
    over = {**measured[1], "status": "over time", "why": "over 120 s a pass", "figures": {}}
    store.save(over)
    monkeypatch.setattr(cells, "run", lambda *_: {"status": "ok", "why": ""})
    assert cells.measure({**SMALL, "length": 64}, store, None, LIMITS, 1.0)["status"] == "over time"
    for other in ({**SMALL, "length": 16}, {**SMALL, "length": 64, "system": "native"}):
        assert cells.measure(other, store, None, LIMITS, 1.0)["status"] == "ok"
    assert cells.measure(SMALL, store, None, dataclasses.replace(LIMITS, pass_s=240.0), 1.0)["status"] == "ok"


HOG = "import sys\nkeep = []\nwhile True:\n    keep.append(bytearray(2**24))"
SPIN = "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True:\n    pass"


@pytest.mark.parametrize(
    ("program", "limits", "status", "why"),
    [
        (HOG, cells.Limits(gib=0.25), "over memory", "over 0.25 GiB"),
        (SPIN, cells.Limits(pass_s=0.1), "over time", "over 0.1 s a pass"),
        ("import time\ntime.sleep(60)", cells.Limits(cell_s=0.3), "over time", "over 0.3 s in all"),
        ("raise LookupError('no such peer')", LIMITS, "failed", "LookupError: no such peer"),
    ],
)
def test_the_watcher_ends_what_passes_its_limits(program, limits, status, why):
    outcome = cells.watch([sys.executable, "-c", program], dict(os.environ), limits)
    assert (outcome["status"], outcome["why"]) == (status, why)
    assert outcome["rss"] < 2**29


def test_the_meter_lets_no_first_pass_take_longer_than_its_limit():
    def spin():
        while True:
            pass

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)  # by default it ends the process, as the case of the watcher shows
    try:
        with pytest.raises(TimeoutError):
            with Meter(limit=0.05, budget=1.0).limited():
                spin()
    finally:
        signal.signal(signal.SIGPROF, before)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_a_pass_shorter_than_a_tick_is_timed_after_a_limited_one():
    """The limit's timer makes Linux count CPU time in ticks of milliseconds, a while beyond its end."""
    meter = Meter(limit=100.0, budget=1e-5)
    for _ in range(20):
        with meter.limited():
            pass
        assert meter.times(lambda: sum(range(1000)))["min"] > 0


def test_repeats_stay_within_the_budget():
    clock = iter(range(1000))
    calls = []
    counted = Meter(limit=60.0, budget=0.2).times(lambda: calls.append(1), lambda: float(next(clock)))
    assert counted == {"median": 1.0, "min": 1.0, "max": 1.0, "repeats": 1}  # one call takes longer than all may
    assert Meter(limit=60.0, budget=100.0).times(lambda: None, lambda: float(next(clock)))["repeats"] == 15
    assert len(calls) == 1


def test_peers_that_are_not_there_are_recorded_as_missing(tmp_path):
    store = cells.Store(tmp_path)
    cell = {**SMALL, "system": "mambapy"}
    for folder in (None, tmp_path):
        assert cells.measure(cell, store, folder, LIMITS, 1.0)["status"] == "missing"
    assert "not in the folder of peers" in tables.render(store)


def test_versions_of_peers_are_those_of_the_folder(tmp_path):
    (tmp_path / "site" / "mambapy-1.2.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "mambapy-1.2.0.dist-info" / "METADATA").write_text("Name: mambapy\nVersion: 1.2.0\n")
    (tmp_path / "mamba-tiny").mkdir()
    (tmp_path / "mamba-tiny" / "model.py").write_text("one = 1")
    assert peers.version(tmp_path, "mambapy") == "1.2.0"
    first = peers.version(tmp_path, "mamba-tiny")
    (tmp_path / "mamba-tiny" / "model.py").write_text("one = 2")
    assert len(first) == 12 and peers.version(tmp_path, "mamba-tiny") != first
    assert peers.version(tmp_path, "mamba-minimal") is None


def test_ours_passes_the_check():
    for name in ("torch", "torch2"):
        errors = sections._check(systems.SYSTEMS[name], None)
        assert max(errors.values()) < 1e-5
        assert {"y", "x", "A_log", "D", "in_proj.weight", "out_proj.weight"} <= set(errors)


def test_the_free_scan_trains_every_projection_and_gives_what_no_scan_gives():
    outputs = []
    for name in ("no-scan", "free-scan"):
        one = Pass(systems.build(name, 64), 2, 16, 64)
        outputs.append(one())
        missing = {name for name, gradient in one.gradients().items() if gradient is None}
    assert torch.equal(*outputs)
    assert not missing


def test_memory_kept_for_backward_is_what_autograd_holds():
    linear = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    one = Pass(linear, 2, 4, 8)
    assert kept_for_backward(one) == 2 * (2 * 4 * 16 * 4)  # the input of GELU and its output


def made_up(system: str, median: float, error: float | None, value: float = 1.0) -> dict:
    """A record as `cells.measure` stores it."""
    times = {"median": median, "min": 0.9 * median, "max": 1.2 * median, "repeats": 3}
    sample = {"y": {"values": [value, 0.5], "largest": 1.0}}
    figures = {"cpu_s": times, "peak": int(median * 2**30), "kept": int(median * 2**29), "chunk": None}
    cell = {**SMALL, "system": system, "d_model": GRID[0][0], "length": GRID[0][1], "malloc": "training"}
    conditions = {"load": 0.1, "others": 0.0, "machine": "a machine", "command": "python benchmarks/mixers.py"}
    figures |= {"sample": sample, "errors": {"y": error, "A_log": 1e-7}}
    return {
        "cell": cell,
        "version": "1, torch 2",
        "limits": {},
        "status": "ok",
        "why": "",
        "figures": figures,
    } | conditions


def test_tables_compare_with_the_fastest_peer_that_is_right(tmp_path):
    store = cells.Store(tmp_path)
    records = [
        made_up("torch", 0.2, 1e-7),
        made_up("native", 0.1, 1e-7),
        made_up("no-scan", 0.08, 0.5),
        made_up("mamba-tiny", 0.15, 0.3),  # wrong in the check
        made_up("mamba-minimal", 0.16, 1e-7, value=0.9),  # wrong in this cell
        made_up("mamba-tiny-log", 0.17, None),  # not finite
        made_up("mambapy", 0.8, 1e-6),
        made_up("transformers", 1.6, 1e-7),
        {**made_up("mamba-ssm-ref", 9.0, 1e-7), "status": "over time", "why": "over 120 s a pass", "figures": {}},
    ]
    for record in records:
        store.save(record)
    text = tables.render(store)
    assert "| 256 | 256 | `torch` | mambapy | 4.00 (3.00 to 5.33) x | 1/4.0 | 1/4.0 | 2.50 (1.88 to 3.33) x |" in text
    assert "| 256 | 256 | `native` | mambapy | 8.00 (6.00 to 10.67) x | 1/8.0 | 1/8.0 | 1.25 (0.94 to 1.67) x |" in text
    assert "| mamba-tiny, `cumsum` | 3e-01, **wrong** | 0.15 (0.135 to 0.18) | 154 (77) |" in text
    assert "| mamba-tiny, `logcumsumexp` | not finite, **wrong** |" in text
    assert "| mamba_ssm `selective_scan_ref` | – | over 120 s a pass | – |" in text
    assert "**wrong**" not in next(line for line in text.splitlines() if line.startswith("| mambapy"))
    assert "Machine: a machine." in text and "Command: `python benchmarks/mixers.py`." in text


def test_the_document_has_the_place_for_the_tables():
    document = load_script("benchmarks/mixers.py").DOCUMENT.read_text("utf-8")
    replaced = tables.replace_between_markers(document, "| a table |")
    assert "| a table |" in replaced and replaced.count(tables.BEGIN) == 1
    assert tables.replace_between_markers(replaced, "| a table |") == replaced
    with pytest.raises(ValueError, match="there is no"):
        tables.replace_between_markers("nothing", "| a table |")


@pytest.mark.parametrize("quick", [True, False])
def test_the_plan_has_every_system_and_no_cell_twice(quick):
    planned = plan(list(PLANS), quick, "training")
    paths = [cells.Store(Path()).path(cell) for cell in planned]
    assert len(set(paths)) == len(paths)
    checked = {cell["system"] for cell in planned if is_checked(cell)}
    assert checked == {cell["system"] for cell in planned if cell["section"] == "mixers"}
    assert quick or checked == set(systems.SYSTEMS)
    assert {cell["section"] for cell in planned} == set(PLANS) == set(sections.SECTIONS)


def test_wrong_words_are_told_in_a_sentence(tmp_path, capsys):
    script = load_script("benchmarks/mixers.py")
    assert script.main(["--out", str(tmp_path), "--systems", "mambo"]) == ExitCode.BAD_INPUT
    assert "there is no system mambo" in capsys.readouterr().err
    assert script.main(["--out", str(tmp_path), "--peers", str(tmp_path / "none")]) == ExitCode.BAD_INPUT
    assert "benchmarks/peers.py creates it" in capsys.readouterr().err
    assert script.main(["--out", str(tmp_path), "--show"]) == ExitCode.DONE
    assert "Nothing has been measured yet." in capsys.readouterr().out
