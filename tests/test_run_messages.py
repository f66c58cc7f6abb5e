"""What a run tells its user: how to go on after a stop and at the end, averages, the margin, and hyperparameters."""

from __future__ import annotations

import shlex
import signal

import forked
import pytest
import torch
from training_runs import flags, losses, train

import train_tacomamba
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.training.distributed import gpu_of
from utils.training.runlog import read_log


@pytest.mark.parametrize("given", [[], ["--resume", "auto"], ["--resume=auto"]])
def test_a_stopped_run_shows_the_command_that_continues_it(processed, tmp_path, given):
    out = tmp_path / "a run"
    words = flags(processed, out, "--steps", "12", *given)
    done = forked.run("tests/signal_at_step.py", "8", "SIGINT", "0", "1", *words)
    assert done.returncode == 128 + signal.SIGINT
    assert "stopping after this step; once more ends at once\n" in done.stderr
    line = done.stdout.splitlines()[-1]
    prefix = "saved step 8; continue with: "
    assert line.startswith(f"{prefix}python train_tacomamba.py ") and line.count("--resume") == 1
    command = shlex.split(line.removeprefix(prefix))
    if not given:
        assert forked.run(*command[1:]).returncode == 0
        assert sorted(losses(out)) == list(range(1, 13))


def test_torchrun_is_part_of_the_command(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    sentence = train_tacomamba._how_to_resume(["--out", "runs/x", "--resume", "last.pt", "--steps", "3"], 7)
    assert sentence.startswith("saved step 7; continue with: torchrun --nproc-per-node 2 ")
    assert sentence.endswith("train_tacomamba.py --out runs/x --steps 3 --resume auto")


def test_the_end_names_the_best_checkpoint_and_a_command_that_evaluates_it(processed, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(processed, out, "--steps", "4", "--save-every", "2") == 0
    best, following = capsys.readouterr().out.splitlines()[-2:]
    checkpoint = load_checkpoint(out)
    assert best == f"best step {checkpoint['step']}, valid_eer {checkpoint['metrics']['valid_eer']:.4g}: {out}/best.pt"
    command = shlex.split(following.removeprefix("next: "))
    assert command[3:] == ["--checkpoint", str(out), "--data", str(processed), "--out", str(out / "report")]
    done = forked.run("test.py", *command[2:], "--bootstrap", "5")
    assert done.returncode == 0 and (out / "report" / "report.json").exists()


def test_lines_average_the_steps_since_the_last_and_keep_the_exact_loss(processed, tmp_path):
    for name, every in (("each", "1"), ("third", "3")):
        words = ["--steps", "7", "--save-every", "7", "--margin-warmup", "0.5", "--log-every", every]
        assert train(processed, tmp_path / name, *words) == 0
    each, third = read_log(tmp_path / "each"), read_log(tmp_path / "third")
    assert [line["step"] for line in third] == [3, 6, 7]
    for line, steps in zip(third, (each[:3], each[3:6], each[6:]), strict=True):
        for name in ("loss", "correct", "grad_norm"):
            assert line[name] == pytest.approx(sum(step[name] for step in steps) / len(steps))
        assert [line[name] for name in ("loss_hex", "lr", "margin")] == [
            steps[-1][name] for name in ("loss_hex", "lr", "margin")
        ]
    margins = [line["margin"] for line in each]
    assert margins[0] < margins[2] < margins[-1] == 0.2


def test_hyperparameters_and_final_scores_are_in_the_run_itself(processed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG

    run = tmp_path / "run"
    assert train(processed, run, "--steps", "2", "--save-every", "2", "--tensorboard") == 0
    board = run / "tensorboard"
    assert [path.name.split(".")[0] for path in board.iterdir()] == ["events"]
    events = EventAccumulator(str(board)).Reload()
    content = events.summary_metadata
    assert {EXPERIMENT_TAG, SESSION_START_INFO_TAG} <= set(content)
    assert b"valid/eer" in content[EXPERIMENT_TAG].plugin_data.content
    assert b"weight_decay" in content[SESSION_START_INFO_TAG].plugin_data.content
    assert "valid/eer" in events.Tags()["scalars"]


def test_more_ranks_than_gpus_are_refused():
    """By all of them, so that none waits for the others; each with exit code 2."""
    assert gpu_of(1, 2, 2) == torch.device("cuda", 1)
    for rank in range(3):
        with pytest.raises(UserError, match="started 3 processes on a machine with 2 GPUs: start at most 2") as refused:
            gpu_of(rank, 3, 2)
        assert refused.value.exit_code == 2
    with pytest.raises(UserError, match="started 2 processes on a machine with 1 GPU: start at most 1"):
        gpu_of(0, 2, 1)
