"""The demo corpus: synthetic speech of many voices, generated locally, in LibriSpeech layout.

Each speaker reads two chapters of different sentences. A chapter stands for a recording session, with its own rate,
pitch, level and background noise. The corpus depends on its `Settings` alone, not on the number of processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.corpus.records import Synthetic, in_threads, write_audio
from utils.corpus.sentences import sentences, transcript
from utils.corpus.voices import VOICES, Voice
from utils.espeak import synthesize
from utils.files import sha256_text, write_text

SPLIT = "demo"
SAMPLE_RATE = 16_000
FIRST_SPEAKER = 90_001  # above the ids of LibriSpeech's readers
CHAPTERS = 2
FADE = 0.03  # share of the band below half the sample rate over which the resampler fades out

# Effects of a recording session on a voice.
RATES = (158, 172)  # words per minute in a speaker's first chapter
RATE_CHANGE = (0.03, 0.075)  # at most 8 % after rounding to whole words per minute
PITCH_STEPS = (1, 3)  # espeak's, of about 1.4 % each
LEVELS = (-32.0, -23.0)  # root mean square, dB of full scale
LEAST_LEVEL_CHANGE = 3.0
SNRS = (18.0, 30.0)  # dB
COLORS = (0.0, 1.8)  # noise power falls with frequency to this power: 0 white, 1 pink, 2 brown
LOWEST_NOISE = 60.0  # Hz; colored noise is flat below

README = """, in the folder layout of LibriSpeech. No person was recorded.

It exists to try the pipeline without a download. Metrics measured on it say nothing about people.
Each speaker has two chapters, which differ in rate, pitch, level and synthetic background noise.
Made by: download.py --dataset demo --voices {voices} --utterances-per-voice {utterances_per_voice} --seed {seed}
"""


@dataclass(frozen=True)
class Settings:
    """Settings that determine the bytes of a demo corpus."""

    voices: int
    utterances_per_voice: int
    seed: int


@dataclass(frozen=True)
class Chapter:
    """One recording session: `rate` and `pitch` in espeak's units, `level` in dB of full scale, `snr` in dB.

    The fields' names are hashed with the plan, so a renamed field makes every existing corpus another version.
    """

    name: str
    rate: int
    pitch: int
    level: float
    snr: float
    colour: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Speaker:
    """A voice and its chapters, under the name of its folder."""

    name: str
    voice: Voice
    chapters: tuple[Chapter, ...]


def make_plan(settings: Settings) -> list[Speaker]:
    """Plans the speakers and their chapters. A smaller corpus is the beginning of a larger one."""
    taken: set[str] = set()
    return [
        _plan_speaker(str(FIRST_SPEAKER + number), voice, settings, taken)
        for number, voice in enumerate(VOICES[: settings.voices])
    ]


def _plan_speaker(name: str, voice: Voice, settings: Settings, taken: set[str]) -> Speaker:
    draw = random.Random(f"conditions {settings.seed} {name}")
    texts = list(itertools.islice(sentences(f"sentences {settings.seed} {name}", taken), settings.utterances_per_voice))
    rate = draw.randint(*RATES)
    level = draw.uniform(LEVELS[0] + LEAST_LEVEL_CHANGE, LEVELS[1])
    rates = [rate, round(rate * (1 + draw.choice((-1, 1)) * draw.uniform(*RATE_CHANGE)))]
    pitches = [voice.pitch, voice.pitch + draw.choice((-1, 1)) * draw.randint(*PITCH_STEPS)]
    levels = [level, draw.uniform(LEVELS[0], level - LEAST_LEVEL_CHANGE)]
    draw.shuffle(levels)
    half = (len(texts) + 1) // CHAPTERS
    chapters = tuple(
        Chapter(
            name=f"{name}{number + 1}",
            rate=rates[number],
            pitch=pitches[number],
            level=round(levels[number], 2),
            snr=round(draw.uniform(*SNRS), 2),
            colour=round(draw.uniform(*COLORS), 2),
            texts=tuple(texts[number * half : (number + 1) * half]),
        )
        for number in range(CHAPTERS)
    )
    return Speaker(name, voice, chapters)


def build_demo(root: Path, settings: Settings, num_proc: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Makes ROOT/demo/LibriSpeech, or finds it complete, as `Synthetic` does, and returns its record."""
    corpus = root / "demo" / "LibriSpeech"
    plan = make_plan(settings)
    wanted = {**dataclasses.asdict(settings), "plan": sha256_text(json.dumps([dataclasses.asdict(s) for s in plan]))}

    def fill(staging: Path) -> dict[str, Any]:
        print(f"demo: synthesizing {len(plan)} voices by espeak-ng")
        jobs = [(speaker, staging / SPLIT, settings.seed) for speaker in plan]
        seconds = in_threads(_record_speaker, jobs, num_proc, "voices")
        _write_table(staging / "SPEAKERS.TXT", plan, seconds)
        utterances = sum(len(chapter.texts) for speaker in plan for chapter in speaker.chapters)
        counts = {"speakers": len(plan), "utterances": utterances, "seconds": round(sum(seconds), 2)}
        return {"settings": wanted, **counts}

    readme = README.format(**dataclasses.asdict(settings))
    return Synthetic(corpus, corpus / SPLIT, ".flac", wanted, fill, _summary, readme).make_once(overwrite)


