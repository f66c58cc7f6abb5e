"""Speaker embeddings by Resemblyzer, which is not ours: `python -P judge.py FILES.json EMBEDDINGS.json`.

Resemblyzer (a GE2E encoder; Wan et al. 2018, "Generalized end-to-end loss for speaker verification") comes with its
weights. It needs webrtcvad, whose own package wants an old setuptools; `webrtcvad-wheels` is the same module, built:

    python -m venv JUDGE
    JUDGE/bin/pip install torch librosa && JUDGE/bin/pip install --no-deps Resemblyzer webrtcvad-wheels

This file runs in such an environment and imports nothing of this repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    """Reads a list of audio files and writes a list of embeddings, in that order."""
    order, answer = map(Path, words)
    try:
        from resemblyzer import VoiceEncoder, preprocess_wav
    except ImportError as error:
        print(f"Resemblyzer cannot be imported ({error}): --judge-python names a Python that has it", file=sys.stderr)
        return 2
    encoder = VoiceEncoder("cpu", verbose=False)
    files = json.loads(order.read_text(encoding="utf-8"))
    embeddings = [encoder.embed_utterance(preprocess_wav(file)).tolist() for file in files]
    answer.write_text(json.dumps(embeddings), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
