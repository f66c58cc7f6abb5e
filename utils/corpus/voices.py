"""Voices of the demo corpus: accent x variant x base pitch of espeak-ng, selected by measured distances.

espeak-ng has over a hundred variants. Many are near-copies of one another, a third are robots and whispers, and an
unknown name silently selects the plain voice. So 60 human-sounding variants spoke in 8 accents at drawn pitches (720
candidates, 6 sentences each in two synthetic recording conditions), and each pair got three distances: of a pretrained
speaker encoder (cosine of CAM++'s mean embeddings), of the long-term average log-mel spectrum, and of the median pitch.
The table takes, for each sex, the candidate farthest from all taken before it, no variant more than twice among the
first 48, accents in turn: any beginning of it is as diverse as its length allows.
"""

from __future__ import annotations

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


VOICES = (
    Voice("en-029", "m6", 42, "M"),
    Voice("en-gb-x-rp", "marcelo", 66, "M"),
    Voice("en-us", "grandma", 47, "F"),
    Voice("en-gb-scotland", "david", 37, "M"),
    Voice("en-gb-x-gbcwmd", "Alicia", 49, "F"),
    Voice("en-us-nyc", "Lee", 58, "M"),
    Voice("en", "boris", 34, "M"),
    Voice("en-gb-x-gbclan", "belinda", 35, "F"),
    Voice("en-gb-x-rp", "Nguyen", 65, "M"),
    Voice("en-029", "shelby", 39, "F"),
    Voice("en-us-nyc", "ed", 64, "M"),
    Voice("en", "Andrea", 56, "F"),
    Voice("en-gb-scotland", "Marco", 61, "M"),
    Voice("en-gb-x-gbcwmd", "kaukovalta", 35, "M"),
    Voice("en-us", "anika", 53, "F"),
    Voice("en-gb-x-gbclan", "Andy", 42, "M"),
    Voice("en-us", "aunty", 41, "F"),
    Voice("en-gb-x-rp", "iven3", 42, "M"),
    Voice("en", "ian", 54, "M"),
    Voice("en-us-nyc", "steph", 59, "F"),
    Voice("en-029", "Reed", 63, "M"),
    Voice("en-gb-x-gbcwmd", "f1", 53, "F"),
    Voice("en-gb-x-gbclan", "Denis", 50, "M"),
    Voice("en-gb-scotland", "f5", 65, "F"),
    Voice("en-gb-x-gbcwmd", "travis", 45, "M"),
    Voice("en-029", "Jacky", 34, "M"),
    Voice("en-gb-scotland", "Annie", 39, "F"),
    Voice("en-gb-x-rp", "Storm", 41, "M"),
    Voice("en-gb-x-gbclan", "steph", 35, "F"),
    Voice("en", "edward", 44, "M"),
    Voice("en-us", "AnxiousAndy", 53, "M"),
    Voice("en-us-nyc", "linda", 61, "F"),
    Voice("en-gb-x-gbclan", "klatt3", 50, "M"),
    Voice("en-us", "f5", 37, "F"),
    Voice("en-gb-x-rp", "m8", 42, "M"),
    Voice("en-029", "anika", 37, "F"),
    Voice("en-us-nyc", "rob", 35, "M"),
    Voice("en-gb-x-gbcwmd", "pablo", 55, "M"),
    Voice("en", "aunty", 62, "F"),
    Voice("en-gb-scotland", "sandro", 66, "M"),
    Voice("en-us", "Andrea", 36, "F"),
    Voice("en-029", "Mario", 47, "M"),
    Voice("en-gb-x-rp", "quincy", 42, "M"),
    Voice("en-gb-x-gbcwmd", "f4", 48, "F"),
    Voice("en-gb-scotland", "m1", 63, "M"),
    Voice("en-us-nyc", "Alicia", 57, "F"),
    Voice("en", "Mr serious", 61, "M"),
    Voice("en-gb-x-gbclan", "f2", 52, "F"),
    Voice("en-029", "announcer", 51, "M"),
    Voice("en-gb-x-rp", "belinda", 48, "F"),
    Voice("en-us", "Gene", 65, "M"),
    Voice("en-gb-scotland", "antonio", 44, "M"),
    Voice("en-us-nyc", "steph", 43, "F"),
    Voice("en-gb-x-gbclan", "croak", 64, "M"),
    Voice("en-gb-x-gbcwmd", "paul", 57, "M"),
    Voice("en", "f1", 38, "F"),
    Voice("en-us", "gustave", 38, "M"),
    Voice("en-us-nyc", "m5", 58, "M"),
    Voice("en-029", "Andrea", 64, "F"),
    Voice("en-gb-x-gbclan", "norbert", 66, "M"),
    Voice("en-gb-x-gbcwmd", "m7", 47, "M"),
    Voice("en-gb-x-rp", "f3", 58, "F"),
    Voice("en", "klatt4", 63, "M"),
    Voice("en-gb-scotland", "Diogo", 48, "M"),
)
