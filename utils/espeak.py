"""Speech synthesis by espeak-ng, in a separate process.

    echo '{"voice": "en-us+f3", "sentences": [{"text": "Good morning.", "rate": 165, "pitch": 50}]}' \\
        | python -m utils.espeak > speech.bin

Standard input takes one JSON job; standard output returns one JSON line, `{"sample_rate": 22050, "samples": [n, ...]}`,
and then the 16-bit samples of one sentence after another. For a job with `"phones": true` the JSON line also has
`"phones": [[[symbol, sample], ...], ...]`, the phones of each sentence with their starts. The output of espeak-ng
depends on what its process spoke before, so a process serves one job and ends: the bytes then depend on the job alone.

espeak-ng is GPL-3.0-or-later: it is an optional dependency (requirements-demo.txt), and only this worker loads it.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_long, c_short, c_size_t, c_uint, c_uint8, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

# Names and values of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
ESPEAK_RATE, ESPEAK_VOLUME, ESPEAK_PITCH = 1, 2, 3
POS_CHARACTER = 1
ESPEAK_CHARS_UTF8 = 1
INITIALIZE_PHONEME_EVENTS, INITIALIZE_PHONEME_IPA = 1, 2
EVENT_LIST_TERMINATED, EVENT_PHONEME = 0, 7

VOLUME = 25  # of 200; at the default of 100 about a third of the voices clip
RANDOM_SEED = 1  # by default espeak-ng seeds the breath noise of its voices with the time
REPOSITORY = Path(__file__).resolve().parents[1]


class _Event(ctypes.Structure):
    """espeak_EVENT; `phone` is the union's string: 8 bytes of UTF-8, zero-terminated if it is shorter."""

    _fields_ = (
        ("type", c_int),
        ("unique_identifier", c_uint),
        ("text_position", c_int),
        ("length", c_int),
        ("audio_position", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("phone", c_uint8 * 8),
    )


class Phone(NamedTuple):
    """A phone of a sentence.

    `symbol` is IPA with the stress mark before a vowel, empty for a pause. `start` is its first sample as espeak-ng
    reports it: the release of a plosive (the silence before it belongs to the previous phone), and of a vowel after a
    nasal or liquid the end of the glide into it.
    """

    symbol: str
    start: int


def require_espeak(user: str = "the demo corpora") -> Any:
    """Imports the module with the library and its data; `UserError`, which names the `user`, if it is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        problem = f"{user} need espeak-ng, which is not installed: pip install -r requirements-demo.txt"
        raise UserError(problem) from error
    return espeakng_loader


def synthesize(job: Mapping[str, Any]) -> tuple[int, list[np.ndarray]]:
    """Synthesizes a job in a new process.

    Args:
        job: `voice` (espeak's language and variant, "en-us+f3") and `sentences`, each with its `text`, `rate` in
            words per minute and `pitch` from 0 to 100 (50: the voice's own).

    Returns:
        The sample rate in Hz, and the samples of each sentence, int16 `(S,)`.

    Raises:
        UserError: espeak-ng is missing, or rejected the job.
    """
    answer, sentences = _serve(job)
    return answer["sample_rate"], sentences


def synthesize_with_phones(job: Mapping[str, Any]) -> tuple[int, list[np.ndarray], list[list[Phone]]]:
    """Synthesizes a job as `synthesize` does; also returns the phones of each sentence, ordered by start."""
    answer, sentences = _serve({**job, "phones": True})
    return answer["sample_rate"], sentences, [[Phone(*phone) for phone in phones] for phones in answer["phones"]]


def _serve(job: Mapping[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Runs a new worker; returns its JSON line, and the samples of each sentence."""
    import numpy as np  # not at the top: the worker imports this module too, and starts three times faster without it

    output = run_worker("utils.espeak", job, f"speak as {job['voice']}")
    header, _, body = output.partition(b"\n")
    answer = json.loads(header)
    sentences = np.split(np.frombuffer(body, dtype="<i2"), np.cumsum(answer["samples"]))
    if [len(samples) for samples in sentences] != [*answer["samples"], 0]:
        raise UserError(f"the output of espeak-ng for {job['voice']} is truncated")
    return answer, sentences[:-1]


def run_worker(module: str, job: Any, purpose: str) -> bytes:
    """Runs a module of `serve` on a job in a new process; returns its output, `UserError` if it could not `purpose`."""
    command = [sys.executable, "-m", module]
    worker = subprocess.run(command, input=json.dumps(job).encode(), capture_output=True, cwd=REPOSITORY)
    if worker.returncode:
        lines = worker.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("error: ") if lines else f"exit code {worker.returncode}"
        raise UserError(f"espeak-ng could not {purpose}: {reason}")
    return worker.stdout


class Espeak:
    """The library, speaking into memory. One instance per process: its state is global.

    With `phones` it also records the phones of each sentence with their starts.
    """

    def __init__(self, phones: bool = False) -> None:
        loader = require_espeak()
        self.library = ctypes.CDLL(loader.get_library_path())
        self.variants = Path(loader.get_data_path(), "voices", "!v")
        self.library.espeak_ng_SetRandSeed.argtypes = [c_long]
        self.library.espeak_SetVoiceByName.argtypes = [c_char_p]
        self.library.espeak_Synth.argtypes = [c_char_p, c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p]
        # espeak-ng truncates the path of its data to 160 bytes: change to the folder, and give it a short one.
        os.chdir(Path(loader.get_data_path()).parent)
        options = INITIALIZE_PHONEME_EVENTS | INITIALIZE_PHONEME_IPA if phones else 0
        self.sample_rate = self.library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, b".", options)
        if self.sample_rate <= 0:
            raise UserError("espeak-ng did not start: its data is missing or damaged, reinstall espeakng-loader")
        self.library.espeak_ng_SetRandSeed(RANDOM_SEED)
        self._blocks: list[bytes] = []
        self._phones: list[Phone] = []
        # Kept, because ctypes frees callbacks without a reference.
        self._callback = CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))(self._collect)
        self.library.espeak_SetSynthCallback(self._callback)
        self._check(self.library.espeak_SetParameter(ESPEAK_VOLUME, VOLUME, 0), "the volume")

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        for event in _until_the_end(events):
            if event.type == EVENT_PHONEME:
                symbol = bytes(event.phone).partition(b"\0")[0].decode()
                self._phones.append(Phone(symbol, event.sample))
        return 0

    def _check(self, status: int, what: str) -> None:
        if status:
            raise UserError(f"espeak-ng rejected {what} (status {status})")

    def set_voice(self, name: str) -> None:
        """Selects a voice; `UserError` for an unknown variant, where espeak-ng would silently take the plain voice."""
        _, plus, variant = name.partition("+")
        if plus and not (self.variants / variant).is_file():
            raise UserError(f"espeak-ng has no variant {variant!r}")
        self._check(self.library.espeak_SetVoiceByName(name.encode()), f"the voice {name!r}")

    def speak(self, text: str, rate: int, pitch: int) -> tuple[bytes, list[Phone]]:
        """Synthesizes a sentence as 16-bit samples in native byte order; also returns its phones if recorded."""
        self._check(self.library.espeak_SetParameter(ESPEAK_RATE, rate, 0), f"the rate {rate}")
        self._check(self.library.espeak_SetParameter(ESPEAK_PITCH, pitch, 0), f"the pitch {pitch}")
        self._blocks.clear()
        self._phones.clear()
        encoded = text.encode() + b"\0"
        status = self.library.espeak_Synth(encoded, len(encoded), 0, POS_CHARACTER, 0, ESPEAK_CHARS_UTF8, None, None)
        self._check(status, f"the sentence {text!r}")
        self._check(self.library.espeak_Synchronize(), f"the sentence {text!r}")
        return b"".join(self._blocks), list(self._phones)


def _until_the_end(events: Any) -> Iterator[_Event]:
    """Yields the events of a callback, which end with one of type 0; espeak-ng may also pass none."""
    if not events:
        return
    for place in itertools.count():
        if events[place].type == EVENT_LIST_TERMINATED:
            return
        yield events[place]


def serve(answer: Callable[[Any], bytes]) -> int:
    """Writes the answer to the job on standard input; returns the exit code."""
    job = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of the library must not mix with the answer
    try:
        answered = answer(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    with output:
        output.write(answered)
    return 0


def _speech(job: Mapping[str, Any]) -> bytes:
    phones = job.get("phones", False)
    espeak = Espeak(phones)
    espeak.set_voice(job["voice"])
    spoken = [espeak.speak(item["text"], item["rate"], item["pitch"]) for item in job["sentences"]]
    header = {"sample_rate": espeak.sample_rate, "samples": [len(samples) // 2 for samples, _ in spoken]}
    if phones:
        header["phones"] = [found for _, found in spoken]
    return json.dumps(header).encode() + b"\n" + b"".join(samples for samples, _ in spoken)


if __name__ == "__main__":
    sys.exit(serve(_speech))
