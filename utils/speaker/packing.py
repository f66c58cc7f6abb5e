"""Packs a trained recognizer to be published: weights, operating points, and the figures in its card."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.checkpoint import find_model, load_checkpoint
from utils.cli import flag_name
from utils.commands import REPORT, counted
from utils.errors import UserError
from utils.features.mel import MelExtractor
from utils.files import read_json, read_text, replacing_directory, write_text
from utils.lists import DEFAULT_PROTOCOL
from utils.packed import CONFIG, SUMS, TRAINING, WEIGHTS, is_packed, write_packed
from utils.speaker.evaluation.report import table
from utils.speaker.evaluation.systems import models_of
from utils.speaker.recognizer import SpeakerRecognizer
from utils.speaker.refit import refit
from utils.speaker.scoring.scoring import GROUPS, Scoring

CARD = "README.md"
LEAST_COSINE = 0.9999  # of embeddings before and after packing
BEGIN, END = "<!-- figures: written by test.py pack, not by hand -->", "<!-- end of the figures -->"

_KEPT = ("task", "step", "model_config", "recipe", "recipe_hash", "speakers", "training_list", "sounds", "metrics")
_NEW_CARD = f"# Model card\n\n{BEGIN}\n{END}\n"


def pack(
    checkpoint: Path,
    out: Path,
    reports: Sequence[Path],
    data: Path | None = None,
    protocol: str = DEFAULT_PROTOCOL,
    replace: bool = False,
) -> dict[str, Any]:
    """Writes the packed model of a checkpoint to `out`, with the figures of evaluations in its card.

    `out` is replaced as a whole, and only by a model whose embeddings have a cosine of at least `LEAST_COSINE` with
    those of the checkpoint. Its card keeps everything outside of the figures. A packed model can be packed again, with
    other figures.

    Args:
        data: folder of preprocess.py, to whose speakers cohort, calibration and thresholds are fitted anew.
        protocol: name of its protocol.
        replace: whether `out` may hold another model, which goes.

    Returns:
        The folder, its size in bytes, the model's hash, and the least cosine.
    """
    content = load_checkpoint(checkpoint)
    SpeakerRecognizer.require_task(content, checkpoint)
    before = SpeakerRecognizer(content, checkpoint, "cpu")
    if data is not None:
        fitted = refit(before, data, protocol)
        content |= {**fitted, "metrics": {**content["metrics"], **fitted["metrics"]}}
    figures = [(_report(folder), folder) for folder in reports]
    card, training = _card(out), _training(checkpoint, content)
    with replacing_directory(out) as staging:
        write_packed(staging, _without_classifier(content))
        write_text(staging / TRAINING, training)
        after = SpeakerRecognizer.load(staging, "cpu")
        cosine = _least_cosine(before, after)
        if not cosine >= LEAST_COSINE:
            raise UserError(f"embeddings change in 16 bits: the least cosine is {cosine:.6f}, below {LEAST_COSINE}")
        if not replace:
            _require_same_model(out, after.model_hash)
        head, tail = card
        described = [_facts(after, (staging / WEIGHTS).stat().st_size), _command(content)]
        names = {before.model_hash: "this model, before it was packed", after.model_hash: "this model"}
        block = "\n\n".join([*described, *(_figure(*figure, names) for figure in figures)])
        write_text(staging / CARD, f"{head}{BEGIN}\n\n{block}\n\n{END}{tail}")
        size = sum(path.stat().st_size for path in staging.iterdir())
    return {"out": str(out), "bytes": size, "model_hash": after.model_hash, "least_cosine": cosine}


def _require_same_model(out: Path, model_hash: str) -> None:
    """`UserError` if a folder holds another model."""
    there = SpeakerRecognizer.load(out, "cpu").model_hash if is_packed(out) else model_hash
    if there != model_hash:
        raise UserError(f"{out} holds another model, {there}: --replace replaces it")


def _without_classifier(content: dict[str, Any]) -> dict[str, Any]:
    """Drops what only training needs: the vectors of the training speakers, who keep no more than their ids."""
    model = {name: each[:0] if name.startswith("classifier.") else each for name, each in content["model"].items()}
    kept = {name: content[name] for name in (*_KEPT, "back_end", *GROUPS) if name in content}
    return {**kept, "speeds": 0, "model": model}


def _training(checkpoint: Path, content: dict[str, Any]) -> str:
    """The flags of the training as YAML, without the folders of the machine."""
    import yaml

    path = find_model(checkpoint)
    if is_packed(path):
        return read_text(path / TRAINING)
    flags = {name: value for name, value in content["config"].items() if not _is_folder(name)}
    return yaml.safe_dump(flags, sort_keys=True, allow_unicode=True)


def _is_folder(flag: str) -> bool:
    return flag in ("data", "out", "resume") or flag.endswith("_folder")


def _card(out: Path) -> tuple[str, str]:
    """The card of the folder before and after its figures; `UserError` for a folder that is of something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; a folder is needed")
    strangers = {path.name for path in out.iterdir()} - {WEIGHTS, CONFIG, SUMS, TRAINING, CARD} if out.exists() else ()
    if strangers:
        raise UserError(f"{out} contains other files than those of a packed model, such as {min(strangers)}")
    text = read_text(out / CARD) if (out / CARD).exists() else _NEW_CARD
    head, begun, rest = text.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not (begun and ended):
        raise UserError(f"{out / CARD} has no place for figures: lines with `{BEGIN}` and `{END}`")
    return head, tail


