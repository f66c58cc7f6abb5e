"""profile_model.py: what it prints and writes, what fits, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from root import ROOT

import profile_model
from models.mixers import MIXERS
from models.speaker import SpeakerConfig, SpeakerModel
from models.tts import MODELS, TextToMelConfig
from utils.profiling.fits import root
from utils.profiling.storages import PURPOSES
from utils.text.vocabulary import VOCABULARIES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLOAT = 4
SMALL = ["--d-model", "32", "--headdim", "16", "--n-layers", "1", "--batch-size", "2", "--frames", "20"]


def content_of(capsys, *words):
    assert profile_model.main([*SMALL, "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


SPEAKER_MODELS = [
    ["--mixer", "mamba2"],
    ["--mixer", "lstm", "--amp", "bf16"],
    ["--mixer", "attention", "--device", "cuda", "--amp", "fp16", "--ema", "0.9"],
    ["--mixer", "mamba", "--checkpoint-layers"],
    ["--model", "xvector", "--batch-size", "4", "--accumulate", "2"],
]


@pytest.mark.parametrize("kind", SPEAKER_MODELS, ids=" ".join)
def test_script_prints_json_that_adds_up(kind, capsys):
    content = content_of(capsys, "--speakers", "7", *kind)
    require_sums(content, SpeakerModel(SpeakerConfig.from_dict(content["model_config"]), 7))
    samples = 4 if "--accumulate" in kind else 2
    assert content["step_bytes"]["inputs"] == samples * (20 * 80 * FLOAT + 8 + 8)
    assert content["step_bytes"]["average"] > 0 if "--ema" in kind else content["step_bytes"]["average"] == 0


def require_sums(content, model):
    """The rows are the model's modules, and their sizes add up to those of the step."""
    assert content["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    layers = {row["name"]: row for row in content["layers"]}
    for what in ("saved_bytes", "forward_flops", "backward_flops"):
        assert layers[""][what] == sum(row[f"own_{what}"] for row in content["layers"]) > 0
    for name, module in model.named_modules():
        assert layers[name]["parameters"] == sum(parameter.numel() for parameter in module.parameters()), name
    step, peak = content["step_bytes"], content["peak"]
    assert step["parameters"] == step["gradients"] == content["parameters"] * FLOAT
    assert 2 * step["parameters"] <= step["optimizer"] <= 2 * step["parameters"] + FLOAT * len(list(model.parameters()))
    assert list(peak["parts"]) == list(PURPOSES) and sum(peak["parts"].values()) == peak["bytes"]
    assert peak["bytes"] == max(step[f"{phase}_peak"] for phase in ("forward", "backward", "update"))
    assert peak["layer"] in layers and peak["bytes"] < content["predicted_bytes"] < 1.01 * peak["bytes"] + 2**17
    highest = max(content["timeline"], key=lambda moment: sum(moment["parts"]))
    assert sum(highest["parts"]) == peak["bytes"] and highest["phase"] == peak["phase"]


TEXT_MODELS = [
    [],
    ["--decoder", "bidirectional", "--voice", "table", "--speakers", "7"],
    ["--decoder", "ar", "--amp", "bf16"],
    ["--mixer", "lstm", "--voice", "embedding", "--speaker-dim", "32"],
    ["--model", "tacotron2", "--device", "cuda"],
]


@pytest.mark.parametrize("kind", TEXT_MODELS, ids=" ".join)
def test_script_profiles_text_to_mel(kind, capsys):
    content = content_of(capsys, "--task", "tts", "--symbols", "9", *kind)
    config = TextToMelConfig.from_dict(content["model_config"])
    require_sums(content, MODELS[config.model](config, len(VOCABULARIES["phoneme"])))
    voice = 2 * 8 * ("table" in kind) + 2 * 32 * FLOAT * ("embedding" in kind)
    assert content["step_bytes"]["inputs"] == (2 * 20 * 80) * FLOAT + 2 * 9 * 8 + 2 * 8 + 2 * 8 + voice
    assert (content["symbols"], content["frames"], content["task"]) == (9, 20, "tts")


def test_less_is_saved_in_half_precision_and_with_checkpoints(capsys):
    words = ["--frames", "200", "--n-layers", "3", "--d-model", "64"]
    saved = [
        content_of(capsys, *words, *more)["layers"][0]["saved_bytes"]
        for more in ([], ["--amp", "bf16"], ["--checkpoint-layers"])
    ]
    assert saved[0] > saved[1] > saved[2]


def test_the_kernels_of_mamba_ssm_are_counted_by_formula(capsys):
    """What the selective scan saves on CUDA: its inputs in its own layout, two states, and the ungated output."""
    words = ["--mixer", "mamba", "--causal", "--device", "cuda", "--backend", "mamba_ssm", "--frames", "40"]
    content = content_of(capsys, *words)
    assert content["backend"] == "mamba_ssm by formula"
    (mixer,) = (row for row in content["layers"] if row["kind"] == "Mamba")
    frames, d, rank, states = 2 * 20, 64, 2, 16  # two samples of 40 mel frames, subsampled by 2
    kernel = frames * (4 * d + 2 * states) + d * states + 2 * d * 2 * states  # u, delta, z, output; B, C; A; states
    around = frames * (2 * d) + frames * (rank + 2 * states) + d * states  # both projections, exp(A_log)
    masks = 2 * frames  # of one byte
    assert mixer["own_saved_bytes"] == (kernel + around) * FLOAT + masks


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_auto_on_cuda_is_our_kernels_which_need_no_triton_here(mixer, capsys, monkeypatch):
    """What a mixer saves: a projection of its input, what it convolved, steps, decays, masks; Mamba also states."""
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    words = ["--mixer", mixer, "--causal", "--device", "cuda", "--frames", "40"]
    content = content_of(capsys, *words)
    assert content["backend"] == "triton"
    (row,) = (row for row in content["layers"] if row["kind"].startswith("Mamba"))
    rows, frames, d, rank, heads = 2, 2 * 20, 64, 2, 4  # two samples of 40 mel frames, subsampled by 2
    if mixer == "mamba":
        states = 16
        inputs = frames * (2 * d + d + rank + 2 * states)  # x and the gate, dt; its projection's input, B, C
        saved = inputs + 2 * d * states + rows * d * states  # exp(A_log), A; the state before the first 64 frames
    else:
        states = 64
        convolved = d + 2 * states
        saved = frames * (d + convolved + heads + convolved + heads) + 2 * heads  # before, after; dt; exp(A_log), A
    masks = 2 * frames  # of one byte
    assert row["own_saved_bytes"] == saved * FLOAT + masks
    as_torch = content_of(capsys, *words, "--backend", "torch")
    for field in ("forward_flops", "backward_flops"):
        assert [row[field] for row in content["layers"]] == [row[field] for row in as_torch["layers"]]
    assert content_of(capsys, *words, "--backend", "triton") == content


def test_a_batch_in_frames_has_complete_samples(capsys):
    words = ["--task", "tts", "--batch-frames", "99", "--depth", "0"]
    assert profile_model.main([*SMALL, *words]) == 0
    assert "task tts, batch size 4, frames 20, seconds 0.232, symbols 3, voice none, amp off" in capsys.readouterr().out
    assert profile_model.main([*SMALL[:-2], "--frames", "45", *words]) == 0
    assert "batch size 2, frames 45, seconds 0.522, symbols 8" in capsys.readouterr().out


def test_script_takes_the_presets_side_by_side(capsys):
    """As they are, but for the size of a step."""
    for task in ("speaker", "tts"):
        presets = sorted(ROOT.glob(f"configs/{task}-*.yaml"))[-2:]
        named = [word for preset in presets for word in ("--config", str(preset))]
        assert profile_model.main([*named, *SMALL[-2:], "--batch-frames", "40", "--depth", "0"]) == 0
        out = capsys.readouterr().out
        for preset in presets:
            assert f"{preset.stem}: one training step: task {task}, batch size 2, frames 20" in out
        head = next(line for line in out.splitlines() if line.startswith("at the peak"))
        assert head.split()[3:] == [preset.stem for preset in presets]


def test_script_takes_the_configuration_of_a_run(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    sizes = "model: tacomamba\nd-model: 32\nheaddim: 16\nn-layers: 1\nbatch-size: 2\ncrop-seconds: 0.2\nsteps: 9\n"
    config.write_text(f"{sizes}device: auto\nout: {tmp_path / 'run'}\nema: 0.5\n")
    assert profile_model.main([f"--config={config}", "--depth", "1"]) == 0
    assert "batch size 2, frames 18, seconds 0.18, speakers 1000, amp off, ema 0.5" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()  # which is where the run wrote


class Words(HTMLParser):
    """The text of a page, its tags, and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.references, self.bars = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.references += [values[name] for name in ("src", "href", "data", "srcset") if name in values]
        if tag == "rect":
            self.bars.append(float(values["width"]))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of two profiles with all questions."""
    base = tmp_path_factory.mktemp("profiles")
    for name, layers in (("one", 1), ("two<b>", 2)):
        (base / f"{name}.yaml").write_text(f"d-model: 32\nheaddim: 16\nn-layers: {layers}\nbatch-size: 2\nframes: 20\n")
    words = ["--config", str(base / "one.yaml"), "--config", str(base / "two<b>.yaml"), "--depth", "0"]
    asked = ["--gpu-mem", "64MiB", "--measure", "--mixers", "--out", str(base / "out")]
    assert profile_model.main([*words, *asked]) == 0
    return base / "out"


def test_files_hold_the_same_figures(folder):
    names = ["mixers.png", "profile.csv", "profile.html", "profile.json", "profile.png"]
    assert sorted(path.name for path in folder.iterdir()) == names  # and nothing unfinished
    content = json.loads((folder / "profile.json").read_text())
    rows = list(csv.DictReader((folder / "profile.csv").read_text().splitlines()))
    for profile in content["profiles"]:
        mine = [row for row in rows if row["profile"] == profile["label"]]
        assert [int(row["saved_bytes"]) for row in mine] == [layer["saved_bytes"] for layer in profile["layers"]]
        assert 0 <= profile["error"] <= 0.12
        assert profile["error"] == profile["predicted_bytes"] / profile["measured_bytes"] - 1
    assert [profile["label"] for profile in content["profiles"]] == ["one", "two<b>"]
    assert list(content["mixers"]) == list(MIXERS)
    for points in content["mixers"].values():
        seconds, peaks, flops = zip(*points, strict=True)
        assert list(peaks) == sorted(peaks) and flops[-1] > 16 * flops[0] and seconds[-1] > 60 * seconds[0]
    for name in ("profile.png", "mixers.png"):
        assert imread(folder / name)[..., :3].std() > 0.1


def test_the_page_needs_no_other_file(folder):
    content = json.loads((folder / "profile.json").read_text())
    page = Words((folder / "profile.html").read_text(encoding="utf-8"))
    assert {reference.partition(",")[0] for reference in page.references} == {"data:image/svg+xml;base64"}
    assert not {"script", "link", "b"} & page.tags
    assert "two<b>" in page.words
    for profile in content["profiles"]:
        assert f"{profile['predicted_bytes'] / 2**20:,.2f}" in page.words
    assert len(page.bars) > 20 and max(page.bars) == 1200


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page(folder, tmp_path, width):
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--hide-scrollbars"]
    words += ["--enable-logging=stderr", "--blink-settings=preferredColorScheme=1"]
    words += [f"--window-size={width},3000", f"--screenshot={tmp_path / 'page.png'}"]
    process = subprocess.run([*words, (folder / "profile.html").as_uri()], capture_output=True, text=True)
    assert process.returncode == 0 and not re.findall(r".*CONSOLE.*", process.stderr)
    picture = imread(tmp_path / "page.png")[..., :3]
    colors = {tuple(color) for color in (picture[::4, ::4] * 255).round().astype(int).reshape(-1, 3)}
    assert picture.shape[1] == width
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0xDD, 0xDD, 0xDD)} <= colors  # bars and curves


