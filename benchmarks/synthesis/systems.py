"""The systems of the text-to-mel tables: flags of train_tacomamba.py on top of a preset; free of torch.

With configs/tts-small.yaml each has about 3.5 M parameters, within 10 % of each other, and about half of them in the
text encoder. All train in the preset's bf16: against float32 the first losses of each agree to 5e-4, and a step takes
6 % (Tacotron 2) to 33 % (causal) less CPU time.

bidirectional has half as many blocks, for each of them holds a mixer for either direction. An attention block is a
transformer's, with an MLP beside the attention; the encoder gets MLPs with it and gives up a layer for them. The cells
of the LSTM are as many as the channels, so that there can be four blocks of them as in the causal system; --expand is
the encoder's too, which gets two more, narrower blocks.
"""

from __future__ import annotations

SYSTEMS: dict[str, tuple[str, ...]] = {
    "causal": ("--decoder", "causal"),
    "bidirectional": ("--decoder", "bidirectional", "--n-layers", "2"),
    "ar": ("--decoder", "ar"),
    "attention": ("--mixer", "attention", "--mlp-ratio", "2", "--encoder-layers", "2", "--n-layers", "3"),
    "lstm": ("--mixer", "lstm", "--expand", "1", "--encoder-layers", "5", "--n-layers", "4"),
    "tacotron2": ("--model", "tacotron2", "--decoder-dim", "352"),
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
