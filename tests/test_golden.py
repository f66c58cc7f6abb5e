"""Golden behavior: losses of five steps of tiny models, and the scores of one evaluation, as recorded.

A change that alters them on purpose records them again and says so:
TACOMAMBA_RECORD_GOLDEN=1 python -m pytest tests/test_golden.py
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch

import test as test_script
import train_tacomamba
from utils.training.runlog import read_log

GOLDEN = Path(__file__).with_name("golden.json")
TRAINING = "--steps 5 --save-every 5 --log-every 1 --threads 1 --backend torch --device cpu --no-tensorboard".split()
STACK = "--d-model 32 --n-layers 2 --headdim 16 --d-state 8".split()
SPEAKER = "--task speaker --batch-size 8 --crop-seconds 1 --pooled-channels 32 --embedding-dim 16".split()
TTS = "--task tts --batch-frames 900 --encoder-layers 1 --postnet-channels 16".split()
TACOTRON2 = "--model tacotron2 --decoder-dim 32 --prenet-dim 16 --attention-dim 16".split()
MIXERS = "mamba", "mamba2", "attention", "lstm", "conv"
CONFIGURATIONS = {
    **{f"speaker {mixer}": [*SPEAKER, *STACK, "--mixer", mixer] for mixer in MIXERS},
    **{f"speaker {mixer} causal": [*SPEAKER, *STACK, "--mixer", mixer, "--causal"] for mixer in MIXERS},
    "speaker mamba2 bf16": [*SPEAKER, *STACK, "--amp", "bf16", "--mlp-ratio", "2", "--dropout", "0.1"],
    "speaker x-vector": [*SPEAKER, "--model", "xvector"],
    "speaker ECAPA": [*SPEAKER, "--model", "ecapa", "--channels", "32"],
    **{f"tts {kind}": [*TTS, *STACK, "--decoder", kind] for kind in ("causal", "bidirectional", "ar")},
    "tts Tacotron 2": [*TTS, "--d-model", "32", *TACOTRON2],
}
EVALUATED = "speaker mamba2"


def this_machine() -> dict[str, str]:
    """What the last bits depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    wanted = ("model name", "cpu family", "model", "stepping")
    cpu = dict(line.split(":", 1) for line in lines if line.split(":")[0].strip() in wanted)
    return {
        "cpu": " ".join(value.strip() for value in cpu.values()) or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


@pytest.fixture(scope="module")
def golden():
    """The recorded values, and how to hold new ones against them; new ones are recorded where that is asked for."""
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {"values": {}}
    is_recording, found = bool(os.environ.get("TACOMAMBA_RECORD_GOLDEN")), {}
    same_bits = recorded.get("machine") == this_machine()

    def check(name: str, values: list[float]) -> None:
        found[name] = [float(value).hex() for value in values]
        if is_recording:
            return
        if same_bits:
            assert found[name] == recorded["values"][name]
        else:  # other processors round differently, and training amplifies that
            wanted = [float.fromhex(value) for value in recorded["values"][name]]
            assert values[0] == pytest.approx(wanted[0], rel=5e-3, abs=5e-3)
            assert values == pytest.approx(wanted, rel=0.05, abs=0.05)

    yield check
    if is_recording:
        content = {"machine": this_machine(), "values": {**recorded["values"], **found}}
        GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def run_of(processed, processed_voice, tmp_path_factory):
    """A function that trains a configuration, once, and gives its run folder."""
    folder = tmp_path_factory.mktemp("golden")

    def train(name: str) -> Path:
        data = processed_voice if name.startswith("tts") else processed
        out = folder / name.replace(" ", "-")
        if not out.exists():
            assert train_tacomamba.main(["--data", str(data), "--out", str(out), *TRAINING, *CONFIGURATIONS[name]]) == 0
        return out

    return train


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_losses_of_five_steps(name, golden, run_of):
    """Bit for bit on the machine that recorded them; elsewhere the first within 0.5 %, the rest within 5 %."""
    golden(name, [float.fromhex(line["loss_hex"]) for line in read_log(run_of(name))])


def test_the_scores_of_an_evaluation(golden, run_of, processed, tmp_path):
    """Every trial's cosine, of whole recordings and of their middle 1.5 s."""
    words = ["--checkpoint", str(run_of(EVALUATED)), "--data", str(processed), "--out", str(tmp_path / "report")]
    assert test_script.main(["evaluate", *words, "--backend", "torch", "--device", "cpu", "--bootstrap", "10"]) == 0
    for file in ("scores.txt", "scores-1.5s.txt"):
        lines = (tmp_path / "report" / file).read_text(encoding="utf-8").splitlines()
        golden(f"{EVALUATED} {file}", [float(line.split()[0]) for line in lines])
