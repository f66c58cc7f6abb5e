"""Splits and trial lists, drawn once by a seed and stored as text files with the data.

Open set: speakers are held out by id over all folders of a corpus, and verification trials pair their recordings.
Closed set, among the other speakers: chapter B is the chapter with the least audio of a speaker with two or more, the
rest is A. Part of A is for training; identification is tested by utterance on another part of A, and by chapter on all
of B. The latter is the more honest metric: a chapter is a recording session.

Every choice hashes the seed with the id concerned, so that a speaker's split does not depend on other speakers.

A protocol is a folder:

    protocol.json                            name, seed, counts, and the names of the trial lists
    heldout_speakers.txt valid_speakers.txt  one speaker per line
    train.txt valid.txt utterance_test.txt chapter_test.txt                     one utterance id per line
    identification_train.txt identification_utterance_test.txt identification_chapter_test.txt   `speaker path`
    trials-HASH.txt valid_trials-HASH.txt    `1|0 path path`; HASH is that of the contents
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.files import sha256_text
from utils.lists import (
    DEFAULT_PROTOCOL,
    MAX_TRIALS,
    Trial,
    as_lines,
    join_fields,
    read_lines,
    read_splits_file,
    read_trials,
    shuffled,
    trial_lines,
    write_splits,
)

if TYPE_CHECKING:
    from utils.features.store import Row

HELDOUT_SHARE = 0.2
VALID_SPEAKER_SHARE = 0.1
MIN_SPEAKERS_FOR_VALID = 30  # with fewer, training needs every speaker
MIN_UTTERANCES_OF_VALID = 4
MIN_UTTERANCES_TO_SPLIT = 5
VALID_SHARE, TEST_SHARE = 0.1, 0.2
_MAX_ENUMERATED = 4_000_000
_PARTS = ("train", "valid", "utterance_test", "chapter_test")
_LISTS = ("heldout_speakers", "valid_speakers", *_PARTS)
_TRIALS = ("trials", "valid_trials")


@dataclass
class Protocol:
    """Speakers and utterances by their purpose.

    `train`, `valid`, `utterance_test` and `chapter_test` are sorted utterance ids; `trials` pair recordings of
    `heldout_speakers`; `valid_trials` pair recordings of `valid_speakers`, or the `valid` utterances of training
    speakers where there are no validation speakers.
    """

    name: str
    seed: int
    heldout_speakers: list[str]
    valid_speakers: list[str]
    train: list[str]
    valid: list[str]
    utterance_test: list[str]
    chapter_test: list[str]
    trials: list[Trial]
    valid_trials: list[Trial]


def make_protocol(
    rows: Iterable[Row],
    seed: int = 0,
    name: str = DEFAULT_PROTOCOL,
    heldout: Sequence[str] | int | None = None,
    valid: Sequence[str] | int | None = None,
    max_trials: int = MAX_TRIALS,
    identification: bool = True,
) -> Protocol:
    """Splits `rows` by speaker, chapter and utterance, and draws the trials.

    Args:
        heldout: the speakers to hold out, or the number to draw from those with two or more utterances; None holds
            out a fifth of these, and 0 none.
        valid: the validation speakers, or their number; None takes a tenth of the speakers with
            `MIN_UTTERANCES_OF_VALID` utterances if `MIN_SPEAKERS_FOR_VALID` of them remain, else recordings of training
            speakers. With 0 there is no validation.
        max_trials: cap on the target trials, and on the others.
        identification: whether recordings of training speakers are set aside for the tests of identification.

    Raises:
        UserError: unknown speakers, or too few of them.
    """
    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.utterance):
        by_speaker[row.speaker].append(row)
    heldout_speakers = _heldout_speakers(by_speaker, seed, heldout)
    remaining = {speaker: mine for speaker, mine in by_speaker.items() if speaker not in heldout_speakers}
    valid_speakers = _valid_speakers(remaining, seed, valid)
    parts: dict[str, list[Row]] = {name: [] for name in _PARTS}
    for speaker, mine in remaining.items():
        if speaker in valid_speakers:
            split = {"valid": mine}
        else:
            split = _split_speaker(mine, seed, gives_valid=valid != 0 and not valid_speakers, has_tests=identification)
        for part, members in split.items():
            parts[part].extend(members)
    if len({row.speaker for row in parts["train"]}) < 2:
        raise UserError("fewer than two speakers remain for training: hold out fewer")
    tested = [row for speaker in heldout_speakers for row in by_speaker[speaker]]
    protocol = Protocol(
        name=name,
        seed=seed,
        heldout_speakers=heldout_speakers,
        valid_speakers=valid_speakers,
        **{part: sorted(row.utterance for row in members) for part, members in parts.items()},
        trials=make_trials(tested, f"{seed}/trials", max_trials),
        valid_trials=make_trials(parts["valid"], f"{seed}/valid_trials", max_trials),
    )
    check_disjoint(protocol, [row for mine in by_speaker.values() for row in mine])
    return protocol


def _heldout_speakers(by_speaker: Mapping[str, list[Row]], seed: int, heldout: Sequence[str] | int | None) -> list[str]:
    if heldout == 1 or (not isinstance(heldout, int) and heldout is not None and len(set(heldout)) == 1):
        raise UserError("one held-out speaker gives no trials between speakers: hold out two or more")
    if heldout is not None and not isinstance(heldout, int):
        unknown = [speaker for speaker in heldout if speaker not in by_speaker]
        if unknown or not heldout:
            raise UserError(f"the data has no speaker {', '.join(unknown)}" if unknown else "no speaker is held out")
        return sorted(set(heldout))
    paired = [speaker for speaker, mine in by_speaker.items() if len(mine) > 1]
    count = max(2, round(HELDOUT_SHARE * len(paired))) if heldout is None else heldout
    if count > len(paired):
        raise UserError(
            f"{count} speakers cannot be held out for verification: "
            f"of {len(by_speaker)} in the data, {len(paired)} have two recordings or more"
        )
    return sorted(shuffled(paired, f"{seed}/heldout")[:count])


def _valid_speakers(remaining: Mapping[str, list[Row]], seed: int, valid: Sequence[str] | int | None) -> list[str]:
    if valid is not None and not isinstance(valid, int):
        unknown = [speaker for speaker in valid if speaker not in remaining]
        if unknown or len(set(valid)) < 2:
            problem = f"no speaker {', '.join(unknown)} that is not held out" if unknown else "fewer than two speakers"
            raise UserError(f"the list of validation speakers: the data has {problem}")
        return sorted(set(valid))
    able = [speaker for speaker, mine in remaining.items() if len(mine) >= MIN_UTTERANCES_OF_VALID]
    if valid is None:
        valid = round(VALID_SPEAKER_SHARE * len(able)) if len(able) >= MIN_SPEAKERS_FOR_VALID else 0
    if valid == 1:
        raise UserError("one validation speaker gives no trials between speakers: use two or more, or none")
    if valid > len(able):
        raise UserError(
            f"{valid} validation speakers were requested, but only {len(able)} speakers that are not held out "
            f"have {MIN_UTTERANCES_OF_VALID} recordings or more"
        )
    return sorted(shuffled(able, f"{seed}/valid")[:valid])


def _split_speaker(mine: Sequence[Row], seed: int, gives_valid: bool, has_tests: bool) -> dict[str, list[Row]]:
    """Splits a training speaker: chapter B into the test by chapter, A into training, validation and the other test."""
    seconds: dict[str, float] = defaultdict(float)
    for row in mine:
        seconds[row.chapter] += row.seconds
    is_split = has_tests and len(seconds) > 1
    smallest = min(seconds, key=lambda chapter: (seconds[chapter], chapter)) if is_split else None
    chapter_b = [row for row in mine if row.chapter == smallest]
    chapter_a = [row for row in mine if row.chapter != smallest]
    tests, valids = 0, 0
    if len(chapter_a) >= MIN_UTTERANCES_TO_SPLIT:
        tests = max(1, round(TEST_SHARE * len(chapter_a))) if has_tests else 0
        # At least two, because a target trial needs two utterances.
        valids = max(2, round(VALID_SHARE * len(chapter_a))) if gives_valid else 0
    by_id = {row.utterance: row for row in chapter_a}
    order = [by_id[utterance] for utterance in shuffled(by_id, f"{seed}/utterances")]
    train = order[tests + valids :]
    trained = {row.chapter for row in train}
    return {
        "utterance_test": [row for row in order[:tests] if row.chapter in trained],
        "valid": order[tests : tests + valids],
        "train": train + [row for row in order[:tests] if row.chapter not in trained],
        "chapter_test": chapter_b,
    }


def make_trials(rows: Sequence[Row], seed: str, cap: int) -> list[Trial]:
    """Draws pairs of recordings of one speaker and of two speakers, at most `cap` of each kind.

    No recording is paired with itself, and no pair occurs twice. The trials are sorted by utterance.
    """
    rows = sorted(rows, key=lambda row: row.utterance)
    speakers = np.unique([row.speaker for row in rows], return_inverse=True)[1]
    draw = np.random.default_rng(int(sha256_text(seed)[:16], 16))
    targets = _at_most(_target_pairs(speakers), cap, draw)
    others = _at_most(_other_pairs(speakers, cap, draw), cap, draw)
    labeled = [(int(a), int(b), True) for a, b in targets] + [(int(a), int(b), False) for a, b in others]
    return [Trial(target, rows[a].path, rows[b].path) for a, b, target in sorted(labeled)]


def _target_pairs(speakers: np.ndarray) -> np.ndarray:
    """All pairs (N, 2) of positions a < b with the same speaker."""
    groups = (np.flatnonzero(speakers == speaker) for speaker in np.unique(speakers))
    pairs = [places[np.stack(np.triu_indices(len(places), 1), axis=1)] for places in groups]
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs])


def _other_pairs(speakers: np.ndarray, cap: int, draw: np.random.Generator) -> np.ndarray:
    """Pairs (N, 2) of positions a < b with two speakers: all, or at least `cap` where there are very many."""
    count = len(speakers)
    if count * (count - 1) // 2 <= max(_MAX_ENUMERATED, 8 * cap):
        pairs = np.stack(np.triu_indices(count, 1), axis=1)
        return pairs[speakers[pairs[:, 0]] != speakers[pairs[:, 1]]]
    if len(np.unique(speakers)) < 2:
        return np.empty((0, 2), dtype=np.int64)
    pairs = np.empty((0, 2), dtype=np.int64)
    for _ in range(100):  # a corpus dominated by one speaker may give fewer than `cap`
        drawn = np.sort(draw.integers(0, count, size=(2 * cap, 2)), axis=1)
        drawn = drawn[speakers[drawn[:, 0]] != speakers[drawn[:, 1]]]
        pairs = np.unique(np.concatenate([pairs, drawn]), axis=0)
        if len(pairs) >= cap:
            break
    return pairs


def _at_most(pairs: np.ndarray, cap: int, draw: np.random.Generator) -> np.ndarray:
    return pairs if len(pairs) <= cap else pairs[draw.choice(len(pairs), size=cap, replace=False)]


def check_disjoint(protocol: Protocol, rows: Iterable[Row]) -> None:
    """Raises `UserError` if held-out speakers, from any folder, occur in training or identification.

    Also checks that validation speakers stay out of training and tests, that no utterance occurs twice, and that trials
    pair recordings of held-out speakers and are labeled correctly.
    """
    for problem in _leaks(protocol, list(rows)):
        raise UserError(f"protocol {protocol.name}: {problem}")


def _leaks(protocol: Protocol, rows: Sequence[Row]) -> Iterator[str]:
    speaker_of = {row.utterance: row.speaker for row in rows}
    path_speaker = {row.path: row.speaker for row in rows}
    heldout, valid = set(protocol.heldout_speakers), set(protocol.valid_speakers)
    used: Counter[str] = Counter()
    for part in _PARTS:
        utterances = getattr(protocol, part)
        yield from (f"utterance {each} of {part} is not in the data" for each in utterances if each not in speaker_of)
        barred = heldout if part == "valid" else heldout | valid
        if leaked := barred.intersection(map(speaker_of.get, utterances)):
            yield f"held-out speakers in {part}: {', '.join(sorted(leaked))}"
        used.update(utterances)
        if any(used[utterance] > 1 for utterance in utterances):
            yield f"an utterance of {part} occurs twice"
    for trial in protocol.trials:
        pair = [path_speaker.get(path) for path in (trial.a, trial.b)]
        if not heldout.issuperset(pair) or trial.a == trial.b or trial.target != (pair[0] == pair[1]):
            yield f"{trial.a} {trial.b} is not a trial of held-out speakers"


def write_protocol(
    directory: str | Path, protocol: Protocol, rows: Iterable[Row], request: Mapping[str, Any] | None = None
) -> None:
    """Writes the folder atomically; `request` (plain values) is stored in protocol.json."""
    by_id = {row.utterance: row for row in rows}
    texts = {f"{name}.txt": as_lines(getattr(protocol, name)) for name in _LISTS}
    for part in ("train", "utterance_test", "chapter_test"):
        listed = [by_id[utterance] for utterance in getattr(protocol, part)]
        texts[f"identification_{part}.txt"] = "".join(join_fields(row.speaker, row.path) for row in listed)
    counts = {name: len(getattr(protocol, name)) for name in _LISTS}
    files = {}
    for name in _TRIALS:
        trials = getattr(protocol, name)
        files[name] = _file_of(name, trials)
        texts[files[name]] = trial_lines(trials)
        targets, kind = sum(trial.target for trial in trials), name.removesuffix("trials")
        counts |= {f"{kind}targets": targets, f"{kind}nontargets": len(trials) - targets}
    content = {"name": protocol.name, "seed": protocol.seed, "counts": counts, "files": files}
    write_splits(directory, texts, **content, request=dict(request or {}))


def _file_of(name: str, trials: Sequence[Trial]) -> str:
    return f"{name}-{sha256_text(trial_lines(trials))[:8]}.txt"


def read_protocol(directory: str | Path) -> Protocol:
    """Reads a folder of `write_protocol`; `UserError` if it is missing or broken, or a trial list was changed."""
    directory = Path(directory)
    content = read_splits_file(directory)
    if not (directory / "heldout_speakers.txt").is_file():
        raise UserError(f"{directory} splits texts, not speakers: preprocess.py --task speaker splits speakers")
    trials = {}
    for name, file in content["files"].items():
        trials[name] = read_trials(directory / file, allow_empty=True)
        if file != _file_of(name, trials[name]):
            raise UserError(f"{directory / file} was changed: its name holds another hash than that of its trials")
    lists = {name: read_lines(directory / f"{name}.txt") for name in _LISTS}
    return Protocol(name=content["name"], seed=content["seed"], **lists, **trials)
