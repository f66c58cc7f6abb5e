"""Both pipelines on synthetic speech: a voice that is recognized, and a voice that reads a sentence aloud.

python -m utils.demo
python -m utils.demo --out runs/second --preset configs/speaker-small.yaml
python -m utils.demo --voice-out runs/second-voice --voice-preset configs/tts-small.yaml

Corpora, features, training and report of a speaker recognizer, and then of text to mel.
Every command is shown before it runs, to be copied and changed. A stage that is finished is not repeated, one that was
interrupted is continued; deleting the --out or --voice-out folder starts that half anew. The exit code is that of the
stage that failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils import cli
from utils.corpus.records import RECORD
from utils.errors import ExitCode, UserError
from utils.files import read_json
from utils.lists import DEFAULT_PROTOCOL
from utils.stages import Runner, Stage, StageFailed

ENROLLED = 3  # voices among which the closing recording is identified
RECORDINGS = 3  # of each of them
SENTENCE = "This sentence was spoken by a small computer program."


def speaker_stages(args: argparse.Namespace) -> Iterator[Stage]:
    """The stages of speaker recognition; each is made when those before it are done, so it can look at their files."""
    corpus, data, out = args.root / "demo" / "LibriSpeech", args.data, args.out
    spoken = corpus / "demo" / RECORD
    protocol, best = data / "protocols" / DEFAULT_PROTOCOL / "protocol.json", out / "best.pt"
    yield Stage(
        "download",
        (("download.py", "--dataset", "demo", "--root", str(args.root)),),
        outputs=(spoken,),
    )
    yield Stage(
        "preprocess",
        (("preprocess.py", "--dataset", "demo", "--raw", str(corpus.parent), "--out", str(data)),),
        inputs=(spoken,),
        outputs=(data / "meta.json", protocol),
    )
    train = ("train_tacomamba.py", "--task", "speaker", "--data", str(data), "--config", str(args.preset))
    yield Stage(
        "train",
        ((*train, "--out", str(out), "--resume", "auto"),),
        inputs=(args.preset, data / "meta.json", protocol),
        outputs=(best,),
        anew=tuple(sorted(out.glob("last*.pt"))),
    )
    report = out / "report"
    yield Stage(
        "evaluate",
        (("test.py", "evaluate", "--checkpoint", str(best), "--data", str(data), "--out", str(report)),),
        inputs=(best,),
        outputs=(report / "report.json",),
    )
    yield from _enrollment_stages(corpus.parent, protocol.parent, best, out)


def _enrollment_stages(raw: Path, protocol: Path, best: Path, out: Path) -> Iterator[Stage]:
    """Enrolls held-out voices from one chapter and identifies a recording of another chapter by one of them."""
    voices = held_out_recordings(raw, protocol)
    names = list(voices)[:ENROLLED]
    store = out / "voices.safetensors"
    enroll = ("test.py", "enroll", "--checkpoint", str(best), "--store", str(store), "--replace")
    chosen = {name: voices[name][0][:RECORDINGS] for name in names}
    yield Stage(
        "enroll",
        tuple((*enroll, "--name", name, *map(str, paths)) for name, paths in chosen.items()),
        inputs=(best, *(path for paths in chosen.values() for path in paths)),
        outputs=(store,),
        anew=(store,),
    )
    asked = voices[names[-1]][1][-1]
    identify = ("test.py", "identify", "--checkpoint", str(best), "--store", str(store), "--json", str(asked))
    answer = out / "identification.json"
    yield Stage("identify", (identify,), inputs=(best, store, asked), outputs=(answer,), stdout=answer)


def held_out_recordings(raw: Path, protocol: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Speakers that the protocol holds out, sorted, with the recordings of their first and of their last chapter."""
    from utils.corpus.layouts import read_corpus
    from utils.lists import read_speakers

    chapters: dict[str, dict[str, list[Path]]] = {name: {} for name in read_speakers(protocol / "heldout_speakers.txt")}
    for utterance in read_corpus(raw, "librispeech"):
        if utterance.speaker in chapters:
            chapters[utterance.speaker].setdefault(utterance.chapter, []).append(raw / utterance.path)
    voices = {}
    for name, recordings in sorted(chapters.items()):
        if len(recordings) > 1:
            voices[name] = recordings[min(recordings)], recordings[max(recordings)]
    if not voices:
        raise UserError(f"no speaker that {protocol} holds out has two chapters in {raw}")
    return voices


