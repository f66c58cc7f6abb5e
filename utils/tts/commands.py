"""The subcommands of test.py for text to mel."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.commands import add_command, counted, print_json, show_report
from utils.errors import UserError
from utils.files import read_text
from utils.lists import DEFAULT_PROTOCOL
from utils.locks import only_writer
from utils.plots import picture_path

if TYPE_CHECKING:
    import numpy as np

    from utils.tts.synthesizer import Reading, Synthesizer
    from utils.tts.vocoder import Vocoder

PACES = 0.25, 4.0
CHUNK = 32  # mel frames
_VOCODERS = "griffin-lim, or the file or folder of a HiFi-GAN checkpoint"
MOST_CELLS = 4_000_000  # of the alignment in a picture: a larger one would be illegible and fill the memory

_SYNTHESIZE = """Speak a text with a text-to-mel model, into a WAV file.

python test.py synthesize --checkpoint runs/voice --text "Good morning." --out morning.wav --picture morning.png
python test.py synthesize --checkpoint runs/voice --text-file story.txt --pace 1.1 --out story.wav
python test.py synthesize --checkpoint runs/voice --text-file sentences.txt --each-line --out spoken
python test.py synthesize --checkpoint runs/voice --text "Good morning." --stream --vocoder hifigan --out speech.wav

The text is spoken sentence by sentence. With --stream audio is generated and written piece by piece, which needs a
causal or ar decoder and a HiFi-GAN vocoder. A file appears under its name when it is complete. To listen at once, use
`--stream --out -`: it writes 16-bit samples without a header to stdout, for `aplay -f S16_LE -r 22050`.
"""


def add_evaluate_arguments(parser: cli.Parser) -> None:
    """Adds the flags of `evaluate` that only text to mel has."""
    group, splits = parser.add_argument_group("text to mel"), ("train", "valid", "test")
    group.add_argument("--split", nargs="+", choices=splits, help="lists of texts to evaluate, pooled (default: test)")
    group.add_argument("--vocoder", metavar="VOCODER", help=f"{_VOCODERS} (default: griffin-lim)")
    help = "measure MCD and F0 by librosa, whose functions compile for some 20 s at their first use (default: no)"
    group.add_argument("--mcd", action=argparse.BooleanOptionalAction, help=help)
    group.add_argument("--asr", type=Path, metavar="FOLDER", help="faster-whisper model folder, for error rates")
    group.add_argument("--limit", type=cli.positive_int, metavar="N", help="largest number of utterances")


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates a text-to-mel model on texts of stored features, and writes the report."""
    from utils.tts.evaluate import evaluate_synthesis
    from utils.tts.report import build_synthesis_report, synthesis_table, write_synthesis_report
    from utils.tts.synthesizer import Synthesizer

    synthesizer = Synthesizer.load(args.checkpoint, args.device, args.backend)
    protocol, vocoder = args.protocol or DEFAULT_PROTOCOL, args.vocoder or "griffin-lim"
    chosen = args.split or ["test"], vocoder, args.asr, bool(args.mcd), args.limit, args.seed
    evaluation = evaluate_synthesis(synthesizer, args.data, protocol, *chosen)
    about = {**synthesizer.description(args.checkpoint), "config": cli.plain_arguments(args)}
    report = build_synthesis_report(evaluation, about, args.bootstrap, args.seed)
    write_synthesis_report(args.out, report, evaluation, args.format)
    show_report(args, report, synthesis_table(report))


def add_commands(commands: Any) -> None:
    """Adds the subcommand."""
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    parser = add_command(commands, "synthesize", _synthesize, _SYNTHESIZE, _problems)
    group = parser.add_argument_group("text")
    group.add_argument("--text", metavar="TEXT", help="text to speak")
    group.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8 file of the text to speak")
    group.add_argument(
        "--each-line", help="speak each line of --text-file into its own file: OUT/0001.wav, ...", **switch
    )
    group = parser.add_argument_group("voice")
    help = "a training speaker, or a recording of the voice to imitate (default: the first)"
    group.add_argument("--speaker", metavar="VOICE", help=help)
    group.add_argument("--pace", type=_pace, default=1.0, metavar="X", help="1.2 speaks 20 %% faster")
    group.add_argument("--vocoder", default="griffin-lim", metavar="VOCODER", help=_VOCODERS)
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="WAV", help="file; with --each-line a folder; - for stdout")
    help = "picture of the mel and, for up to a minute of speech, of the alignment: a .png, .pdf or .svg file"
    group.add_argument("--picture", type=picture_path, metavar="FILE", help=help)
    group.add_argument("--stream", help="generate and write audio piece by piece", **switch)
    help = f"mel frames per piece with --stream (default: {CHUNK})"
    group.add_argument("--chunk", type=cli.positive_int, metavar="N", help=help)


def _pace(text: str) -> float:
    """argparse type: a factor on the speed of speech."""
    value = cli.positive_float(text)
    if not PACES[0] <= value <= PACES[1]:
        raise argparse.ArgumentTypeError(f"must lie between {PACES[0]:g} and {PACES[1]:g}, not {text}")
    return value


def _problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if (args.text is None) == (args.text_file is None):
        problems.append("give either --text or --text-file")
    if args.each_line and args.text_file is None:
        problems.append("--each-line needs --text-file")
    if args.stream and (args.picture is not None or args.each_line):
        problems.append("--stream writes one audio stream and nothing else: leave out --picture and --each-line")
    if args.out == "-" and (args.json or args.each_line):
        problems.append("--out - writes the audio to stdout: leave out --json and --each-line")
    if args.picture is not None and args.each_line:
        problems.append("--picture shows one text: leave out --each-line")
    if args.chunk is not None and not args.stream:
        problems.append("--chunk needs --stream")
    return problems