def _report(folder: Path) -> dict[str, Any]:
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or not {"title", "verification", "identification", "conditions"} <= set(report):
        raise UserError(f"{folder / REPORT} is not the report of an evaluation of a recognizer")
    return report


def _facts(recognizer: SpeakerRecognizer, size: int) -> str:
    """The sentences of the card that describe the model; `size` is that of the weights in bytes."""
    text = (
        f"Model `{recognizer.model_hash}`, {recognizer.name}: {recognizer.parameters:,} parameters in "
        f"{size / 1e6:.1f} MB, step {recognizer.step:,} of a training on "
        f"{counted(len(recognizer.speakers), 'speaker')} (training list "
        f"`{recognizer.training_list}`). {_ratio(recognizer.scoring)}"
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _ratio(scoring: Scoring) -> str:
    if scoring.calibration is None:
        return "It has no calibration."
    offset, slope, growth = scoring.calibration.weights
    low, high = scoring.calibration.seconds
    score = "the cosine"
    if scoring.cohort is not None:
        score += f", normalized by the {scoring.cohort.top} nearest of {len(scoring.cohort.embeddings)} voices,"
    return (
        f"Log-likelihood ratio: {offset:.2f} + {slope:.2f} times {score} {growth:+.2f} times the logarithm of the "
        f"geometric mean of both lengths, within {low:g} and {high:.0f} s."
    )


def _command(content: dict[str, Any]) -> str:
    """The command that trains the model again, with placeholders for folders."""
    given = sorted(name for name, digest in content.get("sounds", {}).items() if digest)
    sounds = "".join(f" {flag_name(name)} SOUNDS" for name in given)
    return f"```bash\npython train_tacomamba.py --config training.yaml --data AUDIO --out RUN{sounds}\n```"


def _figure(report: dict[str, Any], folder: Path, names: dict[str, str]) -> str:
    """The table of a report, and whose figures they are."""
    models = [model["hash"] for model in models_of(report)]
    whose = ", ".join(names.get(model, f"another model, `{model}`") for model in models)
    trials = f", trial list `{report['source']['trials_sha256'][:8]}`" if "trials_sha256" in report["source"] else ""
    return f"**{folder.name}**: {report['title']}{trials}; {whose}.\n\n```text\n{table(report)}\n```"


def _least_cosine(before: SpeakerRecognizer, after: SpeakerRecognizer) -> float:
    """The least cosine between embeddings of generated audio by two recognizers; NaN if one is not finite."""
    extract = MelExtractor(before.recipe)
    mels = [extract(generated_voice(number, 1 + number / 4, before.recipe.sample_rate)) for number in range(12)]
    return float((before.embed_mels(mels) * after.embed_mels(mels)).sum(1).min())


def generated_voice(seed: int, seconds: float, rate: int) -> NDArray[np.float32]:
    """Generated audio (s,): syllables of harmonics, and noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = draw.uniform(80, 280) * (1 + 0.05 * np.sin(2 * np.pi * draw.uniform(0.5, 2) * time))
    phase, tilt = 2 * np.pi * np.cumsum(pitch) / rate, draw.uniform(0.5, 1.5)
    harmonics = sum(draw.uniform(0.2, 1) * np.sin(order * phase) / order**tilt for order in range(1, 13))
    syllables = np.clip(np.sin(2 * np.pi * draw.uniform(2, 5) * time), 0, None)
    return (0.1 * harmonics * syllables + 0.003 * draw.standard_normal(len(time))).astype(np.float32)