@pytest.mark.parametrize("words", [["--accumulate", "2"], ["--backend", "decomposed"]])
def test_what_fits_fits_and_one_more_does_not(words, capsys):
    """The solution of two runs, against runs beside it."""
    words = ["--batch-size", "4", *words]
    fits = content_of(capsys, *words, "--gpu-mem", "100MiB")["fits"]
    assert (fits["memory"], fits["reserved"]) == (100 * 2**20, 0)
    parts = 2 if "--accumulate" in words else 1
    batch, frames = fits["batch"]["largest"], fits["length"]["largest"]

    def predicted(*more):
        return content_of(capsys, *words, *more)["predicted_bytes"]

    assert predicted("--batch-size", str(batch)) == fits["batch"]["bytes"] <= fits["memory"]
    assert predicted("--batch-size", str(batch + parts)) > fits["memory"]
    assert predicted("--frames", str(frames)) == fits["length"]["bytes"] <= fits["memory"]
    assert predicted("--frames", str(round(1.01 * frames) + 8)) > fits["memory"]


def test_a_gpu_keeps_memory_for_itself(capsys):
    words = ["--device", "cuda", "--gpu-mem", "4GiB"]
    fits, in_half = content_of(capsys, *words)["fits"], content_of(capsys, *words, "--amp", "fp16")["fits"]
    assert fits["reserved"] == (600 + 75) * 2**20 + round(0.02 * 4 * 2**30)
    assert in_half["reserved"] - fits["reserved"] == (109 - 75) * 2**20
    none = content_of(capsys, "--device", "cuda", "--gpu-mem", "600MiB")["fits"]
    assert none["batch"]["largest"] == none["length"]["largest"] == 0


