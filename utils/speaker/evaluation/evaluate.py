"""Evaluations of a recognizer: scores of trials and answers of identification, from stored features or raw audio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.commands import counted
from utils.corpus.layouts import parse_path, sexes
from utils.errors import UserError
from utils.features.recipe import require_same
from utils.features.store import FeatureStore
from utils.files import read_json, sha256_file, shown
from utils.lists import Trial, read_identification, read_trials, training_list_hash
from utils.speaker.embeddings import enroll
from utils.speaker.evaluation.conditions import CLEAN, Degrader
from utils.speaker.evaluation.identification import PARTS, answers, by_part
from utils.speaker.evaluation.kept_features import KeptFeatures
from utils.speaker.evaluation.results import COSINE, LLR, Evaluation
from utils.speaker.evaluation.trials import DURATIONS, Origin, TrialSet
from utils.speaker.protocol import Protocol, check_disjoint, read_protocol
from utils.speaker.recognizer import Mel, SpeakerRecognizer
from utils.speaker.scoring.cohort import normalize
from utils.speaker.scoring.validation import Recordings

Item = tuple[str, str]  # speaker, path
Embeddings = dict[str, NDArray[np.float32]]  # path -> (d,)


def evaluate_features(
    recognizer: SpeakerRecognizer, data: Path, protocol_name: str, conditions: Sequence[str] = ()
) -> Evaluation:
    """Evaluates on a preprocessed folder: the protocol's trials, and its identification lists by the classifier.

    `UserError` if the features have another recipe than the checkpoint, if its model was trained on a held-out
    speaker, or if there are `conditions` and the store holds no audio.
    """
    store = FeatureStore.open(data)
    if conditions and store.kind != "audio":
        raise UserError(
            f"{data} holds features, which no condition but clean can be made of: evaluate on what preprocess.py "
            "--store audio makes, or by --audio-root and --trials"
        )
    require_same(store.recipe, recognizer.recipe, f"the features in {data}", "the checkpoint")
    folder = data / "protocols" / protocol_name
    protocol = read_protocol(folder)
    check_disjoint(protocol, store.rows)
    _refuse_trained(recognizer, protocol)
    if conditions and not protocol.trials:
        raise UserError(f"protocol {protocol_name} in {data} has no trials, so there is nothing to degrade")
    trial_file = folder / read_json(folder / "protocol.json")["files"]["trials"]
    source = {"data": str(data), "protocol": protocol_name, **_list_source("trials", trial_file)}
    evaluation = Evaluation(f"{recognizer.name} on {shown(data.resolve().name)}", source)
    if protocol.trials:
        rows = {row.path: row for row in store.rows}
        origins = {path: Origin(row.speaker, row.chapter, row.sex) for path, row in rows.items()}
        evaluation.trials = TrialSet.build(protocol.trials, origins)
        clean = _score(evaluation, recognizer, lambda path: store.mel(store.index[rows[path].utterance]))
        degrader = _degrader(evaluation, recognizer, lambda path: store.audio(store.index[rows[path].utterance]))
        _score_conditions(evaluation, recognizer, clean, degrader, conditions)
    else:
        evaluation.reasons["verification"] = f"protocol {protocol_name} has no trials"
    _identify_by_classifier(evaluation, recognizer, store, protocol)
    return evaluation


def _list_source(name: str, path: Path) -> dict[str, str]:
    """Path and hash of a list, for the report."""
    return {name: str(path), f"{name}_sha256": sha256_file(path)}


def _embed(
    recognizer: SpeakerRecognizer, paths: Sequence[str], read: Callable[[str], Mel], durations: Mapping, desc: str
) -> dict[str, Recordings]:
    """Embeds recordings at each of `durations`: name -> seconds, or None for all."""
    lengths = []

    def measured(path: str) -> Mel:
        mel = read(path)
        lengths.append(recognizer.recipe.seconds(len(mel)))
        return mel

    embeddings = recognizer.embed_durations(paths, measured, durations.values(), desc=desc)
    seconds = [np.minimum(lengths, np.inf if most is None else most) for most in durations.values()]
    return {name: Recordings(*pair) for name, *pair in zip(durations, embeddings, seconds, strict=True)}


def _score_pair(
    recognizer: SpeakerRecognizer, trials: TrialSet, first: Recordings, second: Recordings
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """Scores (n,); what else there is: the plain cosines, if scores are normalized, and log-likelihood ratios."""
    scoring, derived = recognizer.scoring, {}
    scores = trials.score(first.embeddings, second.embeddings)
    if scoring.cohort is not None:
        statistics = (scoring.cohort.statistics(each.embeddings) for each in (first, second))
        sides = (each[:, places] for each, places in zip(statistics, (trials.a, trials.b), strict=True))
        derived[COSINE], scores = scores, normalize(scores, *sides)
    if scoring.calibration is not None:
        derived[LLR] = scoring.calibration(scores, first.seconds[trials.a], second.seconds[trials.b])
    return scores, {kind: values.astype(np.float32) for kind, values in derived.items()}


def _score(evaluation: Evaluation, recognizer: SpeakerRecognizer, read: Callable[[str], Mel]) -> Recordings:
    """Scores the trials at every duration; returns their entire recordings."""
    trials = evaluation.trials
    sides = _embed(recognizer, trials.items, read, DURATIONS, "trials")
    for name, each in sides.items():
        evaluation.scores[name], derived = _score_pair(recognizer, trials, each, each)
        for kind, values in derived.items():
            evaluation.derived.setdefault(kind, {})[name] = values
    return sides["full"]


def _degrader(
    evaluation: Evaluation, recognizer: SpeakerRecognizer, read: Callable[[str], NDArray[np.float32]]
) -> Degrader:
    """Degrades the recordings of the trials; `read` gives their samples."""
    items, origins = evaluation.trials.items, evaluation.trials.origins
    speakers = {path: origin.speaker for path, origin in zip(items, origins, strict=True)}
    return Degrader(speakers, read, recognizer.recipe.sample_rate)


def _computed(name: str, path: str, make: Callable[[], Mel]) -> Mel:
    """Keeps no features; see `KeptFeatures.mel`."""
    return make()


def _score_conditions(
    evaluation: Evaluation,
    recognizer: SpeakerRecognizer,
    clean: Recordings,
    degrader: Degrader,
    names: Sequence[str],
    kept: Callable[[str, str, Callable[[], Mel]], Mel] = _computed,
) -> None:
    """Scores the trials with both sides, and with each one alone, in each condition."""
    trials = evaluation.trials
    for name in names:

        def read(path: str, name: str = name) -> Mel:
            return kept(name, path, lambda: recognizer.mel_of_samples(path, degrader(name, path)))

        degraded = _embed(recognizer, trials.items, read, {name: None}, name)[name]
        pairs = (degraded, degraded), (degraded, clean), (clean, degraded)
        scores, derived = zip(*(_score_pair(recognizer, trials, *pair) for pair in pairs), strict=True)
        evaluation.conditions[name] = np.array(scores, dtype=np.float32)
        for kind in derived[0]:
            evaluation.derived[kind][name] = np.array([each[kind] for each in derived])


def _refuse_trained(recognizer: SpeakerRecognizer, protocol: Protocol) -> None:
    trained = sorted(set(protocol.heldout_speakers).intersection(recognizer.speakers))
    if trained:
        raise UserError(
            f"the checkpoint was trained on {len(trained)} of the speakers that protocol {protocol.name} holds out "
            f"({', '.join(trained[:5])}{', ...' if len(trained) > 5 else ''}); evaluate it with its own protocol"
        )


def _identify_by_classifier(
    evaluation: Evaluation, recognizer: SpeakerRecognizer, store: FeatureStore, protocol: Protocol
) -> None:
    """Adds the answers of the classifier, if it was trained on exactly the protocol's training list."""
    if training_list_hash(protocol.train) != recognizer.training_list:
        evaluation.reasons["identification"] = (
            f"the checkpoint was not trained on the training list of protocol {protocol.name}, "
            "so that its training may have included the test recordings"
        )
        return
    if not recognizer.has_classifier:
        evaluation.reasons["identification"] = "the model was packed without the vectors of its training speakers"
        return
    for part, utterances in zip(PARTS, (protocol.utterance_test, protocol.chapter_test), strict=True):
        places = [store.index[utterance] for utterance in utterances]
        (embeddings,) = recognizer.embed_durations(places, store.mel, [None], desc=f"identification by {part}")
        items = [(store.rows[place].speaker, store.rows[place].path) for place in places]
        evaluation.answers[part] = answers(items, recognizer.classify(embeddings), recognizer.speakers)


