"""The prediction of profile_model.py against the memory of the real step on a CPU, and its own memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from root import ROOT

import profile_model
from utils.profiling.measure import measure
from utils.profiling.step import predict

SPEAKER = ["--d-model", "48", "--headdim", "16", "--n-layers", "2", "--batch-size", "6", "--frames", "150"]
TEXT = ["--task", "tts", *SPEAKER[:-2], "--frames", "90"]
WAYS = [[], ["--amp", "bf16"], ["--checkpoint-layers", "--ema", "0.99"]]
CASES = [
    *([*SPEAKER, "--mixer", mixer, *way] for mixer in ("mamba", "mamba2", "attention", "lstm", "conv") for way in WAYS),
    *([*TEXT, "--mixer", mixer, *way] for mixer in ("mamba", "lstm") for way in WAYS[1:]),
    [*SPEAKER, "--mixer", "mamba2", "--amp", "bf16", "--checkpoint-layers"],
    [*SPEAKER, "--mixer", "mamba", "--backend", "torch", "--amp", "fp16"],
    [*SPEAKER, "--mixer", "mamba", "--backend", "decomposed", "--accumulate", "2"],
    [*SPEAKER, "--mlp-ratio", "2", "--dropout", "0.1", "--directions", "alternate"],
    [*TEXT, "--decoder", "bidirectional", "--mixer", "attention"],
    [*TEXT, "--decoder", "ar", "--amp", "bf16"],
    [*TEXT, "--model", "tacotron2", "--frames", "40"],
    ["--model", "xvector", "--batch-size", "6"],
    ["--model", "ecapa", "--batch-size", "3", "--amp", "bf16"],
]


def case_of(words):
    parser = profile_model.build_parser(words)
    args = parser.parse_args(words)
    config = parser.read_options(args, profile_model.TASKS[args.task].model_config)[0]
    return profile_model.case_of(args, config)


def test_micro_batches_may_differ_by_a_sample():
    case = case_of(["--batch-size", "15", "--accumulate", "4"])
    assert [len(batch["mel"]) for batch in case.batches()] == [4, 4, 4, 3]


def _parameters():
    """Yields a third of the cases for make test, the others for make test-slow."""
    for number, words in enumerate(CASES):
        yield pytest.param(words, id=" ".join(words[10:] or words), marks=[pytest.mark.slow] * bool(number % 3))


@pytest.mark.parametrize("words", list(_parameters()))
def test_the_step_takes_what_was_predicted_or_up_to_12_percent_less(words):
    case = case_of(words)
    error = predict(case).predicted / measure(case) - 1
    assert 0 <= error <= 0.12


def test_a_step_of_500_gigabytes_is_predicted_in_two():
    """Under a limit of its address space, and by the most that it had in memory."""
    sizes = ["--mixer", "mamba", "--d-model", "2048", "--n-layers", "32", "--batch-size", "64", "--seconds", "20"]
    code = (
        "import json, resource, sys, profile_model\n"
        "code = profile_model.main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(code)"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))  # libraries map several that they never touch

    command = [sys.executable, "-c", code, *sizes, "--device", "cuda", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predicted_bytes"] > 500e9
    assert int(done.stderr.split()[-1]) * 1024 < 2e9
