"""The process of one memory cell: `python -m benchmarks.studies.synthesis.stream_child JSON` streams a text once.

JSON has checkpoint, vocoder (null for the mel alone), text, split (sentence by sentence, or as one) and chunk. Prints
JSON: seconds of speech, and bytes of resident memory: once everything is loaded, and the most of the process's life.
The kernel's VmHWM is of this process alone; ru_maxrss would begin at what its parent had.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(words: list[str]) -> int:
    """Streams, discards the audio, prints the results."""
    import torch

    from benchmarks.grid.memory import memory
    from benchmarks.studies.synthesis.streaming import stream_mel
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.vocoder import load_vocoder

    order: dict[str, Any] = json.loads(words[0])
    torch.set_num_threads(1)
    synthesizer = Synthesizer.load(order["checkpoint"], "cpu")
    vocoder = None if order["vocoder"] is None else load_vocoder(order["vocoder"], synthesizer.recipe)
    loaded, frames, samples = memory("VmRSS"), 0, 0

    def counted():
        nonlocal frames
        for mel in stream_mel(synthesizer, order["text"], order["split"], order["chunk"]):
            frames += len(mel)
            yield mel

    for piece in counted() if vocoder is None else vocoder.stream(counted()):
        samples += len(piece)
    seconds = synthesizer.recipe.seconds(frames)
    print(json.dumps({"seconds": seconds, "pieces": samples, "loaded": loaded, "peak": memory("VmHWM")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
