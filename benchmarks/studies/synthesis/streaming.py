"""Measurements of benchmarks/studies/streaming.py: exactness, size of the state, memory, time to the first piece."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.errors import UserError
from utils.tts.evaluate import cpu_seconds
from utils.tts.synthesizer import Synthesizer
from utils.tts.vocoder import Vocoder

ROOT = Path(__file__).resolve().parents[3]
CHUNK = 16
SHORT, SENTENCE, LONG = 6.0, 10.0, 60.0  # s
LONGEST = 1000  # clauses
CAUTION = 0.8  # of a guess at how many clauses are needed
CLAUSES = (
    "The ferry leaves the island at six",
    "the baker opens a little before seven",
    "a tired dog sleeps under the wooden bench",
    "two fishermen mend their nets without a word",
    "the first bus climbs the hill with nobody in it",
    "gulls are walking up and down the empty quay",
    "somebody has left a red umbrella at the ticket office",
    "and the church clock is eleven minutes slow again",
)


def one_sentence(count: int) -> str:
    """A sentence of so many clauses."""
    return ", ".join(CLAUSES[number % len(CLAUSES)] for number in range(count)) + "."


def many_sentences(count: int) -> str:
    """A text of so many short sentences."""
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in (CLAUSES[n % len(CLAUSES)] for n in range(count)))


def long_enough(synthesizer: Synthesizer, make: Callable[[int], str], seconds: float, split: bool) -> str:
    """A text from `make` that takes the model at least `seconds` to speak, with few clauses more than necessary."""
    count = 1
    while count < LONGEST:
        frames = sum(len(part) for part in stream_mel(synthesizer, make(count), split, chunk=10_000))
        spoken = synthesizer.recipe.seconds(frames)
        if spoken >= seconds:
            return make(count)
        count = max(count + 1, int(CAUTION * count * seconds / spoken))
    raise UserError(f"the model speaks {LONGEST} clauses in less than {seconds:g} s: it is not trained")


def stream_mel(synthesizer: Synthesizer, text: str, split: bool, chunk: int) -> Iterator[NDArray[np.float32]]:
    """Pieces (t, n_mels) of a text, as `Synthesizer.stream` reads it or as one sentence, however long."""
    if split:
        yield from synthesizer.stream(text, chunk=chunk)
        return
    for part in synthesizer.model.stream(_tokens(synthesizer, text), synthesizer.voice(None), 1.0, chunk):
        yield part.numpy()


def _tokens(synthesizer: Synthesizer, text: str) -> torch.Tensor:
    """Tokens (1, n) of the text as one sentence."""
    (sentence,) = synthesizer.front_end.encode([text])
    return torch.from_numpy(sentence.tokens).long()[None]


def exactness(synthesizer: Synthesizer, vocoder: Vocoder | None, chunks: Sequence[int]) -> dict[str, Any]:
    """Largest differences between streamed and offline mel (natural log) and audio (full scale is 1)."""
    text = long_enough(synthesizer, one_sentence, SENTENCE, split=True)
    mel = synthesizer.speak(text).mel
    audio = None if vocoder is None else vocoder(mel)
    rows = []
    for chunk in chunks:
        streamed = list(synthesizer.stream(text, chunk=chunk))
        row = {"chunk": chunk, "mel": _difference(np.concatenate(streamed), mel)}
        if vocoder is not None:
            row["audio"] = _difference(np.concatenate(list(vocoder.stream(iter(streamed)))), audio)
        rows.append(row)
    return {"seconds": synthesizer.recipe.seconds(len(mel)), "chunks": rows}


def _difference(streamed: NDArray, offline: NDArray) -> float:
    if streamed.shape != offline.shape:
        raise UserError(f"the stream has the shape {streamed.shape}, the offline result {offline.shape}")
    return float(np.abs(streamed - offline).max())


def state_sizes(synthesizer: Synthesizer) -> dict[str, Any]:
    """Bytes of the decoder's state within one sentence after 1 s and after 60 s of speech.

    `values` are those of its tensors, `held` those of the storages that they keep alive, which could be larger.
    """
    text = long_enough(synthesizer, one_sentence, LONG, split=False)
    decoder, states = synthesizer.model.decoder, []
    initial_state = decoder.initial_state

    def remembered(batch: int) -> Any:
        states.append(initial_state(batch))
        return states[-1]

    decoder.initial_state = remembered  # the stream changes the state in place
    try:
        frames, sizes = 0, {}
        for part in stream_mel(synthesizer, text, False, CHUNK):
            frames += len(part)
            for seconds in (1.0, LONG):
                if synthesizer.recipe.seconds(frames) >= seconds:
                    sizes.setdefault(f"{seconds:g} s", size_of(states[0]))
    finally:
        del decoder.initial_state
    return sizes


def size_of(state: Any) -> dict[str, int]:
    """Bytes of all tensors in dataclasses, sequences and dictionaries: their values, and the storages under them."""
    tensors = list(_tensors(state))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {"values": sum(tensor.nbytes for tensor in tensors), "held": sum(storages.values())}


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from _tensors(getattr(state, field.name))
    elif isinstance(state, (list, tuple, dict)):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)


def peak_memory(synthesizer: Synthesizer, checkpoint: Path, vocoder: str | None) -> dict[str, Any]:
    """Peak resident memory of fresh processes that stream some 6 s and 60 s: of many sentences, and of a single one."""
    cells = []
    for name in dict.fromkeys((None, vocoder)):
        for split, make in ((True, many_sentences), (False, one_sentence)):
            texts = {length: long_enough(synthesizer, make, length, split) for length in (SHORT, LONG)}
            order = {"checkpoint": str(checkpoint.resolve()), "vocoder": name, "split": split, "chunk": CHUNK}
            short, long = (_child({**order, "text": texts[length]}) for length in (SHORT, LONG))
            about = {"vocoder": name is not None, "one_sentence": not split}
            cells.append({**about, "short": short, "long": long, "ratio": long["peak"] / short["peak"]})
    return {"chunk": CHUNK, "cells": cells}


def _child(order: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.studies.synthesis.stream_child", json.dumps(order)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"a process that streams ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def first_pieces(synthesizer: Synthesizer, vocoder: Vocoder | None, repeats: int) -> dict[str, Any]:
    """Times of a sentence of some 10 s, median of repeats after one that warms up: [wall, CPU] in s.

    `reading` is what the text takes until it is tokens; `first_mel`, `all_mel` and `offline` are of the acoustic model
    alone, which begins with tokens; `first_audio` and `all_audio` begin with the text. `share` is the first piece of
    mel as a share of the entire stream, `share_of_offline` of the entire mel at once.
    """
    text = long_enough(synthesizer, one_sentence, SENTENCE, split=False)
    voice, model = synthesizer.voice(None), synthesizer.model
    runs = []
    for _ in range(repeats + 1):
        began = _now()
        tokens = _tokens(synthesizer, text)
        times = {"reading": _now() - began}
        began = _now()
        mel = model.synthesize(tokens, voice).mel
        times["offline"] = _now() - began
        times |= _timed("mel", model.stream(tokens, voice, 1.0, CHUNK))
        if vocoder is not None:
            times |= _timed("audio", vocoder.stream(stream_mel(synthesizer, text, False, CHUNK)))
        times["share"] = times["first_mel"] / times["all_mel"]
        times["share_of_offline"] = times["first_mel"] / times["offline"]
        runs.append(times)
    medians = {name: np.median([times[name] for times in runs[1:]], axis=0).tolist() for name in runs[0]}
    return {"seconds": synthesizer.recipe.seconds(len(mel)), "chunk": CHUNK, "repeats": repeats, **medians}


def _now() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), cpu_seconds()])


def _timed(what: str, pieces: Iterator[Any]) -> dict[str, NDArray[np.float64]]:
    began = _now()
    next(pieces)
    first = _now() - began
    for _ in pieces:
        pass
    return {f"first_{what}": first, f"all_{what}": _now() - began}
