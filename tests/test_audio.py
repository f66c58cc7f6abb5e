import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile

from utils.errors import UserError
from utils.features.audio import load_audio, open_audio, read_audio
from utils.features.containers import checked


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


def test_every_flipped_bit_of_a_flac_is_detected(tmp_path, samples, seed):
    path = write(tmp_path / "a.flac", samples)
    content = path.read_bytes()
    expected = read_audio(path)[0]
    draw = np.random.default_rng(seed)
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


def test_a_flac_of_an_encoder_that_did_not_know_the_length_is_read(tmp_path, samples):
    path = write(tmp_path / "a.flac", samples)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits: the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(read_audio(path)[0]) == len(samples)


@pytest.mark.parametrize("extra", [b"", b"LIST\x04\0\0\0abcd"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize(
    "length", [0, 0x7FFFF000, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x80000000, 0xFFFFFFFF - 36, 0xFFFFFFFF]
)
def test_wav_headers_of_writers_that_did_not_know_the_length(tmp_path, samples, subtype, length, extra):
    """sox, arecord, ffmpeg and others in a pipe; also with a chunk before the audio."""
    path = write(tmp_path / "a.wav", samples, subtype=subtype)
    content = path.read_bytes()
    place = content.index(b"data")
    head = bytearray(content[:place] + extra + content[place : place + 8])
    head[-4:] = struct.pack("<I", length)
    head[4:8] = struct.pack("<I", min(length + 36, 0xFFFFFFFF))
    path.write_bytes(bytes(head) + content[place + 8 :])
    expected, _ = soundfile.read(write(tmp_path / "b.wav", samples, subtype=subtype), dtype="float32")
    np.testing.assert_array_equal(read_audio(path)[0], expected)


def mp3_frames(content: bytes) -> list[int]:
    """Where the frames of an MPEG-2 layer III file at 16 kHz begin."""
    rates, place, found = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160), 0, []
    while content[place : place + 1] == b"\xff":
        found.append(place)
        place += 72 * rates[content[place + 2] >> 4] * 1000 // 16000 + (content[place + 2] >> 1 & 1)
    return found


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\0\x14" + bytes(20)])
@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_of_variable_rate_without_a_header_is_read_to_its_end(tmp_path, samples, loud_first, tag):
    """libsndfile estimates its length from the first frame: of 80,000 samples it returns half, or reports too many."""
    parts = np.tanh(5 * np.tile(samples, 2)[:40_000]), np.zeros(40_000, np.float32)
    whole = np.concatenate(parts if loud_first else parts[::-1])
    path = write(tmp_path / "a.mp3", whole, bitrate_mode="VARIABLE", compression_level=0.2)
    content = path.read_bytes()
    path.write_bytes(tag + content[mp3_frames(content)[1] :])
    assert abs(len(read_audio(path)[0]) - len(whole)) <= 3 * 1152


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("a.mp3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_compressed_file_cut_short_is_refused(tmp_path, samples, name, subtype, share):
    path = tmp_path / name
    write(path, samples, subtype=subtype, format="MP3" if name.endswith("mp3") else "OGG")
    read_audio(path)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(UserError, match="is truncated"):
        read_audio(path)


def test_a_telephone_recording_is_read(tmp_path, samples):
    """GSM in WAV cannot be seeked in."""
    path = write(tmp_path / "a.wav", samples, rate=8_000, subtype="GSM610")
    assert abs(len(read_audio(path)[0]) - len(samples)) < 640


def test_whatever_a_decoder_raises_is_a_sentence(tmp_path, samples):
    """Headers of every format with garbage behind them, and every prefix of a small file."""
    whole = {name: write(tmp_path / name, samples[:800]).read_bytes() for name in ("a.wav", "a.flac", "a.ogg", "a.mp3")}
    draw = np.random.default_rng(3)
    for name, content in whole.items():
        for length in (5, 12, 30, 44, 60, 100, 200):
            for rest in (b"", draw.bytes(300)):
                (tmp_path / name).write_bytes(content[:length] + rest)
                try:
                    read_audio(tmp_path / name)
                except UserError as error:
                    assert name in str(error) and "\n" not in str(error)


def test_formats_of_ffmpeg_are_decoded_or_name_the_command(tmp_path, samples, monkeypatch):
    ffmpeg = shutil.which("ffmpeg")
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"ffmpeg -i a\.m4a a\.flac"):
        read_audio(tmp_path / "a.m4a")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed")
    monkeypatch.undo()
    write(tmp_path / "a.wav", samples)
    for name in ("b.m4a", "b.webm", "b.mkv"):
        subprocess.run([ffmpeg, "-v", "error", "-i", tmp_path / "a.wav", tmp_path / name], check=True)
        read, rate = read_audio(tmp_path / name)
        assert abs(len(read) / rate - 1.5) < 0.1
        with open(tmp_path / name, "r+b") as file:
            file.truncate(200)
        with pytest.raises(UserError, match=name):
            read_audio(tmp_path / name)


MANY_MESSAGES = r"""#!/bin/sh
yes "a packet is damaged" | head -n 50000 >&2
printf '.snd\0\0\0\030\377\377\377\377\0\0\0\006\0\0\076\200\0\0\0\001\077\0\0\0'
yes "the last packet is missing" | head -n 50000 >&2
exit $STATUS
"""


@pytest.mark.parametrize("status", ["0", "1"])
def test_a_decoder_with_more_messages_than_a_pipe_holds_does_not_wait_for_us(tmp_path, monkeypatch, status):
    program = tmp_path / "ffmpeg"
    program.write_text(MANY_MESSAGES, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STATUS", status)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    if status == "0":
        samples, rate = read_audio(tmp_path / "a.m4a")
        assert (samples.tolist(), rate) == ([0.5], 16_000)
    else:
        with pytest.raises(UserError, match="a.m4a is truncated or damaged: the last packet is missing"):
            read_audio(tmp_path / "a.m4a")


def test_memory_that_ends_is_not_the_fault_of_the_file(tmp_path, samples):
    with pytest.raises(MemoryError), open_audio(write(tmp_path / "a.wav", samples)):
        raise MemoryError


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


def test_a_wav_of_more_than_2_gib_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    data = 0xA0000000
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", data + 36, b"WAVE") + form + struct.pack("<4sI", b"data", data))
    os.truncate(path, 44 + data)  # a sparse file
    assert checked(path) == path and soundfile.info(path).frames == data // 2


def test_what_follows_empty_audio_is_no_sound(tmp_path):
    write(tmp_path / "a.wav", np.zeros(0, np.float32))
    content = bytearray((tmp_path / "a.wav").read_bytes()) + b"LIST\x04\0\0\0abcd"
    content[4:8] = struct.pack("<I", len(content) - 8)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match="no samples|empty"):
        read_audio(tmp_path / "a.wav")
