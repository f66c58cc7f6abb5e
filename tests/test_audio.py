import os
import struct

import numpy as np
import pytest
import soundfile

from utils.errors import UserError
from utils.features.audio import load_audio, read_audio


@pytest.fixture
def samples():
    return (0.2 * np.random.default_rng(5).standard_normal(24_000)).astype(np.float32)


def write(path, samples, rate=16_000, **kwargs):
    soundfile.write(path, samples, rate, **kwargs)
    return path


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.wav", "PCM_U8"), ("a.flac", "PCM_16"),
     ("a.flac", "PCM_24"), ("a.flac", "PCM_S8"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_samples_are_those_of_soundfile(tmp_path, samples, name, subtype):
    path = write(tmp_path / name, samples, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32")
    read, rate = read_audio(path)
    assert rate == 16_000 and read.dtype == np.float32 and read.flags.c_contiguous
    # libsndfile's MP3 decoder rounds otherwise after the seek that soundfile.read begins with; the rest is exact.
    np.testing.assert_allclose(read, expected, rtol=0, atol=2e-7 if name == "a.mp3" else 0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_channels_are_averaged(tmp_path, samples, name):
    path = write(tmp_path / name, np.stack([samples, np.zeros_like(samples)], axis=1))
    left, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_allclose(read_audio(path)[0], left[:, 0] / 2, atol=1e-7)


@pytest.mark.parametrize("share", [0.0005, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.flac", "a.wav"])
def test_a_file_cut_short_is_refused(tmp_path, samples, name, share):
    path = write(tmp_path / name, samples)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(UserError, match=r"a\.(flac|wav) is (truncated|damaged|not audio)"):
        read_audio(path)


def test_every_flipped_bit_of_a_flac_is_detected(tmp_path, samples):
    path = write(tmp_path / "a.flac", samples)
    content = path.read_bytes()
    expected = read_audio(path)[0]
    draw = np.random.default_rng(6)
    refused = 0
    audio_starts = content.index(b"\xff\xf8")  # beyond the header, whose tags may change unnoticed
    for place in draw.integers(audio_starts, len(content), size=60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.integers(8)
        path.write_bytes(flipped)
        try:
            read = read_audio(path)[0]
        except UserError:
            refused += 1
        else:
            np.testing.assert_array_equal(read, expected)
    assert refused >= 55


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_a_flac_that_decodes_to_other_samples_than_were_encoded_is_refused(tmp_path, samples, subtype):
    path = write(tmp_path / "a.flac", samples, subtype=subtype)
    content = bytearray(path.read_bytes())
    content[30] ^= 1  # in the checksum over all samples: every frame is still intact
    path.write_bytes(content)
    assert len(soundfile.read(path)[0]) == len(samples)  # the decoder itself notices nothing
    with pytest.raises(UserError, match="is damaged: its samples do not match the checksum"):
        read_audio(path)
    content[26:42] = bytes(16)  # an encoder that left it out
    path.write_bytes(content)
    assert len(read_audio(path)[0]) == len(samples)


def test_a_flac_of_an_encoder_that_did_not_know_the_length_is_refused(tmp_path, samples):
    path = write(tmp_path / "a.flac", samples)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits: the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UserError, match="has no length in its header"):
        read_audio(path)


def test_wav_headers_of_recorders_that_did_not_know_the_length(tmp_path, samples):
    path = write(tmp_path / "a.wav", samples)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert len(read_audio(path)[0]) == len(samples)


def test_a_wav_that_says_more_than_it_holds_names_both(tmp_path, samples):
    path = write(tmp_path / "a.wav", samples)
    os.truncate(path, path.stat().st_size - 1000)
    assert len(soundfile.read(path)[0]) == len(samples) - 500  # the decoder itself notices nothing
    with pytest.raises(UserError, match="it holds 47000 of 48000 bytes of audio"):
        read_audio(path)


def test_unusable_files_are_refused_with_a_sentence(tmp_path, samples):
    (tmp_path / "text.flac").write_text("this is not audio, whatever its name says\n")
    (tmp_path / "empty.wav").touch()
    write(tmp_path / "zero.wav", samples[:0])
    write(tmp_path / "nan.wav", np.float32([0, np.nan, 0]), subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    cases = {
        "text.flac": "is not audio",
        "empty.wav": "is empty",
        "zero.wav": "holds no samples",
        "nan.wav": "NaN",
        "folder.wav": "is not a file",
        "gone.wav": "is missing",
    }
    for name, sentence in cases.items():
        with pytest.raises(UserError, match=sentence) as caught:
            read_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_the_files_own_rate_is_left_alone(tmp_path, samples):
    path = write(tmp_path / "a.wav", samples)
    np.testing.assert_array_equal(load_audio(path, 16_000), read_audio(path)[0])
    assert len(load_audio(path, 8_000)) == 12_000


def test_a_rate_that_would_need_a_giant_filter_is_refused(tmp_path, samples):
    with pytest.raises(UserError, match="sample rate of 44099 Hz"):
        load_audio(write(tmp_path / "a.wav", samples, rate=44_099), 16_000)
