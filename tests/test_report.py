"""Conditions, reports and pooled reports, on synthetic embeddings and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.lists import Trial
from utils.speaker.embeddings import enroll, unit
from utils.speaker.evaluation.conditions import CLEAN
from utils.speaker.evaluation.identification import Answer, answers, by_part, confusions
from utils.speaker.evaluation.metrics import cllr, eer
from utils.speaker.evaluation.rates import Rates
from utils.speaker.evaluation.report import CONDITIONS, build_report, table, write_report
from utils.speaker.evaluation.results import COSINE, LLR, Evaluation, pool, read_evaluation
from utils.speaker.evaluation.trials import DURATIONS, Origin, TrialSet

# Two recordings of two chapters each of six speakers, every other one a woman.
ORIGINS = {
    f"{speaker}/{chapter}/{number}.flac": Origin(speaker, f"{speaker}-{chapter}", "MF"[int(speaker) % 2])
    for speaker in ("11", "12", "13", "14", "15", "16")
    for chapter in ("1", "2")
    for number in (0, 1)
}
PATHS = sorted(ORIGINS)
ALL_PAIRS = [
    Trial(ORIGINS[a].speaker == ORIGINS[b].speaker, a, b) for place, a in enumerate(PATHS) for b in PATHS[place + 1 :]
]


def embed(paths, noise: float, seed: int = 0) -> np.ndarray:
    """Unit vectors (n, 16): one direction for a speaker, one for a chapter, and noise."""
    draw = np.random.default_rng(seed)
    table = {name: draw.normal(size=16) for origin in ORIGINS.values() for name in origin[:2]}
    rows = [table[ORIGINS[path].speaker] + 0.5 * table[ORIGINS[path].chapter] for path in paths]
    return unit(np.array(rows) + noise * draw.normal(size=(len(rows), 16)))


def evaluation(trials=ALL_PAIRS, origins=ORIGINS, **parts) -> Evaluation:
    result = Evaluation("a model on synthetic data", {"data": "synthetic"}, **parts)
    result.trials = TrialSet.build(trials, origins)
    for number, name in enumerate(DURATIONS):
        result.scores[name] = result.trials.score(embed(result.trials.items, noise=0.8 + number))
        result.derived.setdefault(LLR, {})[name] = (9 * result.scores[name] - 4).astype(np.float32)
    return result


def report_of(result: Evaluation) -> dict:
    return build_report(result, Rates.of(result, bootstrap=30, seed=0), {"model": {"name": "tiny"}})


def write(folder: Path, result: Evaluation, *pictures: str) -> dict:
    """Writes the folder of an evaluation, and returns its report."""
    report = report_of(result)
    write_report(folder, report, result, Rates.of(result, bootstrap=30, seed=0), *pictures)
    return report


def test_conditions_choose_their_trials():
    report = report_of(evaluation())["verification"]
    counts = {name: (report[name]["targets"], report[name]["nontargets"]) for name in CONDITIONS}
    everything = (6 * 6, 15 * 16)
    assert counts == {
        "all": everything,
        "same_sex": (6 * 6, 6 * 16),
        "cross_chapter": (6 * 4, 15 * 16),
        "1.5s": everything,
        "3s": everything,
        "full": everything,
    }
    assert report["all"] == report["full"] and report["all"]["eer"] < report["1.5s"]["eer"]


def test_metrics_are_those_of_the_chosen_scores():
    result = evaluation()
    report = report_of(result)["verification"]
    rows = list(zip(ALL_PAIRS, result.scores["full"], strict=True))
    kept = [(score, t.target) for t, score in rows if not t.target or ORIGINS[t.a].chapter != ORIGINS[t.b].chapter]
    assert report["cross_chapter"]["eer"] == eer(*zip(*kept, strict=True))[0]
    kept = [(score, t.target) for t, score in rows if ORIGINS[t.a].sex == ORIGINS[t.b].sex]
    assert report["same_sex"]["eer"] == eer(*zip(*kept, strict=True))[0]
    for metrics in report.values():
        low, high = metrics["eer_ci"]
        assert 0 <= low <= high <= 1 and 0 <= metrics["min_dcf_0.05"] <= metrics["min_dcf_0.01"] <= 1


def test_scores_are_cosines():
    trials = evaluation().trials
    vectors = embed(trials.items, noise=0.5)
    by_path = dict(zip(trials.items, vectors.astype(np.float64), strict=True))
    expected = [by_path[trial.a] @ by_path[trial.b] for trial in ALL_PAIRS]
    assert trials.score(vectors) == pytest.approx(expected, abs=1e-6)


def test_ratios_are_judged_by_themselves_and_cosines_without_them():
    result = evaluation()
    above, targets = result.scores["full"] >= 4 / 9, result.trials.targets
    report = report_of(result)
    point = report["operating_point"]
    assert point["false_rejection"] == pytest.approx(np.mean(~above[targets]))
    assert point["false_acceptance"] == pytest.approx(np.mean(above[~targets]))
    for name, metrics in report["verification"].items():
        assert 0 < metrics["min_cllr"] < metrics["cllr"], name
        assert metrics["act_dcf_0.01"] >= metrics["min_dcf_0.01"], name
    everything = report["verification"]["1.5s"]
    assert everything["cllr"] == cllr(result.derived[LLR]["1.5s"], targets)
    assert f"{everything['cllr']:.3f}" in table(report).partition("calibration")[2]
    result.derived.clear()
    report = report_of(result)
    assert report["operating_point"] is None and report["verification"]["all"]["cllr"] is None
    assert "calibration" not in table(report)


def test_reports_and_folders_of_before_are_still_read(tmp_path: Path):
    """They have no log-likelihood ratios."""
    result = evaluation()
    write(tmp_path, result)
    (tmp_path / "llr.safetensors").unlink()
    report = json.loads((tmp_path / "report.json").read_text())
    for metrics in report["verification"].values():
        for name in ("cllr", "min_cllr", "act_dcf_0.01", "act_dcf_0.05", "operating_point"):
            del metrics[name]
    report["conditions"] = {CLEAN: {"both": {**report["verification"]["all"], "operating_point": None}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert "same_sex" in table(report) and "clean" in table(report)
    again = read_evaluation(tmp_path)
    assert again.derived == {} and again.scores["full"] == pytest.approx(result.scores["full"])


def reasons(result: Evaluation) -> dict[str, str]:
    report = report_of(result)["verification"]
    for metrics in report.values():
        assert ("reason" in metrics) == (metrics["eer"] is None)
    return {name: metrics["reason"] for name, metrics in report.items() if "reason" in metrics}


def test_what_cannot_be_measured_is_null_with_a_reason():
    assert reasons(evaluation()) == {}
    nontargets = [trial for trial in ALL_PAIRS if not trial.target]
    assert set(reasons(evaluation(nontargets)).values()) == {"no target trials"}
    targets = [trial for trial in ALL_PAIRS if trial.target]
    assert reasons(evaluation(targets))["all"] == "no non-target trials"
    within = [t for t in ALL_PAIRS if not t.target or ORIGINS[t.a].chapter == ORIGINS[t.b].chapter]
    assert reasons(evaluation(within)) == {"cross_chapter": "no target trials"}
    sexless = {path: origin._replace(sex="") for path, origin in ORIGINS.items()}
    assert list(reasons(evaluation(origins=sexless))) == ["same_sex"]


def test_intervals_need_speakers():
    few = [trial for trial in ALL_PAIRS if {trial.a[:2], trial.b[:2]} <= {"11", "12"}]
    metrics = report_of(evaluation(few))["verification"]["all"]
    assert metrics["eer"] is not None
    assert (metrics["eer_ci"], metrics["eer_ci_reason"]) == (None, "fewer than 3 speakers")


def test_labels_that_contradict_the_paths_leave_only_the_rates():
    """A list of anonymous files has labels, but neither speakers nor chapters to resample or compare."""
    nameless = dict.fromkeys(ORIGINS, Origin("audio", "audio", ""))
    result = evaluation(origins=nameless)
    report = report_of(result)["verification"]
    assert report["all"]["eer"] == report_of(evaluation())["verification"]["all"]["eer"]
    assert report["all"]["eer_ci"] is None and "do not follow" in report["all"]["eer_ci_reason"]
    assert set(reasons(result)) == {"same_sex", "cross_chapter"}


def test_parts_of_identification():
    train = [("a", "1"), ("a", "2"), ("b", "3")]
    test = [("a", "2"), ("a", "4"), ("b", "1"), ("b", "3")]
    assert by_part(train, test) == {"utterance": [0, 3], "chapter": [1, 2]}


def test_identification_by_enrollment_names_the_nearest():
    vectors = embed(PATHS, noise=0.1)
    speakers = [ORIGINS[path].speaker for path in PATHS]
    names, enrolled = enroll(speakers[::2], vectors[::2])
    given = answers(list(zip(speakers, PATHS, strict=True))[1::2], vectors[1::2] @ enrolled.T, names)
    assert [answer.named for answer in given] == speakers[1::2]
    assert np.linalg.norm(enrolled, axis=1) == pytest.approx(np.ones(6))


def test_confusions_are_sorted_by_their_number():
    given = [Answer(*pair, "p") for pair in ("aa", "ab", "ab", "ba", "bb", "ca", "cd", "cd", "cd")]
    assert confusions(given) == [("c", "d", 3, 4), ("a", "b", 2, 3), ("b", "a", 1, 2), ("c", "a", 1, 4)]
    assert confusions(given[:1]) == []


def identified() -> dict[str, list[Answer]]:
    return {"utterance": [Answer("11", "11", "a"), Answer("12", "11", "b"), Answer("12", "12", "c")], "chapter": []}


def strict(text: str) -> dict:
    """JSON without the NaN and Infinity that Python would accept."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in a report"))


