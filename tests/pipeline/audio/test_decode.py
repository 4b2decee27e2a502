"""Decoding: formats, rates, channels, stretches, and every way in which a file is refused."""

import io
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.audio.decode import decode_audio
from pipeline.audio.flac import read_flac
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings
from pipeline.errors import SettingValueError
from tests.support.audio import Samples, encode, encode_av, encode_video, noise, tone
from tests.support.errors import refused

LIMITS = DecodeSettings()
HAS_MP3 = "MP3" in soundfile.available_formats()
needs_mp3 = pytest.mark.skipif(not HAS_MP3, reason="this libsndfile has no MP3")


def decode(
    data: bytes, *, rate_hz: int = 16_000, start_s: float | None = None, end_s: float | None = None
) -> Samples:
    return decode_audio(data, LIMITS, sample_rate_hz=rate_hz, start_s=start_s, end_s=end_s).samples


def reason_for(data: bytes, *, start_s: float | None = None, end_s: float | None = None) -> str:
    with pytest.raises(RejectError) as caught:
        decode(data, start_s=start_s, end_s=end_s)
    assert caught.value.stage == "decode"
    return caught.value.reason


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-23),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "DOUBLE", 0.0),
        ("WAV", "ALAW", 0.02),
        ("WAV", "ULAW", 0.02),
        ("WAVEX", "PCM_24", 2**-23),
        ("RF64", "PCM_16", 2**-15),
        ("W64", "PCM_16", 2**-15),
        ("AU", "PCM_16", 2**-15),
        ("CAF", "PCM_24", 2**-23),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
        ("AIFF", "PCM_16", 2**-15),
        pytest.param("MP3", "MPEG_LAYER_III", 0.05, marks=needs_mp3),
    ],
)
def test_libsndfile_formats_decode_to_their_samples(
    container: str, subtype: str, tolerance: float
) -> None:
    samples = tone(1.0, 16_000)
    decoded = decode(encode(samples, 16_000, container, subtype))
    assert decoded.dtype == np.float32
    assert decoded.shape == samples.shape
    inner = slice(500, -500) if subtype == "OPUS" else slice(None)  # its last frame rings
    assert np.abs(decoded - samples)[inner].max() <= tolerance


@pytest.mark.parametrize("video_codec", [None, "mpeg4"])
@pytest.mark.parametrize(
    ("container", "codec", "delay"),
    [
        ("mp4", "aac", 0),
        ("matroska", "aac", 0),
        ("adts", "aac", 1_024),  # the file does not state the encoder's delay
        ("webm", "libopus", 0),
        ("ogg", "libopus", 0),
        ("mp3", "libmp3lame", 0),
        ("mp4", "libmp3lame", 0),
        ("mp4", "alac", 0),
        ("mov", "pcm_s24be", 0),
        ("matroska", "flac", 0),
        ("matroska", "pcm_u8", 0),
        ("wav", "libmp3lame", 1_105),
    ],
)
def test_ffmpeg_formats_decode_to_their_samples(
    container: str, codec: str, delay: int, video_codec: str | None
) -> None:
    if video_codec and container not in ("mp4", "mov", "matroska"):
        pytest.skip("holds no video")
    samples = noise(1.0, 48_000) * np.sin(np.linspace(0, 20, 48_000)).astype(np.float32)
    samples = soxr.resample(soxr.resample(samples, 48_000, 8_000), 8_000, 48_000)
    data = encode_av(samples, 48_000, container, codec, video_codec=video_codec)
    decoded = decode(data, rate_hz=48_000)[delay:]
    assert 0 <= len(decoded) - len(samples) <= 2_048  # codecs fill their last frame
    decoded = decoded[: len(samples)]
    assert np.corrcoef(decoded, samples)[0, 1] > 0.97
    assert np.corrcoef(decoded[1:], samples[:-1])[0, 1] < 0.97  # a shift by a sample is noticed
    if codec.startswith(("pcm_s", "alac", "flac")):
        np.testing.assert_allclose(decoded, samples, atol=2**-15)


