import pickle
import shutil

import datasets
import numpy as np
import pytest

from utils.errors import UserError
from utils.features.audio import load_audio
from utils.features.mel import MelExtractor
from utils.features.recipe import RECIPES
from utils.features.store import FeatureStore, shard_paths


@pytest.fixture(scope="module")
def store(processed):
    return FeatureStore.open(processed)


@pytest.fixture
def copy(processed, tmp_path):
    return shutil.copytree(processed, tmp_path / "copy")


def test_rows_are_the_corpus_in_order_of_ids(store, librispeech_root):
    audio = sorted(librispeech_root.rglob("*.flac"), key=lambda path: path.stem)
    assert [row.utterance for row in store.rows] == [path.stem for path in audio]
    assert [row.path for row in store.rows] == [path.relative_to(librispeech_root).as_posix() for path in audio]
    assert len(store) == 94 and store.index["103-1032-0004"] == [p.stem for p in audio].index("103-1032-0004")
    row = store.rows[store.index["105-1051-0002"]]
    assert (row.speaker, row.chapter, row.sex, row.split) == ("105", "1051", "F", "train-tiny")
    assert row.text == row.text.upper() and 1.5 <= row.seconds <= 2.5


def test_mels_are_those_of_the_extractor_but_for_half_precision(store, librispeech_root):
    extractor = MelExtractor(RECIPES["speaker-16k"])
    for i in (0, 40, 93):
        expected = extractor(load_audio(librispeech_root / store.rows[i].path, 16_000))
        mel = store.mel(i)
        assert mel.dtype == np.float32 and mel.shape == expected.shape == (store.rows[i].frames, 80)
        np.testing.assert_array_equal(mel, expected.astype(np.float16).astype(np.float32))


def test_parts_of_a_mel(store):
    whole = store.mel(7)
    np.testing.assert_array_equal(store.mel(7, start=30, frames=50), whole[30:80])
    np.testing.assert_array_equal(store.mel(7, start=len(whole) - 5, frames=50), whole[-5:])
    np.testing.assert_array_equal(store.mel(7, start=3), whole[3:])


def test_returned_arrays_are_copies(store):
    store.mel(0)[:] = 0
    store.tokens(0)[:] = 0
    assert store.mel(0).min() < -1 and store.tokens(0).min() > 0


def test_tokens_spell_the_transcript(store):
    for i in (0, 50):
        assert store.tokens(i).dtype == np.int32
        assert store.vocabulary.decode(store.tokens(i)) == store.rows[i].text.lower()
        assert (store.tokens(i)[0], store.tokens(i)[-1]) == (2, 3)


def test_a_store_can_be_pickled(store):
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.mel(93), store.mel(93))
    assert again.rows == store.rows and len(pickle.dumps(store)) < 1000


def test_the_shards_are_files_of_hugging_face_datasets(store):
    rows = [row for path in shard_paths(store.directory, store.meta) for row in datasets.Dataset.from_file(str(path))]
    assert [row["utterance"] for row in rows] == [row.utterance for row in store.rows]
    np.testing.assert_array_equal(np.float32(rows[5]["mel"]).reshape(-1, 80), store.mel(5))


def test_storage_is_two_bytes_a_value(store):
    values = sum(row.frames for row in store.rows) * 80
    assert sum(path.stat().st_size for path in shard_paths(store.directory, store.meta)) < 1.02 * 2 * values + 50_000


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(UserError, match="no features in .*nowhere"):
        FeatureStore.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="are incomplete"):
        FeatureStore.open(tmp_path)


def test_another_recipe_in_the_folder_is_refused(copy):
    recipe = copy / "recipe.json"
    recipe.write_text(recipe.read_text().replace("7600.0", "7000.0"))
    with pytest.raises(UserError, match="is not the recipe of meta.json"):
        FeatureStore.open(copy)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999999])
def test_a_shard_cut_short_is_refused(copy, share):
    shard = next(copy.glob("features/*.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged"):
        FeatureStore.open(copy)


def test_a_missing_shard_is_refused(copy):
    next(copy.glob("features/*.arrow")).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        FeatureStore.open(copy)


def test_a_file_of_another_format_is_refused(copy):
    (copy / "meta.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="not a feature store of format 2"):
        FeatureStore.open(copy)