def test_report_is_written_with_scores_and_pictures(tmp_path: Path):
    result = evaluation(answers=identified())
    for name in ("det.svg", "confusion.png"):
        (tmp_path / name).write_text("an old picture")
    report = write(tmp_path, result)
    assert {path.suffix for path in tmp_path.iterdir()} == {".txt", ".json", ".png", ".safetensors"}
    assert strict((tmp_path / "report.json").read_text()) == report
    assert report["identification"]["utterance"] == {"accuracy": 2 / 3, "n": 3, "speakers": 2}
    assert report["identification"]["chapter"] == {
        "accuracy": None,
        "n": 0,
        "reason": "no test recordings of this kind",
    }
    assert (tmp_path / "errors.txt").read_text() == "part speaker named count recordings\nutterance 12 11 1 2\n"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["det.png", "scores.png"]
    write(tmp_path, result, "pdf")
    pictures = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".pdf")]
    assert sorted(path.name for path in pictures) == ["det.pdf", "scores.pdf"]
    assert all(path.read_bytes().startswith(b"%PDF") for path in pictures)
    lines = [line.split() for line in (tmp_path / "scores.txt").read_text().splitlines()]
    assert [float(line[0]) for line in lines] == pytest.approx(result.scores["full"].tolist(), abs=1e-8)
    assert [Trial(line[1] == "1", *line[2:]) for line in lines] == ALL_PAIRS
    assert (tmp_path / "identification.txt").read_text() == (
        "utterance 11 11 a\nutterance 12 11 b\nutterance 12 12 c\n"
    )
    shown = table(report)
    assert all(name in shown for name in CONDITIONS) and "66.67 %" in shown and "no test recordings" in shown