def voice_stages(args: argparse.Namespace) -> Iterator[Stage]:
    """The stages of text to mel; each is made when those before it are done, so it can look at their files."""
    raw, data, out = args.root / "demo-voice", args.voice_data, args.voice_out
    spoken = raw / "DemoVoice-1.0" / RECORD
    lists, best = data / "protocols" / DEFAULT_PROTOCOL, out / "best.pt"
    yield Stage(
        "download voice",
        (("download.py", "--dataset", "demo-voice", "--root", str(args.root)),),
        outputs=(spoken,),
    )
    preprocess = ("preprocess.py", "--dataset", "demo-voice", "--raw", str(raw), "--out", str(data))
    yield Stage(
        "preprocess voice",
        ((*preprocess, "--units", "phoneme"),),
        inputs=(spoken,),
        outputs=(data / "meta.json", lists / "protocol.json"),
    )
    require_unread(SENTENCE, raw, lists)
    train = ("train_tacomamba.py", "--task", "tts", "--data", str(data), "--config", str(args.voice_preset))
    yield Stage(
        "train voice",
        ((*train, "--out", str(out), "--resume", "auto"),),
        inputs=(args.voice_preset, data / "meta.json", lists / "protocol.json"),
        outputs=(best,),
        anew=tuple(sorted(out.glob("last*.pt"))),
    )
    report = out / "report"
    evaluate = ("test.py", "evaluate", "--checkpoint", str(best), "--data", str(data), "--out", str(report))
    yield Stage(
        "evaluate voice",
        ((*evaluate, "--vocoder", "griffin-lim"),),
        inputs=(best,),
        outputs=(report / "report.json",),
    )
    sound, picture = sentence_files(out)
    synthesize = ("test.py", "synthesize", "--checkpoint", str(best), "--text", SENTENCE, "--vocoder", "griffin-lim")
    yield Stage(
        "synthesize",
        ((*synthesize, "--out", str(sound), "--picture", str(picture)),),
        inputs=(best,),
        outputs=(sound, picture),
    )


def sentence_files(out: Path) -> tuple[Path, Path]:
    """Where the closing sentence is heard and seen."""
    return out / "sentence.wav", out / "sentence.png"


def require_unread(sentence: str, raw: Path, lists: Path) -> None:
    """`UserError` if the training list in `lists` holds a recording of `raw` that says `sentence`, by its words."""
    from utils.corpus.layouts import read_corpus
    from utils.tts.asr import comparable
    from utils.tts.text_lists import read_text_lists

    trained, wanted = set(read_text_lists(lists).train), comparable(sentence)
    for utterance in read_corpus(raw, "ljspeech"):
        if utterance.utterance in trained and comparable(utterance.text or "") == wanted:
            raise UserError(f"the model would be trained on the sentence that it is to read: {utterance.path} says it")


def summary(recognizer: Runner, voice: Runner, args: argparse.Namespace) -> str:
    """The closing table: wall times, then what came of both halves."""
    lines, total = [f"{'stage':<20}wall time"], 0.0
    for runner in (recognizer, voice):
        for name in runner.stages:
            kept = "  (earlier)" if name in runner.kept else ""
            lines.append(f"{name:<18}{runner.seconds(name):>9.1f} s{kept}")
            total += runner.seconds(name)
    lines.append(f"{'all':<18}{total:>9.1f} s")
    lines += ["", *_recognizer_lines(args.out), "", *_voice_lines(args.voice_out)]
    lines += [
        "",
        "All voices here are synthetic (espeak-ng), the one that the model learned to speak with too:",
        "the figures show that the pipelines work, not how well on people.",
    ]
    return "\n".join(lines)


def _recognizer_lines(out: Path) -> Iterator[str]:
    """Figures, pictures, and who was identified."""
    yield from _recognizer_figures(read_json(out / "report" / "report.json"))
    yield from _pictures(sorted((out / "report").glob("*.png")))
    (result,) = read_json(out / "identification.json")["results"]
    spoken = Path(result["audio"]).parent.parent.name
    scores = ", ".join(f"{item['name']} {item['score']:.2f}" for item in result["scores"])
    yield f"recording:  {result['audio']}"
    yield f"            by voice {spoken}, never trained on, enrolled from another chapter"
    yield f"identified: {result['name']} (cosines: {scores}; from {result['threshold']:.2f} on it is the speaker)"


