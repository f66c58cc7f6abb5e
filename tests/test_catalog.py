"""Facts about public corpora: complete, well-formed, and consistent with the published totals."""

import re

import pytest

from utils.corpus.catalog import ARCHIVES, DATASETS, DEFAULT_SPLITS, SYNTHETIC_SPLITS, splits
from utils.corpus.layouts import LAYOUTS

LIBRISPEECH = [archive for archive in ARCHIVES.values() if archive.dataset == "librispeech"]


def test_librispeech_adds_up_to_the_published_totals():
    assert sum(archive.bytes for archive in LIBRISPEECH) == 61_357_943_031
    assert sum(archive.utterances for archive in LIBRISPEECH) == 292_367
    assert sum(archive.speakers for archive in LIBRISPEECH) == 2_484


def test_known_archive():
    archive = ARCHIVES["librispeech", "dev-clean"]
    assert archive.urls[0] == "https://www.openslr.org/resources/12/dev-clean.tar.gz"
    assert (archive.name, archive.folder, archive.audio_suffix) == (
        "dev-clean.tar.gz",
        "LibriSpeech/dev-clean",
        ".flac",
    )
    assert ARCHIVES["ljspeech", "LJSpeech-1.1"].audio_suffix == ".wav"


@pytest.mark.parametrize("key", ARCHIVES, ids="/".join)
def test_every_archive_can_be_verified(key):
    archive = ARCHIVES[key]
    assert (archive.dataset, archive.split) == key
    assert archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)
    assert re.fullmatch("[0-9a-f]{32}", archive.md5)
    assert 0 < archive.bytes < archive.unpacked_bytes
    assert all(url.startswith("https://") and url.endswith(archive.name) for url in archive.urls)


def test_no_two_archives_share_a_hash():
    assert len({archive.md5 for archive in ARCHIVES.values()}) == len(ARCHIVES)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_has_splits_defaults_and_a_layout(dataset):
    assert splits(dataset)
    assert set(DEFAULT_SPLITS[dataset]) <= set(splits(dataset))
    assert DATASETS[dataset] in LAYOUTS


def test_every_dataset_is_either_generated_or_downloaded():
    assert set(SYNTHETIC_SPLITS) == {"demo", "demo-voice"}
    assert set(SYNTHETIC_SPLITS).isdisjoint(dataset for dataset, _ in ARCHIVES)
    assert set(SYNTHETIC_SPLITS) | {dataset for dataset, _ in ARCHIVES} == set(DATASETS)