def _synthesize(args: argparse.Namespace) -> None:
    from utils.tts.synthesizer import Synthesizer
    from utils.tts.vocoder import load_vocoder

    texts = _texts(args)
    synthesizer = Synthesizer.load(args.checkpoint, args.device, args.backend)
    synthesizer.require_pace(args.pace)
    vocoder = load_vocoder(args.vocoder, synthesizer.recipe, synthesizer.device)
    readings = synthesizer.read_all(texts)  # an unreadable text is refused before anything is written
    if args.stream:
        _stream(args, synthesizer, vocoder, readings[0])
        return
    done = []
    bar = cli.progress(readings, unit="text", disable=None if len(readings) > 1 else True)
    with only_writer(Path(args.out)) if args.each_line else contextlib.nullcontext():
        for number, (text, reading) in enumerate(zip(texts, bar, strict=True), start=1):
            path = Path(args.out) / f"{number:04d}.wav" if args.each_line else args.out
            done.append(_speak(args, synthesizer, vocoder, text, reading, path))
    if args.json:
        print_json({"model_hash": synthesizer.model_hash, "vocoder": vocoder.name, "spoken": done})


def _warn_of_unknown(reading: Reading) -> None:
    for symbol, count in sorted(reading.unknown.items()):
        times = "once" if count == 1 else f"{count} times"
        print(f"warning: no training text had {symbol!r}, which occurs {times} in the text", file=sys.stderr)


def _texts(args: argparse.Namespace) -> list[str]:
    """The texts to speak; `UserError` if they are empty or not UTF-8."""
    if args.text is not None:
        try:
            args.text.encode()
        except UnicodeEncodeError as error:  # Python keeps bytes of the command line that are not UTF-8 as surrogates
            raise UserError("--text is not UTF-8 text") from error
        return [args.text]
    content = read_text(args.text_file)
    lines = [line.strip() for line in content.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{args.text_file} is empty: there is nothing to speak")
    return lines if args.each_line else [content]


def _speak(
    args: argparse.Namespace, synthesizer: Synthesizer, vocoder: Vocoder, text: str, reading: Reading, out: str | Path
) -> dict[str, Any]:
    """Speaks a text into a file, and returns the result as plain values."""
    spoken = synthesizer.speak(reading, args.speaker, args.pace)
    samples = vocoder(spoken.mel)
    with _audio_file(out, synthesizer.recipe.sample_rate) as write:
        write(samples)
    if args.picture is not None:
        from utils.tts.plots import draw_speech

        title = text if len(text) <= 70 else f"{text[:70]}..."
        alignment = spoken.alignment if len(spoken.mel) * len(spoken.symbols) <= MOST_CELLS else None
        draw_speech(args.picture, spoken.mel, alignment, spoken.symbols, synthesizer.recipe, title)
    _warn_of_unknown(reading)
    if spoken.truncated:
        print("warning: the model did not end a sentence, which was cut at the limit on its length", file=sys.stderr)
    seconds, symbols = len(samples) / synthesizer.recipe.sample_rate, len(spoken.symbols)
    if not args.json:
        _print_beside(out, f"{seconds:.2f} s, {counted(symbols, 'symbol')}, read as: {spoken.spoken}")
    result = {"out": str(out), "seconds": seconds, "symbols": symbols, "read_as": spoken.spoken}
    return {**result, "unknown": dict(spoken.unknown), "truncated": spoken.truncated}


def _stream(args: argparse.Namespace, synthesizer: Synthesizer, vocoder: Vocoder, reading: Reading) -> None:
    """Writes each piece of audio as soon as it is final, and reports the time to the first one."""
    synthesizer.require_streaming()
    _warn_of_unknown(reading)
    began, first, samples = time.perf_counter(), None, 0
    pieces = vocoder.stream(synthesizer.stream(reading, args.speaker, args.pace, args.chunk or CHUNK))
    with _audio_file(args.out, synthesizer.recipe.sample_rate) as write:
        for piece in pieces:
            write(piece)
            first = time.perf_counter() - began if first is None else first
            samples += len(piece)
    seconds, total = samples / synthesizer.recipe.sample_rate, time.perf_counter() - began
    if args.json:
        result = {"out": args.out, "seconds": seconds, "first_sound_s": first, "all_s": total}
        print_json({**result, "read_as": reading.spoken, "unknown": dict(reading.unknown)})
    else:
        times = f"the first audio after {first:.2f} s, all after {total:.2f} s"
        _print_beside(args.out, f"{seconds:.2f} s, {times}, read as: {reading.spoken}")


def _print_beside(out: str | Path, sentence: str) -> None:
    """Prints a sentence about `out` to stdout, or to stderr if stdout has the audio."""
    print(f"{out}: {sentence}", file=sys.stderr if str(out) == "-" else sys.stdout)


@contextlib.contextmanager
def _audio_file(out: str | Path, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends samples (n,) to a 16-bit WAV file, or for "-" to stdout without a header."""
    from utils.wav import pcm16, wav_file

    def write_raw(samples: np.ndarray) -> None:
        sys.stdout.buffer.write(pcm16(samples))
        sys.stdout.buffer.flush()

    if str(out) == "-":
        yield write_raw
        return
    with wav_file(out, rate) as write:
        yield write
