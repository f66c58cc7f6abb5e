"""The corpora that `download.py` offers, as catalog.yaml lists them with their official addresses and hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_CORPORA: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

DATASETS: dict[str, str] = {name: corpus["layout"] for name, corpus in _CORPORA.items()}  # and the layout of each
AUDIO_SUFFIX = {"librispeech": ".flac", "ljspeech": ".wav"}
DEFAULT_SPLITS = {name: tuple(corpus["default"]) for name, corpus in _CORPORA.items()}
SYNTHETIC_SPLITS = {name: DEFAULT_SPLITS[name] for name, corpus in _CORPORA.items() if "splits" not in corpus}


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


def _archive(dataset: str, split: str, urls: list[str], folder: str, facts: dict[str, Any]) -> Archive:
    common = {
        "urls": tuple(url.format(split=split) for url in urls),
        "folder": folder.format(split=split),
        "sha256": None,
        "unpacked_bytes": int(facts["bytes"] * 1.05),  # FLAC does not compress further; files end on whole blocks
    }
    return Archive(dataset, split, **common | facts)


ARCHIVES = {
    (dataset, split): _archive(dataset, split, corpus["urls"], corpus["folder"], facts)
    for dataset, corpus in _CORPORA.items()
    for split, facts in corpus.get("splits", {}).items()
}


def splits(dataset: str) -> tuple[str, ...]:
    """Names of the splits of a dataset."""
    return tuple(_CORPORA[dataset].get("splits", DEFAULT_SPLITS[dataset]))
