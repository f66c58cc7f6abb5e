"""Rows 26 to 30 of the fault matrix, and one loop at every scale: real torchrun with two gloo ranks.

The small scenarios share one torchrun, because importing torch takes longer than they do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from root import ROOT
from training_runs import assert_same_run, flags, free_port, losses, train

from utils.checkpoint import load_checkpoint
from utils.training import distributed
from utils.training.runlog import read_log
from utils.training.sampling import EpochOrder

ONE = distributed.Ranks(0, 1, torch.device("cpu"))
POISONED = 11
# name -> (flags, task); the two ranks train all of these.
SCENARIOS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "first step": (["--steps", "1", "--clip", "1e9"], {}),
    "20 steps": (["--steps", "20"], {}),
    "accumulated": (["--steps", "20", "--accumulate", "2"], {"normed": False}),
    "one batch": (["--steps", "20"], {"normed": False}),
    "by frames": (["--steps", "23", "--batch-frames", "90"], {"normed": False}),
    "averaged": (["--steps", "20", "--ema", "0.9"], {}),
    "one rank stopped": (["--steps", "20"], {"stop": (7, 1)}),
    "stopped on one": (["--steps", "20", "--resume", "auto"], {}),
    "poisoned": (["--steps", "20", "--batch-size", "5"], {"poison": [POISONED]}),
    "all poisoned": (["--steps", "20", "--max-bad-steps", "3"], {"poison": list(range(37))}),
    "one item": (["--steps", "10"], {"evaluated": 1}),
    "dropout": (["--steps", "20"], {"dropout": 0.3}),
    "dropout stopped": (["--steps", "20"], {"dropout": 0.3, "stop": (7, 0)}),
    "dropout resumed": (["--steps", "20", "--resume", "auto"], {"dropout": 0.3}),
}
FOLDERS = {"dropout resumed": "dropout stopped"}  # of scenarios that continue another


def scenario(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    words, task = SCENARIOS[name]
    return {"out": str(folder / FOLDERS.get(name, name)), "flags": words, "task": {**task, **changes}}


def torchrun(*words: str, nproc: int = 2) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}", *words]


def run_ranks(*words: str, nproc: int = 2) -> None:
    command = torchrun(*(words if words[0].startswith("--") else ["--standalone", *words]), nproc=nproc)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Results of two ranks for all scenarios; one of them continues a run that one process began."""
    folder = tmp_path_factory.mktemp("two")
    begun = toy_training.train(scenario(folder, "stopped on one") | {"task": {"stop": (8, 0)}}, ONE)
    assert begun["code"] == 128 + signal.SIGTERM and begun["step"] == 9
    (folder / "scenarios.json").write_text(json.dumps([scenario(folder, name) for name in SCENARIOS]))
    run_ranks("tests/toy_training.py", str(folder / "scenarios.json"))
    return folder


def ranks_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / name / "ranks" / f"{rank}.pt") for rank in (0, 1)]


