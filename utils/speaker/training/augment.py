"""Augmentations: changes of a training crop that keep its speaker recognizable, of its samples or of its log-mel.

Each is a configuration whose options become flags. They apply in the order of registration. Those of samples
(`WaveAugmentation`) need a store of audio and come first, in the order of a recording: room, other sounds, microphone,
level, transmission. The others are functions of the mel (t, n_mels), a random generator and `fill` (n_mels,), the
training set's mean.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from models.config import Config, Registry, option, options
from utils.cli import flag_name
from utils.features import degrade
from utils.features.degrade import Scene
from utils.features.sounds import SoundFolder

TILT = 3.0  # largest difference in nepers between the levels of the noise at the two ends of the mel axis
COLORS = (-1.0, 2.5)  # exponents of the spectra of synthetic noise, from blue to darker than brown
VOICES = (3, 7)  # least and largest number of speakers in babble


class Augmentation(Protocol):
    """A configured augmentation of mels."""

    def __call__(self, mel: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        """A changed copy of a crop, or the crop itself."""


@dataclass(frozen=True)
class WaveAugmentation(Config):
    """Base of augmentations of samples; an option NAME_share is the share of the crops that get it.

    A pair of numbers is a range. The option that `folder` names is a folder of sounds.
    """

    folder: ClassVar[str] = ""

    @property
    def share_name(self) -> str:
        """The name of the option of the share."""
        return next(field.name for field in options(type(self)) if field.name.endswith("_share"))

    @property
    def share(self) -> float:
        """The share of the crops that get it."""
        return getattr(self, self.share_name)

    @functools.cached_property
    def sounds(self) -> SoundFolder | None:
        """The sounds that it draws from, if a folder is given; `UserError` if it holds none."""
        path = getattr(self, self.folder) if self.folder else None
        return path and SoundFolder(path)

    def problems(self) -> list[str]:
        """Sentences about ranges whose bounds are in the wrong order, and about a folder that nothing is drawn from."""
        values = {field.name: getattr(self, field.name) for field in options(type(self))}
        ranges = [(name, value) for name, value in values.items() if isinstance(value, tuple)]
        unused = self.folder and values[self.folder] is not None and not self.share
        needs = [f"{flag_name(self.folder)} needs {flag_name(self.share_name)} above 0"] * bool(unused)
        return [problem for name, value in ranges for problem in _order(name, value)] + needs

    def __call__(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        """Samples (S,) float32, degraded or not."""
        if self.share and generator.random() < self.share:
            return self.degrade(samples, generator, scene)
        return samples

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        """Degraded samples, as many."""
        raise NotImplementedError


def _order(name: str, bounds: tuple[float, float]) -> list[str]:
    """A sentence about a range whose bounds are in the wrong order."""
    low, high = bounds
    return [] if low <= high else [f"{name} {low:g} {high:g}: the first must not be above the second"]


AUGMENTATIONS: Registry[type[Config]] = Registry()
RANGE = ("LOW", "HIGH")


@AUGMENTATIONS.register("reverb")
@dataclass(frozen=True)
class Reverb(WaveAugmentation):
    """Rooms: impulse responses from a folder, or of random shoeboxes."""

    title, folder = "augmentation of audio: rooms", "rir_folder"

    reverb_share: float = option(0.0, "share of the crops that get reverberation", least=0, most=1)
    reverb_seconds: tuple[float, float] = option(
        (0.2, 0.9), "range of the reverberation time (RT60) of simulated rooms", above=0, metavar=RANGE
    )
    rir_folder: Path | None = option(
        None,
        "folder of recorded impulse responses, which replace simulated rooms; compared on resuming by names and sizes",
        metavar="FOLDER",
        may_change=True,
    )

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        if self.sounds:
            return degrade.reverberate(samples, self.sounds.whole(scene.rate, generator))
        rt60 = generator.uniform(*self.reverb_seconds)
        return degrade.reverberate(samples, degrade.random_room(generator, scene.rate, rt60))


@AUGMENTATIONS.register("babble")
@dataclass(frozen=True)
class Babble(WaveAugmentation):
    """Other training speakers who talk at the same time."""

    title = "augmentation of audio: babble"

    babble_share: float = option(
        0.0, "share of the crops that get babble of 3 to 7 other training speakers", least=0, most=1
    )
    babble_snr: tuple[float, float] = option((10.0, 20.0), "range of its SNR in dB", metavar=RANGE)

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        low, high = VOICES
        voices = [scene.voice(len(samples)) for _ in range(generator.integers(low, high + 1))]
        return degrade.add_noise(samples, degrade.babble(voices), generator.uniform(*self.babble_snr))


@AUGMENTATIONS.register("recorded_noise")
@dataclass(frozen=True)
class RecordedNoise(WaveAugmentation):
    """Noise from a folder."""

    title, folder = "augmentation of audio: recorded noise", "noise_folder"

    recorded_noise_share: float = option(0.0, "share of the crops that get noise of --noise-folder", least=0, most=1)
    recorded_noise_snr: tuple[float, float] = option((0.0, 15.0), "range of its SNR in dB", metavar=RANGE)
    noise_folder: Path | None = option(
        None,
        "folder of noises, such as MUSAN's noise; compared on resuming by names and sizes",
        metavar="FOLDER",
        may_change=True,
    )

    def problems(self) -> list[str]:
        """Adds a sentence about a share without a folder."""
        missing = self.recorded_noise_share and self.noise_folder is None
        return super().problems() + (["--recorded-noise-share needs --noise-folder"] if missing else [])

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        noise = self.sounds.piece(len(samples), scene.rate, generator)
        return degrade.add_noise(samples, noise, generator.uniform(*self.recorded_noise_snr))


@AUGMENTATIONS.register("colored_noise")
@dataclass(frozen=True)
class ColoredNoise(WaveAugmentation):
    """Steady synthetic noise between blue and brown."""

    title = "augmentation of audio: synthetic noise"

    colored_noise_share: float = option(0.0, "share of the crops that get noise of a random color", least=0, most=1)
    colored_noise_snr: tuple[float, float] = option((5.0, 30.0), "range of its SNR in dB", metavar=RANGE)

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        noise = degrade.colored_noise(len(samples), generator.uniform(*COLORS), generator)
        return degrade.add_noise(samples, noise, generator.uniform(*self.colored_noise_snr))


@AUGMENTATIONS.register("equalizer")
@dataclass(frozen=True)
class Equalizer(WaveAugmentation):
    """Microphones: smooth random responses."""

    title = "augmentation of audio: equalizer"

    equalizer_share: float = option(0.0, "share of the crops that get a random smooth equalizer", least=0, most=1)
    equalizer_db: float = option(12.0, "its largest gain or loss in dB", least=0)

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        curve = degrade.random_curve(generator, scene.rate, self.equalizer_db)
        return degrade.equalize(samples, scene.rate, *curve)


@AUGMENTATIONS.register("bandwidth")
@dataclass(frozen=True)
class Bandwidth(WaveAugmentation):
    """Channels that lose the high frequencies."""

    title = "augmentation of audio: bandwidth"

    bandwidth_share: float = option(0.0, "share of the crops that pass a low-pass", least=0, most=1)
    bandwidth_hz: tuple[float, float] = option((2500.0, 7000.0), "range of its corner in Hz", above=0, metavar=RANGE)

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        return degrade.low_pass(samples, scene.rate, generator.uniform(*self.bandwidth_hz))


@AUGMENTATIONS.register("level")
@dataclass(frozen=True)
class Level(WaveAugmentation):
    """Another level of the recording."""

    title = "augmentation of audio: level"

    level_share: float = option(0.0, "share of the crops that get another level", least=0, most=1)
    level_db: tuple[float, float] = option((-20.0, 10.0), "range of the change in dB", metavar=RANGE)

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        return degrade.gain(samples, generator.uniform(*self.level_db))


@AUGMENTATIONS.register("clipping")
@dataclass(frozen=True)
class Clipping(WaveAugmentation):
    """Recordings that exceed the range of their recorder."""

    title = "augmentation of audio: clipping"

    clipping_share: float = option(0.0, "share of the crops that are clipped", least=0, most=1)
    clipping_db: tuple[float, float] = option(
        (1.0, 12.0), "range of the loss of the peak in dB", least=0, metavar=RANGE
    )

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        return degrade.clip(samples, generator.uniform(*self.clipping_db))


@AUGMENTATIONS.register("telephone")
@dataclass(frozen=True)
class Telephone(WaveAugmentation):
    """Telephones, of the landline or GSM."""

    title = "augmentation of audio: telephone"

    telephone_share: float = option(0.0, "share of the crops that pass a telephone, G.711 or GSM", least=0, most=1)

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        return degrade.telephone(samples, scene.rate, ("ulaw", "gsm")[generator.integers(2)])


@AUGMENTATIONS.register("codec")
@dataclass(frozen=True)
class Codec(WaveAugmentation):
    """Lossy files."""

    title = "augmentation of audio: codec"

    codec_share: float = option(0.0, "share of the crops that pass MP3, Vorbis or Opus", least=0, most=1)
    codec_level: tuple[float, float] = option(
        (0.6, 0.95), "range of the compression, of 1 at most", least=0, most=1, metavar=RANGE
    )

    def degrade(self, samples: np.ndarray, generator: np.random.Generator, scene: Scene) -> np.ndarray:
        names = degrade.codecs_of(scene.rate)
        name = names[generator.integers(len(names))]
        return degrade.codec(samples, scene.rate, name, generator.uniform(*self.codec_level))


@AUGMENTATIONS.register("noise")
@dataclass(frozen=True)
class Noise(Config):
    """Steady synthetic noise of a random color."""

    title = "augmentation: noise"

    noise_share: float = option(0.0, "share of the crops that get synthetic noise in the mel", least=0, most=1)
    noise_snr: tuple[float, float] = option((5.0, 30.0), "range of its SNR in dB", metavar=RANGE)

    def problems(self) -> list[str]:
        """A sentence about a range whose bounds are in the wrong order."""
        return _order("noise_snr", self.noise_snr)

    def __call__(self, mel: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        if self.noise_share and generator.random() < self.noise_share:
            return add_noise(mel, generator, *self.noise_snr)
        return mel


@AUGMENTATIONS.register("spec_augment")
@dataclass(frozen=True)
class SpecAugment(Config):
    """Random bands of channels and of frames set to the training set's mean (Park et al. 2019, section 2)."""

    title = "augmentation: SpecAugment"

    frequency_masks: int = option(2, "masks over mel channels", least=0)
    frequency_width: int = option(10, "largest such mask in channels", least=0)
    time_masks: int = option(2, "masks over time", least=0)
    time_width: int = option(20, "largest such mask in frames", least=0)

    def __call__(self, mel: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
        mel = np.array(mel)
        frames, channels = mel.shape
        for _ in range(self.frequency_masks):
            width = int(generator.integers(min(self.frequency_width, channels) + 1))
            low = int(generator.integers(channels - width + 1))
            mel[:, low : low + width] = fill[low : low + width]
        for _ in range(self.time_masks):
            width = int(generator.integers(min(self.time_width, frames) + 1))
            low = int(generator.integers(frames - width + 1))
            mel[low : low + width] = fill
        return mel


def add_noise(mel: np.ndarray, generator: np.random.Generator, lowest_snr: float, highest_snr: float) -> np.ndarray:
    """`mel`, the natural log of magnitudes, with steady noise of a random color at a random ratio in dB.

    Speech and noise have independent phases, so their powers add. The power of the noise in a cell is exponentially
    distributed, like that of a Fourier coefficient of Gaussian noise, and its log is linear along the mel axis.
    """
    frames, channels = mel.shape
    power = np.exp(2 * mel.astype(np.float64))
    shape = np.exp(2 * generator.uniform(-TILT, TILT) * (np.arange(channels) / channels - 0.5))
    ratio = 10 ** (-generator.uniform(lowest_snr, highest_snr) / 10)
    noise = generator.exponential(size=(frames, channels)) * shape * (ratio * power.mean() / shape.mean())
    return (0.5 * np.log(power + noise)).astype(np.float32)