def evaluate_audio(
    recognizer: SpeakerRecognizer,
    root: Path,
    trial_file: Path | None,
    identification: Sequence[Path] | None,
    conditions: Sequence[str] = (),
    keep: Path | None = None,
) -> Evaluation:
    """Evaluates on raw audio under `root`: a trial list, a training and a test list of identification, or both.

    Every file is decoded once, and embedded once for each duration; both again for each of the trials' `conditions`.
    The features of the trials' recordings are kept in the folder `keep`, if there is one, and taken from there.
    """
    trials = read_trials(trial_file) if trial_file else []
    lists = [read_identification(path) for path in identification or ()]
    if trial_file:
        _require_files(root, [path for trial in trials for path in (trial.a, trial.b)], trial_file)
    for path, items in zip(identification or (), lists, strict=True):
        _require_files(root, [audio for _, audio in items], path)
    if identification:
        _check_identification(*lists, *identification)

    title, source = f"{recognizer.name} on {shown(root.resolve().name)}", {"audio_root": str(root)}
    evaluation = Evaluation(title, source)
    embeddings: Embeddings = {}
    if trial_file:
        evaluation.source |= _list_source("trials", trial_file)
        _take_trials(evaluation, recognizer, root, trials)
        kept = KeptFeatures(keep, recognizer.recipe, root, evaluation.trials).mel if keep else _computed
        clean = _score(
            evaluation, recognizer, lambda path: kept(CLEAN, path, lambda: recognizer.mel_of_file(root / path))
        )
        embeddings = dict(zip(evaluation.trials.items, clean.embeddings, strict=True))
        degrader = _degrader(evaluation, recognizer, lambda path: recognizer.samples_of_file(root / path))
        _score_conditions(evaluation, recognizer, clean, degrader, conditions, kept)
    else:
        evaluation.reasons["verification"] = "no trial list was given"
    if identification:
        for part, path in zip(("train", "test"), identification, strict=True):
            evaluation.source |= _list_source(f"identification_{part}", path)
        _identify_by_enrollment(evaluation, recognizer, root, lists, embeddings)
    else:
        evaluation.reasons["identification"] = "no identification lists were given"
    return evaluation