def _pictures(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        yield f"picture:    {path}"


def _recognizer_figures(report: dict[str, Any]) -> Iterator[str]:
    for part in ("utterance", "chapter"):
        figures = report["identification"][part]
        shown = figures.get("reason")
        if figures["accuracy"] is not None:
            shown = f"{100 * figures['accuracy']:.1f} % of {figures['n']} recordings"
        yield f"identification accuracy by {part:<12}{shown}"
    for condition, label in (("all", "all trials"), ("cross_chapter", "across chapters")):
        figures = report["verification"][condition]
        shown = figures.get("reason")
        if figures["eer"] is not None:
            shown = f"{100 * figures['eer']:.1f} %"
            if figures["eer_ci"]:
                shown += " (95 % interval {:.1f} to {:.1f} %)".format(*(100 * bound for bound in figures["eer_ci"]))
            shown += f", {figures['targets']} target and {figures['nontargets']} other trials of unseen voices"
        yield f"equal error rate, {label:<21}{shown}"


def _voice_lines(out: Path) -> Iterator[str]:
    """Figures of text to mel, and where the sentence is to be heard and seen."""
    yield from _voice_figures(read_json(out / "report" / "report.json"))
    sound, picture = sentence_files(out)
    yield f"sentence:   {SENTENCE}"
    yield "            (not in the training set, spoken by the model through Griffin-Lim)"
    yield f"sound:      {sound}"
    yield from _pictures([picture, *sorted((out / "report").glob("*.png"))])


def _voice_figures(report: dict[str, Any]) -> Iterator[str]:
    """Mel-cepstral distortion beside that of copy-synthesis, length, time."""
    for system, label in (("synthesis", "synthesis"), ("copy_synthesis", "copy-synthesis")):
        yield f"mel-cepstral distortion, {label:<16}{report[system]['mcd']:.2f} dB"
    texts = f"{report['utterances']} texts that were not trained on"
    yield f"{'duration bias':<41}{100 * report['duration']['bias']:+.1f} % over {texts}"
    for part, times in report["real_time_factor"].items():
        label = f"real-time factor, {part.replace('_', ' ')}"
        yield f"{label:<41}{times['cpu']:.3f} s of CPU a second of speech"


def build_parser() -> cli.Parser:
    """The flags of the demo."""
    parser = cli.Parser(prog="python -m utils.demo", description=__doc__)
    group = parser.add_argument_group("speaker recognizer")
    group.add_argument("--data", type=Path, default=Path("data/processed/demo"), help="folder of the features")
    group.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder: model, report, wall times")
    group.add_argument(
        "--preset", type=Path, default=Path("configs/speaker-tiny.yaml"), help="configuration of the training"
    )
    group = parser.add_argument_group("text to mel")
    group.add_argument(
        "--voice-data", type=Path, default=Path("data/processed/demo-voice"), help="folder of the features"
    )
    group.add_argument(
        "--voice-out", type=Path, default=Path("runs/demo-voice"), help="run folder: model, report, sentence, times"
    )
    group.add_argument(
        "--voice-preset", type=Path, default=Path("configs/tts-tiny.yaml"), help="configuration of the training"
    )
    parser.add_argument("--root", type=Path, default=Path("data/raw"), help="folder of raw corpora")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stages, returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    presets = {"--preset": args.preset, "--voice-preset": args.voice_preset}
    problems = [f"{flag} {path} is not a file" for flag, path in presets.items() if not path.is_file()]
    if args.out.resolve() == args.voice_out.resolve():
        problems.append(
            f"--out and --voice-out are both {args.out}: each half keeps its model and wall times in its own"
        )
    parser.report(problems)
    return cli.run(_demo, args)


def _demo(args: argparse.Namespace) -> int:
    recognizer, voice = Runner(args.out / "stages.json"), Runner(args.voice_out / "stages.json")
    try:
        for runner, stages in ((recognizer, speaker_stages(args)), (voice, voice_stages(args))):
            for stage in stages:
                runner.run(stage)
    except StageFailed as failure:
        print(f"error: {failure}; the same command goes on from there", file=sys.stderr)
        return failure.code
    print(f"\n{summary(recognizer, voice, args)}")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
