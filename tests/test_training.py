"""The trainer through its script: logs, checkpoints, the same bits from the same seed, resume, ranks, bad input."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
import toy_training
from root import ROOT
from training_runs import assert_same_run, flags, losses, train, weights

import preprocess
import test as evaluate_script
import train_tacomamba
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.training.distributed import Ranks
from utils.training.runlog import RunLog, read_log

RUN_FIELDS = {"step", "loss", "loss_hex", "lr", "frames_per_s", "wait_share", "memory_mib", "eta_s", "samples"}


@pytest.fixture(scope="module")
def uninterrupted(processed, tmp_path_factory) -> Path:
    """40 steps with dropout, so that torch's own random numbers matter too."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(processed, run, "--steps", "40", "--save-every", "20", "--dropout", "0.1") == 0
    return run


def test_a_run_writes_its_files(uninterrupted):
    lines = read_log(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, 41))
    for line in lines:
        assert RUN_FIELDS <= set(line) and float.fromhex(line["loss_hex"]) == line["loss"]
        assert line["frames_per_s"] > 0 and line["cpu_s_per_step"] > 0
    assert [line["step"] for line in lines if "valid_eer" in line] == [20, 40]
    values = [line["loss"] for line in lines]
    assert sum(values[-5:]) < 0.8 * sum(values[4:9])  # from the step on that has the full margin
    best, last = load_checkpoint(uninterrupted), load_checkpoint(uninterrupted / "last.pt")
    assert best["metrics"]["valid_eer"] == min(line["valid_eer"] for line in lines if "valid_eer" in line)
    assert last["step"] == 40 and last["training"]["samples"] == 320 and "training" not in best
    assert len(last["training"]["random"]) == 1 and last["recipe_hash"] == best["recipe_hash"]
    assert load_checkpoint(uninterrupted / "last-1.pt")["step"] == 20
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["config"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__


def test_the_saved_configuration_repeats_the_run(uninterrupted, tmp_path):
    words = ["--config", str(uninterrupted / "config.yaml"), "--out", str(tmp_path / "again"), "--workers", "2"]
    assert train_tacomamba.main(words) == 0
    assert_same_run(uninterrupted, tmp_path / "again")


def test_validations_need_no_checkpoint(uninterrupted, processed, tmp_path):
    run = tmp_path / "run"
    words = ["--steps", "40", "--save-every", "40", "--valid-every", "10", "--dropout", "0.1"]
    assert train(processed, run, *words) == 0
    rates = {line["step"]: line["valid_eer"] for line in read_log(run) if "valid_eer" in line}
    assert list(rates) == [10, 20, 30, 40] and not (run / "last-1.pt").exists()
    assert load_checkpoint(run)["step"] == min(rates, key=rates.get)
    assert losses(run) == losses(uninterrupted)


def test_another_seed_gives_another_run(uninterrupted, processed, tmp_path):
    assert train(processed, tmp_path / "other", "--steps", "1", "--seed", "1", "--dropout", "0.1") == 0
    assert losses(tmp_path / "other")[1] != losses(uninterrupted)[1]


def test_a_finished_run_stays_unchanged(uninterrupted, processed, capsys):
    before = (uninterrupted / "last.pt").stat().st_mtime_ns
    assert train(processed, uninterrupted, "--steps", "40", "--dropout", "0.1", "--resume", "auto") == 0
    assert "already trained to step 40" in capsys.readouterr().out
    assert (uninterrupted / "last.pt").stat().st_mtime_ns == before


def test_a_run_folder_in_use_and_contradictions_are_refused_together(uninterrupted, processed, capsys):
    with pytest.raises(SystemExit) as exit_:
        train(processed, uninterrupted, "--causal", "--normalize", "utterance", "--headdim", "7")
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "is not empty" in message and "headdim 7" in message and "contradict" in message


def test_resuming_another_model_is_refused(uninterrupted, processed, capsys):
    assert train(processed, uninterrupted, "--steps", "60", "--d-model", "24", "--lr", "3", "--resume", "auto") == 2
    message = capsys.readouterr().err
    assert "--d-model (16 there, 24 here)" in message and "--lr (0.001 there, 3.0 here)" in message
    assert load_checkpoint(uninterrupted / "last.pt")["step"] == 40


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--data", "nowhere"], "no features in nowhere"),
        (["--protocol", "other"], "other"),
        (["--resume", "nothing.pt"], "no checkpoint at nothing.pt"),
        (["--device", "abacus"], "device abacus cannot be used"),
        (["--device", "meta"], "must be cpu, cuda or mps, not meta"),
        (["--crop-seconds", "0.01"], "shorter than one frame"),
    ],
)
def test_bad_input_gets_a_sentence_and_no_run_folder(processed, tmp_path, capsys, change, sentence):
    assert train(processed, tmp_path / "run", *change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_validation_trials_the_last_checkpoint_is_the_best(processed, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(processed, run, "--steps", "3", "--save-every", "1", "--valid-utterances", "1") == 0
    assert "no validation" in capsys.readouterr().out
    assert train(processed, tmp_path / "two", "--steps", "1") == 0
    assert "validation is on training speakers" in capsys.readouterr().out
    assert load_checkpoint(run)["step"] == 3 and load_checkpoint(run)["metrics"] == {}


@pytest.mark.parametrize("flag", ["--batch-size=1", "--margin=nan", "--weight-decay=-5", "--noise-snr 9 3"])
def test_flags_that_make_no_sense_are_refused(processed, tmp_path, flag):
    with pytest.raises(SystemExit) as exit_:
        train(processed, tmp_path / "run", *flag.split())
    assert exit_.value.code == 2 and not (tmp_path / "run").exists()


def test_a_run_of_an_older_version_is_refused_with_advice(uninterrupted, processed, tmp_path, capsys):
    """Whatever its flags are called; to use its model is another matter."""
    run = shutil.copytree(uninterrupted, tmp_path / "older")
    checkpoint = load_checkpoint(run / "last.pt")
    checkpoint["training"]["format"] = 2
    checkpoint["config"] = {"normalise": "auto", **checkpoint["config"]}
    save_checkpoint(run / "last.pt", checkpoint)
    assert train(processed, run, "--steps", "60", "--dropout", "0.1", "--resume", "auto") == 2
    assert "another version of this program: resume it with that version" in capsys.readouterr().err


ALLOWED = {
    *("config", "out", "data", "resume", "steps", "log_every", "save_every", "valid_every", "keep_last"),
    *(
        "tensorboard",
        "max_bad_steps",
        "device",
        "backend",
        "threads",
        "workers",
        "compile",
        "checkpoint_layers",
        "speaker_encoder",
    ),
    *("noise_folder", "rir_folder"),  # compared by their contents
}


@pytest.mark.parametrize("task", ["speaker", "tts"])
def test_resume_compares_every_flag_but_those_that_cannot_change_the_run(task):
    """Also a flag that is added later, and one that a checkpoint of before it lacks."""
    parser = train_tacomamba.build_parser(["--task", task])
    parser.add_argument("--new-flag", default=1)
    before = vars(parser.parse_args(["--data", "data", "--out", "out", "--task", task]))
    for name in before:
        changed = before | {name: "another value"}
        if name in ALLOWED:
            train_tacomamba._require_same_flags(before, changed, parser)
        else:
            with pytest.raises(UserError, match=f"--{name.replace('_', '-')} "):
                train_tacomamba._require_same_flags(before, changed, parser)
    older = {name: value for name, value in before.items() if name != "new_flag"}
    train_tacomamba._require_same_flags(older, before, parser)
    with pytest.raises(UserError, match="--new-flag"):
        train_tacomamba._require_same_flags(older, before | {"new_flag": 2}, parser)


def test_resuming_on_another_training_list_is_refused(uninterrupted, processed, tmp_path, capsys):
    data = shutil.copytree(processed, tmp_path / "data")  # other tests compare the shared one
    words = ["--dataset", "librispeech", "--raw", json.loads((data / "meta.json").read_text())["raw"]]
    heldout = data / "protocols" / "default" / "heldout_speakers.txt"
    words += ["--out", str(data), "--protocol", "again", "--seed", "5", "--heldout-speakers", str(heldout)]
    assert preprocess.main([*words, "--num-proc", "1"]) == 0
    assert train(data, uninterrupted, "--steps", "60", "--protocol", "again", "--resume", "auto") == 2
    assert "--protocol (default there, again here)" in capsys.readouterr().err
    changed = shutil.copytree(data, tmp_path / "changed")
    shutil.rmtree(changed / "protocols" / "default")
    (changed / "protocols" / "again").rename(changed / "protocols" / "default")
    assert train(changed, uninterrupted, "--steps", "60", "--dropout", "0.1", "--resume", "auto") == 2
    assert "training_list" in capsys.readouterr().err
    evaluation = ["evaluate", "--checkpoint", str(uninterrupted), "--data", str(data), "--protocol", "again"]
    assert evaluate_script.main([*evaluation, "--out", str(tmp_path / "report")]) == 0
    identification = json.loads((tmp_path / "report" / "report.json").read_text())["identification"]
    assert (
        identification["utterance"]["accuracy"] is None and "may have included" in identification["utterance"]["reason"]
    )


def test_a_loss_that_is_not_finite_stops_the_run(processed, tmp_path, capsys):
    assert train(processed, tmp_path / "run", "--steps", "30", "--lr", "1e30", "--warmup", "0") == 2
    error = capsys.readouterr().err
    assert "20 steps in a row" in error and "the loss of step 21" in error


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full(uninterrupted, processed, tmp_path, amp):
    """The first loss within 2 % of float32's, and the run learns."""
    assert train(processed, tmp_path / amp, "--steps", "20", "--amp", amp, "--dropout", "0.1") == 0
    values = [line["loss"] for line in read_log(tmp_path / amp) if "loss" in line]
    assert values[0] == pytest.approx(float.fromhex(losses(uninterrupted)[1]), rel=0.02)
    assert sum(values[-4:]) < sum(values[2:6])


def test_complete_utterances_in_batches_of_similar_length(processed, tmp_path):
    """Several epochs of 24 utterances, resumed in between; batches fill their budget."""
    words = ["--batch-frames", "1500", "--save-every", "7", "--dropout", "0.1"]
    assert train(processed, tmp_path / "complete", "--steps", "18", *words) == 0
    assert train(processed, tmp_path / "halved", "--steps", "18", *words, "--resume", "auto") == 0
    samples = [line["samples"] for line in read_log(tmp_path / "complete")]
    sizes = [later - earlier for earlier, later in zip([0, *samples], samples, strict=False)]
    assert 2 <= min(sizes) and max(sizes) <= 10 and len(set(sizes)) > 1
    run = tmp_path / "halved"
    for name in ("last.pt", "log.jsonl"):
        (run / name).unlink()  # as if it had been killed before step 18
    assert train(processed, run, "--steps", "18", *words, "--resume", "auto") == 0
    lines = read_log(run)
    assert lines[0] == {"resumed_from": 14} and [line["step"] for line in lines[1:]] == [15, 16, 17, 18]
    resumed = losses(run)
    assert resumed == {step: value for step, value in losses(tmp_path / "complete").items() if step > 14}
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(tmp_path / "complete").items())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch-frames", "100"], "cannot hold the longest utterance"),
        (["--batch-frames", "300"], "too few for 1 ranks"),
        (["--accumulate", "5"], "too few for 1 ranks x --accumulate 5"),
    ],
)
def test_batches_too_small_for_their_shares_are_refused(processed, tmp_path, capsys, words, sentence):
    assert train(processed, tmp_path / "run", *words) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_average_of_the_weights_is_what_is_used(uninterrupted, processed, tmp_path):
    """The weights that are trained are those of a run without it; the average lies between them and earlier ones."""
    words = ["--steps", "40", "--save-every", "20", "--dropout", "0.1"]
    assert train(processed, tmp_path / "averaged", *words, "--ema", "0.9") == 0
    last = load_checkpoint(tmp_path / "averaged" / "last.pt")
    for name, tensor in weights(uninterrupted).items():
        assert torch.equal(tensor, last["training"]["model"][name]), name
    name = "classifier.weight"
    assert not torch.equal(last["model"][name], last["training"]["model"][name])
    before = load_checkpoint(uninterrupted / "last-1.pt")["model"][name]
    moved, behind = (float((before - weights_[name]).norm()) for weights_ in (last["training"]["model"], last["model"]))
    assert 0 < behind < moved
    assert losses(tmp_path / "averaged") == losses(uninterrupted)