@pytest.mark.parametrize(
    ("container", "codec", "tolerance"),
    [
        ("mp4", "alac", 0),
        ("mp4", "aac", 1e-2),  # AAC's output for noise depends on where decoding starts
        ("adts", "aac", 0),
        ("webm", "libopus", 0),
        ("mov", "pcm_s16le", 0),
        ("mp3", "libmp3lame", 1e-6),
    ],
)
def test_segment_equals_that_part_of_an_ffmpeg_file(
    container: str, codec: str, tolerance: float
) -> None:
    data = encode_av(tone(6.0, 48_000), 48_000, container, codec)
    whole = decode(data, rate_hz=48_000)
    for start_s, end_s in [(0.0, 0.5), (0.7131, 2.5), (3.3333, 4.0007), (5.5, None)]:
        part = decode(data, rate_hz=48_000, start_s=start_s, end_s=end_s)
        expected = whole[round(start_s * 48_000) : end_s and round(end_s * 48_000)]
        assert part.shape == expected.shape
        np.testing.assert_allclose(part, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("container", "codec", "layout"),
    [
        ("mp4", "aac", "5.1"),
        ("mp4", "aac", "7.1"),
        ("webm", "libopus", "7.1"),
        ("mov", "pcm_f32le", "hexadecagonal"),
    ],
)
def test_channels_from_ffmpeg_are_averaged(container: str, codec: str, layout: str) -> None:
    num_channels = av.AudioLayout(layout).nb_channels
    channels = np.stack([tone(0.5, 48_000, hz=500 + 70 * i) for i in range(num_channels)], axis=1)
    decoded = decode(encode_av(channels, 48_000, container, codec, layout=layout), rate_hz=48_000)
    # The channel for low frequencies alone is not kept.
    assert np.corrcoef(decoded[: len(channels)], channels.mean(axis=1))[0, 1] > 0.9