def _summary(record: dict[str, Any]) -> str:
    return f"{record['speakers']} voices, {record['utterances']} utterances, {record['seconds'] / 60:.1f} minutes"


def _write_table(path: Path, plan: Sequence[Speaker], seconds: Sequence[float]) -> None:
    """Writes SPEAKERS.TXT in LibriSpeech's format."""
    rows = [
        f"{speaker.name:5}| {speaker.voice.sex} | {SPLIT:17}|{length / 60:6.2f} | "
        f"SYNTHETIC espeak-ng {speaker.voice.name} pitch {speaker.voice.pitch}"
        for speaker, length in zip(plan, seconds, strict=True)
    ]
    head = [
        "; SYNTHETIC voices: no line of this table is a person. The sex is the one that the voice is meant to suggest.",
        ";ID  |SEX| SUBSET           |MINUTES| NAME",
    ]
    write_text(path, "\n".join([*head, *rows]) + "\n")


def _record_speaker(job: tuple[Speaker, Path, int]) -> float:
    """Synthesizes and writes one speaker's chapters; returns their total length in s."""
    import numpy as np

    speaker, split, seed = job
    rate, spoken = synthesize(
        {
            "voice": speaker.voice.name,
            "sentences": [
                {"text": text, "rate": chapter.rate, "pitch": chapter.pitch}
                for chapter in speaker.chapters
                for text in chapter.texts
            ],
        }
    )
    samples_left = iter(spoken)
    total = 0
    for chapter in speaker.chapters:
        folder = split / speaker.name / chapter.name
        folder.mkdir(parents=True)
        lines = []
        for number, text in enumerate(chapter.texts):
            name = f"{speaker.name}-{chapter.name}-{number:04}"
            random_state = np.random.default_rng([seed, int(chapter.name), number])
            samples = _in_session(_resample(next(samples_left), rate), chapter, random_state)
            write_audio(folder / f"{name}.flac", samples, SAMPLE_RATE)
            lines.append(f"{name} {transcript(text)}\n")
            total += len(samples)
        write_text(folder / f"{speaker.name}-{chapter.name}.trans.txt", "".join(lines))
    return total / SAMPLE_RATE


def _resample(samples: Any, rate: int) -> Any:
    """Resamples int16 `(S,)` at `rate` Hz to float64 `(S * SAMPLE_RATE / rate,)` by truncating the spectrum."""
    import numpy as np

    step = rate // math.gcd(rate, SAMPLE_RATE)
    length = -(-len(samples) // step) * step  # whole numbers of samples at both rates
    kept = length * SAMPLE_RATE // rate
    spectrum = np.fft.rfft(samples, length)[: kept // 2 + 1]
    fade = np.linspace(0, np.pi, int(FADE * len(spectrum)))
    spectrum[-len(fade) :] *= (1 + np.cos(fade)) / 2  # a sharp cutoff would ring
    return np.fft.irfft(spectrum, kept) * (kept / length / 32768)


def _in_session(samples: Any, chapter: Chapter, random_state: Any) -> Any:
    """Sets speech `(S,)` to the chapter's level and adds the chapter's noise; returns int16."""
    import numpy as np

    level = 10 ** (chapter.level / 20)
    speech = samples * (level / np.sqrt(np.mean(samples**2)))
    spectrum = np.fft.rfft(random_state.standard_normal(len(samples)))
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * np.maximum(frequencies, LOWEST_NOISE) ** (-chapter.colour / 2), len(samples))
    noise *= level * 10 ** (-chapter.snr / 20) / np.sqrt(np.mean(noise**2))
    return np.rint(np.clip(speech + noise, -1, 1) * 32767).astype(np.int16)
