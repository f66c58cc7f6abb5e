"""The corpora that `download.py` offers, with their official addresses, sizes and hashes.

Sizes and hashes are those that OpenSLR and the LJSpeech page publish, as recorded by tensorflow-datasets and
torchaudio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DATASETS = MappingProxyType(  # and the layout of each
    {
        "demo": "librispeech",
        "demo-voice": "ljspeech",
        "librispeech": "librispeech",
        "mini-librispeech": "librispeech",
        "ljspeech": "ljspeech",
    }
)
AUDIO_SUFFIX = MappingProxyType({"librispeech": ".flac", "ljspeech": ".wav"})

SYNTHETIC_SPLITS = MappingProxyType({"demo": ("demo",), "demo-voice": ("DemoVoice-1.0",)})  # generated, not downloaded
DEFAULT_SPLITS = MappingProxyType(
    {
        **SYNTHETIC_SPLITS,
        "librispeech": ("train-clean-100", "dev-clean", "test-clean"),
        "mini-librispeech": ("train-clean-5", "dev-clean-2"),
        "ljspeech": ("LJSpeech-1.1",),
    }
)


@dataclass(frozen=True)
class Archive:
    """One split as its publisher distributes it.

    Attributes:
        dataset, split: names, as on the command line.
        urls: addresses of the same bytes, tried in this order.
        bytes: size of the archive.
        sha256, md5: hex digests of the archive; at least one is known.
        folder: folder of its recordings, relative to the archive's root and to the dataset's folder on disk.
        unpacked_bytes: approximate disk space of its contents.
        utterances, speakers: numbers of recordings and speakers, where published.
    """

    dataset: str
    split: str
    urls: tuple[str, ...]
    bytes: int
    sha256: str | None
    md5: str | None
    folder: str
    unpacked_bytes: int
    utterances: int | None = None
    speakers: int | None = None

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.urls[0].rsplit("/", 1)[-1]

    @property
    def audio_suffix(self) -> str:
        """File name extension of its recordings."""
        return AUDIO_SUFFIX[DATASETS[self.dataset]]


OPENSLR = (
    "https://www.openslr.org/resources",
    "https://openslr.trmal.net/resources",
    "https://openslr.elda.org/resources",
    "https://openslr.magicdatatech.com/resources",
)

# split: bytes, md5, sha256, utterances, speakers
_LIBRISPEECH = {
    "dev-clean": (
        337926286,
        "42e2234ba48799c1f50f24a7926300a1",
        "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
        2703,
        40,
    ),
    "dev-other": (
        314305928,
        "c8d0bcc9cca99d4f8b62fcc847357931",
        "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
        2864,
        33,
    ),
    "test-clean": (
        346663984,
        "32fa31d27d2e1cad72775fee3f4849a9",
        "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
        2620,
        40,
    ),
    "test-other": (
        328757843,
        "fb5a50374b501bb3bac4815ee91d3135",
        "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
        2939,
        33,
    ),
    "train-clean-100": (
        6387309499,
        "2a93770f6d5c6c964bc36631d331a522",
        "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
        28539,
        251,
    ),
    "train-clean-360": (
        23049477885,
        "c0e676e450a7ff2f54aeade5171606fa",
        "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
        104014,
        921,
    ),
    "train-other-500": (
        30593501606,
        "d1a0fd59409feb2c614ce4d30c387708",
        "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
        148688,
        1166,
    ),
}

# split: bytes, md5 (OpenSLR 31 publishes nothing else)
_MINI_LIBRISPEECH = {
    "train-clean-5": (332954390, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": (126046265, "6d7ab67ac6a1d2c993d050e16d61080d"),
}


def _openslr(resource: int, name: str) -> tuple[str, ...]:
    return tuple(f"{base}/{resource}/{name}" for base in OPENSLR)


def _archives() -> dict[tuple[str, str], Archive]:
    found = [
        Archive(
            dataset="librispeech",
            split=split,
            urls=_openslr(12, f"{split}.tar.gz"),
            bytes=size,
            sha256=sha256,
            md5=md5,
            folder=f"LibriSpeech/{split}",
            unpacked_bytes=int(size * 1.05),  # FLAC does not compress further; files end on whole blocks
            utterances=utterances,
            speakers=speakers,
        )
        for split, (size, md5, sha256, utterances, speakers) in _LIBRISPEECH.items()
    ]
    found += [
        Archive(
            dataset="mini-librispeech",
            split=split,
            urls=_openslr(31, f"{split}.tar.gz"),
            bytes=size,
            sha256=None,
            md5=md5,
            folder=f"LibriSpeech/{split}",
            unpacked_bytes=int(size * 1.05),
        )
        for split, (size, md5) in _MINI_LIBRISPEECH.items()
    ]
    found.append(
        Archive(
            dataset="ljspeech",
            split="LJSpeech-1.1",
            urls=("https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",),
            bytes=2748572632,
            sha256="be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
            md5="c4763be9595ddfa79c2fc6eaeb3b6c8e",
            folder="LJSpeech-1.1",
            unpacked_bytes=3_830_000_000,  # 23:55:17 at 22,050 Hz in 16 bits
            utterances=13100,
            speakers=1,
        )
    )
    return {(archive.dataset, archive.split): archive for archive in found}


ARCHIVES: Mapping[tuple[str, str], Archive] = _archives()


def splits(dataset: str) -> tuple[str, ...]:
    """Names of the splits of a dataset."""
    if dataset in SYNTHETIC_SPLITS:
        return SYNTHETIC_SPLITS[dataset]
    return tuple(split for name, split in ARCHIVES if name == dataset)
