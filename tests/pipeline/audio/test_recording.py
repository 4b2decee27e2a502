"""A recording decoded as a stream equals the whole file, from memory and from an open file."""

import io
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.audio.decode import decode_audio
from pipeline.audio.recording import decode_stream
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings
from tests.pipeline.audio.test_stretches import FORMATS, RATE_HZ
from tests.support.audio import Samples, encode, encode_av, noise

SETTINGS = DecodeSettings()
NEEDS_EXAMINATION = ("flac twice", "vorbis twice")
"""Files that their decoder alone reads up to the end of the first recording."""


def join(source: bytes | io.BytesIO, **stretch: float) -> Samples:
    blocks = decode_stream(source, SETTINGS, sample_rate_hz=16_000, **stretch)
    return np.concatenate([block.samples for block in blocks])


def until_fault(source: bytes | io.BytesIO) -> tuple[Samples, str]:
    """The samples at the rate of the file before the fault, and its reason."""
    parts = [np.empty(0, np.float32)]
    with pytest.raises(RejectError) as error:
        parts += (
            block.samples for block in decode_stream(source, SETTINGS, sample_rate_hz=RATE_HZ)
        )
    return np.concatenate(parts), error.value.reason


def sources(data: bytes) -> Iterator[bytes | io.BytesIO]:
    yield data
    yield io.BytesIO(data)


@pytest.mark.parametrize("name", FORMATS)
def test_stream_equals_whole_file(name: str) -> None:
    data = FORMATS[name](noise(3.3, RATE_HZ))
    whole = decode_audio(data, SETTINGS, sample_rate_hz=16_000)
    np.testing.assert_array_equal(join(data), whole.samples)
    if name not in NEEDS_EXAMINATION:
        np.testing.assert_array_equal(join(io.BytesIO(data)), whole.samples)


@pytest.mark.parametrize("name", ["wav 16", "flac 16", "mp3", "opus", "m4a"])
def test_stretch_equals_that_of_the_whole_file(name: str) -> None:
    data = FORMATS[name](noise(3.3, RATE_HZ))
    stretch = {"start_s": 0.7, "end_s": 2.1}
    whole = decode_audio(data, SETTINGS, sample_rate_hz=16_000, **stretch).samples
    for source in sources(data):
        np.testing.assert_array_equal(join(source, **stretch), whole)


def test_no_limit_on_the_length() -> None:
    data = encode(noise(3.0, RATE_HZ), RATE_HZ)
    with pytest.raises(RejectError):
        decode_audio(data, DecodeSettings(max_duration_s=1), sample_rate_hz=16_000)
    blocks = decode_stream(data, DecodeSettings(max_duration_s=1), sample_rate_hz=16_000)
    assert sum(len(block.samples) for block in blocks) == 48_000


def test_all_before_the_end_of_a_cut_wav() -> None:
    samples = noise(3.0, RATE_HZ)
    data = encode(samples, RATE_HZ, subtype="FLOAT")
    cut = data[: len(data) // 2]
    for source in sources(cut):
        before, reason = until_fault(source)
        assert reason == "cut short or damaged"
        assert len(before) > RATE_HZ
        np.testing.assert_array_equal(before, samples[: len(before)])


@pytest.mark.parametrize("name", ["mp3", "flac 16", "webm", "m4a"])
def test_all_before_a_damaged_part(name: str) -> None:
    data = FORMATS[name](noise(60.0, RATE_HZ))
    whole = decode_audio(data, SETTINGS, sample_rate_hz=RATE_HZ).samples
    middle = len(data) // 2
    damaged = data[:middle] + bytes(5_000) + data[middle + 5_000 :]
    before, _ = until_fault(io.BytesIO(damaged))
    assert len(before) > 20 * RATE_HZ
    np.testing.assert_array_equal(before, whole[: len(before)])


def test_large_file_without_audio() -> None:
    assert until_fault(io.BytesIO(b"text " * 1_000))[1].startswith("cannot be decoded")
    assert until_fault(io.BytesIO(b""))[1].startswith("cannot be decoded")


def test_odd_file_is_refused_where_settings_are_strict() -> None:
    data = encode_av(noise(1.0, RATE_HZ), RATE_HZ, "mp3", "libmp3lame") + b"more bytes" * 100
    join(data)
    with pytest.raises(RejectError):
        list(decode_stream(data, DecodeSettings(strict=True), sample_rate_hz=16_000))