def in_one_process(tmp_path: Path, name: str, **changes: Any) -> dict[str, Any]:
    return toy_training.train(scenario(tmp_path, name, **changes), ONE)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of a tensor in two dicts relative to its norm; the bias before a norm has gradient 0 but for
    rounding, so a billionth of all norms is added."""
    pairs = [(one[name].double(), other[name].double()) for name in one]
    floor = 1e-9 * sum(float(a.norm()) for a, _ in pairs)
    return max(float((a - b).norm() / (a.norm() + floor)) for a, b in pairs)


def places_by_step(results: list[dict[str, Any]]) -> dict[int, list[int]]:
    """The places that all ranks together trained on in each step, sorted."""
    steps: dict[int, list[int]] = {}
    for step, places in (entry for result in results for entry in result["trained"]):
        steps[step] = sorted([*steps.get(step, []), *places])
    return steps


@pytest.mark.parametrize("name", ["20 steps", "by frames", "averaged", "poisoned"])
def test_weights_of_two_ranks_are_the_same_bits(two, name):
    first, second = ranks_of(two, name)
    assert first["step"] == second["step"] >= 20
    assert all(torch.equal(tensor, second["weights"][key]) for key, tensor in first["weights"].items())


def test_first_gradients_and_later_weights_are_those_of_one_process(two, tmp_path):
    """In float64: gradients of the first step and weights after 20 of AdamW to 1e-6, with batch norm over the ranks."""
    alone = in_one_process(tmp_path, "first step")
    assert distance(alone["gradients"], ranks_of(two, "first step")[0]["gradients"]) < 1e-6
    alone = in_one_process(tmp_path, "20 steps")
    assert distance(alone["weights"], ranks_of(two, "20 steps")[0]["weights"]) < 1e-6
    initial = in_one_process(tmp_path, "first step")["weights"]
    assert distance(initial, alone["weights"]) > 0.01  # 20 steps lead far enough away for that to mean something


def test_one_rank_of_torchrun_is_a_group_and_trains_as_a_process_without(tmp_path):
    """So one GPU is enough to try NCCL: the same bits pass through DistributedDataParallel and all collectives."""
    names = "dropout", "accumulated"
    (tmp_path / "scenarios.json").write_text(json.dumps([scenario(tmp_path / "one rank", name) for name in names]))
    run_ranks("tests/toy_training.py", str(tmp_path / "scenarios.json"), nproc=1)
    for name in names:
        rank, alone = torch.load(tmp_path / "one rank" / name / "ranks" / "0.pt"), in_one_process(tmp_path, name)
        assert (rank["is_group"], alone["is_group"]) == (True, False)
        assert all(torch.equal(tensor, rank["weights"][key]) for key, tensor in alone["weights"].items())


def test_two_ranks_continue_with_the_random_numbers_of_each(two):
    """Dropout differs between the ranks, and a resumed run draws what the uninterrupted one drew."""
    assert losses(two / "dropout") == losses(two / "dropout stopped")
    assert_same_run(two / "dropout", two / "dropout stopped")
    states = load_checkpoint(two / "dropout" / "last.pt")["training"]["random"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"])


@pytest.mark.parametrize("name", ["accumulated", "by frames", "averaged"])
def test_ranks_and_micro_batches_change_rounding_only(two, tmp_path, name):
    reference = {"accumulated": "one batch"}.get(name, name)
    alone = in_one_process(tmp_path, reference)
    assert distance(alone["weights"], ranks_of(two, name)[0]["weights"]) < 1e-6
    saved = [load_checkpoint(folder / run / "last.pt")["model"] for folder, run in ((two, name), (tmp_path, reference))]
    assert distance(*saved) < 1e-6


def test_row_26_sigterm_to_one_rank_stops_all_at_the_same_step(two):
    first, second = ranks_of(two, "one rank stopped")
    assert first["code"] == second["code"] == 128 + signal.SIGTERM
    assert first["step"] == second["step"] == 9  # the signal came in step 8, rank 0 received it in that or the next
    assert load_checkpoint(two / "one rank stopped" / "last.pt")["step"] == 9


def test_row_28_one_rank_continues_a_run_of_two(two, tmp_path):
    """Each step's samples and the losses are those of a run of one process that nothing interrupted."""
    alone = in_one_process(tmp_path, "20 steps")
    stopped = ranks_of(two, "one rank stopped")
    words = [*SCENARIOS["one rank stopped"][0], "--resume", "auto"]
    folder = tmp_path / "resumed"
    folder.symlink_to(two / "one rank stopped")
    resumed = toy_training.train({"out": str(folder), "flags": words}, ONE)
    assert places_by_step([alone]) == places_by_step(stopped) | places_by_step([resumed])
    assert not set(places_by_step(stopped)) & set(places_by_step([resumed]))
    assert distance(alone["weights"], resumed["weights"]) < 1e-6


def test_row_28_two_ranks_continue_a_run_of_one(two, tmp_path):
    alone, resumed = in_one_process(tmp_path, "20 steps"), ranks_of(two, "stopped on one")
    rest = places_by_step(resumed)
    assert sorted(rest) == list(range(9, 20))
    assert rest == {step: places for step, places in places_by_step([alone]).items() if step >= 9}
    assert distance(alone["weights"], resumed[0]["weights"]) < 1e-6
    lines = read_log(two / "stopped on one")
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 21))
    assert [line["resumed_from"] for line in lines if "resumed_from" in line] == [9]


