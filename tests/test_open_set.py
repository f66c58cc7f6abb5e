"""Open-set identification: rates against a definition probe by probe, and the benchmark on recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_operating import voices

from benchmarks import open_set
from utils.speaker.embeddings import unit
from utils.speaker.evaluation.open_set import OpenSetRates, open_set_rates
from utils.speaker.scoring.operating import RECORDINGS


def test_rates_are_those_of_the_probes(seed):
    """One draw, counted probe by probe."""
    vectors, labels = voices(9, 7, 1.4)
    seconds = np.random.default_rng(seed).uniform(1, 9, len(labels))
    limits = {length: 0.3 + 0.02 * length for length in seconds}
    rates = open_set_rates(vectors, labels, seconds, lambda length, enrolled: limits[length], 4, 1, seed)
    rng, names = np.random.default_rng([seed, 4]), sorted(set(labels))
    people, used = {}, []
    chosen = rng.permutation(names)[:4]
    for name in chosen:
        places = rng.choice([place for place, label in enumerate(labels) if label == name], RECORDINGS, replace=False)
        people[name] = unit(vectors[places].mean(0))
        used.extend(places)
    best = []
    for place, (vector, label) in enumerate(zip(vectors, labels, strict=True)):
        score, name = max((float(vector @ mean), name) for name, mean in people.items())
        if place not in used:
            best.append((label, name, score - limits[seconds[place]]))
    strangers = [lead for label, _, lead in best if label not in people]
    own = [(name == label, lead) for label, name, lead in best if label in people]
    assert len(strangers) == 5 * 7 and len(own) == 4 * 4
    assert rates.strangers == np.mean([lead >= 0 for lead in strangers])
    assert rates.found == np.mean([right and lead >= 0 for right, lead in own])
    assert rates.confused == np.mean([not right and lead >= 0 for right, lead in own])
    assert rates.detected == np.mean([right and lead > max(strangers) for right, lead in own])  # 1 % of 35 is none


def test_detection_is_at_one_percent_of_the_strangers():
    """A threshold that names exactly so many strangers finds as many people."""
    vectors, labels = voices(30, 24, 1.2)
    data = vectors, labels, np.full(len(labels), 4.0)
    detected = open_set_rates(*data, lambda *_: 0.0, 5, 40, 0).detected
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        rates = open_set_rates(*data, lambda *_, limit=middle: limit, 5, 40, 0)
        low, high = (middle, high) if rates.strangers > 0.01 else (low, middle)
    assert rates.strangers == pytest.approx(0.01, abs=1e-4) and rates.found == pytest.approx(detected, abs=1e-3)


@pytest.mark.parametrize("place", [0, -1])
def test_one_speaker_is_probed_as_a_stranger_and_enrolled(place):
    """Two draws, counted."""
    vectors, speakers = voices(6, 8, 1.4)
    labels, names = np.array(speakers), sorted(set(speakers))
    probed, rng = names[place], np.random.default_rng([5, 3])
    rates = open_set_rates(vectors, labels, np.full(len(labels), 4.0), lambda *_: 0.4, 3, 2, 5, probed)
    own, answers = np.flatnonzero(labels == probed), []
    for is_enrolled in (False, True):
        others = [name for name in rng.permutation(names) if name != probed]
        chosen = [probed, *others][:3] if is_enrolled else others[:3]
        used = [rng.choice(np.flatnonzero(labels == name), RECORDINGS, replace=False) for name in chosen]
        scores = vectors[np.setdiff1d(own, np.concatenate(used))] @ unit([vectors[each].mean(0) for each in used]).T
        best = zip(scores.max(1), scores.argmax(1), strict=True)
        answers.append([chosen[each] if score >= 0.4 else None for score, each in best])
    stranger, known = answers
    assert (len(stranger), len(known)) == (8, 8 - RECORDINGS)
    assert rates.strangers == np.mean([name is not None for name in stranger])
    assert rates.found == np.mean([name == probed for name in known])
    assert rates.confused == np.mean([name not in (None, probed) for name in known])


def test_too_few_speakers_or_recordings_are_refused():
    vectors, labels = voices(4, 5, 0.3)
    for case in ((vectors, labels, 4), (vectors[:16], labels[:16], 2)):
        with pytest.raises(ValueError, match="are needed"):
            open_set_rates(case[0], case[1], [4.0] * len(case[1]), lambda *_: 0.5, case[2], 1, 0)


def test_the_benchmark(trained_run, librispeech_root: Path, tmp_path, capsys):
    """On speakers whose names the model does not know, because they are renamed."""
    lines = []
    for folder in sorted((librispeech_root / "LibriSpeech" / "train-tiny").iterdir()):
        paths = []
        for number, path in enumerate(sorted(folder.rglob("*.flac"))[:5]):
            paths.append(f"LibriSpeech/test/9{folder.name}/1/9{folder.name}-1-{number:04d}.flac")
            (tmp_path / paths[-1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / paths[-1]).symlink_to(path)
        lines += [f"1 {paths[0]} {path}\n" for path in paths[1:]]
    (tmp_path / "trials.txt").write_text("".join(lines))
    words = ["--checkpoint", trained_run, "--audio-root", tmp_path, "--trials", tmp_path / "trials.txt", "--draws", 3]
    words = [str(word) for word in [*words, "--enrolled", 2, 5]]
    assert open_set.main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    two, five = content["rows"]
    assert (content["speakers"], content["recordings"], two["enrolled"]) == (8, 40, 2)
    assert [cost["seconds"] for cost in content["costs"]][:2] == [0.75, 1.5]
    assert all(cost["stored"] > 0 and cost["of_others"] > 0 for cost in content["costs"])
    shares = [row[kind] for row in (two, five) for kind in ("stored", "of_others")]
    assert all(set(each) == set(OpenSetRates._fields) and 0 <= min(each.values()) for each in shares)
    assert all(max(each.values()) <= 1 for each in shares)
    assert open_set.main(words) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows][4:8] == ["| length", "| ---", "| 0.75 s", "| 1.50 s"]
    assert [row[0] for row in rows][:4] == ["| enrolled", "| ---", "| 2", "| 5"]
    assert open_set.main([*words, "--enrolled", "8"]) == 2
    assert "more than 8 speakers are needed" in capsys.readouterr().err
    first, second = sorted((librispeech_root / "LibriSpeech" / "train-tiny" / "101").rglob("*.flac"))[:2]
    (tmp_path / "known.txt").write_text(f"1 {first} {second}\n")
    assert open_set.main([*words, "--trials", str(tmp_path / "known.txt")]) == 2
    assert "was trained on 1 of these speakers, such as 101" in capsys.readouterr().err
