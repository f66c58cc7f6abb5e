"""What an evaluation measures: scores of trials and answers of identification, from stored features or raw audio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.corpus.layouts import parse_path, sexes
from utils.errors import UserError
from utils.features.recipe import require_same
from utils.features.store import FeatureStore
from utils.files import read_json, sha256_file
from utils.lists import Trial, read_identification, read_trials, training_list_hash
from utils.speaker.identification import PARTS, answers, by_part, enroll
from utils.speaker.protocol import Protocol, check_disjoint, read_protocol
from utils.speaker.recognizer import Mel, SpeakerRecognizer
from utils.speaker.report import Evaluation
from utils.speaker.trials import DURATIONS, Origin, TrialSet

Item = tuple[str, str]  # speaker, path


def evaluate_features(recognizer: SpeakerRecognizer, data: Path, protocol_name: str) -> Evaluation:
    """Evaluates on a preprocessed folder: the protocol's trials, and its identification lists by the classifier.

    `UserError` if the features have another recipe than the checkpoint, or if it was trained on a held-out speaker.
    """
    store = FeatureStore.open(data)
    require_same(store.recipe, recognizer.recipe, f"the features in {data}", "the checkpoint")
    folder = data / "protocols" / protocol_name
    protocol = read_protocol(folder)
    check_disjoint(protocol, store.rows)
    _refuse_trained(recognizer, protocol)
    title = f"{recognizer.name} on {data.resolve().name}"
    source = {"data": str(data), "protocol": protocol_name, **_list_source("trials", _trial_file(folder))}
    evaluation = Evaluation(title, source, recognizer.threshold)
    if protocol.trials:
        rows = {row.path: row for row in store.rows}
        origins = {path: Origin(row.speaker, row.chapter, row.sex) for path, row in rows.items()}
        evaluation.trials = TrialSet.build(protocol.trials, origins)
        _score(evaluation, recognizer, lambda path: store.mel(store.index[rows[path].utterance]))
    else:
        evaluation.reasons["verification"] = f"protocol {protocol_name} has no trials"
    _identify_by_classifier(evaluation, recognizer, store, protocol)
    return evaluation


def _trial_file(protocol_folder: Path) -> Path:
    return protocol_folder / read_json(protocol_folder / "protocol.json")["files"]["trials"]


def _list_source(name: str, path: Path) -> dict[str, str]:
    """Names a list in the report by its place and its contents."""
    return {name: str(path), f"{name}_sha256": sha256_file(path)}


def _score(evaluation: Evaluation, recognizer: SpeakerRecognizer, read: Callable[[str], Mel]) -> NDArray[np.float32]:
    """Scores the trials at every duration; returns the embeddings (M, D) of their whole recordings."""
    embeddings = recognizer.embed_durations(evaluation.trials.items, read, DURATIONS.values(), desc="trials")
    for name, vectors in zip(DURATIONS, embeddings, strict=True):
        evaluation.scores[name] = evaluation.trials.score(vectors)
    return embeddings[list(DURATIONS).index("full")]


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
    """Fills in the answers of the classifier, if it was trained on exactly the protocol's training list.

    After another training list the test may have been trained on.
    """
    if training_list_hash(protocol.train) != recognizer.training_list:
        evaluation.reasons["identification"] = (
            f"the checkpoint was not trained on the training list of protocol {protocol.name}, so that its test "
            "recordings may have been trained on"
        )
        return
    for part, utterances in zip(PARTS, (protocol.utterance_test, protocol.chapter_test), strict=True):
        places = [store.index[utterance] for utterance in utterances]
        (embeddings,) = recognizer.embed_durations(places, store.mel, [None], desc=f"identification by {part}")
        items = [(store.rows[place].speaker, store.rows[place].path) for place in places]
        evaluation.answers[part] = answers(items, recognizer.classify(embeddings), recognizer.speakers)


def evaluate_audio(
    recognizer: SpeakerRecognizer, root: Path, trial_file: Path | None, identification: tuple[Path, Path] | None
) -> Evaluation:
    """Evaluates on raw audio under `root`: a trial list, a training and a test list of identification, or both.

    Every file is decoded once and embedded once for each duration that is asked of it.
    """
    trials = read_trials(trial_file) if trial_file else []
    lists: tuple[list[Item], ...] = tuple(read_identification(path) for path in identification or ())
    if trial_file:
        _require_files(root, [path for trial in trials for path in (trial.a, trial.b)], trial_file)
    for path, items in zip(identification or (), lists, strict=True):
        _require_files(root, [audio for _, audio in items], path)
    if identification:
        _check_identification(*lists, *identification)

    evaluation = Evaluation(
        f"{recognizer.name} on {root.resolve().name}", {"audio_root": str(root)}, recognizer.threshold
    )
    vectors: dict[str, NDArray[np.float32]] = {}
    if trial_file:
        _score_trials(evaluation, recognizer, root, trials, trial_file, vectors)
    else:
        evaluation.reasons["verification"] = "no trial list was given"
    if identification:
        evaluation.source |= _list_source("identification_train", identification[0])
        evaluation.source |= _list_source("identification_test", identification[1])
        _identify_by_enrollment(evaluation, recognizer, root, lists, vectors)
    else:
        evaluation.reasons["identification"] = "no identification lists were given"
    return evaluation


def _require_files(root: Path, paths: Iterable[str], listed_in: Path) -> None:
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise UserError(f"{listed_in} lists nothing")
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} audio files of {listed_in} are not under {root}, first {missing[0]}"
        )


def _check_identification(train: list[Item], test: list[Item], train_file: Path, test_file: Path) -> None:
    strangers = sorted({speaker for speaker, _ in test} - {speaker for speaker, _ in train})
    if strangers:
        raise UserError(f"{test_file} tests {len(strangers)} speakers whom {train_file} lacks, first {strangers[0]}")
    leaked = {path for _, path in train}.intersection(path for _, path in test)
    if leaked:
        raise UserError(f"{len(leaked)} recordings are both in {train_file} and in {test_file}, first {min(leaked)}")


def _score_trials(
    evaluation: Evaluation,
    recognizer: SpeakerRecognizer,
    root: Path,
    trials: Sequence[Trial],
    trial_file: Path,
    vectors: dict[str, NDArray[np.float32]],
) -> None:
    """Scores the trials, and notes the embeddings of their recordings in `vectors`."""
    sex = sexes(root)
    paths = {path for trial in trials for path in (trial.a, trial.b)}
    origins = {}
    for path in paths:
        speaker, chapter = parse_path(path)
        origins[path] = Origin(speaker, chapter, sex.get(speaker, ""))
    evaluation.trials = TrialSet.build(trials, origins)
    evaluation.source |= _list_source("trials", trial_file)
    known = sorted(set(evaluation.trials.speakers()).intersection(recognizer.speakers))
    if known:
        evaluation.warnings.append(
            f"{len(known)} speakers of the trials bear names of training speakers (first {known[0]}): "
            "if they are the same people, this is not open-set verification"
        )
    embeddings = _score(evaluation, recognizer, lambda path: recognizer.mel_of_file(root / path))
    vectors.update(zip(evaluation.trials.items, embeddings, strict=True))


def _identify_by_enrollment(
    evaluation: Evaluation,
    recognizer: SpeakerRecognizer,
    root: Path,
    lists: tuple[list[Item], ...],
    vectors: dict[str, NDArray[np.float32]],
) -> None:
    """Enrolls the speakers of the first list and identifies the recordings of the second by the highest cosine."""
    paths = sorted({path for items in lists for _, path in items}.difference(vectors))
    (new,) = recognizer.embed_durations(
        paths, lambda path: recognizer.mel_of_file(root / path), [None], desc="identification"
    )
    vectors.update(zip(paths, new, strict=True))
    train, test = ([(speaker, parse_path(path)[1]) for speaker, path in items] for items in lists)
    names, enrolled = enroll([speaker for speaker, _ in lists[0]], np.stack([vectors[path] for _, path in lists[0]]))
    for part, places in by_part(train, test).items():
        items = [lists[1][place] for place in places]
        probes = np.array([vectors[path] for _, path in items]).reshape(len(items), enrolled.shape[1])
        evaluation.answers[part] = answers(items, probes @ enrolled.T, names)