def test_micro_batches_of_the_real_model(processed, tmp_path):
    """Batch norm sees micro-batches, so that the losses differ; the samples and their number do not."""
    for run, words in (("one", []), ("two", ["--accumulate", "2"])):
        assert train(processed, tmp_path / run, "--steps", "3", *words) == 0
    one, two = (read_log(tmp_path / run) for run in ("one", "two"))
    assert [line["samples"] for line in one] == [line["samples"] for line in two] == [8, 16, 24]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=0.2) and two[0]["loss"] != one[0]["loss"]


@pytest.mark.parametrize(("name", "number"), [("ONEDNN", None), ("ONEDNN", "7"), ("DNNL", "7")])
def test_onednn_keeps_few_operations_unless_the_environment_sets_a_number(tmp_path, monkeypatch, name, number):
    names = [f"{maker}_PRIMITIVE_CACHE_CAPACITY" for maker in ("ONEDNN", "DNNL")]
    for each in names:
        monkeypatch.delenv(each, raising=False)
    if number is not None:
        monkeypatch.setenv(f"{name}_PRIMITIVE_CACHE_CAPACITY", number)
    words = ["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "run")]
    program = tmp_path / "program.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train_tacomamba\n"
        f"train_tacomamba.main({words})\nprint([os.environ.get(name) for name in {names}])\n"
    )
    process = forked.run(program)
    expected = {("ONEDNN", None): ["256", None], ("ONEDNN", "7"): ["7", None], ("DNNL", "7"): [None, "7"]}
    assert process.stdout.splitlines()[-1] == str(expected[name, number])


