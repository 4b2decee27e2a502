"""Decoding: formats, rates, channels, stretches, and every way in which a file is refused."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.decode import DecodeSettings, decode_audio
from pipeline.rejects import RejectError
from tests.audio import Samples, encode, noise, tone

LIMITS = DecodeSettings()
HAS_MP3 = "MP3" in soundfile.available_formats()
needs_mp3 = pytest.mark.skipif(not HAS_MP3, reason="this libsndfile has no MP3")


def decode(
    data: bytes, *, rate_hz: int = 16_000, start_s: float | None = None, end_s: float | None = None
) -> Samples:
    return decode_audio(data, LIMITS, sample_rate_hz=rate_hz, start_s=start_s, end_s=end_s)


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
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.05),
        ("AIFF", "PCM_16", 2**-15),
        pytest.param("MP3", "MPEG_LAYER_III", 0.05, marks=needs_mp3),
    ],
)
def test_formats(container: str, subtype: str, tolerance: float) -> None:
    samples = tone(1.0, 16_000)
    decoded = decode(encode(samples, 16_000, container, subtype))
    assert decoded.dtype == np.float32
    assert decoded.shape == samples.shape
    assert np.abs(decoded - samples).max() <= tolerance


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_resampled_sine_is_the_sine_of_the_other_rate(rate_hz: int) -> None:
    decoded = decode(encode(tone(2.0, rate_hz, hz=1_000), rate_hz, "WAV", "FLOAT"))
    assert len(decoded) == 32_000
    inner = slice(800, -800)  # the filter rings where the file begins and ends
    assert np.abs(decoded - tone(2.0, 16_000, hz=1_000))[inner].max() < 1e-4


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    decoded = decode(encode(tone(1.0, 48_000, hz=9_000), 48_000, "WAV", "FLOAT"))
    assert np.abs(decoded[800:-800]).max() < 1e-4


@pytest.mark.parametrize("num_channels", [1, 2, 3, 6])
def test_channels_are_averaged(num_channels: int) -> None:
    channels = np.stack([noise(0.5, 16_000, seed=i) for i in range(num_channels)], axis=1)
    decoded = decode(encode(channels, 16_000, "WAV", "FLOAT"))
    np.testing.assert_allclose(decoded, channels.mean(axis=1), atol=1e-7)


@settings(max_examples=50)
@given(start=st.integers(0, 15_999), length=st.integers(1, 20_000), whole=st.booleans())
def test_a_stretch_is_that_part_of_the_file(start: int, length: int, whole: bool) -> None:
    samples = noise(1.0, 16_000)
    end_s = None if whole else (start + length) / 16_000
    decoded = decode(encode(samples, 16_000, "WAV", "FLOAT"), start_s=start / 16_000, end_s=end_s)
    np.testing.assert_array_equal(decoded, samples[start : None if whole else start + length])


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_a_stretch_is_cut_before_resampling(container: str) -> None:
    subtype = "VORBIS" if container == "OGG" else "PCM_16"
    data = encode(noise(2.0, 44_100), 44_100, container, subtype)
    decoded = decode(data, start_s=0.5, end_s=1.25)
    assert len(decoded) == 12_000
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    part = soxr.resample(whole[22_050:55_125], 44_100, 16_000)
    np.testing.assert_allclose(decoded, part, atol=1e-6)


def test_channels_of_the_largest_numbers_have_a_mean() -> None:
    decoded = decode(encode(np.full((100, 2), 3e38, np.float32), 16_000, "WAV", "FLOAT"))
    np.testing.assert_array_equal(decoded, np.full(100, 3e38, np.float32))


def test_an_empty_file_is_refused() -> None:
    assert reason_for(b"") == "the file is empty"


@pytest.mark.parametrize(
    "data",
    [b"<!DOCTYPE html>\n<html>403 Forbidden</html>\n", b"\x00" * 5000, b"RIFF", b"OggS\x00\x02"],
    ids=["web page", "zeros", "four bytes", "page header"],
)
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    assert reason_for(data).startswith("cannot be decoded (")


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
def test_a_file_cut_short_is_refused(container: str, subtype: str, share: float) -> None:
    data = encode(noise(2.0, 16_000), 16_000, container, subtype)
    reason = reason_for(data[: int(share * len(data))])
    assert reason.startswith(("cannot be decoded (", "ends before the length its header gives"))


@pytest.mark.parametrize("share", [0.002, 0.01, 0.1])
def test_an_ogg_cut_within_its_first_page_is_refused(share: float) -> None:
    # Its length stands nowhere: one cut later is a shorter recording that is whole.
    data = encode(noise(2.0, 16_000), 16_000, "OGG", "VORBIS")
    assert reason_for(data[: int(share * len(data))]).startswith("cannot be decoded (")


def test_a_stretch_before_the_cut_of_a_wav_is_there() -> None:
    samples = noise(2.0, 16_000)
    data = encode(samples, 16_000, "WAV", "FLOAT")
    decoded = decode(data[: len(data) // 2], end_s=0.5)
    np.testing.assert_array_equal(decoded, samples[:8_000])


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_written_as_a_stream_has_no_length_to_miss(size: int) -> None:
    data = bytearray(encode(noise(1.0, 16_000)))
    data[4:8] = size.to_bytes(4, "little")
    data[40:44] = size.to_bytes(4, "little")
    assert len(decode(bytes(data))) == 16_000


def test_a_flac_written_as_a_stream_needs_an_end() -> None:
    data = bytearray(encode(noise(1.0, 16_000), 16_000, "FLAC", "PCM_16"))
    # The number of samples: 36 bits from the middle of byte 21.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert reason_for(bytes(data)) == "its header gives no length"
    assert len(decode(bytes(data), end_s=0.5)) == 8_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("num_bad", [1, 16_000])
def test_samples_that_are_no_numbers_are_refused(bad: float, num_bad: int) -> None:
    samples = noise(1.0, 16_000)
    samples[-num_bad:] = bad
    assert reason_for(encode(samples, 16_000, "WAV", "FLOAT")) == "samples that are NaN or infinite"


def test_no_samples_are_refused() -> None:
    assert reason_for(encode(np.zeros(0))) == "no samples in the stretch from start_s to end_s"


@pytest.mark.parametrize(("start_s", "end_s"), [(1.0, None), (1.0, 2.0), (5.0, 6.0), (1e9, None)])
def test_a_stretch_outside_the_file_is_refused(start_s: float, end_s: float | None) -> None:
    reason = reason_for(encode(noise(1.0, 16_000)), start_s=start_s, end_s=end_s)
    assert reason == "no samples in the stretch from start_s to end_s"


def test_a_stretch_past_the_end_is_cut_there() -> None:
    assert len(decode(encode(noise(1.0, 16_000)), start_s=0.5, end_s=99.0)) == 8_000


def test_a_long_recording_is_refused_but_not_a_short_stretch_of_it() -> None:
    limits = DecodeSettings(max_duration_s=1.0)
    data = encode(noise(1.5, 16_000))
    with pytest.raises(RejectError, match="longer than 1 s"):
        decode_audio(data, limits, sample_rate_hz=16_000)
    assert len(decode_audio(data, limits, sample_rate_hz=16_000, end_s=1.0)) == 16_000


def test_a_header_that_promises_hours_is_refused_unread() -> None:
    data = bytearray(encode(noise(1.0, 16_000), 16_000, "FLAC", "PCM_16"))
    data[22:26] = b"\xff" * 4
    assert reason_for(bytes(data)) == "longer than 600 s"


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001, 2_000_000_000])
def test_a_sample_rate_out_of_range_is_refused(rate_hz: int) -> None:
    data = bytearray(encode(noise(0.1, 16_000)))
    data[24:28] = rate_hz.to_bytes(4, "little")
    assert reason_for(bytes(data)) == "the sample rate in the header is out of range"


@pytest.mark.parametrize("max_duration_s", [0.0, -1.0, 86_401.0, float("nan")])
def test_limits_out_of_range_are_refused(max_duration_s: float) -> None:
    with pytest.raises(ValueError, match=r"^max_duration_s: must be"):
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
    for place, value in changes:
        data[int(place * (end - 1))] = value
    try:
        decoded: NDArray[np.float32] = decode(bytes(data))
    except RejectError:
        return
    assert decoded.ndim == 1
    assert decoded.dtype == np.float32
