"""benchmarks/gpu.py and what it runs, on a CPU: limits, order, missing packages, and every part at a small size."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from root import ROOT
from shown_commands import load_script

from benchmarks.cuda import checks, features
from benchmarks.cuda.plan import Cell, plan
from benchmarks.cuda.runner import OUTPUT, RESULTS
from utils.errors import UserError
from utils.features.store import FeatureStore

# A part that starts a process in a session of its own, as torchrun does, tells its id and waits; both write when they
# are left alone for long.
HANGS = """
import subprocess, sys, time
wait = "import time, pathlib; time.sleep(20); pathlib.Path(sys.argv[1], 'alive').write_text('')"
child = subprocess.Popen([sys.executable, "-c", "import sys; " + wait, sys.argv[1]], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(0 if sys.argv[2] == "leave" else 20)
"""
PROGRAM = """
import sys
from pathlib import Path
from benchmarks.cuda.runner import Part, Runner

out, total = Path(sys.argv[1]), float(sys.argv[2])
python = [sys.executable, "-c"]
hangs = sys.argv[3]
parts = {
    "good": Part("good", [*python, "print('one'); print('two')"], 30, last=1),
    "streamed": Part("streamed", [*python, "print('seen')"], 30, is_shown=True),
    "bad": Part("bad", [*python, "print('a reason'); raise SystemExit(3)"], 30),
    "after bad": Part("after bad", [*python, ""], 30, after=["bad"]),
    "no package": Part("no package", [*python, ""], 30, packages=["no_such_package"]),
    "no file": Part("no file", [*python, ""], 30, files=[Path("no/such/file")]),
    "hangs": Part("hangs", [*python, hangs, str(out), "stay"], 1.5),
    "leaves": Part("leaves", [*python, hangs, str(out), "leave"], 30),
    "environment": Part(
        "environment", [*python, "import os; print(os.environ['OWN'])"], 30, environment={"OWN": "x"}, last=1
    ),
}
runner = Runner(out, total)
for name in sys.argv[4:]:
    runner.run(parts[name])
sys.exit(runner.has_failed)
"""


def run_parts(out: Path, *names: str, total: float = 60) -> tuple[int, list[str], list[dict]]:
    """Exit code, lines and records of some parts of `PROGRAM`."""
    command = [sys.executable, "-c", PROGRAM, str(out), str(total), HANGS, *names]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert not process.stderr
    records = [json.loads(line) for line in (out / RESULTS).read_text("utf-8").splitlines()]
    return process.returncode, process.stdout.splitlines(), records


def test_parts_run_in_order_and_print_a_line_each(tmp_path):
    code, lines, records = run_parts(tmp_path, "good", "streamed", "environment")
    assert code == 0 and [record["outcome"] for record in records] == ["ok", "ok", "ok"]
    words = [line.split() for line in lines]
    assert [line[0] for line in words] == ["good", "two", "seen", "streamed", "environment", "x"]
    assert words[0][1] == "ok" and words[0][3] == "s"
    output = (tmp_path / OUTPUT).read_text("utf-8")
    assert output.index("one\ntwo\n") < output.index("seen\n") < output.index("=== environment: ")


def test_a_failed_part_shows_its_last_lines_and_others_go_on(tmp_path):
    code, lines, records = run_parts(tmp_path, "bad", "after bad", "good")
    assert code == 1 and [record["outcome"] for record in records] == ["failed", "skipped", "ok"]
    assert "exit code 3" in lines[0] and lines[1].strip() == "a reason"
    assert records[1]["reason"] == "it needs: bad"


def test_what_is_missing_is_named_and_is_no_failure(tmp_path):
    code, lines, _ = run_parts(tmp_path, "no package", "no file")
    assert code == 0
    assert "skipped" in lines[0] and lines[0].endswith("the package no_such_package is missing")
    assert "skipped" in lines[1] and lines[1].endswith("there is no no/such/file")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("name", "outcome"), [("hangs", "over its limit"), ("leaves", "ok")])
def test_nothing_of_a_part_outlives_it(tmp_path, name, outcome):
    """Neither over its limit nor after its end, though the child has a session of its own."""
    code, _, (record, after) = run_parts(tmp_path, name, "good")
    assert record["outcome"] == outcome and code == (outcome != "ok") and after["outcome"] == "ok"
    (child,) = re.findall(r"^child (\d+)$", (tmp_path / OUTPUT).read_text("utf-8"), re.MULTILINE)
    assert not is_alive(int(child)) and not (tmp_path / "alive").exists()
    assert record["seconds"] < 15


def test_parts_for_which_no_time_is_left_are_skipped(tmp_path):
    """A part begins if 5 seconds are left: 6 are enough for the first, which takes 1.5, and not for another."""
    code, lines, records = run_parts(tmp_path, "hangs", "streamed", "good", total=6)
    assert code == 1 and [record["outcome"] for record in records] == ["over its limit", "skipped", "skipped"]
    assert lines[-1].endswith("the time is up")


def gpu(*words: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/gpu.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_the_order_of_parts():
    names = [line[:40].strip() for line in gpu("--list").stdout.splitlines()]
    groups = list(dict.fromkeys(name.partition(",")[0] for name in names if "speed" not in name))
    first = ["tests", "features", "training", "resumed", "evaluate", "embed", "synthesize"]
    assert groups == [*first, "timings", "first step"]
    assert names[:2] == ["tests, torch", "tests, triton"] and names[-1] == "first step, mamba_ssm"
    for kind in ("fp32", "bf16", "fp16"):
        assert {f"training, {task}, {kind}" for task in ("speaker", "tts")} <= set(names)


def test_only_takes_along_what_a_part_builds_on():
    names = [line[:40].strip() for line in gpu("--list", "--only", "synthesize").stdout.splitlines()]
    assert names == ["features", "training, tts, fp32", "synthesize"]
    unknown = gpu("--only", "synthesise")
    assert unknown.returncode == 2 and "no part's name begins with 'synthesise'" in unknown.stderr


def test_a_part_runs_and_everything_is_where_out_says(tmp_path):
    result = gpu("--device", "cpu", "--only", "features", OUT=str(tmp_path / "kept"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("features ") and str(tmp_path / "kept") in result.stdout
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {OUTPUT, RESULTS}


def test_wheels_are_found_by_this_process_and_its_parts(tmp_path, monkeypatch):
    script = load_script("benchmarks/gpu.py")
    name, info = "tiny_wheel_of_a_test", "tiny_wheel_of_a_test-1.dist-info"
    with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "value = 7\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    script._unpack(tmp_path, tmp_path / "site")
    importlib.invalidate_caches()
    assert importlib.util.find_spec(name).origin == str(tmp_path / "site" / f"{name}.py")
    assert os.environ["PYTHONPATH"] == f"{tmp_path / 'site'}{os.pathsep}elsewhere"
    with pytest.raises(UserError, match="there are no wheels in"):
        script._unpack(tmp_path / "site", tmp_path / "other")


def test_features_are_a_store_and_a_protocol(tmp_path):
    assert features.main(["--out", str(tmp_path), "--tasks", "speaker", "tts", "--utterances", "4"]) == 0
    speaker, voice = (FeatureStore.open(tmp_path / task) for task in ("speaker", "tts"))
    assert len(speaker) == 12 * 4 and {row.sex for row in speaker.rows} == {"F", "M"}
    assert speaker.mel(3).shape == (speaker.rows[3].frames, 80)
    own, other = speaker.mel(0).mean(0), speaker.mel(4).mean(0)
    assert abs(speaker.mel(1).mean(0) - own).max() < 0.5 < abs(other - own).max()  # voices that can be told apart
    assert voice.vocabulary.decode(voice.tokens(0)) == voice.rows[0].text
    assert len(voice.with_a_frame_a_token(range(len(voice)))) == len(voice) == 40
    for task, names in (("speaker", ("train.txt", "heldout_speakers.txt")), ("tts", ("train.txt", "test.txt"))):
        assert all((tmp_path / task / "protocols" / "default" / name).read_text("utf-8") for name in names)


def mixers(out: Path, *words: str) -> list[str]:
    """The lines that gpu_mixers.py prints for a tiny shape."""
    shape = ["--batch", "1", "--d-models", "64", "--lengths", "16", "--dtypes", "bf16", "fp32", "--budget", "0.01"]
    command = [sys.executable, "benchmarks/gpu_mixers.py", "--device", "cpu", "--out", str(out), *shape, *words]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_times_are_printed_kept_and_not_measured_again(tmp_path):
    """A row each; what died in the middle is left out by the next run, as is what has been measured."""
    lines = mixers(tmp_path, "--systems", "torch", "fla", "sdpa")
    rows = [line.split(" | ") for line in lines if line.startswith("| ") and "---" not in line][1:]
    wanted = [("| ssd", "torch"), ("| scan", "torch"), ("| conv", "torch"), ("| attention", "sdpa")]
    wanted += [("| mamba2 block", "torch"), ("| mamba block", "torch"), ("| attention block", "sdpa")]
    assert [(row[0], row[1]) for row in rows] == 2 * wanted
    assert [row[4] for row in rows] == 7 * ["bf16"] + 7 * ["fp32"]
    assert [line for line in lines if "skipped" in line] == ["ssd by fla is skipped: it is for CUDA only"]
    records = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text("utf-8").splitlines()]
    assert records[0]["bandwidth"] > 0
    done = [record for record in records if record.get("status") == "ok"]
    assert len(done) == 14
    for record in done:
        for one in (record["forward"], record["both"]):
            assert 0 < one["min"] <= one["median"] <= one["max"] and one["floors"] > 0
        exact = record["cell"]["dtype"] == "fp32"
        assert record["difference"] is None or record["difference"] < (1e-6 if exact else 3e-2)
    begun = [line for line in (tmp_path / "timings.jsonl").read_text("utf-8").splitlines() if '"begun"' in line]
    (tmp_path / "timings.jsonl").write_text("\n".join(begun[1:]) + "\n", encoding="utf-8")
    again = mixers(tmp_path, "--systems", "torch", "fla", "sdpa")
    assert [line.split(" | ")[:2] for line in again if " bf16 " in line] == [["| ssd", "torch"]]
    assert not [line for line in again if " fp32 " in line]


def test_a_gpu_that_is_not_there_is_a_sentence(tmp_path):
    """Also where the machine has one: it is hidden."""
    command = [sys.executable, "benchmarks/gpu_mixers.py", "--out", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 2 and not process.stdout
    assert re.fullmatch("error: the device cuda cannot be used here: .*\n", process.stderr)


def test_shapes_come_in_the_order_of_their_importance():
    args = load_script("benchmarks/gpu_mixers.py").build_parser().parse_args([])
    cells = list(plan(args.systems, args.batch, args.d_models, args.lengths, args.dtypes))
    assert cells[0] == Cell("ssd", "triton", 16, 512, 2048, "bf16")
    shapes = list(dict.fromkeys((cell.d_model, cell.length, cell.dtype) for cell in cells))
    assert shapes[:4] == [(512, 2048, "bf16"), (512, 2048, "fp32"), (512, 512, "bf16"), (1024, 2048, "bf16")]
    assert shapes[-1] == (1024, 8192, "fp32") and len(shapes) == 2 * 4 * 2


@pytest.mark.slow
def test_a_first_step_is_timed_from_import_on(tmp_path):
    rows = [line.split(" | ") for line in mixers(tmp_path, "--systems", "torch", "--first-step") if "block" in line]
    assert [row[0] for row in rows] == ["| mamba2 block", "| mamba block"]
    assert all(0 < float(row[2]) < float(row[3].removesuffix(" |")) for row in rows)


@pytest.mark.parametrize("words", [[], ["--synthetic", "--data", "somewhere"]])
def test_training_speed_needs_data_or_makes_them(words, capsys):
    with pytest.raises(SystemExit) as stop:
        load_script("benchmarks/gpu_training.py").main([*words, "--training", "configs/speaker-tiny.yaml"])
    assert stop.value.code == 2 and "give either --data or --synthetic" in capsys.readouterr().err


def test_busy_time_counts_what_overlaps_once():
    union = load_script("benchmarks/gpu_training.py").union
    assert union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert union([]) == 0


def test_a_difference_above_the_bound_fails(capsys):
    import numpy as np

    cpu = np.array([1.0, -2.0])
    assert checks._judge("values", cpu=cpu, device=cpu + 9e-4) == 0
    assert checks._judge("values", cpu=cpu, device=cpu + 2e-3) == 1
    assert checks._judge("values", cpu=cpu, device=cpu * np.nan) == 1
    assert "at most 2.0e-03 from the CPU's 2, the largest of which is 2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_part_runs_on_a_cpu(tmp_path):
    """Each is ok, or skipped for a package that is not installed here: the script is ready when a GPU is."""
    result = gpu("--device", "cpu", "--out", tmp_path, "--minutes", "35")
    assert result.returncode == 0, result.stdout + result.stderr
    records = [json.loads(line) for line in (tmp_path / RESULTS).read_text("utf-8").splitlines()]
    assert len(records) == len(gpu("--list").stdout.splitlines())
    for record in records:
        absent = record["reason"].startswith(("the package", "there is no")) and record["outcome"] == "skipped"
        assert record["outcome"] == "ok" or absent, record
    assert {"tests, torch", "features", "training, speaker, fp32", "training, speaker, torchrun", "resumed, tts"} <= {
        record["part"] for record in records if record["outcome"] == "ok"
    }
    for name in ("timings.jsonl", "first_steps.jsonl", "training.jsonl"):
        assert (tmp_path / name).stat().st_size
