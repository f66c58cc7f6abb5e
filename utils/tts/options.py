"""The flags of text to mel and of its models; free of torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils import cli
from utils.training.model_options import MIXERS, family_problems, stack_config, stack_problems, state_size

DECODERS = ("causal", "bidirectional", "ar")
STATEFUL_MIXERS = ("mamba", "mamba2")
CONDITIONS = ("none", "table", "embedding")


def add_tts_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of text to mel beside those that all models have."""
    group = parser.add_argument_group("text-to-mel model")
    group.add_argument(
        "--decoder",
        choices=DECODERS,
        default="causal",
        help="tacomamba's: causal streams, bidirectional sees the whole sentence, ar goes on from its own frames",
    )
    group.add_argument("--encoder-mixer", choices=MIXERS, default="mamba2", help="sequence mixer of the text encoder")
    group.add_argument("--encoder-layers", type=cli.positive_int, default=2, help="blocks of the text encoder")
    group.add_argument("--encoder-expand", type=cli.positive_int, default=2, help="inner channels of its mixers")
    group.add_argument("--reduction", type=cli.positive_int, default=2, help="mel frames that a decoder step makes")
    group.add_argument(
        "--pitch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tacomamba predicts the pitch of each symbol and draws harmonics there",
    )
    group.add_argument("--postnet-channels", type=cli.positive_int, default=128, help="channels of the postnet")
    group.add_argument("--decoder-dim", type=cli.positive_int, default=384, help="cells of tacotron2's decoder LSTMs")
    group.add_argument("--prenet-dim", type=cli.positive_int, default=128, help="channels of tacotron2's prenet")
    group.add_argument("--attention-dim", type=cli.positive_int, default=128, help="channels of tacotron2's attention")
    group.add_argument(
        "--guided-attention", type=cli.positive_float, default=1.0, help="weight of tacotron2's guided attention loss"
    )
    voice = parser.add_argument_group("voices of text to mel")
    voice.add_argument(
        "--voice",
        choices=CONDITIONS,
        default="none",
        help="what tells the voice: none (there is one), a table of the training speakers, or a recording's embedding",
    )
    voice.add_argument("--speaker-encoder", type=Path, help="checkpoint of the speaker task that makes the embeddings")


def tts_problems(args: argparse.Namespace) -> list[str]:
    """Sentences about flags of text to mel that contradict each other."""
    problems = family_problems(args, "tts")
    if args.model == "tacomamba":
        problems += stack_problems(args, args.mixer, args.decoder != "bidirectional", args.expand)
        problems += stack_problems(args, args.encoder_mixer, False, args.encoder_expand)
        if args.decoder == "ar" and args.mixer not in STATEFUL_MIXERS:
            able = " or ".join(STATEFUL_MIXERS)
            problems.append(f"--decoder ar goes on from a state, which only --mixer {able} has, not {args.mixer}")
    if args.model == "tacotron2" and args.d_model % 2:
        problems.append(f"--d-model {args.d_model} must be even: half of tacotron2's encoder goes each way")
    if args.voice == "embedding" and args.speaker_encoder is None:
        problems.append("--voice embedding needs --speaker-encoder, a checkpoint that --task speaker trained")
    if args.voice != "embedding" and args.speaker_encoder is not None:
        problems.append("--speaker-encoder needs --voice embedding")
    return list(dict.fromkeys(problems))


def tts_model_config(args: argparse.Namespace, n_mels: int, n_speakers: int, speaker_dim: int) -> dict[str, Any]:
    """The plain dictionary that `models.tts.build_text_to_mel` builds from and a checkpoint keeps."""
    names = (
        "decoder",
        "encoder_mixer",
        "encoder_layers",
        "encoder_expand",
        "reduction",
        "postnet_channels",
        "decoder_dim",
        "prenet_dim",
        "attention_dim",
        "guided_attention",
    )
    own = {name: getattr(args, name) for name in names} | {"encoder_d_state": state_size(args, args.encoder_mixer)}
    if args.model == "tacomamba":
        own["pitch"] = args.pitch
    voice = {"speaker": args.voice, "n_speakers": n_speakers, "speaker_dim": speaker_dim}
    return {**stack_config(args), **own, **voice, "n_mels": n_mels}