def test_row_29_nan_in_one_ranks_batch_is_skipped_by_all(two, tmp_path):
    first, second = ranks_of(two, "poisoned")
    assert first["code"] == second["code"] == 0
    bad = {line["step"]: line["utterances"] for line in read_log(two / "poisoned") if "skipped" in line}
    order = EpochOrder(toy_training.ITEMS, 0, 5)
    met = [place // 5 + 1 for place in range(100) if order[place] == POISONED]
    assert bad == {step: [f"item-{POISONED}"] for step in met} and len(bad) >= 2
    last = load_checkpoint(two / "poisoned" / "last.pt")
    assert last["step"] == 20 and last["training"]["skipped"] == len(bad)
    assert all(tensor.isfinite().all() for tensor in last["model"].values())


def test_row_29_nan_in_every_batch_stops_all_ranks_with_a_sentence(two):
    for result in ranks_of(two, "all poisoned"):
        assert result["step"] == 3 and "3 steps in a row" in result["error"] and "item-" in result["error"]
    assert not (two / "all poisoned" / "last.pt").exists()


def test_row_30_nothing_hangs_and_each_item_counts_once(two, tmp_path):
    """37 items, batches of 8 on 2 ranks; 5 and 1 evaluation items, so that a rank has fewer, or none."""
    for name, evaluated in (("20 steps", 5), ("one item", 1)):
        results = ranks_of(two, name)
        for once in zip(*(result["validated"] for result in results), strict=True):
            assert sorted(sum(once, [])) == list(range(evaluated))
        alone = in_one_process(tmp_path, name)
        for ours, theirs in zip(read_log(two / name), read_log(tmp_path / name), strict=True):
            assert ours.get("valid_loss", 0) == pytest.approx(theirs.get("valid_loss", 0), rel=1e-9)
            assert ours.get("valid_items", evaluated) == evaluated
        trained = [place for places in places_by_step(results).values() for place in places]
        assert trained == list(range(len(trained))) and places_by_step(results) == places_by_step([alone])


def test_row_30_batches_by_frames_use_every_item_once_an_epoch(two):
    steps = places_by_step(ranks_of(two, "by frames"))
    trained = [place for step in sorted(steps) for place in steps[step]]
    assert trained == list(range(len(trained))) and len(trained) > 2 * toy_training.ITEMS


REAL = ["--steps", "60", "--save-every", "10"]


@pytest.fixture(scope="module")
def real_two(processed, tmp_path_factory) -> Path:
    """train_tacomamba.py on two ranks, 60 steps, uninterrupted."""
    run = tmp_path_factory.mktemp("real") / "two"
    run_ranks("train_tacomamba.py", *flags(processed, run, *REAL))
    return run


def test_two_ranks_train_the_real_model_as_one_process_does(real_two, processed, tmp_path):
    """In float32, by AdamW, which amplifies rounding: the first loss to 1e-6 relative, the first four to 1e-3."""
    assert train(processed, tmp_path / "one", *REAL) == 0
    one, two = (read_log(run) for run in (tmp_path / "one", real_two))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
    assert [line["loss"] for line in two[:4]] == pytest.approx([line["loss"] for line in one[:4]], rel=1e-3)
    assert [line["samples"] for line in one] == [line["samples"] for line in two]
    assert two[9]["valid_eer"] == pytest.approx(one[9]["valid_eer"], abs=0.05)


def elastic(processed: Path, run: Path, rank: int, step: int, *rendezvous: str) -> None:
    """A run of two ranks, one of which is killed at a step; torchrun starts both again."""
    program = ["tests/signal_at_step.py", str(step), "SIGKILL", str(rank), "1"]
    run_ranks("--max-restarts=1", *rendezvous, *program, *flags(processed, run, *REAL, "--resume", "auto"))


def test_row_27_kill_9_of_a_rank_under_torchrun_is_the_same_run(real_two, processed, tmp_path):
    """The log records that the killed run was resumed from the checkpoint before, and nothing else differs."""
    run = tmp_path / "killed"
    elastic(processed, run, 1, 14, "--standalone")
    assert_same_run(real_two, run)
    assert [line["resumed_from"] for line in read_log(run) if "resumed_from" in line] == [10]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("rendezvous", ["--standalone", "--rdzv-backend=c10d"])
def test_row_27_again_and_again(real_two, processed, tmp_path, rank, rendezvous):
    """Either rank, before the first checkpoint, just after one and near the end, by both kinds of rendezvous."""
    for step in (3, 10, 33, 59):
        words = [rendezvous, *([f"--rdzv-endpoint=127.0.0.1:{free_port()}"] if "c10d" in rendezvous else [])]
        elastic(processed, tmp_path / str(step), rank, step, *words)
        assert_same_run(real_two, tmp_path / str(step))


@pytest.mark.slow
def test_two_nodes_of_one_rank_each_are_the_same_run(real_two, processed, tmp_path):
    """Two torchruns meet at one address; losses and weights are those of two ranks under one."""
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    words = ["--nnodes=2", "--rdzv-backend=c10d", endpoint, "train_tacomamba.py"]
    command = torchrun(*words, *flags(processed, tmp_path / "run", *REAL), nproc=1)
    nodes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    assert_same_run(real_two, tmp_path / "run")


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_resumed_run_continues(real_two, processed, tmp_path):
    """torchrun hands the signal on, SLURM sends it to the ranks as well: within a second that is one signal."""
    run = tmp_path / "run"
    command = torchrun("--standalone", "train_tacomamba.py", *flags(processed, run, *REAL, "--steps", "5000"))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while max(losses(run), default=0) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert load_checkpoint(run / "last.pt")["step"] == max(losses(run))


def test_fewer_bad_steps_in_a_row_can_be_allowed_on_resuming(tmp_path):
    """More than that have already been."""
    out = {"out": str(tmp_path), "task": {"poison": list(range(37))}}
    toy_training.train(out | {"flags": ["--steps", "4", "--max-bad-steps", "9"]}, ONE)
    result = toy_training.train(out | {"flags": ["--steps", "20", "--max-bad-steps", "2", "--resume", "auto"]}, ONE)
    assert result["step"] == 5 and "5 steps in a row" in result["error"]
