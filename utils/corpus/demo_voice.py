"""The one-voice demo corpus: synthetic speech of one voice, generated locally, in LJSpeech layout, with phone times.

One voice reads many different sentences under constant conditions: no sessions, no noise, one level. phones.jsonl holds
the start of each phone by espeak-ng, a reference for learned alignments (benchmarks/studies/alignment.py). The corpus
depends on its `Settings` alone, not on the number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.corpus.catalog import SYNTHETIC_SPLITS
from utils.corpus.records import Synthetic, in_threads, write_audio
from utils.corpus.sentences import varied_sentences
from utils.corpus.voices import VOICES
from utils.espeak import synthesize_with_phones
from utils.files import sha256_text, write_text

DATASET = "demo-voice"
(SPLIT,) = SYNTHETIC_SPLITS[DATASET]
PHONES = "phones.jsonl"
# An American accent, as the front end's phonemes have, in a voice without breath, echo or creak.
VOICE = next(voice for voice in VOICES if voice.name == "en-us+Andrea")
RATE = 160  # words per minute
LEVEL = -23.0  # root mean square of every utterance, dB of full scale
SILENCE = 0.05  # s before and after the speech; espeak-ng itself leaves 0.01 s
BLOCK = 20  # sentences per espeak-ng process, because each depends on those that the process spoke before

README = f""" as {VOICE.name}, in the folder layout of LJSpeech. No person was recorded.

It exists to try text to mel without a download. Metrics measured on it say nothing about people.
{PHONES} has a line per utterance: its phones in IPA (an empty one is a pause), each with its start in s by espeak-ng
(a plosive starts at its release, not at the silence before), and the length of the recording in s.
Made by: download.py --dataset {DATASET} --utterances-per-voice {{utterances}} --seed {{seed}}
"""


@dataclass(frozen=True)
class Settings:
    """Settings that determine the bytes of a one-voice corpus."""

    utterances: int
    seed: int


class Block(NamedTuple):
    """The sentences of one process, and the common prefix of their ids."""

    name: str
    texts: tuple[str, ...]


class Spoken(NamedTuple):
    """A written utterance: its text, its phones with their starts in s, and its length in s."""

    utterance: str
    text: str
    phones: list[tuple[str, float]]
    seconds: float


def make_plan(settings: Settings) -> list[Block]:
    """Plans the sentences in their order. A smaller corpus is the beginning of a larger one."""
    texts = tuple(itertools.islice(varied_sentences(f"demo voice {settings.seed}"), settings.utterances))
    starts = range(0, len(texts), BLOCK)
    return [Block(f"DV{number:03}", texts[start : start + BLOCK]) for number, start in enumerate(starts, start=1)]


def build_demo_voice(root: Path, settings: Settings, num_proc: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Makes ROOT/demo-voice/DemoVoice-1.0, or finds it complete, as `Synthetic` does, and returns its record."""
    corpus = root / DATASET / SPLIT
    plan = make_plan(settings)
    how = json.dumps([plan, VOICE, RATE, LEVEL, SILENCE])
    wanted = {**dataclasses.asdict(settings), "plan": sha256_text(how)}

    def fill(staging: Path) -> dict[str, Any]:
        print(f"{DATASET}: synthesizing {settings.utterances} utterances of one voice by espeak-ng")
        wavs = staging / "wavs"
        wavs.mkdir()
        blocks = in_threads(functools.partial(_record_block, wavs=wavs), plan, num_proc, "blocks")
        spoken = list(itertools.chain.from_iterable(blocks))
        _write_tables(staging, spoken)
        counts = {"utterances": len(spoken), "seconds": round(sum(each.seconds for each in spoken), 2)}
        return {"voice": VOICE.name, "settings": wanted, **counts}

    readme = README.format(**dataclasses.asdict(settings))
    return Synthetic(corpus, corpus, ".wav", wanted, fill, _summary, readme).make_once(overwrite)


def _summary(record: dict[str, Any]) -> str:
    return f"1 voice, {record['utterances']} utterances, {record['seconds'] / 60:.1f} minutes"


def _write_tables(folder: Path, spoken: Sequence[Spoken]) -> None:
    """Writes metadata.csv in LJSpeech's format, and the phones' times."""
    write_text(folder / "metadata.csv", "".join(f"{each.utterance}|{each.text}|{each.text}\n" for each in spoken))
    lines = [{"utterance": each.utterance, "phones": each.phones, "end_s": each.seconds} for each in spoken]
    write_text(folder / PHONES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _record_block(block: Block, wavs: Path) -> list[Spoken]:
    """Synthesizes and writes the sentences of a block."""
    items = [{"text": text, "rate": RATE, "pitch": VOICE.pitch} for text in block.texts]
    rate, recordings, phones = synthesize_with_phones({"voice": VOICE.name, "sentences": items})
    silence = round(SILENCE * rate)
    spoken = []
    for number, (text, samples, found) in enumerate(zip(block.texts, recordings, phones, strict=True), start=1):
        name = f"{block.name}-{number:04}"
        write_audio(wavs / f"{name}.wav", _leveled(samples, silence), rate)
        starts = [(phone.symbol, round((silence + phone.start) / rate, 6)) for phone in found]
        spoken.append(Spoken(name, text, starts, round((len(samples) + 2 * silence) / rate, 6)))
    return spoken


def _leveled(samples: Any, silence: int) -> Any:
    """Sets int16 speech `(S,)` to the corpus's level and adds `silence` zeros before and after it."""
    import numpy as np

    gain = 10 ** (LEVEL / 20) * 32768 / np.sqrt(np.mean(samples.astype(np.float64) ** 2))
    return np.pad(np.rint(np.clip(samples * gain, -32768, 32767)).astype(np.int16), silence)