def _require_files(root: Path, paths: Iterable[str], listed_in: Path) -> None:
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise UserError(f"{listed_in} lists no recordings")
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} audio files in {listed_in} are not under {root}, "
            f"the first is {missing[0]}"
        )


def _check_identification(train: list[Item], test: list[Item], train_file: Path, test_file: Path) -> None:
    strangers = sorted({speaker for speaker, _ in test} - {speaker for speaker, _ in train})
    if strangers:
        raise UserError(
            f"{test_file} has {len(strangers)} speakers that {train_file} lacks, the first is {strangers[0]}"
        )
    leaked = {path for _, path in train}.intersection(path for _, path in test)
    if leaked:
        raise UserError(
            f"{len(leaked)} recordings are in both {train_file} and {test_file}, the first is {min(leaked)}"
        )


def _take_trials(evaluation: Evaluation, recognizer: SpeakerRecognizer, root: Path, trials: Sequence[Trial]) -> None:
    """Gives the evaluation its trials, and a warning if the recognizer may know their speakers."""
    sex = sexes(root)
    origins = {}
    for path in {path for trial in trials for path in (trial.a, trial.b)}:
        speaker, chapter = parse_path(path)
        origins[path] = Origin(speaker, chapter, sex.get(speaker, ""))
    evaluation.trials = TrialSet.build(trials, origins)
    known = sorted(set(evaluation.trials.speakers()).intersection(recognizer.speakers))
    if known:
        evaluation.warnings.append(
            f"the trials have the names of {counted(len(known), 'training speaker')} (the first is {known[0]}): "
            "if they are the same people, this is not open-set verification"
        )


def _identify_by_enrollment(
    evaluation: Evaluation, recognizer: SpeakerRecognizer, root: Path, lists: Sequence[list[Item]], known: Embeddings
) -> None:
    """Enrolls the speakers of the first list and identifies the recordings of the second by the highest cosine.

    `known` holds the embeddings of recordings that are also in the trials.
    """
    paths = sorted({path for items in lists for _, path in items}.difference(known))
    new = recognizer.embed_files([root / path for path in paths], desc="identification")
    vectors = {**known, **dict(zip(paths, new, strict=True))}
    train, test = ([(speaker, parse_path(path)[1]) for speaker, path in items] for items in lists)
    names, enrolled = enroll([speaker for speaker, _ in lists[0]], np.stack([vectors[path] for _, path in lists[0]]))
    for part, places in by_part(train, test).items():
        items = [lists[1][place] for place in places]
        probes = np.array([vectors[path] for _, path in items]).reshape(len(items), enrolled.shape[1])
        evaluation.answers[part] = answers(items, probes @ enrolled.T, names)