def test_bytes_that_come_in_steps_end_the_search_below_the_memory(capsys):
    """Solved at the edge, one frame less took as much, and the search ended at twice the length it began with."""
    words = ["--mixer", "mamba", "--d-model", "512", "--n-layers", "3", "--d-state", "32", "--batch-size", "8"]
    fits = content_of(capsys, *words, "--frames", "2185", "--gpu-mem", "24GiB")["fits"]
    assert 0.998 * fits["memory"] < fits["length"]["bytes"] <= fits["memory"]


def test_roots_of_lines_and_parabolas():
    assert root([(2, 120), (4, 140)], 200) == 10
    assert root([(2, 104), (4, 116), (8, 164)], 200) == 10  # 100 + n * n
    assert root([(2, 104), (4, 116), (8, 164)], 199) == 9
    assert root([(1, 100), (2, 109), (4, 127)], 190) == 11  # three points on a line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--crop-seconds", "0.02"], "--crop-seconds 0.02 is too short for one frame of speaker-16k"),
        (["--seconds", "0.01"], "--seconds 0.01 is too short for one frame of speaker-16k"),
        (["--json", "--depth", "1"], "--depth shortens the table"),
        (["--model", "ecapa", "--causal"], "ecapa has no causal form"),
        (["--decoder", "ar"], "--decoder is for --task tts, not for --task speaker"),
        (["--symbols", "9"], "--symbols is for --task tts, not for --task speaker"),
        (["--task", "tts", "--channels", "64"], "--channels is for --task speaker, not for --task tts"),
        (["--task", "tts", "--model", "xvector"], "argument --model: invalid choice: 'xvector'"),
        (["--task", "tts", "--model", "tacotron2", "--no-pitch"], "--pitch is for --model tacomamba"),
        (["--task", "tts", "--guided-attention", "9"], "--guided-attention is for --model tacotron2"),
        (["--model", "ecapa", "--mixer", "lstm"], "--mixer is for --model tacomamba, not for --model ecapa"),
        (["--task", "tts", "--frames", "20", "--symbols", "21"], "--symbols 21 is too many for 20 mel frames"),
        (["--gpu-mem", "24"], "must be a size such as 24GiB, in MiB, GiB, MB, GB, not '24'"),
        (["--gpu-mem", "0GiB"], "must be a size such as 24GiB"),
        (["--mixers"], "--mixers draws a picture: it needs --out FOLDER"),
        (["--mixers", "--out", "x", "--model", "ecapa"], "--mixers is for --model tacomamba, not for --model ecapa"),
        (["--out", str(Path(__file__))], "is a file, not a folder"),
        (["--accumulate", "17"], "--accumulate 17 is too much for the 32 samples of a step"),
        (["--batch-size", "1"], "argument --batch-size: must be at least 2, not 1"),
        (["--seconds", "1e308"], "argument --seconds: must be at most 86400, not 1e+308"),
        (["--config", "nowhere.yaml"], "the configuration nowhere.yaml cannot be read"),
    ],
)
def test_script_refuses_what_makes_no_sense(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        profile_model.main(words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cuda", "--backend", "native"], "--backend native: it is for CPUs only"),
        (["--backend", "mamba_ssm"], "--backend mamba_ssm: the backend mamba_ssm does not work here"),
        (["--model", "ecapa", "--checkpoint-layers"], "this model has no layers that can be recomputed"),
    ],
)
def test_script_refuses_what_cannot_be_computed(words, sentence, tmp_path):
    command = [sys.executable, "profile_model.py", *SMALL[-4:], *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()
