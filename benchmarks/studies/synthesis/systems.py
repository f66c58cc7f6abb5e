"""The systems of the text-to-mel tables: flags of train_tacomamba.py on top of a preset; free of torch.

With configs/tts-small.yaml each has about 3 M parameters, within 5 % of each other; all but Tacotron 2 have the same
text encoder, aligner, durations, pitches and postnet. All train in the preset's bf16.

bidirectional has half as many blocks, for each of them holds a mixer for either direction. An attention block is a
transformer's, with an MLP beside the attention. The cells of an LSTM are as many as the channels.
"""

from __future__ import annotations

SYSTEMS: dict[str, tuple[str, ...]] = {
    "causal": ("--decoder", "causal"),
    "bidirectional": ("--decoder", "bidirectional", "--n-layers", "2"),
    "ar": ("--decoder", "ar"),
    "attention": ("--mixer", "attention", "--mlp-ratio", "1"),
    "lstm": ("--mixer", "lstm", "--expand", "1", "--n-layers", "3"),
    "tacotron2": ("--model", "tacotron2", "--decoder-dim", "288"),
}
NAMES = {
    "causal": "TacoMamba, causal",
    "bidirectional": "TacoMamba, bidirectional",
    "ar": "TacoMamba, ar",
    "attention": "attention decoder",
    "lstm": "LSTM decoder",
    "tacotron2": "Tacotron 2",
}
SEES_THE_PAST = ("ar", "tacotron2")  # systems whose teacher-forced error is with the true frames before each