@pytest.mark.parametrize("video_codec", [None, "libvpx"])
@pytest.mark.parametrize("input_rate_hz", [8_000, 12_000, 16_000, 24_000])
def test_opus_in_webm_starts_where_its_own_header_says(
    input_rate_hz: int, video_codec: str | None
) -> None:
    data = encode_av(noise(1.0, 48_000), 48_000, "webm", "libopus", video_codec=video_codec)
    delay_ns = 6_500_000  # 312 samples of 48 kHz
    delay = b"\x56\xaa\x83" + delay_ns.to_bytes(3)
    assert data.count(delay) == 1
    too_small = (delay_ns * input_rate_hz // 48_000).to_bytes(3)  # as FFmpeg 5.1 writes it
    changed = data.replace(delay, delay[:3] + too_small)
    expected = decode(data, rate_hz=48_000)
    np.testing.assert_array_equal(decode(changed, rate_hz=48_000), expected)
    cut = decode(changed, rate_hz=48_000, start_s=0.25, end_s=0.75)
    # Beside a picture, where the sound starts is known to a millisecond.
    most_shifted = 48 if video_codec else 0
    assert any(
        np.array_equal(cut, expected[12_000 + shift : 36_000 + shift])
        for shift in range(-most_shifted, most_shifted + 1)
    )


def test_video_without_sound_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        for packet in encode_video(file, "mpeg4", 1.0):
            file.mux(packet)
    assert reason_for(buffer.getvalue()) == "no audio in it"


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_resampled_sine_equals_a_sine_at_the_new_rate(rate_hz: int) -> None:
    decoded = decode(encode(tone(2.0, rate_hz, hz=1_000), rate_hz, "WAV", "FLOAT"))
    assert len(decoded) == 32_000
    inner = slice(800, -800)  # the filter rings where the file begins and ends
    assert np.abs(decoded - tone(2.0, 16_000, hz=1_000))[inner].max() < 1e-4


def test_resampling_removes_frequencies_above_nyquist() -> None:
    decoded = decode(encode(tone(1.0, 48_000, hz=9_000), 48_000, "WAV", "FLOAT"))
    assert np.abs(decoded[800:-800]).max() < 1e-4


@pytest.mark.parametrize("num_channels", [1, 2, 3, 6])
def test_channels_are_averaged(num_channels: int) -> None:
    channels = np.stack([noise(0.5, 16_000, seed=i) for i in range(num_channels)], axis=1)
    decoded = decode(encode(channels, 16_000, "WAV", "FLOAT"))
    np.testing.assert_allclose(decoded, channels.mean(axis=1), atol=1e-7)


def test_two_channels_are_averaged_as_in_float64() -> None:
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.integers(-149, 1, (20_000, 2))
    channels = (rng.uniform(-1, 1, sizes.shape) * sizes).astype(np.float32)
    decoded = decode(encode(channels, 16_000, "WAV", "FLOAT"))
    expected = channels.mean(axis=1, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(decoded, expected)


@settings(max_examples=50)
@given(start=st.integers(0, 15_999), length=st.integers(1, 20_000), whole=st.booleans())
def test_segment_equals_that_part_of_the_file(start: int, length: int, whole: bool) -> None:
    samples = noise(1.0, 16_000)
    end_s = None if whole else (start + length) / 16_000
    decoded = decode(encode(samples, 16_000, "WAV", "FLOAT"), start_s=start / 16_000, end_s=end_s)
    np.testing.assert_array_equal(decoded, samples[start : None if whole else start + length])


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_segment_is_cut_before_resampling(container: str) -> None:
    subtype = "VORBIS" if container == "OGG" else "PCM_16"
    data = encode(noise(2.0, 44_100), 44_100, container, subtype)
    decoded = decode(data, start_s=0.5, end_s=1.25)
    assert len(decoded) == 12_000
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    part = soxr.resample(whole[22_050:55_125], 44_100, 16_000)
    np.testing.assert_allclose(decoded, part, atol=1e-6)


@pytest.mark.parametrize("level", [101, 32_768, 3e38])
def test_samples_far_beyond_full_scale_are_refused(level: float) -> None:
    samples = np.stack([noise(0.1, 16_000)] * 2, axis=1)
    samples[50] = level, -level
    reason = reason_for(encode(samples, 16_000, "WAV", "FLOAT"))
    assert reason == "samples far outside [-1, 1]; scale them"


def test_samples_slightly_beyond_full_scale_are_kept() -> None:
    samples = np.array([0.0, 2.0, -30.0, 100.0, -100.0], np.float32)
    np.testing.assert_array_equal(decode(encode(samples, 16_000, "WAV", "FLOAT")), samples)


def test_empty_file_is_refused() -> None:
    assert reason_for(b"") == "the file is empty"


@pytest.mark.parametrize(
    "data",
    [b"<!DOCTYPE html>\n<html>403 Forbidden</html>\n", b"\x00" * 5000, b"RIFF", b"OggS\x00\x02"],
    ids=["web page", "zeros", "four bytes", "page header"],
)
def test_other_data_than_audio_is_refused(data: bytes) -> None:
    assert reason_for(data).startswith("cannot be decoded (") or data == b"RIFF"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_16"),
        pytest.param("MP3", "MPEG_LAYER_III", marks=needs_mp3),
    ],
)
def test_truncated_file_is_refused(container: str, subtype: str, share: float) -> None:
    data = encode(noise(2.0, 16_000), 16_000, container, subtype)
    reason = reason_for(data[: int(share * len(data))])
    assert reason.startswith(("cannot be decoded (", "cut short or damaged"))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "webm", "adts"])
def test_segment_before_a_truncation_is_decoded(container: str) -> None:
    codecs = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III", "webm": "libopus", "adts": "aac"}
    codec = codecs.get(container, "PCM_16")
    write = encode if container.isupper() else encode_av
    data = write(noise(4.0, 48_000), 48_000, container, codec)
    cut = data[: len(data) // 2]
    decoded = decode(cut, rate_hz=48_000, start_s=0.5, end_s=1.0)
    whole = decode(data, rate_hz=48_000, start_s=0.5, end_s=1.0)
    assert len(decoded) == 24_000
    np.testing.assert_array_equal(decoded, whole)
    assert reason_for(cut, start_s=0.5, end_s=3.5).startswith(
        ("cut short or damaged", "cannot be decoded")
    )


def ogg_pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_ogg_truncated_between_pages_is_refused(codec: str) -> None:
    data = encode(noise(4.0, 16_000), 16_000, "OGG", codec)
    pages = ogg_pages(data)
    assert len(pages) > 3
    for num_pages in range(1, len(pages)):
        reason = reason_for(b"".join(pages[:num_pages]))
        assert reason.startswith(("cut short or damaged", "cannot be decoded ("))
    assert len(decode(data + b"TAG" + bytes(125))) == 64_000


def variable_mp3() -> bytes:
    """Soft and loud seconds by turns, so that the first frames are smaller than most."""
    loud = np.repeat([0.001, 1.0, 0.001, 1.0], 44_100).astype(np.float32)
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", 44_100, 1, "MPEG_LAYER_III", format="MP3", bitrate_mode="VARIABLE"
    ) as file:
        file.write(loud * noise(4.0, 44_100))
    return buffer.getvalue()


