"""A stretch of a file equals that part of the whole file, whatever its format and place."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import sndfile
from pipeline.audio.decode import decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings
from tests.support.audio import Samples, encode, encode_av, noise, tone

LIMITS = DecodeSettings()
RATE_HZ = 48_000
DELAY = 1_500
"""Most samples that an encoder puts before the first."""


def stereo(samples: Samples) -> Samples:
    return np.stack([samples, 0.5 * samples[::-1]], axis=1)


def low_rate(samples: Samples) -> Samples:
    return np.asarray(soxr.resample(samples, RATE_HZ, 16_000), np.float32)


FORMATS: dict[str, Callable[[Samples], bytes]] = {
    "wav 16": lambda x: encode(stereo(x), RATE_HZ),
    "wav 24": lambda x: encode(x, RATE_HZ, "WAVEX", "PCM_24"),
    "wav double": lambda x: encode(stereo(x), RATE_HZ, "WAV", "DOUBLE"),
    "wav mu-law": lambda x: encode(x, RATE_HZ, "WAV", "ULAW"),
    "wav gsm": lambda x: encode(x, RATE_HZ, "WAV", "GSM610"),
    "wav ima": lambda x: encode(x, RATE_HZ, "WAV", "IMA_ADPCM"),
    "wav ms": lambda x: encode(x, RATE_HZ, "WAV", "MS_ADPCM"),
    "wav mp3": lambda x: encode_av(x, RATE_HZ, "wav", "libmp3lame"),
    "wav int64": lambda x: encode_av(x, RATE_HZ, "wav", "pcm_s64le"),
    "rf64": lambda x: encode(x, RATE_HZ, "RF64", "PCM_16"),
    "w64 float": lambda x: encode_av(x, RATE_HZ, "w64", "pcm_f32le"),
    "w64 24": lambda x: encode(stereo(x), RATE_HZ, "W64", "PCM_24"),
    "aiff 24": lambda x: encode(stereo(x), RATE_HZ, "AIFF", "PCM_24"),
    "aiff float": lambda x: encode(x, RATE_HZ, "AIFF", "FLOAT"),
    "au 16": lambda x: encode(stereo(x), RATE_HZ, "AU", "PCM_16"),
    "caf 16": lambda x: encode(stereo(x), RATE_HZ, "CAF", "PCM_16"),
    "sphere": lambda x: encode(x, RATE_HZ, "NIST", "PCM_16"),
    "flac 16": lambda x: encode(stereo(x), RATE_HZ, "FLAC", "PCM_16"),
    "flac 24": lambda x: encode(x, RATE_HZ, "FLAC", "PCM_24"),
    "flac twice": lambda x: 2 * encode(x, RATE_HZ, "FLAC", "PCM_16"),
    "vorbis": lambda x: encode(stereo(x), RATE_HZ, "OGG", "VORBIS"),
    "vorbis low": lambda x: encode(low_rate(x), 16_000, "OGG", "VORBIS"),
    "vorbis twice": lambda x: 2 * encode(x, RATE_HZ, "OGG", "VORBIS"),
    "opus": lambda x: encode(x, RATE_HZ, "OGG", "OPUS"),
    "mp3": lambda x: encode_av(stereo(x), RATE_HZ, "mp3", "libmp3lame", layout="stereo"),
    "mp3 low": lambda x: encode(low_rate(x), 16_000, "MP3", "MPEG_LAYER_III"),
    "mp3 no xing": lambda x: encode_av(x, RATE_HZ, "mp3", "libmp3lame", write_xing="0"),
    "aac": lambda x: encode_av(x, RATE_HZ, "adts", "aac"),
    "m4a": lambda x: encode_av(stereo(x), RATE_HZ, "mp4", "aac", layout="stereo"),
    "m4a alac": lambda x: encode_av(x, RATE_HZ, "mp4", "alac"),
    "mov pcm": lambda x: encode_av(x, RATE_HZ, "mov", "pcm_s24be", video_codec="mpeg4"),
    "mp4 video": lambda x: encode_av(x, RATE_HZ, "mp4", "aac", video_codec="mpeg4"),
    "mkv pcm": lambda x: encode_av(x, RATE_HZ, "matroska", "pcm_s16le"),
    "mkv mp3": lambda x: encode_av(x, RATE_HZ, "matroska", "libmp3lame"),
    "webm": lambda x: encode_av(x, RATE_HZ, "webm", "libopus", video_codec="libvpx"),
    "wavpack": lambda x: encode_av(x, RATE_HZ, "wv", "wavpack"),
    "tta": lambda x: encode_av(x, RATE_HZ, "tta", "tta"),
    "wma": lambda x: encode_av(x, RATE_HZ, "asf", "wmav2", bit_rate=128_000),
    "avi": lambda x: encode_av(x, RATE_HZ, "avi", "libmp3lame", video_codec="mpeg4"),
    "flv": lambda x: encode_av(low_rate(x), 16_000, "flv", "aac"),
    "mpegts": lambda x: encode_av(x, RATE_HZ, "mpegts", "aac", video_codec="mpeg2video"),
}


@cache
def sound() -> Samples:
    return tone(2.5, RATE_HZ, hz=300) * tone(2.5, RATE_HZ, hz=3) + noise(2.5, RATE_HZ, level=0.05)


@cache
def file(name: str) -> bytes:
    return FORMATS[name](sound())


def decode(name: str, rate_hz: int, **stretch: float) -> Samples:
    return decode_audio(file(name), LIMITS, sample_rate_hz=rate_hz, **stretch).samples


@cache
def whole(name: str) -> tuple[int, Samples]:
    rate_hz = 16_000 if "low" in name or name == "flv" else RATE_HZ
    return rate_hz, decode(name, rate_hz)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_stretch_equals_that_part_of_the_whole(name: str, data: st.DataObject) -> None:
    rate_hz, samples = whole(name)
    assert len(samples) > 2.4 * rate_hz
    start = data.draw(st.integers(0, len(samples) - 1), "start")
    end = data.draw(st.integers(start + 1, len(samples) + 1_000), "end")
    cut = decode(name, rate_hz, start_s=start / rate_hz, end_s=end / rate_hz)
    np.testing.assert_array_equal(cut, samples[start:end])


@pytest.mark.parametrize("name", FORMATS)
def test_stretch_without_an_end_leads_to_the_end_of_the_file(name: str) -> None:
    rate_hz, samples = whole(name)
    cut = decode(name, rate_hz, start_s=2.0)
    np.testing.assert_array_equal(cut, samples[2 * rate_hz :])
    with pytest.raises(RejectError, match="no samples in the stretch"):
        decode(name, rate_hz, start_s=len(samples) / rate_hz + 0.1)


@pytest.mark.parametrize("late_s", [0.0, 0.7])
@pytest.mark.parametrize(
    ("container", "codec", "video_codec"),
    [
        ("mp4", "aac", "mpeg4"),
        ("mov", "pcm_s16le", "mpeg4"),
        ("webm", "libopus", "libvpx"),
        ("matroska", "pcm_s16le", "mpeg4"),
        ("mpegts", "mp2", "mpeg2video"),
    ],
)
def test_stretches_are_on_the_clock_of_the_file(
    container: str, codec: str, video_codec: str, late_s: float
) -> None:
    data = encode_av(sound(), RATE_HZ, container, codec, video_codec=video_codec, late_s=late_s)

    def decoded(**stretch: float) -> Samples:
        return decode_audio(data, LIMITS, sample_rate_hz=RATE_HZ, **stretch).samples

    samples = decoded()
    assert len(samples) >= len(sound())
    for start_s, end_s in ((0.5, 1.5), (1.25, 2.0)):
        cut = decoded(start_s=start_s, end_s=end_s)
        # The encoder's delay may precede the sound.
        at = round(max(0.0, start_s - late_s) * RATE_HZ)
        assert abs(len(cut) / RATE_HZ - (end_s - max(start_s, late_s))) < DELAY / RATE_HZ
        assert any(
            np.array_equal(cut[:1_000], samples[first : first + 1_000])
            for first in range(max(0, at - DELAY), at + DELAY)
        )


@pytest.mark.parametrize("num_channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("container", "endian"), [("WAV", "LITTLE"), ("WAV", "BIG"), ("WAVEX", "")]
)
def test_16_bit_wav_in_memory_equals_what_libsndfile_reads(
    container: str, endian: str, num_channels: int
) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(-(2**15), 2**15, (5_001, num_channels)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(
        file, samples, 16_000, format=container, subtype="PCM_16", endian=endian or None
    )
    data = file.getvalue()
    for start_s, end_s in ((0.0, None), (0.1, None), (0.05, 0.2), (0.3, 9.0), (1.0, None)):
        ours, theirs = (sndfile.open_wav(data, start_s, end_s) for _ in range(2))
        assert ours is not None
        assert theirs is not None
        assert ours.integers is not None
        expected = list(replace(theirs, integers=None).read_blocks())
        for (_, got), (_, wanted) in zip(ours.read_blocks(), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_libsndfile_opens_no_wav_with_several_parts_that_hold_samples() -> None:
    data = encode(noise(0.5, 16_000), 16_000)
    for between in (b"", b"LIST\x04\0\0\0abcd"):
        several = bytearray(data + between + data[36:])
        several[4:8] = (len(several) - 8).to_bytes(4, "little")
        assert sndfile.open_wav(bytes(several), 0.0, 0.1) is None