def test_tensorboard_gets_scalars_and_pictures(processed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert train(processed, run, "--steps", "2", "--save-every", "1", "--tensorboard") == 0
    assert [path.name for path in sorted((run / "pictures").iterdir())] == [
        "scores-00000001.png",
        "scores-00000002.png",
    ]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/loss", "train/lr", "valid/eer"} <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("scores")] == [1, 2]


def test_sounds_are_kept_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, is_main=True, first_step=0, tensorboard=True)
    log.sound(7, "sample", np.sin(np.arange(8000) / 10).astype(np.float32) / 2, 16_000)
    log.close()
    samples, rate = soundfile.read(tmp_path / "sounds" / "sample-00000007.wav")
    assert rate == 16_000 and len(samples) == 8000 and np.abs(samples).max() == pytest.approx(0.5, abs=0.01)
    assert [sound.step for sound in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Audio("sample")] == [7]


def test_an_utterance_that_is_not_finite_is_skipped_and_named(processed, tmp_path):
    """In stored features: statistics exclude it, each step with it is skipped, and the run continues."""
    data = tmp_path / "data"
    shutil.copytree(processed, data)
    poisoned = poison(data, "101-1011-0000")
    run = tmp_path / "run"
    assert train(data, run, "--steps", "12", "--save-every", "6") == 0
    skipped = [line for line in read_log(run) if "skipped" in line]
    assert skipped and all(line["utterances"] == [poisoned] and line["loss"] is None for line in skipped)
    assert all(line["loss_hex"] == "nan" for line in skipped)
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def poison(data: Path, utterance: str) -> str:
    """Fills the stored frames of an utterance with NaN."""
    (shard,) = (data / "features").glob("*.arrow")
    table = pa.ipc.open_stream(shard.read_bytes()).read_all()
    mels = table.column("mel").to_pylist()
    row = table.column("utterance").to_pylist().index(utterance)
    mels[row] = [math.nan] * len(mels[row])
    place = table.schema.get_field_index("mel")
    table = table.set_column(place, table.schema.field("mel"), pa.array(mels, table.schema.field("mel").type))
    with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return utterance


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """Bad steps are skipped, so an infinite weight is set by hand."""
    scenario = {"out": str(tmp_path), "flags": ["--steps", "5"], "task": {"broken": True}}
    result = toy_training.train(scenario, Ranks(0, 1, torch.device("cpu")))
    assert result["step"] == 5 and "not finite and are not saved" in result["error"]
    assert not list(tmp_path.glob("*.pt"))