def test_a_new_report_leaves_nothing_of_the_old(tmp_path: Path):
    result = evaluation(answers=identified())
    write(tmp_path, result)
    alone = Evaluation("identification only", {}, answers=identified(), reasons={"verification": "no trials"})
    write(tmp_path, alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.txt", "identification.txt", "report.json"]
    assert report_of(alone)["verification"]["all"]["reason"] == "no trials"


def test_pooled_halves_equal_the_whole(tmp_path: Path):
    whole = evaluation(answers=identified())
    for name, start in (("a", 0), ("b", 1)):
        half = Evaluation(name, {}, answers={"utterance": identified()["utterance"][start::2], "chapter": []})
        half.trials = TrialSet.build(ALL_PAIRS[start::2], ORIGINS)
        half.scores = {duration: scores[start::2] for duration, scores in whole.scores.items()}
        half.derived[LLR] = {name: llrs[start::2].copy() for name, llrs in whole.derived[LLR].items()}
        write(tmp_path / name, half)
    pooled = pool("both", [read_evaluation(tmp_path / "a"), read_evaluation(tmp_path / "b")])
    assert not pooled.warnings
    twice = pool("twice", [read_evaluation(tmp_path / "a"), read_evaluation(tmp_path / "a")])
    assert twice.warnings == [f"{len(ALL_PAIRS[::2])} trials of several evaluations count several times"]
    half.derived[COSINE] = {name: scores.astype(np.float32) for name, scores in half.scores.items()}
    with pytest.raises(UserError, match="cannot be pooled"):
        pool("both kinds", [half, read_evaluation(tmp_path / "a")])
    merged, expected = report_of(pooled), report_of(whole)
    assert merged["identification"] == expected["identification"]
    nothing = pool("nothing", [Evaluation("empty", {})])
    assert set(nothing.reasons) == {"verification", "identification"}
    for condition in CONDITIONS:
        for name in ("eer", "min_dcf_0.01", "cllr", "min_cllr", "targets", "speakers"):
            assert merged["verification"][condition][name] == pytest.approx(expected["verification"][condition][name])
        assert merged["verification"][condition]["eer_ci"] == pytest.approx(
            expected["verification"][condition]["eer_ci"]
        )


def test_pooling_what_was_not_evaluated_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="report.json cannot be read"):
        read_evaluation(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(UserError, match="is not the report of an evaluation"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("blank", [" ", "\u3000", "\u2028", "\x85"])
def test_paths_with_blanks_survive(tmp_path: Path, blank: str):
    origins = {path.replace(".", f"{blank}x."): origin for path, origin in ORIGINS.items()}
    trials = [Trial(t.target, *(path.replace(".", f"{blank}x.") for path in (t.a, t.b))) for t in ALL_PAIRS]
    result = Evaluation("blanks", {})
    result.trials = TrialSet.build(trials, origins)
    result.scores = {name: np.linspace(-1, 1, len(trials)) for name in DURATIONS}
    write(tmp_path, result)
    again = read_evaluation(tmp_path).trials
    assert again.items == result.trials.items and again.origins == result.trials.origins
