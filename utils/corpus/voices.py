"""Voices of the demo corpus: accent x variant x base pitch of espeak-ng, selected by measured distances.

espeak-ng has over a hundred variants. Many are near-copies of one another, a third are robots and whispers, and an
unknown name silently selects the plain voice. So 60 human-sounding variants spoke in 8 accents at drawn pitches (720
candidates, 6 sentences each in two synthetic recording conditions), and each pair got three distances: of a pretrained
speaker encoder (cosine of CAM++'s mean embeddings), of the long-term average log-mel spectrum, and of the median pitch.
voices.csv takes, for each sex, the candidate farthest from all taken before it, no variant more than twice among the
first 48, accents in turn: any beginning of it is as diverse as its length allows.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple


class Voice(NamedTuple):
    """A speaker's voice. `pitch` is espeak's setting: 50 is the variant's own pitch, and a step is about 1.4 %."""

    accent: str
    variant: str
    pitch: int
    sex: str

    @property
    def name(self) -> str:
        """Name of the voice for espeak-ng."""
        return f"{self.accent}+{self.variant}"


with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as _table:
    VOICES = tuple(Voice(**{**row, "pitch": int(row["pitch"])}) for row in csv.DictReader(_table))