@needs_mp3
def test_variable_rate_mp3_without_header_decodes_to_its_end() -> None:
    data = variable_mp3()
    declared = int.from_bytes(data[(count := data.index(b"Xing") + 8) : count + 4])
    bare = data[data.index(data[:2], 2) :]
    decoded = decode(bare, rate_hz=44_100)
    assert len(decoded) == declared * 1_152
    whole = decode(data, rate_hz=44_100)
    assert len(whole) == 4 * 44_100
    at = np.argmax(np.correlate(decoded[:60_000], whole[44_100:50_000], "valid")) - 44_100
    np.testing.assert_allclose(decoded[at : at + len(whole)], whole, atol=1e-4)
    assert reason_for(bare[:-20]) == "cut short or damaged"
    assert len(decode(bare + b"TAG" + bytes(125), rate_hz=44_100)) == len(decoded)


@needs_mp3
def test_file_in_the_working_folder_does_not_hide_an_mp3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "._").touch()
    monkeypatch.chdir(tmp_path)
    assert len(decode(encode(tone(1.0, 16_000), 16_000, "MP3", "MPEG_LAYER_III"))) == 16_000


@pytest.mark.parametrize("container", ["FLAC", "MP3"])
def test_leading_tag_changes_nothing(container: str) -> None:
    subtype = "PCM_16" if container == "FLAC" else "MPEG_LAYER_III"
    data = encode(tone(1.0, 16_000), 16_000, container, subtype)
    tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
    np.testing.assert_array_equal(decode(tag + data), decode(data))


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_stream_without_length_is_decoded(size: int) -> None:
    data = bytearray(encode(noise(1.0, 16_000)))
    data[4:8] = size.to_bytes(4, "little")
    data[40:44] = size.to_bytes(4, "little")
    assert len(decode(bytes(data))) == 16_000


def test_flac_stream_without_length_decodes_to_its_end() -> None:
    whole = encode(noise(1.0, 16_000), 16_000, "FLAC", "PCM_16")
    data = bytearray(whole)
    # The number of samples: 36 bits from the middle of byte 21.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(decode(bytes(data)), decode(whole))
    np.testing.assert_array_equal(decode(bytes(data), end_s=0.5), decode(whole)[:8_000])
    assert reason_for(bytes(data[:-1])).startswith("cannot be decoded (")
    data[len(data) // 2] ^= 1
    assert reason_for(bytes(data)).startswith(("a gap between", "cannot be decoded ("))


@settings(max_examples=40)
@given(
    subtype=st.sampled_from(["PCM_S8", "PCM_16", "PCM_24"]),
    num_channels=st.integers(1, 8),
    num_frames=st.integers(1, 20_000),
    rate_hz=st.sampled_from([8_000, 16_000, 44_100, 96_000]),
    flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 7)), max_size=2),
)
def test_dr_flac_equals_libsndfile_or_defers_to_it(
    subtype: str, num_channels: int, num_frames: int, rate_hz: int, flips: list[tuple[int, int]]
) -> None:
    audio = np.stack([noise(num_frames / rate_hz, rate_hz, seed=s) for s in range(num_channels)], 1)
    data = bytearray(encode(audio, rate_hz, "FLAC", subtype))
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    for position, bit in flips:
        data[position % len(data)] ^= 1 << bit
    block = read_flac(bytes(data), 2**20)
    if block is None:
        assert flips
    else:
        np.testing.assert_array_equal(block[1], expected)