def test_recomputed_layers_are_refused_where_there_are_none(processed, tmp_path, capsys):
    assert train(processed, tmp_path / "run", "--model", "xvector", "--checkpoint-layers") == 2
    assert "no layers that can be recomputed" in capsys.readouterr().err


def test_recomputed_layers_train_the_same_model(processed, tmp_path):
    """With dropout, whose masks are drawn again for the second computation."""
    words = ["--steps", "3", "--save-every", "20", "--dropout", "0.1"]
    for run, more in (("kept", []), ("recomputed", ["--checkpoint-layers"])):
        assert train(processed, tmp_path / run, *words, *more) == 0
    kept, recomputed = ([line["loss"] for line in read_log(tmp_path / run)] for run in ("kept", "recomputed"))
    assert recomputed == pytest.approx(kept, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["xvector", "ecapa", "tacomamba"])
def test_two_ranks_train_one_model_on_the_same_samples(processed, tmp_path, model):
    """First loss to 1e-6 relative (the order of sums), later ones to 1e-3: AdamW amplifies rounding.

    ECAPA passes rounding through 30 batch norms, whose sums are in another order: 1e-5 (1.2e-6 was found).
    """
    words = ["--steps", "4", "--save-every", "4", "--model", model, "--channels", "64"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "train_tacomamba.py", *flags(processed, tmp_path / "two", *words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert train(processed, tmp_path / "one", *words) == 0
    one, two = ([float.fromhex(value) for value in losses(tmp_path / run).values()] for run in ("one", "two"))
    assert two[0] == pytest.approx(one[0], rel=1e-5 if model == "ecapa" else 1e-6)
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_a_compiled_model_trains_as_an_uncompiled_one(processed, tmp_path):
    """The margin changes in each of the steps and must not cause a compilation each."""
    words = ["--steps", "6", "--save-every", "6"]
    for run, more in (("plain", []), ("compiled", ["--compile"])):
        assert train(processed, tmp_path / run, *words, *more) == 0
    plain, compiled = ([line["loss"] for line in read_log(tmp_path / run)] for run in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert set(weights(tmp_path / "plain")) == set(weights(tmp_path / "compiled"))