def test_overlong_flac_is_not_read_at_once() -> None:
    data = encode(noise(1.0, 16_000), 16_000, "FLAC", "PCM_16")
    assert read_flac(data, 16_000) is not None
    assert read_flac(data, 15_999) is None
    assert all(read_flac(data[:size], 16_000) is None for size in (4, 41, 42, len(data) - 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("num_bad", [1, 16_000])
def test_nan_and_infinite_samples_are_refused(bad: float, num_bad: int) -> None:
    samples = noise(1.0, 16_000)
    samples[-num_bad:] = bad
    assert reason_for(encode(samples, 16_000, "WAV", "FLOAT")) == "samples that are NaN or infinite"


def test_file_without_samples_is_refused() -> None:
    assert reason_for(encode(np.zeros(0))) == "no samples in it"


@pytest.mark.parametrize(("start_s", "end_s"), [(1.0, None), (1.0, 2.0), (5.0, 6.0), (1e9, None)])
def test_segment_outside_the_file_is_refused(start_s: float, end_s: float | None) -> None:
    reason = reason_for(encode(noise(1.0, 16_000)), start_s=start_s, end_s=end_s)
    assert reason == "no samples in the stretch from start_s to end_s"


def test_segment_past_the_end_stops_there() -> None:
    assert len(decode(encode(noise(1.0, 16_000)), start_s=0.5, end_s=99.0)) == 8_000


def test_long_recording_is_refused_but_not_its_short_segment() -> None:
    limits = DecodeSettings(max_duration_s=1.0)
    data = encode(noise(1.5, 16_000))
    with pytest.raises(RejectError, match=r"\b1 s; --max-duration-s\b"):
        decode_audio(data, limits, sample_rate_hz=16_000)
    cut = decode_audio(data, limits, sample_rate_hz=16_000, end_s=1.0)
    assert len(cut.samples) == 16_000


def test_header_promising_hours_is_refused() -> None:
    data = bytearray(encode(noise(1.0, 16_000), 16_000, "FLAC", "PCM_16"))
    data[22:26] = b"\xff" * 4
    assert reason_for(bytes(data)) == "cut short or damaged"


def test_too_many_channels_are_refused_unread() -> None:
    # 24 bytes of samples, and a header that promises 255 channels at 768 kHz for ten hours.
    fmt = struct.pack("<HHIIHH", 1, 255, 768_000, 255 * 768_000, 255, 8)
    data = b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    data += b"data" + struct.pack("<I", 0x7FFE_0000) + bytes(24)
    with pytest.raises(RejectError):
        decode(data)
    limits = DecodeSettings(max_values=1_000)
    channels = np.zeros((101, 10))
    for data in (encode(channels), encode_av(channels, 48_000, "mov", "pcm_s16le", layout="10c")):
        with pytest.raises(RejectError, match="channels"):
            decode_audio(data, limits, sample_rate_hz=16_000)
        decode_audio(data, limits, sample_rate_hz=16_000, end_s=0.002)


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16")])
def test_memory_is_bounded_by_the_result_not_by_the_file(container: str, subtype: str) -> None:
    channels = np.zeros((2_000_000, 8), np.float32)
    data = encode(channels, 48_000, container, subtype)
    del channels
    tracemalloc.start()
    decoded = decode(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(decoded) == -(-2_000_000 // 3)
    assert peak_bytes < len(data) + 40 * 2**20  # decoded at once, it would be 64 MB and a copy


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001, 2_000_000_000])
def test_sample_rate_out_of_range_is_refused(rate_hz: int) -> None:
    data = bytearray(encode(noise(0.1, 16_000)))
    data[24:28] = rate_hz.to_bytes(4, "little")
    assert reason_for(bytes(data)) == "the sample rate in the header is out of range"


@pytest.mark.parametrize("max_duration_s", [0.0, -1.0, 86_401.0, float("nan")])
def test_limits_out_of_range_are_refused(max_duration_s: float) -> None:
    with refused("max_duration_s", f"got {max_duration_s}", type=SettingValueError):
        DecodeSettings(max_duration_s=max_duration_s)


VALID = {
    container: encode(noise(0.2, 16_000), 16_000, container, subtype)
    for container, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"))
}


@settings(max_examples=200)
@given(
    container=st.sampled_from(sorted(VALID)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    in_header=st.booleans(),
)
def test_damaged_bytes_decode_or_are_refused(
    container: str, changes: list[tuple[float, int]], in_header: bool
) -> None:
    data = bytearray(VALID[container])
    end = 100 if in_header else len(data)
    for share, value in changes:
        data[int(share * (end - 1))] = value
    try:
        decoded: NDArray[np.float32] = decode(bytes(data))
    except RejectError:
        return
    assert decoded.ndim == 1
    assert decoded.dtype == np.float32
